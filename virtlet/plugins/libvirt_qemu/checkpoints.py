"""Checkpoints: a running VM's memory and root disk, written to one file while it runs on.

QEMU migrates memory and devices to a file of ours as the guest runs, each page to its own place, so
that the file is never larger than the memory whatever the guest writes. The guest stands still for
the last pages. A backup job of the disk then begins, and the guest goes on: the job copies what the
guest is about to overwrite first, so the disk is that of the moment of the memory, and its chain is
never longer. The emulator gets the file as a descriptor, and sees no path.

Nothing here is told to libvirt, which only hears that the guest stood still for a moment.

Source: migrate, mapped-ram, blockdev-set-active, blockdev-backup and job-* of QEMU's qapi/*.json
(10.0).
"""

import contextlib
import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol
from xml.etree.ElementTree import Element

from virtlet.errors import FailedPrecondition
from virtlet.host.commands import clean_environment, run
from virtlet.model.hypervisor import Checkpoint, FilePart

_POLL = 0.01
_OURS = "virtlet-checkpoint"
"""Name of what a checkpoint makes in the emulator; marks its descriptors."""
_SETTLE = 20.0
"""Seconds for what a checkpoint has begun to end when it is undone."""
_LOAD, _SLOWEST = 30.0, 20 << 20
"""Seconds for an emulator to take memory, and bytes that come in one more."""
_MIGRATING = ("setup", "active", "device", "pre-switchover", "wait-unplug", "cancelling")
_STANDS = "postmigrate"
"""Status of an emulator whose guest stands still after a migration, and goes on by `cont`."""
_ENDING = "finish-migrate"
"""Its status just before, also when the migration is "completed". QEMU aborts when it goes on then.
"""
_BANDWIDTH, _USUAL_BANDWIDTH = 1 << 40, 128 << 20
"""Bytes that a migration may write in a second: to a file, and QEMU's default."""
_ALIGNED = 1 << 16
"""The disk begins at a multiple of it; as many bytes before it are nobody's."""


class Monitor(Protocol):
    """Asks an emulator, and returns its answer."""

    def __call__(
        self, command: str, arguments: Mapping[str, Any] | None = None, files: Any = (), /
    ) -> Any:
        """Raise FailedPrecondition if the emulator refuses, libvirtError if it is not there."""


def unfit(document: Element) -> str:
    """Why a domain has no checkpoints, by its live document, as a clause; "" if it has."""
    disks = document.findall("devices/disk[@device='disk']")
    reasons = {
        "it has a passed-through device": "devices/hostdev",
        "it has a shared directory": "devices/filesystem",
        "it has a TPM, whose state is its own": "devices/tpm",
        "it has vsock, by an address of its own": "devices/vsock",
        "its firmware keeps variables in a file": "os/nvram",
        "memory was added to it": "devices/memory",
    }
    found = [why for why, path in reasons.items() if document.find(path) is not None]
    if len(disks) != 1:
        found.append(f"it has {len(disks)} disks, and a checkpoint has the root disk alone")
    return found[0] if found else ""


def root_alias(document: Element) -> str:
    """libvirt's name of the only disk of a live document."""
    alias = document.find("devices/disk[@device='disk']/alias")
    return "" if alias is None else alias.get("name", "")


def take(
    ask: Monitor, disk: str, file: int, start: int, broken_off: Callable[[], str]
) -> Checkpoint:
    """Write a running guest's memory and a disk. `settle` has to follow, whatever comes of it.

    Args:
        ask: its emulator.
        disk: libvirt's alias of the disk, of which what its overlay has is written.
        file: descriptor of the file, for reading and writing.
        start: where the memory begins; what is before stays.
        broken_off: why not to go on, as a clause; "" to go on.

    Raises:
        FailedPrecondition: the guest does not run, QEMU refuses, or it is broken off.
        libvirt.libvirtError: the emulator does not answer, or has ended.
    """
    _refuse_standing(ask)
    source = _source(ask, disk)
    empty = _empty_disk(source["inserted"]["image"]["virtual-size"])
    write_memory(ask, file, start, broken_off)
    stopped = time.monotonic()
    memory = FilePart(offset=start, size=os.fstat(file).st_size - start)
    at = -(-(start + memory.size) // _ALIGNED) * _ALIGNED + _ALIGNED
    os.pwrite(file, empty, at)
    _begin_backup(ask, source["inserted"]["node-name"], file, at)
    ask("cont")
    stood = time.monotonic() - stopped + ask("query-migrate").get("downtime", 0) / 1000
    _wait(lambda: _backed_up(ask), broken_off)
    # The job has written all that QEMU had cached of the disk only once its node is gone.
    _dismiss(ask)
    size = os.fstat(file).st_size - at
    return Checkpoint(memory=memory, disk=FilePart(offset=at, size=size), stood_still=stood)


def write_memory(ask: Monitor, file: int, start: int, broken_off: Callable[[], str]) -> None:
    """Write a running guest's memory alone; it stands still then, and its disks are written out.

    Arguments and errors are those of `take`; `settle` has the guest go on.
    """
    _refuse_standing(ask)
    _capability(ask, on=True)
    ask("migrate", {"uri": f"file:{_lend(ask, file, os.O_WRONLY)},offset={start}"})
    _wait(lambda: _migrated(ask) and _status(ask) == _STANDS, broken_off)


def resized(live: Element, defined: Element) -> str:
    """Why a domain cannot go on as it is defined, as a clause; "" if it can."""
    now, then = (each.find("vcpu") for each in (live, defined))
    if now is None or then is None:
        return ""
    if (now.text, now.get("current")) == (then.text, then.get("current")):
        return ""
    return "vCPUs were added or taken away since it was started"


def _refuse_standing(ask: Monitor) -> None:
    status = _status(ask)
    if status != "running":
        raise FailedPrecondition(f"its guest does not run, but is {status}")


def settle(ask: Monitor) -> None:
    """Take away what a checkpoint has in an emulator, and let its guest go on; idempotent.

    Raises:
        FailedPrecondition: something does not end; try again.
        libvirt.libvirtError: the emulator does not answer, or has ended.
    """
    deadline = time.monotonic() + _SETTLE

    def late() -> str:
        return "what its checkpoint began does not end" if time.monotonic() > deadline else ""

    if ask("query-migrate").get("status") in _MIGRATING:
        ask("migrate_cancel")
        _wait(lambda: ask("query-migrate").get("status") not in _MIGRATING, late)
    _wait(lambda: _status(ask) != _ENDING, late)
    if _status(ask) == _STANDS:
        ask("cont")
    for job in _jobs(ask):
        with contextlib.suppress(FailedPrecondition):  # it has ended
            ask("job-cancel", {"id": job["id"]})
    _wait(lambda: all(job["status"] == "concluded" for job in _jobs(ask)), late)
    _dismiss(ask)
    for lent in ask("query-fdsets"):
        if any(each.get("opaque") == _OURS for each in lent["fds"]):
            ask("remove-fd", {"fdset-id": lent["fdset-id"]})
    _capability(ask, on=False)


def load(ask: Monitor, path: Path, offset: int) -> None:
    """Give an emulator that waits for it (`-incoming defer`) the memory that `take` has written.

    Args:
        ask: the emulator.
        path: of the file.
        offset: where the memory begins there, which is where it was written to.

    Raises:
        FailedPrecondition: the file cannot be read, or QEMU refuses what is in it.
        libvirt.libvirtError: the emulator does not answer, or has ended.
    """
    try:
        file = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError as error:
        raise FailedPrecondition(f"{path}, a VM's memory: {error.strerror}") from None
    try:
        deadline = time.monotonic() + _LOAD + os.fstat(file).st_size / _SLOWEST
        _capability(ask, on=True)
        ask("migrate-incoming", {"uri": f"file:{_lend(ask, file, os.O_RDONLY)},offset={offset}"})
    finally:
        os.close(file)
    _wait(
        lambda: _migrated(ask),
        lambda: "its memory does not come" if time.monotonic() > deadline else "",
    )
    # Else it would have them at its next checkpoint, where they are in the way.
    settle(ask)


def _lend(ask: Monitor, file: int, access: int) -> str:
    """A name of a file of ours for the emulator, which wants it opened for the access it needs."""
    descriptor = os.open(f"/proc/self/fd/{file}", access | os.O_CLOEXEC)
    try:
        answer = ask("add-fd", {"opaque": _OURS}, [descriptor])
    finally:
        os.close(descriptor)
    return f"/dev/fdset/{answer['fdset-id']}"


def _capability(ask: Monitor, *, on: bool) -> None:
    """Whether a migration writes each page of memory to a place of its own, as fast as it can."""
    ask("migrate-set-parameters", {"max-bandwidth": _BANDWIDTH if on else _USUAL_BANDWIDTH})
    capabilities = [{"capability": "mapped-ram", "state": on}]
    ask("migrate-set-capabilities", {"capabilities": capabilities})


def _status(ask: Monitor) -> str:
    return str(ask("query-status")["status"])


def _source(ask: Monitor, alias: str) -> Mapping[str, Any]:
    """What the emulator says of a disk with libvirt's alias."""
    for entry in ask("query-block"):
        if alias in entry.get("qdev", "").split("/") and entry.get("inserted"):
            return dict(entry)
    raise FailedPrecondition(f"its emulator has no disk {alias}")


def _empty_disk(size: int) -> bytes:
    """A qcow2 that has nothing in it.

    Args:
        size: bytes that a guest sees.
    """
    descriptor = os.memfd_create("checkpoint", os.MFD_CLOEXEC)
    try:
        path = f"/proc/self/fd/{descriptor}"
        command = ["qemu-img", "create", "-q", "-f", "qcow2", path, str(size)]
        run(command, env=clean_environment(), pass_fds=(descriptor,), package="qemu-utils")
        return os.pread(descriptor, os.fstat(descriptor).st_size, 0)
    finally:
        os.close(descriptor)


def _begin_backup(ask: Monitor, node: str, file: int, at: int) -> None:
    """Have a disk written as it is now, while the guest still stands."""
    ask("blockdev-set-active", {"node-name": node, "active": True})
    protocol = {"driver": "file", "filename": _lend(ask, file, os.O_RDWR)}
    place = {"driver": "raw", "offset": at, "file": protocol}
    ask("blockdev-add", {"driver": "qcow2", "node-name": _OURS, "backing": None, "file": place})
    data = {"job-id": _OURS, "device": node, "target": _OURS, "sync": "top", "auto-dismiss": False}
    ask("transaction", {"actions": [{"type": "blockdev-backup", "data": data}]})


def _migrated(ask: Monitor) -> bool:
    progress = ask("query-migrate")
    if progress.get("status") in ("failed", "cancelled"):
        raise FailedPrecondition(
            f"QEMU's migrate: {progress.get('error-desc') or progress['status']}"
        )
    return bool(progress.get("status") == "completed")


def _backed_up(ask: Monitor) -> bool:
    jobs = _jobs(ask)
    for job in jobs:
        if "error" in job:
            raise FailedPrecondition(f"QEMU's {job['type']}: {job['error']}")
    return all(job["status"] == "concluded" for job in jobs)


def _jobs(ask: Monitor) -> list[dict[str, Any]]:
    return [job for job in ask("query-jobs") if job["id"] == _OURS]


def _dismiss(ask: Monitor) -> None:
    """Take away jobs that have ended, and what they wrote to."""
    for job in _jobs(ask):
        ask("job-dismiss", {"id": job["id"]})
    for node in ask("query-named-block-nodes", {"flat": True}):
        if node["node-name"] == _OURS:
            ask("blockdev-del", {"node-name": _OURS})


def _wait(done: Callable[[], bool], broken_off: Callable[[], str]) -> None:
    while not done():
        if why := broken_off():
            raise FailedPrecondition(why)
        time.sleep(_POLL)
