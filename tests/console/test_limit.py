"""A log that cannot be written: what waits for it is bounded, and what is lost is told.

A directory in the log's place stands for anything that makes a log unwritable; full disks are in
odd_disks.py.
"""

import re
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from attrs import evolve

from tests.console.support import Emulator, log_of, lost, numbered, on_disk, printed
from tests.console.test_crash import killed_writer
from tests.polling import until
from virtlet.console.console_files import CheckpointFile, ConsoleFiles
from virtlet.console.cri_log import encode, encode_loss
from virtlet.console.follower import BATCH
from virtlet.console.log_writer import KEEP, ConsoleLogs
from virtlet.errors import FailedPrecondition

KEPT = 1024 * 1024
BLOCKS = 2 * 4096
"""Bytes that may stay on disk beside a gap, as holes are made of whole blocks."""


@pytest.fixture
def logs() -> Iterator[ConsoleLogs]:
    """A writer that keeps less than usual."""
    logs = ConsoleLogs(KEPT)
    logs.start()
    yield logs
    logs.stop()


def block(files: ConsoleFiles) -> None:
    """Let nobody write the log."""
    log_of(files).unlink(missing_ok=True)
    log_of(files).mkdir(parents=True)


def overfill(logs: ConsoleLogs, guest: Emulator, files: ConsoleFiles, size: int) -> bytes:
    """Print so much more than is kept of it, and see the rest given up."""
    output = numbered(size)
    block(files)
    guest.print(output)
    until(lambda: logs.status()[0].lost > 0)
    return output


def given_up(caplog: pytest.LogCaptureFixture) -> list[str]:
    """Lines of the manager's log about bytes that are given up."""
    return [text for text in caplog.messages if "given up" in text]


def test_up_to_the_limit_nothing_is_lost(
    logs: ConsoleLogs, guest: Emulator, files: ConsoleFiles, caplog: pytest.LogCaptureFixture
) -> None:
    output = numbered(KEPT)
    block(files)
    guest.print(output)
    time.sleep(3.2)
    assert (logs.status()[0].pending, logs.status()[0].lost) == (KEPT, 0)
    log_of(files).rmdir()
    assert logs.finish(files).complete
    assert lost(files, output) == 0
    assert not given_up(caplog)


def test_beyond_the_limit_the_oldest_bytes_go_and_the_log_says_how_many(
    logs: ConsoleLogs, guest: Emulator, files: ConsoleFiles, caplog: pytest.LogCaptureFixture
) -> None:
    output = overfill(logs, guest, files, 5_000_000)
    assert on_disk(files) <= KEPT + BLOCKS
    assert logs.status()[0].pending == KEPT
    log_of(files).rmdir()
    assert logs.finish(files).complete
    assert lost(files, output) == len(output) - KEPT
    text = log_of(files).read_bytes()
    assert len(re.findall(rb"(?m)^\S+ stderr F \[virtlet: 3951424 bytes .* lost: .*\]$", text)) == 1
    assert output.startswith(printed(files)[:BATCH])
    assert output.endswith(printed(files)[BATCH:])
    assert [text for text in caplog.messages if "3951424 bytes" in text and "vm-1" in text]


def test_it_stays_at_the_limit_and_is_said_once_while_the_guest_prints_on(
    logs: ConsoleLogs, guest: Emulator, files: ConsoleFiles, caplog: pytest.LogCaptureFixture
) -> None:
    output = overfill(logs, guest, files, 2_000_000)
    for _ in range(3):
        before = logs.status()[0].lost
        guest.print(output)
        until(lambda before=before: logs.status()[0].lost > before)  # type: ignore[misc]
        assert on_disk(files) <= KEPT + BLOCKS
    assert len(given_up(caplog)) == 1
    assert "vm-1" in given_up(caplog)[0]
    log_of(files).rmdir()
    assert logs.finish(files).complete
    assert lost(files, output * 4) == len(output) * 4 - KEPT


def test_each_loss_is_told_where_it_was(
    logs: ConsoleLogs, guest: Emulator, files: ConsoleFiles, caplog: pytest.LogCaptureFixture
) -> None:
    output = overfill(logs, guest, files, 3_000_000)
    log_of(files).rmdir()
    until(lambda: logs.status()[0].complete)
    assert lost(files, output) == len(output) - KEPT
    log_of(files).rename(files.stem.with_name("first.log"))
    logs.reopen(files.vm_id)
    again = overfill(logs, guest, files, 4_000_000)
    log_of(files).rmdir()
    assert logs.finish(files).complete
    assert lost(files, again) == len(again) - KEPT
    assert len(given_up(caplog)) == 2


def test_a_loss_survives_restarts_and_grows_on(
    logs: ConsoleLogs, guest: Emulator, files: ConsoleFiles
) -> None:
    output = overfill(logs, guest, files, 2_000_000)
    logs.stop()
    guest.print(output)
    logs.start()
    logs.add(files)
    until(lambda: logs.status()[0].lost == 2 * len(output) - KEPT)
    assert on_disk(files) <= KEPT + BLOCKS
    logs.stop()
    log_of(files).rmdir()
    guest.print(b"the end")
    logs.start()
    logs.add(files)
    assert logs.finish(files).complete
    assert lost(files, output * 2 + b"the end") == 2 * len(output) - KEPT


def test_killed_before_the_blocks_went_they_go_at_the_next_start(
    logs: ConsoleLogs, guest: Emulator, files: ConsoleFiles
) -> None:
    output = numbered(3_000_000)
    logs.stop()
    guest.print(output)
    block(files)
    state = CheckpointFile(files.state)
    assert state.latest is not None
    state.save(evolve(state.latest, before_gap=BATCH, gap=len(output) - KEPT))
    state.close()
    assert on_disk(files) >= len(output)
    logs.start()
    logs.add(files)
    assert on_disk(files) <= KEPT + BLOCKS
    log_of(files).rmdir()
    assert logs.finish(files).complete
    assert lost(files, output) == len(output) - KEPT


def test_a_writable_log_loses_nothing_however_much_was_printed_while_nobody_wrote(
    logs: ConsoleLogs, guest: Emulator, files: ConsoleFiles
) -> None:
    output = numbered(8 * KEPT)
    logs.stop()
    guest.print(output)
    logs.start()
    logs.add(files)
    assert logs.finish(files).complete
    assert lost(files, output) == 0


def test_one_failure_after_a_restart_loses_nothing(
    logs: ConsoleLogs, guest: Emulator, files: ConsoleFiles
) -> None:
    output = numbered(8 * KEPT)
    logs.stop()
    block(files)
    guest.print(output)
    logs.start()
    logs.add(files)
    assert logs.status()[0].problem
    log_of(files).rmdir()
    assert logs.finish(files).complete
    assert lost(files, output) == 0


def test_by_default_16_mib_are_kept(files: ConsoleFiles) -> None:
    logs = ConsoleLogs()
    logs.start()
    logs.prepare(files)
    guest = Emulator(files)
    output = overfill(logs, guest, files, 24_000_000)
    assert on_disk(files) <= 16 * 1024 * 1024 + BLOCKS
    log_of(files).rmdir()
    assert logs.finish(files).complete
    assert lost(files, output) == len(output) - KEEP
    logs.stop()
    guest.exit()


def test_without_its_state_a_raw_file_with_a_gap_is_told_as_one(
    logs: ConsoleLogs, guest: Emulator, files: ConsoleFiles
) -> None:
    output = overfill(logs, guest, files, 3_000_000)
    logs.stop()
    files.state.unlink()
    log_of(files).rmdir()
    logs.start()
    logs.add(files)
    assert logs.finish(files).complete
    assert len(output) - KEPT - BLOCKS <= lost(files, output) <= len(output) - KEPT


@pytest.mark.parametrize("written", ["all", "no newline", "a part", "a byte", "nothing"])
@pytest.mark.parametrize("grown", [0, 100_000])
def test_a_marker_that_was_not_noted_is_counted_and_a_torn_one_written_again(
    logs: ConsoleLogs, guest: Emulator, files: ConsoleFiles, written: str, grown: int
) -> None:
    """Killed after the marker was written, or a part of it; the gap may grow before the next try,
    when the log could not even be read."""
    output = overfill(logs, guest, files, 3_000_000)
    logs.stop()
    log_of(files).rmdir()
    state = CheckpointFile(files.state)
    assert state.latest is not None
    head, gap = state.latest.before_gap, state.latest.gap
    before = encode(output[:head], time.time_ns(), flush=True).text
    marker = encode_loss(gap - grown, time.time_ns())
    end = {"all": 0, "no newline": -1, "a part": -30, "a byte": 1 - len(marker), "nothing": None}
    log_of(files).write_bytes(before)
    inode = log_of(files).stat().st_ino
    state.save(evolve(state.latest.written(head), log_inode=inode, log_size=len(before)))
    state.close()
    if end[written] is not None:
        with log_of(files).open("ab") as log:
            log.write(marker[: len(marker) + (end[written] or 0)])
    logs.start()
    logs.add(files)
    assert logs.finish(files).complete
    assert lost(files, output) == len(output) - KEPT
    markers = 2 if grown and written == "all" else 1
    assert log_of(files).read_bytes().count(b" stderr F ") == markers


@pytest.mark.parametrize(("event", "stride", "offset"), [("line", 13, 5), ("opcode", 131, 11)])
def test_killed_at_points_of_a_run_that_loses(
    tmp_path: Path, event: str, stride: int, offset: int
) -> None:
    """Cannot write, gives up, writes again: killed at every n-th point, then run again."""
    result = killed_writer("losses", str(tmp_path), event, str(stride), str(offset))
    assert result["wrong"] == 0
    assert result["kills"] > 50
    assert result["gaps"] > 20


def test_the_end_does_not_wait_for_a_log_that_cannot_be_written(
    logs: ConsoleLogs, guest: Emulator, files: ConsoleFiles
) -> None:
    block(files)
    guest.print(b"last words")
    started = time.monotonic()
    status = logs.finish(files, limit=30)
    assert time.monotonic() - started < 10
    assert "Is a directory" in status.problem
    assert status.pending == len(b"last words")


def test_an_ended_vm_is_written_behind_everyones_back_once_that_is_possible(
    logs: ConsoleLogs, guest: Emulator, files: ConsoleFiles
) -> None:
    block(files)
    guest.print(b"last words")
    assert not logs.finish(files).complete
    log_of(files).rmdir()
    until(lambda: logs.status() == ())
    assert printed(files) == b"last words"


def test_removing_a_vm_whose_log_was_never_written_says_what_goes(
    logs: ConsoleLogs, guest: Emulator, files: ConsoleFiles, caplog: pytest.LogCaptureFixture
) -> None:
    block(files)
    guest.print(b"last words")
    logs.finish(files)
    logs.remove(files)
    assert "vm-1 ends without the last 10 bytes" in caplog.text


def test_a_log_path_that_is_a_directory_is_refused(logs: ConsoleLogs, files: ConsoleFiles) -> None:
    log_of(files).mkdir(parents=True)
    with pytest.raises(FailedPrecondition, match=r"Is a directory.*ask for another log_path"):
        logs.prepare(files)
    assert not files.raw.exists()
    assert logs.status() == ()


@pytest.mark.parametrize("depth", [1, 2])
def test_a_log_path_below_a_file_is_refused(
    logs: ConsoleLogs, files: ConsoleFiles, depth: int
) -> None:
    blocked = log_of(files).parents[depth - 1]
    blocked.parent.mkdir(parents=True, exist_ok=True)
    blocked.write_bytes(b"")
    with pytest.raises(FailedPrecondition, match="vm-1"):
        logs.prepare(files)
    assert blocked.read_bytes() == b""


def test_a_log_that_is_there_already_is_left_as_it_was(
    logs: ConsoleLogs, files: ConsoleFiles
) -> None:
    log_of(files).parent.mkdir(parents=True)
    log_of(files).write_bytes(b"of an earlier life\n")
    logs.prepare(files)
    assert log_of(files).read_bytes() == b"of an earlier life\n"


@pytest.mark.parametrize("kind", ["full", "overfull", "read-only", "holeless", "unbounded"])
def test_on_a_disk_that_is(tmp_path: Path, kind: str) -> None:
    """See the functions of odd_disks.py; the mounts vanish with the process."""
    program = [sys.executable, "-m", "tests.console.odd_disks", kind, str(tmp_path)]
    run = subprocess.run(
        ["unshare", "--mount", *program], capture_output=True, timeout=60, check=False
    )
    assert run.returncode == 0, run.stderr.decode()
