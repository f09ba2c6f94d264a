"""Checkpoints that only the holder of a key file can read.

What a checkpoint's archive has, without its holes, in chunks, each sealed by AES-256-GCM:

    header           magic and a salt
    chunk            sealed: where its data belongs (8 bytes), and up to 1 MiB of it
    last chunk       sealed: the archive's size (8 bytes)

The key of an archive is made of the key file's by HKDF with the salt, so that no two archives have
one in common. A chunk's nonce is its number, and whether it is the last (STREAM): chunks that are
left out, moved, or taken from another archive are found, and so is an archive that was cut short.
What is left to see is how much data there is.

Sources: RFC 5116 and 5869; Hoang, Reyhanitabar, Rogaway and Vizár: Online Authenticated-Encryption
and its Nonce-Reuse Misuse-Resistance (STREAM).
"""

from __future__ import annotations

import os
import stat
import struct
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from virtlet.core.checkpoint_archive import check_absolute
from virtlet.errors import FailedPrecondition, InvalidArgument
from virtlet.host.files import data_parts

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM

ENCRYPTED = "vm.tar.encrypted"
"""Name of such an archive in the directory of a pod's checkpoint."""
KEY_SIZE = 32
"""Bytes of a key file."""
_MAGIC = b"VLTCKPT1"
_SALT, _TAG = 16, 16
_PLACE = struct.Struct(">Q")
CHUNK = 1 << 20
_SEALED = _PLACE.size + CHUNK + _TAG
"""Bytes that the largest chunk has in the file."""
_MOST = 1 << 60
"""Bytes of an archive: more than any file system has."""
_PART = struct.Struct(">I?")
"""Before each chunk: bytes of it, and whether it is the last."""


def read_key(path: Path) -> bytes:
    """The key in a file of the node.

    Raises:
        InvalidArgument: the path is none, or there is no key in it.
        FailedPrecondition: it cannot be read, or others can read it.
    """
    check_absolute(path, "a key file")
    try:
        file = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        raise FailedPrecondition(f"key file {path} cannot be read: {error.strerror}") from None
    try:
        status = os.fstat(file)
        if not stat.S_ISREG(status.st_mode) or status.st_size != KEY_SIZE:
            raise InvalidArgument(
                f"key file {path} is no ordinary file of {KEY_SIZE} bytes: make one with "
                f"`head -c {KEY_SIZE} /dev/urandom`"
            )
        if status.st_mode & 0o077 or status.st_uid != os.geteuid():
            raise FailedPrecondition(
                f"key file {path} is not the manager's user's alone: give it to that user, with "
                "mode 0600"
            )
        return os.read(file, KEY_SIZE)
    finally:
        os.close(file)


def require_library() -> None:
    """Raise FailedPrecondition if what encrypts is not installed."""
    try:
        import cryptography  # noqa: F401
    except ImportError:
        raise FailedPrecondition(
            "checkpoints are encrypted by the Python package cryptography, which the manager "
            "lacks: install virtlet[encryption]"
        ) from None


@contextmanager
def sealed_into(
    file: int, key: bytes, directory: Path, broken_off: Callable[[], str]
) -> Iterator[int]:
    """A file without a name, of which `file` has what is in it once the body is done, encrypted.

    Args:
        file: descriptor of an empty file.
        key: of a key file.
        directory: whose file system has the other one meanwhile.
        broken_off: why not to go on, as a clause; "" to go on.
    """
    plain = nameless_file(directory)
    try:
        yield plain
        encrypt(key, plain, file, broken_off)
    finally:
        os.close(plain)


def nameless_file(directory: Path) -> int:
    """A descriptor of a new file that is gone with it."""
    return os.open(directory, os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC, 0o600)


def encrypt(key: bytes, source: int, file: int, broken_off: Callable[[], str] = str) -> None:
    """Write what an archive has to an empty file.

    Args:
        key: of a key file.
        source: descriptor of the archive.
        file: descriptor of the other.
        broken_off: why not to go on, as a clause; "" to go on.

    Raises:
        FailedPrecondition: what encrypts is not installed, or it is broken off.
        OSError: one cannot be read, or the other not written.
    """
    salt = os.urandom(_SALT)
    cipher = _cipher(key, salt)
    end = os.fstat(source).st_size
    number = 0
    with os.fdopen(os.dup(file), "wb") as out:
        out.write(_MAGIC + salt)

        def put(text: bytes, *, last: bool) -> None:
            nonlocal number
            size = len(text) + _TAG
            out.write(_PART.pack(size, last))
            out.write(cipher.encrypt(_nonce(number, last=last), text, None))
            number += 1

        for start, stop in data_parts(source, 0, end):
            for at in range(start, stop, CHUNK):
                if why := broken_off():
                    raise FailedPrecondition(why)
                data = os.pread(source, min(CHUNK, stop - at), at)
                put(_PLACE.pack(at) + data, last=False)
        put(_PLACE.pack(end), last=True)


def decrypt(key: bytes, source: int, file: int, name: str) -> None:
    """Write the archive that was encrypted to an empty file, if it is the same to the last byte.

    Args:
        key: of a key file.
        source: descriptor of what `encrypt` has written.
        file: descriptor of the other.
        name: of the source, for messages.

    Raises:
        FailedPrecondition: the key is another one, or what encrypts is not installed.
        InvalidArgument: it is no encrypted checkpoint, or not all of one.
        OSError: one cannot be read, or the other not written.
    """
    with os.fdopen(os.dup(source), "rb") as sealed:
        sealed.seek(0)
        header = sealed.read(len(_MAGIC) + _SALT)
        if len(header) < len(_MAGIC) + _SALT or not header.startswith(_MAGIC):
            raise InvalidArgument(f"{name} is no encrypted checkpoint of this version")
        cipher = _cipher(key, header[len(_MAGIC) :])
        number, end = 0, 0
        while True:
            text, last = _chunk(cipher, sealed.read, number, name)
            (at,) = _PLACE.unpack_from(text)
            data = memoryview(text)[_PLACE.size :]
            # Only we have sealed it; the bounds are there all the same.
            if not end <= at < _MOST or (last and data):
                raise InvalidArgument(f"{name} has chunks that are not in order")
            if last:
                break
            _write(file, data, at)
            end, number = at + len(data), number + 1
        if sealed.read(1):
            raise InvalidArgument(f"{name} goes on behind its end")
    os.ftruncate(file, at)


def _chunk(
    cipher: AESGCM, read: Callable[[int], bytes], number: int, name: str
) -> tuple[bytes, bool]:
    """The next chunk, opened, and whether it is the last."""
    from cryptography.exceptions import InvalidTag

    head = read(_PART.size)
    size, last = _PART.unpack(head) if len(head) == _PART.size else (0, False)
    sealed = read(size) if _PLACE.size + _TAG <= size <= _SEALED else b""
    if len(sealed) < size or not sealed:
        raise InvalidArgument(f"{name} is not all of an encrypted checkpoint, or was changed")
    try:
        return cipher.decrypt(_nonce(number, last=last), sealed, None), last
    except InvalidTag:
        if number:
            raise InvalidArgument(f"{name} was changed since it was written") from None
        raise FailedPrecondition(
            f"{name} is not of this key, or was changed since it was written"
        ) from None


def _write(file: int, data: memoryview, at: int) -> None:
    while data:
        written = os.pwrite(file, data, at)
        data, at = data[written:], at + written


def _nonce(number: int, *, last: bool) -> bytes:
    return number.to_bytes(11) + bytes([last])


def _cipher(key: bytes, salt: bytes) -> AESGCM:
    require_library()
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM
    from cryptography.hazmat.primitives.hashes import SHA256
    from cryptography.hazmat.primitives.kdf.hkdf import HKDF

    return AESGCM(HKDF(SHA256(), KEY_SIZE, salt, _MAGIC).derive(key))
