"""What guests print reaches their logs, through the door that the core uses."""

import threading
import time
from pathlib import Path

import pytest
from attrs import evolve

from tests.console.support import Emulator, console_files, log_of, printed
from tests.polling import until
from virtlet.console.console_files import CheckpointFile, ConsoleFiles
from virtlet.console.log_writer import ConsoleLogs
from virtlet.errors import AlreadyExists, NotFound, Unavailable


def test_the_log_is_there_before_anything_is_printed(guest: Emulator, files: ConsoleFiles) -> None:
    assert log_of(files).read_bytes() == b""


def test_a_line_appears_soon_without_being_asked_for(guest: Emulator, files: ConsoleFiles) -> None:
    guest.print(b"hello\r\n")
    until(lambda: printed(files) == b"hello\r\n", timeout=10)


def test_a_prompt_appears_although_its_line_is_unfinished(
    guest: Emulator, files: ConsoleFiles
) -> None:
    guest.print(b"login: ")
    until(lambda: printed(files) == b"login: ", timeout=10)
    guest.print(b"root\n")
    until(lambda: printed(files) == b"login: root\n", timeout=10)
    assert [line.split(b" ")[2] for line in log_of(files).read_bytes().splitlines()] == [b"P", b"F"]


def test_a_line_printed_in_pieces_is_one_line(guest: Emulator, files: ConsoleFiles) -> None:
    for piece in (b"a", b"b", b"c", b"\n"):
        guest.print(piece)
        time.sleep(0.06)
    until(lambda: printed(files) == b"abc\n", timeout=10)
    assert log_of(files).read_bytes().count(b"\n") == 1


def test_a_line_that_keeps_growing_appears_in_parts(guest: Emulator, files: ConsoleFiles) -> None:
    started = time.monotonic()
    while not printed(files):
        guest.print(b".")
        time.sleep(0.05)
        assert time.monotonic() - started < 20


def test_finishing_completes_the_log_at_once(
    logs: ConsoleLogs, guest: Emulator, files: ConsoleFiles
) -> None:
    output = b"line\n" * 100_000 + b"power down"
    guest.print(output)
    status = logs.finish(files)
    assert status.complete
    assert printed(files) == output
    assert logs.status() == ()
    assert logs.finish(files).complete
    assert printed(files) == output


def test_finishing_a_vm_that_has_no_console_is_nothing(
    logs: ConsoleLogs, files: ConsoleFiles
) -> None:
    assert logs.finish(files).complete
    assert not files.state.exists()


def test_bytes_that_are_no_text_and_long_lines_are_kept(
    logs: ConsoleLogs, guest: Emulator, files: ConsoleFiles
) -> None:
    output = bytes(range(256)) * 300 + b"\n" + b"x" * 200_000 + b"\n\n\r\n" + b"\n" * 100_000
    guest.print(output)
    logs.finish(files)
    assert printed(files) == output


def test_the_raw_file_stays_small(logs: ConsoleLogs, guest: Emulator, files: ConsoleFiles) -> None:
    line = b"x" * 79 + b"\n"
    most = 0
    for _ in range(200):
        guest.print(line * 1000)
        until(lambda: logs.status()[0].pending == 0)
        most = max(most, files.raw.stat().st_blocks * 512)
    assert most < 2 * 1024 * 1024
    logs.finish(files)
    assert files.raw.stat().st_blocks * 512 <= 4096
    assert printed(files) == line * 200_000


def test_a_restarted_manager_goes_on_where_it_was(logs: ConsoleLogs, files: ConsoleFiles) -> None:
    logs.prepare(files)
    guest = Emulator(files)
    output = b""
    for number in range(5):
        guest.print(b"before %d\npro" % number)
        logs.stop()
        guest.print(b"mpt> while away %d\n" % number)
        logs.start()
        logs.add(files)
        output += b"before %d\nprompt> while away %d\n" % (number, number)
    logs.finish(files)
    assert printed(files) == output
    guest.exit()


def test_a_notice_stands_in_the_log_and_changes_nothing_for_a_restart(
    logs: ConsoleLogs, guest: Emulator, files: ConsoleFiles
) -> None:
    guest.print(b"one\n")
    until(lambda: printed(files) == b"one\n")
    logs.tell(files.vm_id, "the share /data\nis not mounted")
    text = log_of(files).read_bytes()
    assert text.endswith(b" stderr F [virtlet: the share /data is not mounted]\n")
    logs.stop()
    guest.print(b"two\n")
    logs.start()
    logs.add(files)
    logs.finish(files)
    assert log_of(files).read_bytes().startswith(text)
    assert printed(files) == b"one\ntwo\n"


def test_a_log_that_is_complete_takes_no_notice(
    logs: ConsoleLogs, guest: Emulator, files: ConsoleFiles
) -> None:
    """Also where it could be opened only now, at the end of the guest."""
    logs.remove(files)
    log_of(files).unlink()
    log_of(files).mkdir()
    files.raw.write_bytes(b"last words\n")
    logs.add(files)
    assert not logs.finish(files, 0.1).complete
    log_of(files).rmdir()
    with pytest.raises((NotFound, Unavailable)):
        logs.tell(files.vm_id, "too late")
    until(lambda: printed(files) == b"last words\n")


def test_a_vm_that_is_not_followed_has_no_log_for_a_notice(logs: ConsoleLogs) -> None:
    with pytest.raises(NotFound):
        logs.tell("nobody", "hello")


def test_the_raw_file_may_come_later(logs: ConsoleLogs, files: ConsoleFiles) -> None:
    logs.add(files)
    assert log_of(files).exists()
    files.raw.write_bytes(b"early boot\n")
    until(lambda: printed(files) == b"early boot\n", timeout=10)


def test_its_directory_may_come_later(logs: ConsoleLogs, tmp_path: Path) -> None:
    files = console_files(tmp_path / "later")
    logs.add(files)
    assert "No such file" in logs.status()[0].problem
    files.raw.parent.mkdir(exist_ok=True)
    files.raw.write_bytes(b"early boot\n")
    until(lambda: log_of(files).exists() and printed(files) == b"early boot\n", timeout=10)
    assert logs.status()[0].problem == ""


def test_a_second_start_keeps_what_the_first_printed(
    logs: ConsoleLogs, guest: Emulator, files: ConsoleFiles
) -> None:
    """A start that failed half way is repeated with a raw file that begins at 0 again."""
    guest.print(b"first start, longer than the second\n")
    logs.prepare(files)
    second = Emulator(files)
    second.print(b"second start\n")
    logs.finish(files)
    assert printed(files) == b"first start, longer than the second\nsecond start\n"
    second.exit()


def test_a_crash_between_new_raw_file_and_first_look_loses_nothing(
    logs: ConsoleLogs, guest: Emulator, files: ConsoleFiles
) -> None:
    guest.print(b"first start, longer than the second\n")
    until(lambda: printed(files) != b"")
    logs.stop()
    fresh = files.raw.with_name("fresh")
    fresh.write_bytes(b"second start\n")
    fresh.replace(files.raw)
    logs.start()
    logs.finish(files)
    assert printed(files) == b"first start, longer than the second\nsecond start\n"


def test_without_a_log_the_output_is_dropped_and_the_disk_given_back(
    logs: ConsoleLogs, files: ConsoleFiles
) -> None:
    files = evolve(files, log=None)
    logs.prepare(files)
    guest = Emulator(files)
    guest.print(b"x" * 5_000_000)
    until(lambda: logs.status()[0].pending == 0)
    assert files.raw.stat().st_blocks * 512 < 1024 * 1024
    logs.reopen(files.vm_id)
    assert logs.finish(files).complete
    guest.exit()


def test_removing_leaves_the_log_alone(
    logs: ConsoleLogs, guest: Emulator, files: ConsoleFiles, tmp_path: Path
) -> None:
    guest.print(b"last words\n")
    logs.finish(files)
    logs.remove(files)
    logs.remove(files)
    assert [path.name for path in tmp_path.iterdir()] == ["pods"]
    assert printed(files) == b"last words\n"


def test_removing_stops_following(logs: ConsoleLogs, guest: Emulator, files: ConsoleFiles) -> None:
    logs.remove(files)
    assert logs.status() == ()
    with pytest.raises(NotFound, match="vm-1"):
        logs.reopen(files.vm_id)


def test_following_twice_is_following_once(
    logs: ConsoleLogs, guest: Emulator, files: ConsoleFiles
) -> None:
    logs.add(files)
    guest.print(b"once\n")
    logs.finish(files)
    assert printed(files) == b"once\n"


def test_one_vm_cannot_be_followed_to_two_logs(
    logs: ConsoleLogs, guest: Emulator, files: ConsoleFiles, tmp_path: Path
) -> None:
    with pytest.raises(AlreadyExists, match="vm-1"):
        logs.add(evolve(files, log=tmp_path / "other.log"))


def test_a_stopped_writer_says_so(files: ConsoleFiles) -> None:
    logs = ConsoleLogs()
    with pytest.raises(Unavailable, match="not running"):
        logs.add(files)
    logs.stop()


def test_two_managers_do_not_write_one_log(
    logs: ConsoleLogs, guest: Emulator, files: ConsoleFiles
) -> None:
    other = ConsoleLogs()
    other.start()
    other.add(files)
    assert "temporarily unavailable" in other.status()[0].problem
    guest.print(b"hello\n")
    until(lambda: printed(files) == b"hello\n")
    logs.stop()
    guest.print(b"again\n")
    until(lambda: printed(files) == b"hello\nagain\n", timeout=10)
    other.stop()


def test_a_log_another_program_holds_up_is_retried(
    logs: ConsoleLogs, guest: Emulator, files: ConsoleFiles
) -> None:
    """A directory in the log's place stands for anything that makes the log unwritable."""
    log_of(files).unlink()
    log_of(files).mkdir()
    guest.print(b"kept\n")
    until(lambda: "Is a directory" in logs.status()[0].problem)
    assert not logs.finish(files, limit=0).complete
    with pytest.raises(Unavailable, match="vm-1"):
        logs.reopen(files.vm_id)
    log_of(files).rmdir()
    assert logs.finish(files, limit=5).complete
    assert printed(files) == b"kept\n"


def test_a_lost_state_repeats_at_most_and_never_loses(
    logs: ConsoleLogs, guest: Emulator, files: ConsoleFiles, caplog: pytest.LogCaptureFixture
) -> None:
    output = b"".join(b"%07d\n" % number for number in range(200_000))
    guest.print(output)
    until(lambda: logs.status()[0].pending == 0)
    logs.stop()
    files.state.unlink()
    logs.start()
    logs.add(files)
    logs.finish(files)
    assert printed(files).startswith(output)
    assert output.endswith(printed(files)[len(output) :])
    assert "may repeat" in caplog.text


def test_a_raw_file_that_was_truncated_is_followed_from_its_new_start(
    logs: ConsoleLogs, guest: Emulator, files: ConsoleFiles
) -> None:
    guest.print(b"before\n")
    until(lambda: printed(files) == b"before\n")
    files.raw.write_bytes(b"after\n")
    until(lambda: printed(files) == b"before\nafter\n")


def test_many_threads_may_call_at_once(logs: ConsoleLogs, tmp_path: Path) -> None:
    consoles = [console_files(tmp_path, f"vm-{number}") for number in range(20)]

    def live(files: ConsoleFiles) -> None:
        logs.prepare(files)
        guest = Emulator(files)
        for number in range(20):
            guest.print(b"%s %d\n" % (files.vm_id.encode(), number))
        guest.exit()
        assert logs.finish(files).complete

    threads = [threading.Thread(target=live, args=(files,)) for files in consoles]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for files in consoles:
        lines = [b"%s %d\n" % (files.vm_id.encode(), number) for number in range(20)]
        assert printed(files) == b"".join(lines)


def test_checkpoints_hold_no_output(
    logs: ConsoleLogs, guest: Emulator, files: ConsoleFiles
) -> None:
    guest.print(b"secret\n")
    logs.finish(files)
    assert b"secret" not in files.state.read_bytes()
    state = CheckpointFile(files.state)
    assert state.latest is not None
    assert state.latest.raw_offset == len(b"secret\n")
    state.close()
