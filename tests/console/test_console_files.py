"""The raw file is read and kept small by holes; checkpoints survive torn writes."""

import os
import stat
import zlib
from pathlib import Path

import pytest

from tests.console.support import console_files
from virtlet.console.console_files import MARGIN, Checkpoint, CheckpointFile, RawFile, make_console

MEGABYTE = 1024 * 1024


def test_the_emulator_gets_a_fifo_and_an_empty_file(tmp_path: Path) -> None:
    files = console_files(tmp_path)
    make_console(files)
    assert stat.S_ISFIFO(files.keyboard.stat().st_mode)
    assert files.raw.read_bytes() == b""


def test_the_emulators_user_owns_both(tmp_path: Path) -> None:
    files = console_files(tmp_path)
    make_console(files, uid=1234, gid=2345)
    for path in (files.keyboard, files.raw):
        status = path.stat()
        assert (status.st_uid, status.st_gid) == (1234, 2345)
        assert stat.S_IMODE(status.st_mode) == 0o600


def test_making_it_again_gives_a_different_raw_file(tmp_path: Path) -> None:
    files = console_files(tmp_path)
    make_console(files)
    first = files.raw.stat().st_ino
    make_console(files)
    assert files.raw.stat().st_ino != first
    assert {path.name for path in tmp_path.iterdir()} == {files.raw.name, files.keyboard.name}


def test_what_was_read_is_given_back_but_for_a_margin(tmp_path: Path) -> None:
    path = tmp_path / "raw"
    path.write_bytes(b"x" * 4 * MEGABYTE)
    raw = RawFile(path)
    for offset in range(0, 3 * MEGABYTE, 10_000):
        raw.release(offset)
    assert raw.note == ""
    assert raw.first_data(0) > 3 * MEGABYTE - 2 * MARGIN - 10_000
    assert raw.read(3 * MEGABYTE - MARGIN, 10) == b"x" * 10
    assert path.stat().st_size == 4 * MEGABYTE
    assert path.stat().st_blocks * 512 < 2 * MEGABYTE
    raw.release(4 * MEGABYTE, everything=True)
    assert path.stat().st_blocks == 0
    raw.close()


def test_punching_while_the_emulator_appends_loses_nothing(tmp_path: Path) -> None:
    path = tmp_path / "raw"
    path.touch()
    raw = RawFile(path)
    with path.open("ab", buffering=0) as emulator:
        for number in range(300):
            chunk = b"%06d" % number * 1000
            emulator.write(chunk)
            assert raw.read(number * 6000, 6000) == chunk
            raw.release((number + 1) * 6000)
    raw.close()


def test_first_data_of_an_empty_file_is_its_end(tmp_path: Path) -> None:
    path = tmp_path / "raw"
    path.touch()
    raw = RawFile(path)
    assert raw.first_data(0) == 0
    raw.close()


@pytest.mark.parametrize("kind", ["symlink", "hard link", "fifo", "directory"])
def test_what_is_no_plain_file_is_refused(tmp_path: Path, kind: str) -> None:
    """A link that a broken-out emulator left must not make us punch holes elsewhere."""
    other, path = tmp_path / "other", tmp_path / "raw"
    other.write_bytes(b"precious")
    match kind:
        case "symlink":
            path.symlink_to(other)
        case "hard link":
            os.link(other, path)
        case "fifo":
            os.mkfifo(path)
        case _:
            path.mkdir()
    with pytest.raises(OSError):
        RawFile(path)
    assert other.read_bytes() == b"precious"


FIRST, SECOND = Checkpoint(1, 2, 3, 4), Checkpoint(5, 2**60, 7, 2**50, 65536, 2**50)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "state"


def saved(path: Path, *checkpoints: Checkpoint) -> None:
    state = CheckpointFile(path)
    for checkpoint in checkpoints:
        state.save(checkpoint)
    state.close()


def latest(path: Path) -> Checkpoint | None:
    state = CheckpointFile(path)
    state.close()
    return state.latest


def test_a_new_file_has_no_checkpoint(path: Path) -> None:
    assert latest(path) is None


def test_the_last_checkpoint_counts(path: Path) -> None:
    saved(path, FIRST, SECOND, FIRST, SECOND)
    assert latest(path) == SECOND


def test_counting_goes_on_after_reopening(path: Path) -> None:
    for number in range(5):
        saved(path, Checkpoint(raw_offset=number))
        assert latest(path) == Checkpoint(raw_offset=number)


@pytest.mark.parametrize("kept", [0, 1, 60, 127])
def test_a_torn_write_leaves_the_checkpoint_before(path: Path, kept: int) -> None:
    saved(path, FIRST)
    before = path.read_bytes()
    saved(path, SECOND)
    after = path.read_bytes()
    slot = 0 if before[:128] != after[:128] else 128
    torn = bytearray(before.ljust(256))
    torn[slot : slot + kept] = after[slot : slot + kept]
    path.write_bytes(torn)
    assert latest(path) == FIRST


def test_garbage_is_no_checkpoint(path: Path) -> None:
    path.write_bytes(b"\xff" * 300)
    assert latest(path) is None


def test_a_second_holder_is_refused(path: Path) -> None:
    state = CheckpointFile(path)
    with pytest.raises(BlockingIOError):
        CheckpointFile(path)
    state.close()
    assert latest(path) is None


def test_the_file_stays_small(path: Path) -> None:
    saved(path, *[FIRST, SECOND] * 50)
    assert path.stat().st_size == 256


def test_a_slot_has_room_for_the_largest_numbers(path: Path) -> None:
    largest = Checkpoint(2**64 - 1, 2**60, 2**64 - 1, 2**60, 65536, 2**50)
    saved(path, *[largest] * 10)
    assert latest(path) == largest


def test_a_file_of_an_earlier_version_without_gaps_is_read(path: Path) -> None:
    body = "1 5 600 7 800"
    slot = f"{zlib.crc32(body.encode()):08x} {body}".ljust(127) + "\n"
    path.write_bytes(bytes(128) + slot.encode())
    assert latest(path) == Checkpoint(5, 600, 7, 800)
