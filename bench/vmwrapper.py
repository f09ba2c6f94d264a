"""What vmwrapper adds to the start of an emulator."""

import os
import secrets
import subprocess
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from statistics import median

from bench.bench import Bench
from bench.figures import spread
from bench.row import Row
from virtlet.launch.server import LaunchServer
from virtlet.launch.wrapper import install_wrapper
from virtlet.model.launch import ENV_SOCKET, ENV_TOKEN, ENV_VM, LaunchFd, LaunchPart

EMULATOR = Path("/usr/bin/true")
BOUND = 60.0
"""Milliseconds."""
VM = "0123456789abcdef0123456789abcdef"


def measure(bench: Bench) -> list[Row]:
    """An emulator that ends at once, with and without the wrapper in front, by turns."""
    count = bench.times(60, 10)
    with tempfile.TemporaryDirectory(dir="/var/tmp") as name:
        directory = Path(name)
        wrapper = install_wrapper(
            directory / "bin" / "vmwrapper", EMULATOR, os.getuid(), os.getgid()
        )
        server = LaunchServer(directory / "launch.sock", os.getuid(), os.getgid())
        server.start()
        try:
            wrapped, bare = [], []
            for _ in range(count + 3):
                token = secrets.token_urlsafe(32)
                server.arm(VM, token, [("bench", _part())])
                environment = {ENV_SOCKET: str(directory / "launch.sock"), ENV_VM: VM}
                wrapped.append(_seconds(wrapper, {**environment, ENV_TOKEN: token}))
                bare.append(_seconds(EMULATOR, {}))
        finally:
            server.stop()
    wrapped, bare = wrapped[3:], bare[3:]  # the first ones fill the page cache
    return [
        Row(
            name="vmwrapper before the emulator",
            value=1000 * (median(wrapped) - median(bare)),
            bound=BOUND,
            unit="ms",
            detail=f"with it {spread(wrapped)}, without {spread(bare)}, {count} each",
            samples={"wrapped": wrapped, "bare": bare},
        )
    ]


def _part() -> LaunchPart:
    """What a VM with one NIC is handed."""
    arguments = ("-netdev", "tap,id=net0,fd={fd:tap0}", "-device", "virtio-net-pci,netdev=net0")
    return LaunchPart(
        arguments=arguments, fds=(LaunchFd(name="tap0", fd=os.open("/dev/null", os.O_RDWR)),)
    )


def _seconds(program: Path, environment: Mapping[str, str]) -> float:
    started = time.perf_counter()
    subprocess.run([program, "-nodefaults"], env=environment, check=True)
    return time.perf_counter() - started
