"""What is read of a checkpoint's archive before a VM goes on from it. Nothing of it is believed.

The members are where `checkpoint_archive` writes them. Of a manifest only that is taken which a
restore compares or shows, each value of its type and of a bounded length.
"""

import contextlib
import errno
import json
import os
import re
import stat
import tarfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from attrs import field, frozen

from virtlet.core.checkpoint_archive import (
    ARCHIVE,
    DISK,
    FORMAT,
    HEADER,
    MANIFEST,
    MEMORY,
    MOST_SAID,
    ROOM,
    START,
    check_absolute,
    directory_at,
    free_bytes,
)
from virtlet.core.checkpoint_encryption import ENCRYPTED, decrypt, nameless_file
from virtlet.errors import FailedPrecondition, InvalidArgument, ResourceExhausted
from virtlet.host.qcow2 import HEADER_SIZE, Qcow2Header, parse_header
from virtlet.model.hypervisor import FilePart

_LONGEST = 4096
"""Characters of a name."""
_MOST_NICS = 64
_MAC = re.compile("([0-9a-f]{2}:){5}[0-9a-f]{2}")


@frozen
class ReadCheckpoint:
    """An archive that is open for reading."""

    file: int
    """Its descriptor."""
    path: Path
    container: str
    image_id: str
    image_name: str
    macs: tuple[str, ...]
    """Of the guest's NICs."""
    why_no_copy: str
    """Why its guest cannot become another one, as a clause; "" if it can."""
    machine: Mapping[str, Any]
    """What has to be alike, as `checkpoints.facts` wrote it."""
    memory: FilePart
    disk: FilePart

    @property
    def data(self) -> int:
        """Bytes that it takes where it is, and so a copy of it."""
        return os.fstat(self.file).st_blocks * 512

    def disk_header(self) -> Qcow2Header:
        """What its disk says of itself, if nothing of that is refused.

        Raises:
            InvalidArgument: it is no disk that a VM may start from.
        """
        return disk_header(self.file, self.disk.offset, f"{DISK} of {self.path}")


def disk_header(file: int, offset: int, name: str) -> Qcow2Header:
    """What a qcow2 says of itself, if an emulator may open it.

    Args:
        file: descriptor of the file that it is in.
        offset: where it begins.
        name: of it, for messages.

    Raises:
        InvalidArgument: it is no qcow2, names other files, or has what no disk of ours has.
    """
    head = os.pread(file, HEADER_SIZE, offset)
    if not head.startswith(b"QFI\xfb"):
        raise InvalidArgument(f"{name} is no qcow2")
    header = parse_header(name, head)
    header.check(name)
    return header


@frozen
class Key:
    """What an archive is decrypted by.

    Args:
        key: of a key file.
        room: directory whose file system has the decrypted archive, without a name, meanwhile.
    """

    key: bytes = field(repr=False)
    room: Path


@contextlib.contextmanager
def open_checkpoint(directory: Path, key: Key | None = None) -> Iterator[ReadCheckpoint]:
    """Read the archive of a pod's checkpoint.

    Args:
        directory: where `checkpoint_archive.new_archive_in` made it; absolute. No link is followed
            there.
        key: for one that is encrypted.

    Raises:
        InvalidArgument: the path is none, or the archive is not as we write them.
        FailedPrecondition: there is none, its format is another one, or it is not of this key.
        ResourceExhausted: there is no space to decrypt it.
    """
    check_absolute(directory, "a directory")
    name = ARCHIVE if key is None else ENCRYPTED
    path = directory / name
    with contextlib.ExitStack() as opened:
        try:
            place = opened.enter_context(directory_at(directory, os.O_NOFOLLOW))
            _check_kind(place, path)
            flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
            file = os.open(name, flags, dir_fd=place)
            opened.callback(os.close, file)
            if not stat.S_ISREG(os.fstat(file).st_mode):
                raise InvalidArgument(f"checkpoint {path} is no ordinary file")
            if key is not None:
                plain = nameless_file(key.room)
                opened.callback(os.close, plain)
                _decrypt(key, file, plain, path)
                file = plain
            found = _read(file, path)
        except OSError as error:
            raise FailedPrecondition(
                f"checkpoint {path} cannot be read: {error.strerror}"
            ) from None
        yield found


def _check_kind(place: int, path: Path) -> None:
    """Say what to do about a key where there is none to be, or the other way round."""
    there = os.listdir(place)
    if path.name in there:
        return
    if path.name == ARCHIVE and ENCRYPTED in there:
        raise FailedPrecondition(f"checkpoint {path.parent} is encrypted: give its key file")
    if path.name == ENCRYPTED and ARCHIVE in there:
        raise FailedPrecondition(
            f"checkpoint {path.parent} is not encrypted: restore it without a key file"
        )


def _decrypt(key: Key, file: int, plain: int, path: Path) -> None:
    need, free = os.fstat(file).st_size, free_bytes(plain)
    if need > free:
        raise ResourceExhausted(
            f"{path} takes {need >> 20}Mi once more to be decrypted, and {free >> 20}Mi are free: "
            "free some"
        )
    try:
        decrypt(key.key, file, plain, str(path))
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise ResourceExhausted(
            f"{path}: no space left to decrypt it: free some in the data directory"
        ) from None


def _read(file: int, path: Path) -> ReadCheckpoint:
    end = os.fstat(file).st_size
    _member(file, path, 0, MANIFEST, end, size=ROOM)
    manifest = _manifest(os.pread(file, ROOM, HEADER), path)
    taken = manifest.get("format")
    if taken != FORMAT or isinstance(taken, bool):
        shown = taken if isinstance(taken, int) and abs(taken) < 1 << 32 else "unknown"
        raise FailedPrecondition(
            f"checkpoint {path} is of format {shown}, and this version restores format {FORMAT}: "
            "use the version that took it"
        )
    held = _member(file, path, START - HEADER, MEMORY, end)
    memory = FilePart(offset=START, size=_number(manifest, path, "memory", "size"))
    if not 0 < memory.size <= held:
        raise _wrong(path, f"{MEMORY} has not the size that its manifest says")
    at = START + held
    size = _member(file, path, at, DISK, end)
    disk = FilePart(offset=at + HEADER, size=size)
    if _number(manifest, path, "disk", "size") != size:
        raise _wrong(path, f"{DISK} has not the size that its manifest says")
    machine = manifest.get("machine")
    if not isinstance(machine, dict):
        raise _wrong(path, "machine is no object")
    return ReadCheckpoint(
        file=file,
        path=path,
        container=_text(manifest, path, "container"),
        image_id=_text(manifest, path, "image", "id"),
        image_name=_text(manifest, path, "image", "name"),
        macs=tuple(_macs(manifest, path)),
        why_no_copy=_why_no_copy(manifest, path),
        machine=machine,
        memory=memory,
        disk=disk,
    )


def _member(file: int, path: Path, at: int, name: str, end: int, size: int | None = None) -> int:
    """The size of the member whose header is at a place, if it is all there."""
    try:
        member = tarfile.TarInfo.frombuf(os.pread(file, HEADER, at), "utf-8", "replace")
    except tarfile.TarError:
        raise _wrong(path, f"{name} is not at its place") from None
    right = member.name == name and member.isreg() and size in (None, member.size)
    if not right or member.size < 0:
        raise _wrong(path, f"{name} is not at its place")
    if at + HEADER + member.size > end:
        raise _wrong(path, f"it ends within {name}")
    return member.size


def _manifest(text: bytes, path: Path) -> Mapping[str, Any]:
    try:
        manifest = json.loads(text)
    except (ValueError, RecursionError):
        raise _wrong(path, f"{MANIFEST} is not JSON") from None
    if not isinstance(manifest, dict):
        raise _wrong(path, f"{MANIFEST} is no object")
    return manifest


def _value(manifest: Mapping[str, Any], names: tuple[str, ...]) -> Any:
    found: Any = manifest
    for name in names:
        found = found.get(name) if isinstance(found, dict) else None
    return found


def _text(manifest: Mapping[str, Any], path: Path, *names: str) -> str:
    found = _value(manifest, names)
    if not isinstance(found, str) or not 0 < len(found) <= _LONGEST:
        raise _wrong(path, f"{'.'.join(names)} is no name")
    return found


def _number(manifest: Mapping[str, Any], path: Path, *names: str) -> int:
    found = _value(manifest, names)
    if not isinstance(found, int) or isinstance(found, bool):
        raise _wrong(path, f"{'.'.join(names)} is no number")
    return found


def _macs(manifest: Mapping[str, Any], path: Path) -> Iterator[str]:
    nics = manifest.get("nics")
    if not isinstance(nics, list) or len(nics) > _MOST_NICS:
        raise _wrong(path, "nics is no list of NICs")
    for nic in nics:
        mac = _value(nic, ("mac",)) if isinstance(nic, dict) else None
        # The first byte's lowest bit is that of groups.
        if not isinstance(mac, str) or not _MAC.fullmatch(mac) or int(mac[1], 16) & 1:
            raise _wrong(path, "nics has what is no MAC address")
        yield mac


def _why_no_copy(manifest: Mapping[str, Any], path: Path) -> str:
    found = manifest.get("whyNoCopy", "it was not asked by the version that took the checkpoint")
    if not isinstance(found, str) or len(found) > MOST_SAID:
        raise _wrong(path, "whyNoCopy is no text")
    return found


def _wrong(path: Path, why: str) -> InvalidArgument:
    return InvalidArgument(f"{path} is no checkpoint of a pod, or not all of one: {why}")
