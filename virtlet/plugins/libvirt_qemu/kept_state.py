"""What a machine keeps beside its disk where its root disk outlives it: TPM and UEFI variables.

While a VM runs both are files of its own, as any VM's. They come from its root disk's device when
it starts, and are written back there whenever they have changed, by a thread and at its end. The
device has two places for them, which are written by turns: what a crash cuts short leaves the
other. Each says which VM it is of. So what is left of a VM never replaces what a later one has
written, on whatever device its path leads to by then.
"""

import contextlib
import errno
import hashlib
import json
import logging
import os
import stat
import struct
import threading
from pathlib import Path

from attrs import asdict, define, field, frozen

from virtlet.errors import FailedPrecondition
from virtlet.host.files import new_disk_file, remove_file, write_atomically
from virtlet.model.disk import Disk
from virtlet.threads import Worker

log = logging.getLogger(__name__)

INTERVAL = 2.0
"""Seconds between looks; what changed since the last one is lost if the node fails."""
PATIENCE = 1.0
"""Seconds for a look under way when the manager ends."""
_CLOSELY = os.O_CLOEXEC | os.O_NOFOLLOW
TPM_FILE = "tpm2-00.permall"
"""swtpm's file of what survives a power-off, which it replaces as a whole."""
_SECTOR = 512
_HEADER = struct.Struct(">8sQ16sII32s")
"""Magic, number, VM id, bytes of the TPM's state and of the variables, SHA-256 of all that."""
_MAGIC = b"VLSTATE1"
_MOST = 1 << 20
"""Bytes of each of the two; OVMF's variables have half of that, a TPM's state some thousands."""


@frozen
class State:
    """Content of the two files; b"" for what the machine does not have."""

    tpm: bytes = b""
    variables: bytes = b""


@frozen
class _Kept:
    number: int
    """Counts what was written."""
    owner: str
    """Id of the VM that wrote it."""
    state: State

    def written(self) -> bytes:
        """A place's content: a sector of header, and the state."""
        tpm, variables = self.state.tpm, self.state.variables
        start = _MAGIC, self.number, bytes.fromhex(self.owner), len(tpm), len(variables)
        digest = hashlib.sha256(_HEADER.pack(*start, b"") + tpm + variables).digest()
        return _HEADER.pack(*start, digest).ljust(_SECTOR, b"\0") + tpm + variables


@frozen
class Area:
    """The part of a device that is for this."""

    path: str
    offset: int
    size: int

    def read(self) -> _Kept | None:
        """What was written last; None where nothing was.

        Raises:
            FailedPrecondition: it is broken.
            OSError: the device cannot be read.
        """
        descriptor = os.open(self.path, os.O_RDONLY | _CLOSELY)
        try:
            found = [self._place(descriptor, number) for number in range(2)]
        finally:
            os.close(descriptor)
        whole = [kept for kept in found if isinstance(kept, _Kept)]
        if not whole and "broken" in found:
            raise FailedPrecondition(
                f"device path /: the state of TPM and UEFI variables on {self.path} is broken: "
                "restore the volume, or begin with a new TPM and fresh variables by clearing "
                f"{self.size} bytes of it from {self.offset} on"
            )
        return max(whole, key=lambda kept: kept.number, default=None)

    def _place(self, descriptor: int, number: int) -> _Kept | str:
        start = self.offset + number * (self.size // 2)
        header = os.pread(descriptor, _SECTOR, start)
        if not any(header):
            return ""
        magic, count, owner, tpm, variables, _ = _HEADER.unpack(header[: _HEADER.size])
        if magic != _MAGIC or max(tpm, variables) > _MOST:
            return "broken"
        content = os.pread(descriptor, tpm + variables, start + _SECTOR)
        kept = _Kept(count, owner.hex(), State(content[:tpm], content[tpm:]))
        return kept if kept.written() == header + content else "broken"

    def write(self, kept: _Kept) -> None:
        """Write it to the place that does not have the last one; whole, or not at all."""
        content = kept.written()
        start = self.offset + kept.number % 2 * (self.size // 2)
        if len(content) > self.size // 2:
            raise FailedPrecondition(f"{len(content)} bytes do not fit on {self.path}")
        descriptor = os.open(self.path, os.O_WRONLY | _CLOSELY)
        try:
            for offset, part in (
                (0, bytes(_SECTOR)),
                (_SECTOR, content[_SECTOR:]),
                (0, content[:_SECTOR]),
            ):
                os.pwrite(descriptor, part, start + offset)
                os.fsync(descriptor)
        finally:
            os.close(descriptor)


@define(eq=False)
class _Followed:
    """A VM whose files are written back."""

    vm_id: str
    area: Area
    tpm: str
    """Directory of the TPM's state; "" for none."""
    variables: str
    """File; "" for none."""
    seen: object = None
    """Stamps of the files when they were last written back."""
    lock: threading.Lock = field(factory=threading.Lock, repr=False)


class KeptStates:
    """Brings state to VMs and back.

    Args:
        directory: for records of the VMs that are followed; made when first needed.
    """

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._followed: dict[str, _Followed] = {}
        self._worker = Worker("kept-state", self._turn)

    def start(self) -> None:
        """Follow what an earlier manager followed, and whatever `begin` adds."""
        self.recall()
        self._worker.start(INTERVAL)

    def recall(self) -> None:
        """Read the records of what an earlier manager followed."""
        for path in self._directory.glob("*.json"):
            with contextlib.suppress(OSError, ValueError, TypeError):
                found = json.loads(path.read_bytes())
                area = Area(**found.pop("area"))
                self._followed.setdefault(path.stem, _Followed(path.stem, area, **found))

    def stop(self) -> None:
        """End the thread; idempotent."""
        self._worker.stop(PATIENCE)

    def begin(
        self,
        vm_id: str,
        root: Disk,
        *,
        tpm: Path | None,
        variables: Path | None,
        user: tuple[int, int],
    ) -> None:
        """Give a VM that is about to start the files that are kept, and write them back from now
        on. What an earlier VM left is written back before.

        Args:
            vm_id: of the VM.
            root: its root disk; without room for state nothing is done.
            tpm: directory of the TPM's state, if the machine has one.
            variables: file of the UEFI variables, if they are kept, as a fresh machine has them.
            user: of the files, and group.

        Raises:
            FailedPrecondition: what is kept is broken, or the files cannot be made.
        """
        if not root.state_size or (tpm is None and variables is None):
            return
        area = Area(str(root.path), root.state_offset, root.state_size)
        for other in tuple(self._followed.values()):
            if _same_device(other.area.path, area.path) and other.vm_id != vm_id:
                self._save(other, unseen=True)
        followed = _Followed(vm_id, area, str(tpm or ""), str(variables or ""))
        try:
            kept = area.read()
            if kept is None or kept.owner != vm_id:
                _put_in_place(kept.state if kept else State(), followed, user)
                taken = kept.state if kept else State()
                area.write(_Kept(kept.number + 1 if kept else 0, vm_id, taken))
            self._directory.mkdir(parents=True, exist_ok=True)
            record = {
                "area": asdict(area),
                "tpm": followed.tpm,
                "variables": followed.variables,
            }
            write_atomically(self._directory / f"{vm_id}.json", json.dumps(record).encode())
        except OSError as error:
            raise FailedPrecondition(
                f"the state of TPM and UEFI variables on {area.path}: {error.strerror}"
            ) from None
        self._followed[vm_id] = followed

    def end(self, vm_id: str) -> None:
        """Write a VM's files back for the last time; idempotent."""
        followed = self._followed.pop(vm_id, None)
        if followed is not None:
            self._save(followed, unseen=True)
        remove_file(self._directory / f"{vm_id}.json")

    def look(self) -> None:
        """Write back what has changed since the last look."""
        for followed in tuple(self._followed.values()):
            self._save(followed)

    def _turn(self) -> float:
        self.look()
        return INTERVAL

    def _save(self, followed: _Followed, *, unseen: bool = False) -> None:
        """Write back what has changed. A device that is gone, or another VM's by now, is left.

        Args:
            followed: whose.
            unseen: whether to look into files that seem to be the same: two changes may be in one
                tick of the file system's clock.
        """
        with followed.lock:
            try:
                before = _stamps(followed)
                if before == followed.seen and not unseen:
                    return
                state = _content(followed)
                kept = followed.area.read()
                if kept is None or kept.owner != followed.vm_id:
                    followed.seen = before
                    return
                state = State(
                    tpm=state.tpm or kept.state.tpm,
                    variables=state.variables or kept.state.variables,
                )
                if _stamps(followed) != before and not unseen:
                    return  # it is being written: the next time
                if state != kept.state:
                    followed.area.write(_Kept(kept.number + 1, followed.vm_id, state))
                followed.seen = before
            except (OSError, FailedPrecondition) as error:
                log.warning(
                    "state of TPM and UEFI variables not written back",
                    extra={"vm": followed.vm_id, "problem": str(error)},
                )


def _put_in_place(state: State, followed: _Followed, user: tuple[int, int]) -> None:
    if followed.tpm and state.tpm:
        _write(Path(followed.tpm, TPM_FILE), state.tpm, user)
    if followed.variables and state.variables:
        path = Path(followed.variables)
        if path.stat().st_size != len(state.variables):
            log.warning(
                "kept UEFI variables not used, they are of another firmware",
                extra={"vm": followed.vm_id},
            )
            return
        _write(path, state.variables, user)


def _write(path: Path, content: bytes, user: tuple[int, int]) -> None:
    with new_disk_file(path, *user) as descriptor:
        os.pwrite(descriptor, content, 0)


def _content(followed: _Followed) -> State:
    return State(
        tpm=_read(followed.tpm, TPM_FILE) if followed.tpm else b"",
        variables=_read("/", followed.variables) if followed.variables else b"",
    )


def _read(directory: str, name: str) -> bytes:
    """A file that a VM's user may have put anything in the place of; b"" where it is not there.

    Raises:
        OSError: it cannot be read, or is no file of at most a MiB.
    """
    above = os.open(directory, os.O_PATH | os.O_DIRECTORY | _CLOSELY)
    try:
        descriptor = os.open(name, os.O_RDONLY | os.O_NONBLOCK | _CLOSELY, dir_fd=above)
    except FileNotFoundError:
        return b""
    finally:
        os.close(above)
    with os.fdopen(descriptor, "rb") as file:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode) or status.st_size > _MOST:
            raise OSError(errno.EINVAL, f"{name} is no file of at most {_MOST} bytes")
        return file.read(_MOST)


def _stamps(followed: _Followed) -> object:
    """What changes when one of the files is replaced or written."""
    found = []
    for path in (followed.tpm and f"{followed.tpm}/{TPM_FILE}", followed.variables):
        with contextlib.suppress(FileNotFoundError):
            status = os.lstat(path)
            found.append((path, status.st_mtime_ns, status.st_size, status.st_ino))
    return tuple(found)


def _same_device(one: str, other: str) -> bool:
    try:
        first, second = os.stat(one), os.stat(other)
    except OSError:
        return False
    return os.path.samestat(first, second) or 0 != first.st_rdev == second.st_rdev
