"""Checkpoints survive torn writes, and one process at a time keeps them."""

import zlib
from pathlib import Path

import pytest

from virtlet.console.checkpoint import Checkpoint, StateFile

FIRST, SECOND = Checkpoint(1, 2, 3, 4), Checkpoint(5, 2**60, 7, 2**50, 65536, 2**50)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "state"


def saved(path: Path, *checkpoints: Checkpoint) -> None:
    state = StateFile(path)
    for checkpoint in checkpoints:
        state.save(checkpoint)
    state.close()


def latest(path: Path) -> Checkpoint | None:
    state = StateFile(path)
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
    state = StateFile(path)
    with pytest.raises(BlockingIOError):
        StateFile(path)
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
