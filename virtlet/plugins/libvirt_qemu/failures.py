"""libvirt's errors as ours, and what the emulator said last, from the domain's log."""

import contextlib
import os
import re
from pathlib import Path

import libvirt

from virtlet.errors import AlreadyExists, InvalidArgument, NotFound, Unavailable, VirtletError

_TAIL = 8192
"""Bytes of the log that are looked at."""
_LINES = 4
_LONGEST = 600
_STAMP = re.compile(r"^\d{4}-\d\d-\d\d[T ]\d\d:\d\d:\d\d\.\d+(?:Z|\+0000:)\s*")
_SIGNAL = re.compile(r"\bterminating on signal \d+(?: from pid (\d+) \((.*)\))?")
"""QEMU's message before it ends by a signal that it can catch."""
_DAEMONS = ("libvirtd", "virtqemud")
_BROKEN_TPM = (
    "the state of the TPM is broken, or a newer swtpm wrote it: a new attempt has a new TPM; where "
    "the root disk outlives its pod, restore its volume"
)
"""What it means that the emulator has a complaint about its TPM, which answers."""
_LOCKED_MEMORY = (
    "memory that is locked, as with lock_memory or a passed-through device, takes CAP_SYS_RESOURCE "
    "or LimitMEMLOCK=infinity for whoever runs libvirt"
)
_NOISE = re.compile(r"^(starting up libvirt|shutting down|Domain id=\d+ is tainted|char device )")

_LOST = frozenset(
    {
        libvirt.VIR_ERR_NO_CONNECT,
        libvirt.VIR_ERR_INVALID_CONN,
        libvirt.VIR_ERR_RPC,
        libvirt.VIR_ERR_NO_CLIENT,
        libvirt.VIR_ERR_NO_SERVER,
        libvirt.VIR_ERR_AUTH_UNAVAILABLE,
    }
)
_TRANSPORT = frozenset({libvirt.VIR_FROM_RPC, libvirt.VIR_FROM_REMOTE})
_REFUSED = frozenset(
    {
        libvirt.VIR_ERR_XML_ERROR,
        libvirt.VIR_ERR_XML_DETAIL,
        libvirt.VIR_ERR_XML_INVALID_SCHEMA,
        libvirt.VIR_ERR_CONFIG_UNSUPPORTED,
        libvirt.VIR_ERR_INVALID_ARG,
        libvirt.VIR_ERR_UNKNOWN_HOST,
        libvirt.VIR_ERR_OS_TYPE,
        libvirt.VIR_ERR_INTERNAL_ERROR,
        libvirt.VIR_ERR_NO_SUPPORT,
    }
)
_TAKEN = frozenset({libvirt.VIR_ERR_DOM_EXIST, libvirt.VIR_ERR_OPERATION_FAILED})


def why(message: str, log: Path) -> str:
    """What an operator should read when an emulator did not start.

    Args:
        message: libvirt's own; often ends with the emulator's lines.
        log: the domain's log.

    Returns:
        One line of bounded length. The command line, which has the launch token in it, is never
        quoted.
    """
    head, _, quoted = message.partition("\n")
    before, colon, first = head.rpartition("): ")
    lines = _words([first, *quoted.splitlines()] if colon else quoted.splitlines())
    if not lines:
        with contextlib.suppress(OSError):
            lines = _words(_tail(log))
    text = (before + ")") if colon else head
    said = "; ".join(lines[-_LINES:])
    told = f"{text.strip()[:_LONGEST]}: {said}"[:_LONGEST] if said else text.strip()[:_LONGEST]
    hints = {"tpm-emulator": _BROKEN_TPM, "locked memory": _LOCKED_MEMORY}
    return "; ".join([told, *(hint for word, hint in hints.items() if word in told)])


def ended_by_signal(log: Path) -> bool:
    """Whether the last run of the emulator was ended by a signal that is not libvirt's.

    libvirt, which may be in this process, sends one for reasons of its own.
    """
    with contextlib.suppress(OSError):
        for line in _words(_tail(log)):
            if said := _SIGNAL.search(line):
                pid, program = said.group(1), said.group(2) or ""
                return pid != str(os.getpid()) and Path(program).name not in _DAEMONS
    return False


def _tail(log: Path) -> list[str]:
    with log.open("rb") as file:
        file.seek(0, 2)
        file.seek(max(0, file.tell() - _TAIL))
        return file.read().decode(errors="replace").splitlines()


def _words(lines: list[str]) -> list[str]:
    """Lines with a message, since the last start."""
    said: list[str] = []
    for line in lines:
        text = _STAMP.sub("", line).strip()
        if text.startswith("starting up libvirt"):
            said.clear()
        elif (
            text and not text.endswith("\\") and not text.startswith("-") and not _NOISE.match(text)
        ):
            said.append(text)
    return said


def is_lost(error: libvirt.libvirtError) -> bool:
    """Whether the connection, not the request, is at fault."""
    code = error.get_error_code()
    return code in _LOST or (
        error.get_error_domain() in _TRANSPORT
        and code in (libvirt.VIR_ERR_SYSTEM_ERROR, libvirt.VIR_ERR_INTERNAL_ERROR)
    )


def is_missing(error: libvirt.libvirtError) -> bool:
    """Whether there is no such domain."""
    return bool(error.get_error_code() == libvirt.VIR_ERR_NO_DOMAIN)


def is_wrong_state(error: libvirt.libvirtError) -> bool:
    """Whether the domain is not in the state (running, stopped) that the call is for."""
    return bool(error.get_error_code() == libvirt.VIR_ERR_OPERATION_INVALID)


def translate(error: libvirt.libvirtError, doing: str) -> VirtletError:
    """The error of ours for one of libvirt's.

    Args:
        error: what libvirt raised.
        doing: what was tried, on what: "define VM 0123".
    """
    text = f"cannot {doing}: {short(error)}"
    code = error.get_error_code()
    if is_lost(error):
        return Unavailable(f"{text}; libvirt does not answer")
    if is_missing(error):
        return NotFound(text)
    if code in _TAKEN:
        return AlreadyExists(text)
    if code in _REFUSED:
        return InvalidArgument(text)
    if code == libvirt.VIR_ERR_OPERATION_TIMEOUT:
        return Unavailable(text)
    return VirtletError(text)


def short(error: libvirt.libvirtError) -> str:
    """libvirt's own message, bounded: it may quote a log or a document."""
    return (error.get_error_message() or "libvirt gave no reason").strip()[:500]
