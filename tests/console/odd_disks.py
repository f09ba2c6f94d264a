"""Logs on disks of a bad kind; a program to be run with mounts of its own (`unshare --mount`).

full DIRECTORY       the log's disk fills up and is freed again
overfull DIRECTORY   it does so until more was printed than is kept
read-only DIRECTORY  the log's disk is read-only until more was printed than is kept
holeless DIRECTORY   the raw file's disk cannot punch holes
unbounded DIRECTORY  so does it, and the log cannot be written either
"""

import sys
from pathlib import Path
from subprocess import run

import pytest

from tests.console.support import Emulator, console_files, log_of, lost, numbered, on_disk, printed
from tests.polling import until
from virtlet.console.console_files import MARGIN, ConsoleFiles
from virtlet.console.log_writer import ConsoleLogs
from virtlet.errors import ResourceExhausted

KEEP = 1024 * 1024
LINE = b"x" * 99 + b"\n"


def mount(kind: str, options: str, path: Path) -> None:
    path.mkdir()
    run(["mount", "-t", kind, "-o", options, "none", path], check=True)


def full(directory: Path) -> None:
    """Nothing is lost on a full disk, the raw file holds it, and callers are told."""
    files = console_files(directory)
    mount("tmpfs", "size=1m", directory / "pods")
    logs = ConsoleLogs()
    logs.start()
    logs.prepare(files)
    guest = Emulator(files)
    ballast = directory / "pods" / "ballast"
    ballast.write_bytes(b"x" * 300_000)
    guest.print(LINE * 10_000)
    until(lambda: "No space left" in logs.status()[0].problem)
    assert 0 < logs.status()[0].pending < 1_000_000
    status = logs.finish(files, limit=0.1)
    assert not status.complete
    assert status.pending == logs.status()[0].pending > 0
    log_of(files).rename(directory / "pods" / "vm-1" / "0.log.1")
    with pytest.raises(ResourceExhausted, match="free some disk space"):
        logs.prepare(files)
    logs.add(files)
    run(["mount", "-o", "remount,size=4m", str(directory / "pods")], check=True)
    assert logs.finish(files, limit=10).complete
    assert printed(files) == LINE * 10_000
    logs.stop()


def overfull(directory: Path) -> None:
    """What waits is bounded, and the log tells what it has, what it lost and what came then."""
    mount("tmpfs", "size=1m", directory / "pods")
    unwritable_for_long(console_files(directory), "size=1m", "size=64m")


def read_only(directory: Path) -> None:
    """The same, where nobody can open the log meanwhile to see what it has."""
    mount("tmpfs", "size=64m", directory / "pods")
    unwritable_for_long(console_files(directory), "ro", "rw")


def unwritable_for_long(files: ConsoleFiles, bad: str, good: str) -> None:
    """Print a little, remount the log's disk, print more than is kept, remount it again."""
    disk = log_of(files).parents[1]
    output = numbered(9_050_000)
    logs = ConsoleLogs(KEEP)
    logs.start()
    logs.prepare(files)
    guest = Emulator(files)
    guest.print(output[:50_000])
    until(lambda: logs.status()[0].pending == 0)
    logs.stop()  # a disk does not turn read-only while a file is open
    run(["mount", "-o", f"remount,{bad}", disk], check=True)
    logs.start()
    logs.add(files)
    for start in range(50_000, len(output), 3_000_000):
        before = logs.status()[0].lost
        guest.print(output[start : start + 3_000_000])
        until(lambda before=before: logs.status()[0].lost > before)  # type: ignore[misc]
        assert on_disk(files) <= KEEP + MARGIN + 3 * 4096
    run(["mount", "-o", f"remount,{good}", disk], check=True)
    assert logs.finish(files, limit=20).complete
    assert len(output) - KEEP - 1_000_000 < lost(files, output) <= len(output) - KEEP
    logs.stop()


def unbounded(directory: Path) -> None:
    """Nothing is given up where that frees nothing, and the status says that the file grows."""
    mount("ramfs", "size=1m", directory / "run")
    files = console_files(directory / "run")
    logs = ConsoleLogs(KEEP)
    logs.start()
    logs.prepare(files)
    log_of(files).unlink()
    log_of(files).mkdir()
    output = numbered(3 * KEEP)
    Emulator(files).print(output)
    until(lambda: "holes cannot be punched" in logs.status()[0].note)
    log_of(files).rmdir()
    assert logs.finish(files).complete
    assert lost(files, output) == 0
    logs.stop()


def holeless(directory: Path) -> None:
    """The log is complete, and the status says that the raw file grows."""
    mount("ramfs", "size=1m", directory / "run")
    files = console_files(directory / "run")
    logs = ConsoleLogs()
    logs.start()
    logs.prepare(files)
    Emulator(files).print(LINE * 20_000)
    until(lambda: logs.status()[0].pending == 0)
    until(lambda: "holes cannot be punched" in logs.status()[0].note)
    assert logs.status()[0].problem == ""
    assert logs.finish(files).complete
    assert printed(files) == LINE * 20_000
    logs.stop()


if __name__ == "__main__":
    kinds = {
        "full": full,
        "overfull": overfull,
        "read-only": read_only,
        "holeless": holeless,
        "unbounded": unbounded,
    }
    kinds[sys.argv[1]](Path(sys.argv[2]))
