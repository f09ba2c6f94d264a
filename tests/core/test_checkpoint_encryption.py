"""Archives that are encrypted: the same again with their key, and refused where a byte differs."""

import os
import sys
import tracemalloc
from pathlib import Path

import pytest

from virtlet.core.checkpoint_encryption import CHUNK, decrypt, encrypt, nameless_file, read_key
from virtlet.errors import FailedPrecondition, InvalidArgument, VirtletError

KEY, OTHER = b"k" * 32, b"o" * 32
SECRET = b"the guest's secret"
HEADER, FRAME = 24, 5
"""Bytes before the first chunk, and before each."""


def archive(path: Path) -> bytes:
    """A file with data of more than a chunk, a hole, and a hole at its end."""
    with path.open("wb") as file:
        file.write(SECRET * (CHUNK // len(SECRET) + 1000))
        file.seek(8 << 20)
        file.write(b"disk" + SECRET)
        file.truncate(12 << 20)
    return path.read_bytes()


def encrypted(path: Path, key: bytes = KEY) -> Path:
    to = path.with_suffix(f".{key[0]}")
    with path.open("rb") as source, to.open("wb") as file:
        encrypt(key, source.fileno(), file.fileno())
    return to


def decrypted(path: Path, key: bytes = KEY) -> bytes:
    plain = nameless_file(path.parent)
    try:
        with path.open("rb") as source:
            decrypt(key, source.fileno(), plain, path.name)
        return os.pread(plain, os.fstat(plain).st_size, 0)
    finally:
        os.close(plain)


@pytest.fixture
def plain(tmp_path: Path) -> Path:
    path = tmp_path / "vm.tar"
    archive(path)
    return path


def chunks(path: Path) -> list[bytes]:
    """The header, and each chunk with what is before it."""
    data, found = path.read_bytes(), []
    found.append(data[:HEADER])
    at = HEADER
    while at < len(data):
        size = FRAME + int.from_bytes(data[at : at + 4])
        found.append(data[at : at + size])
        at += size
    return found


def test_it_is_the_same_again_without_a_word_of_it_to_read(plain: Path) -> None:
    sealed = encrypted(plain)
    assert decrypted(sealed) == plain.read_bytes()
    assert SECRET not in sealed.read_bytes()
    # Holes are not in it.
    assert sealed.stat().st_size < 2 << 20
    assert sealed.read_bytes() != encrypted(plain).read_bytes()


@pytest.mark.parametrize("size", [0, 1, CHUNK - 1, CHUNK, CHUNK + 1, 2 * CHUNK])
def test_any_size_comes_back(tmp_path: Path, size: int) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"x" * size)
    assert decrypted(encrypted(path)) == path.read_bytes()


def test_another_key_is_refused(plain: Path) -> None:
    with pytest.raises(FailedPrecondition, match="is not of this key"):
        decrypted(encrypted(plain), OTHER)


def test_one_that_was_cut_short_or_goes_on_is_refused(plain: Path) -> None:
    path = encrypted(plain)
    whole, ends = path.read_bytes(), [0, 7, HEADER - 1, HEADER]
    for part in chunks(path)[1:]:
        ends += [ends[-1] + 3, ends[-1] + FRAME, ends[-1] + len(part) - 1, ends[-1] + len(part)]
    assert ends.pop() == len(whole)
    for end in ends:
        path.write_bytes(whole[:end])
        with pytest.raises(InvalidArgument, match="encrypted checkpoint"):
            decrypted(path)
    path.write_bytes(whole + b"x")
    with pytest.raises(InvalidArgument, match="goes on behind its end"):
        decrypted(path)


def test_one_whose_bytes_or_chunks_were_changed_is_refused(plain: Path) -> None:
    path = encrypted(plain)
    parts, others = chunks(path), chunks(encrypted(plain, OTHER))
    header, first, second, *rest = parts
    assert len(parts) > 4
    for wrong in (
        [header, second, first, *rest],
        [header, first, *rest],
        [header, first, first, second, *rest],
        [header, others[1], second, *rest],
        [others[0], first, second, *rest],
        [header, first, second, *rest[:-1], rest[-1][:4] + b"\0" + rest[-1][5:]],
        [header, first[:4] + b"\1" + first[5:], second, *rest],
        [header, b"\xff" + first[1:], second, *rest],
        [header, bytes(FRAME), *parts[1:]],
    ):
        path.write_bytes(b"".join(wrong))
        with pytest.raises(VirtletError, match="was changed|not of this key"):
            decrypted(path)
    whole = b"".join(parts)
    for at in range(0, len(whole), len(whole) // 40):
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
        with pytest.raises(VirtletError, match="was changed|not of this key|encrypted checkpoint"):
            decrypted(path)


def test_it_is_never_whole_in_memory(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(os.urandom(1 << 20) * 24)
    tracemalloc.start()
    try:
        sealed = encrypted(path)
        with sealed.open("rb") as source, path.with_suffix(".plain").open("wb") as file:
            decrypt(KEY, source.fileno(), file.fileno(), "x")
        assert tracemalloc.get_traced_memory()[1] < 12 << 20
    finally:
        tracemalloc.stop()


def test_it_can_be_broken_off(plain: Path) -> None:
    with (
        plain.open("rb") as source,
        plain.with_suffix(".x").open("wb") as file,
        pytest.raises(FailedPrecondition, match="it is being stopped"),
    ):
        encrypt(KEY, source.fileno(), file.fileno(), lambda: "it is being stopped")


def test_without_the_library_it_is_refused_with_the_remedy(
    plain: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "cryptography", None)
    with pytest.raises(FailedPrecondition, match=r"install virtlet\[encryption\]"):
        encrypted(plain)


def test_a_key_file_is_root_s_alone_and_of_32_bytes(tmp_path: Path) -> None:
    key = tmp_path / "key"
    key.write_bytes(KEY)
    key.chmod(0o600)
    assert read_key(key) == KEY
    key.chmod(0o640)
    with pytest.raises(FailedPrecondition, match="mode 0600"):
        read_key(key)
    key.chmod(0o600)
    link, pipe = tmp_path / "link", tmp_path / "pipe"
    link.symlink_to(key)
    os.mkfifo(pipe, 0o600)
    for path, error, why in (
        (link, FailedPrecondition, "cannot be read"),
        (pipe, InvalidArgument, "no ordinary file of 32 bytes"),
        (tmp_path / "missing", FailedPrecondition, "No such file"),
        (Path("relative"), InvalidArgument, "not the absolute path"),
    ):
        with pytest.raises(error, match=why):
            read_key(path)
    for wrong in (b"", KEY[1:], KEY + b"\n"):
        key.write_bytes(wrong)
        with pytest.raises(InvalidArgument, match="32 bytes"):
            read_key(key)
