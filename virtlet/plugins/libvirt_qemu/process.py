"""What libvirt needs once per process: an event loop and quiet error reports.

These are properties of the process, not of a plugin instance, so this is one of the two places of
the plugin that keep state in a module: the thread lives as long as the process.
"""

import contextlib
import threading

import libvirt

_once = threading.Lock()
_running: set[str] = set()


def prepare() -> None:
    """Start libvirt's event loop; must come before the first connection is opened."""
    with _once:
        if "loop" in _running:
            return
        libvirt.virEventRegisterDefaultImpl()
        # libvirt's default prints every error to stderr, also those we handle.
        libvirt.registerErrorHandler(lambda _context, _error: None, None)
        threading.Thread(target=_run_events, name="libvirt-events", daemon=True).start()
        _running.add("loop")


def _run_events() -> None:
    while True:
        with contextlib.suppress(libvirt.libvirtError):
            libvirt.virEventRunDefaultImpl()
