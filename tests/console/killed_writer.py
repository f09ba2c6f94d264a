"""Kills a log writer with SIGKILL again and again; a program, as it forks.

Three ways, each printing one line of JSON for test_crash.py:

    points DIRECTORY EVENT STRIDE OFFSET   at the OFFSET-th, then each STRIDE-th traced event
                                           (EVENT is line or opcode) of one whole run
    losses DIRECTORY EVENT STRIDE OFFSET   the same, of a run that cannot write for a while and
                                           gives bytes up
    storm DIRECTORY KILLS SEED             at random moments while a guest prints
"""

import json
import os
import random
import shutil
import signal
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import FrameType

from tests.console.support import console_files, log_of, lost, numbered, printed, rotate
from virtlet.console.console_files import Checkpoint, CheckpointFile, ConsoleFiles, make_console
from virtlet.console.follower import BATCH
from virtlet.console.log_writer import ConsoleLogs

OUTPUT = b"".join(
    [
        b"booting\r\n" * 100,
        b"\xff\x00\xfe" * 9000 + b"\n",
        (b"y" * 1000 + b"\n") * 70,
        b"x" * 50_000,
        b"\n" * 50,
        b"login: ",
    ]
)


KEEP = 3 * BATCH
LONG_OUTPUT = numbered(10 * BATCH)
"""More than is kept of it, and small enough to be written at every point."""


def killer(event: str, count: int) -> Callable[[FrameType, str, object], object]:
    """A trace function that kills this process at the count-th event in the console's code."""
    left = count

    def trace(frame: FrameType, kind: str, _: object) -> object:
        nonlocal left
        if "/virtlet/console/" not in frame.f_code.co_filename:
            return None
        frame.f_trace_opcodes = event == "opcode"
        if kind == event:
            left -= 1
            if left == 0:
                os.kill(os.getpid(), signal.SIGKILL)
        return trace

    return trace


def forked(run: Callable[[], None]) -> bool:
    """Run something in a child. Returns whether it got to its end."""
    child = os.fork()
    if child == 0:
        run()
        os._exit(0)
    _, status = os.waitpid(child, 0)
    if os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL:
        return False
    assert status == 0, f"the writer failed: {status}"
    return True


def whole_run(files: ConsoleFiles) -> None:
    """Follow, rotate, reopen, finish."""
    logs = ConsoleLogs()
    logs.start()
    logs.add(files)
    if not any(path != log_of(files) for path in log_of(files).parent.iterdir()):
        rotate(files)
    logs.reopen(files.vm_id)
    assert logs.finish(files).complete
    logs.stop()


def losing_run(files: ConsoleFiles) -> None:
    """Fail to write until bytes are given up, then write; unless that was done before."""
    logs = ConsoleLogs(KEEP)
    logs.start()
    logs.add(files)
    if log_of(files).is_dir():
        # Every call is an attempt of its own; the second one gives bytes up.
        assert not logs.finish(files).complete
        assert not logs.finish(files).complete
        log_of(files).rmdir()
    assert logs.finish(files).complete
    logs.stop()


def killed_run(run: Callable[[], None], event: str, count: int) -> None:
    trace = killer(event, count)
    threading.settrace(trace)  # type: ignore[arg-type]
    sys.settrace(trace)  # type: ignore[arg-type]
    run()


def tear(files: ConsoleFiles, chance: random.Random) -> None:
    """Take bytes off the log that came after the checkpoint, as a torn write would lack them."""
    if not files.state.exists():
        return
    state = CheckpointFile(files.state)
    saved = state.latest or Checkpoint()
    state.close()
    for path in log_of(files).parent.iterdir():
        status = path.stat()
        if status.st_ino == saved.log_inode and status.st_size > saved.log_size:
            os.truncate(path, chance.randint(saved.log_size, status.st_size))


def points(directory: Path, event: str, stride: int, offset: int) -> dict[str, int]:
    """Kill a run at event after event until one gets to its end."""
    kills, count, wrong, done = 0, offset, 0, False
    while not done:
        home = directory / str(count)
        home.mkdir()
        files = console_files(home)
        make_console(files)
        files.raw.write_bytes(OUTPUT)

        def run(files: ConsoleFiles = files) -> None:
            whole_run(files)

        done = forked(lambda run=run, count=count: killed_run(run, event, count))  # type: ignore[misc]
        if not done:
            kills += 1
            chance = random.Random(count)
            if log_of(files).exists():
                tear(files, chance)
                if chance.random() < 0.3:
                    rotate(files)
            assert forked(run)
        wrong += printed(files) != OUTPUT
        shutil.rmtree(home)
        count += stride
    return {"kills": kills, "events": count - stride, "wrong": wrong}


def losses(directory: Path, event: str, stride: int, offset: int) -> dict[str, int]:
    """Kill a run that loses bytes at event after event until one gets to its end."""
    kills, count, wrong, gaps, done = 0, offset, 0, 0, False
    while not done:
        home = directory / str(count)
        home.mkdir()
        files = console_files(home)
        make_console(files)
        files.raw.write_bytes(LONG_OUTPUT)
        log_of(files).mkdir(parents=True)

        def run(files: ConsoleFiles = files) -> None:
            losing_run(files)

        done = forked(lambda run=run, count=count: killed_run(run, event, count))  # type: ignore[misc]
        if not done:
            kills += 1
            if log_of(files).is_file():
                tear(files, random.Random(count))
            assert forked(run)
        count_lost = lost(files, LONG_OUTPUT)
        wrong += count_lost not in (0, len(LONG_OUTPUT) - KEEP)
        gaps += count_lost > 0
        shutil.rmtree(home)
        count += stride
    return {"kills": kills, "events": count - stride, "wrong": wrong, "gaps": gaps}


def storm(directory: Path, kills: int, seed: int) -> dict[str, int]:
    """Kill the writer at random moments while a guest prints, rotating now and then."""
    chance = random.Random(seed)
    files = console_files(directory)
    make_console(files)
    guest = os.fork()
    if guest == 0:
        run_guest(files, directory / "printed", seed)
    for _ in range(kills):
        writer = os.fork()
        if writer == 0:
            follow_and_reopen(files)
        time.sleep(chance.uniform(0.0, 0.08))
        os.kill(writer, signal.SIGKILL)
        os.waitpid(writer, 0)
        if log_of(files).exists():
            tear(files, chance)
            if chance.random() < 0.3:
                rotate(files)
    os.kill(guest, signal.SIGTERM)
    os.waitpid(guest, 0)
    logs = ConsoleLogs()
    logs.start()
    assert logs.finish(files).complete
    logs.stop()
    output = (directory / "printed").read_bytes()
    return {"kills": kills, "bytes": len(output), "wrong": printed(files) != output}


def run_guest(files: ConsoleFiles, copy: Path, seed: int) -> None:
    """Print about 2 MB/s, keeping a copy, until told to end; a piece is in both or in neither."""
    chance = random.Random(seed + 1)
    ended = False

    def end(*_: object) -> None:
        nonlocal ended
        ended = True

    signal.signal(signal.SIGTERM, end)
    with files.raw.open("ab", buffering=0) as raw, copy.open("ab", buffering=0) as other:
        while not ended:
            piece = chance.choice([b"line %d\r\n" % chance.getrandbits(32), b"\xff" * 70, b"\n"])
            piece *= chance.choice([1, 10, 400])
            raw.write(piece)
            other.write(piece)
            time.sleep(0.001)
    os._exit(0)


def follow_and_reopen(files: ConsoleFiles) -> None:
    """Write the log until killed."""
    logs = ConsoleLogs()
    logs.start()
    logs.add(files)
    while True:
        time.sleep(0.01)
        logs.reopen(files.vm_id)


if __name__ == "__main__":
    way, where, *rest = sys.argv[1:]
    if way in ("points", "losses"):
        kill = points if way == "points" else losses
        result = kill(Path(where), rest[0], int(rest[1]), int(rest[2]))
    else:
        result = storm(Path(where), int(rest[0]), int(rest[1]))
    print(json.dumps(result))  # noqa: T201
