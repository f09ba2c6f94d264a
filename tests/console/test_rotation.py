"""Logs that are renamed, deleted or truncated by others, while we write and while we are away."""

import shutil
import tempfile
import time
from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st

from tests.console.support import Emulator, console_files, log_of, printed, rotate
from tests.polling import until
from virtlet.console.console_files import CheckpointFile, ConsoleFiles
from virtlet.console.cri_log import decode, encode
from virtlet.console.log_writer import ConsoleLogs


def test_after_reopening_the_new_file_is_written(
    logs: ConsoleLogs, guest: Emulator, files: ConsoleFiles
) -> None:
    guest.print(b"old\n")
    until(lambda: printed(files) == b"old\n")
    rotate(files)
    guest.print(b"still the old one\n")
    until(lambda: printed(files) == b"old\nstill the old one\n")
    logs.reopen(files.vm_id)
    assert log_of(files).read_bytes() == b""
    guest.print(b"new\n")
    until(lambda: log_of(files).read_bytes() != b"")
    assert decode(log_of(files).read_bytes()).payload == b"new\n"
    assert printed(files) == b"old\nstill the old one\nnew\n"


def test_reopening_without_a_rename_changes_nothing(
    logs: ConsoleLogs, guest: Emulator, files: ConsoleFiles
) -> None:
    guest.print(b"one\n")
    logs.reopen(files.vm_id)
    guest.print(b"two\n")
    logs.finish(files)
    assert decode(log_of(files).read_bytes()).payload == b"one\ntwo\n"


def test_rotating_again_and_again_loses_and_tears_nothing(
    logs: ConsoleLogs, guest: Emulator, files: ConsoleFiles
) -> None:
    output = b""
    for number in range(30):
        piece = b"%d " % number * 5000 + (b"\n" if number % 3 else b"")
        guest.print(piece)
        output += piece
        rotate(files)
        logs.reopen(files.vm_id)
    logs.finish(files)
    assert printed(files) == output
    assert len(list(log_of(files).parent.iterdir())) == 31


def test_a_rename_while_we_were_away(
    logs: ConsoleLogs, guest: Emulator, files: ConsoleFiles
) -> None:
    guest.print(b"one\n")
    until(lambda: printed(files) == b"one\n")
    logs.stop()
    rotate(files)
    guest.print(b"two\n")
    logs.start()
    logs.add(files)
    logs.finish(files)
    assert decode(log_of(files).read_bytes()).payload == b"two\n"
    assert printed(files) == b"one\ntwo\n"


def test_a_renamed_log_that_was_ahead_of_the_checkpoint(
    logs: ConsoleLogs, guest: Emulator, files: ConsoleFiles
) -> None:
    """Killed after the log was written and before the checkpoint, then rotated, then started."""
    guest.print(b"one\n")
    until(lambda: printed(files) == b"one\n")
    logs.stop()
    guest.print(b"two\nthree\n")
    with log_of(files).open("ab") as log:
        log.write(encode(b"two\n", time.time_ns(), flush=False).text)
        log.write(encode(b"three\n", time.time_ns(), flush=False).text[:-4])
    rotate(files)
    logs.start()
    logs.add(files)
    logs.finish(files)
    assert printed(files) == b"one\ntwo\nthree\n"
    assert decode(log_of(files).read_bytes()).payload == b"three\n"


def test_a_deleted_log_is_begun_again(
    logs: ConsoleLogs, guest: Emulator, files: ConsoleFiles
) -> None:
    guest.print(b"one\n")
    until(lambda: printed(files) == b"one\n")
    log_of(files).unlink()
    guest.print(b"two\n")
    until(lambda: log_of(files).exists() and printed(files) == b"two\n")


def test_a_deleted_log_directory_is_made_again(
    logs: ConsoleLogs, guest: Emulator, files: ConsoleFiles
) -> None:
    guest.print(b"one\n")
    until(lambda: printed(files) == b"one\n")
    shutil.rmtree(log_of(files).parent)
    guest.print(b"two\n")
    until(lambda: log_of(files).exists() and printed(files) == b"two\n")


def test_a_log_deleted_while_we_were_away(
    logs: ConsoleLogs, guest: Emulator, files: ConsoleFiles
) -> None:
    guest.print(b"one\n")
    until(lambda: printed(files) == b"one\n")
    logs.stop()
    shutil.rmtree(log_of(files).parent)
    guest.print(b"two\n")
    logs.start()
    logs.add(files)
    logs.finish(files)
    assert printed(files) == b"two\n"


def test_a_log_truncated_by_others_is_written_on(
    logs: ConsoleLogs, guest: Emulator, files: ConsoleFiles
) -> None:
    guest.print(b"one\n")
    until(lambda: printed(files) == b"one\n")
    log_of(files).write_bytes(b"")
    guest.print(b"two\n")
    until(lambda: printed(files) == b"two\n")
    logs.stop()
    log_of(files).write_bytes(b"")
    guest.print(b"three\n")
    logs.start()
    logs.add(files)
    logs.finish(files)
    assert printed(files) == b"three\n"


def test_lines_of_others_behind_the_checkpoint_are_not_counted_as_ours(
    logs: ConsoleLogs, guest: Emulator, files: ConsoleFiles
) -> None:
    guest.print(b"one\n")
    until(lambda: printed(files) == b"one\n")
    logs.stop()
    with log_of(files).open("ab") as log:
        log.write(b"not a CRI line\nnor this")
    guest.print(b"two\n")
    logs.start()
    logs.add(files)
    logs.finish(files)
    lines = log_of(files).read_bytes().splitlines()
    assert lines[1:3] == [b"not a CRI line", b"nor this"]
    assert lines[3].endswith(b" stdout F two")


@settings(max_examples=40, deadline=None)
@given(
    pieces=st.lists(st.binary(min_size=1, max_size=60_000), min_size=1, max_size=4),
    torn=st.integers(0, 10**6),
    rotated=st.booleans(),
)
def test_any_write_may_be_torn_at_any_byte(pieces: list[bytes], torn: int, rotated: bool) -> None:
    """What a kernel leaves of the last write of a killed manager is a prefix of it."""
    with tempfile.TemporaryDirectory() as directory:
        files = console_files(Path(directory))
        logs = ConsoleLogs()
        logs.start()
        logs.prepare(files)
        guest = Emulator(files)
        for piece in pieces[:-1]:
            guest.print(piece)
        logs.stop()
        state = CheckpointFile(files.state)
        assert state.latest is not None
        offset = state.latest.raw_offset
        state.close()
        guest.print(pieces[-1])
        with files.raw.open("rb") as raw, log_of(files).open("ab") as log:
            raw.seek(offset)
            text = encode(raw.read(65536), time.time_ns(), flush=bool(torn % 2)).text
            log.write(text[: torn % (len(text) + 1)])
        if rotated:
            rotate(files)
        logs.start()
        logs.add(files)
        logs.finish(files)
        logs.stop()
        guest.exit()
        assert printed(files) == b"".join(pieces)
