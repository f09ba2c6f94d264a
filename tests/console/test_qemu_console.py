"""The console of a real QEMU, with a guest of one sector."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.console.serial_guest import FLOOD, qemu
from tests.console.support import printed
from tests.console.test_hub import read, rest
from tests.polling import until
from virtlet.console.console_files import ConsoleFiles
from virtlet.console.hub import ConsoleHub
from virtlet.console.live_console import EndReason
from virtlet.console.log_writer import ConsoleLogs

ATTACHED = """
import sys
from pathlib import Path
from virtlet.console.console_files import ConsoleFiles
from virtlet.console.hub import ConsoleHub
from virtlet.console.log_writer import ConsoleLogs
files = ConsoleFiles("vm-1", Path(sys.argv[1]), Path(sys.argv[2]))
logs, hub = ConsoleLogs(), ConsoleHub()
logs.start()
hub.start()
logs.add(files)
attachment = hub.attach(files)
attachment.socket.sendall(b"F")
print(attachment.socket.recv(1), flush=True)
sys.stdin.read()
"""


@pytest.fixture
def hub() -> Iterator[ConsoleHub]:
    hub = ConsoleHub()
    hub.start()
    yield hub
    hub.stop()


@pytest.fixture
def emulator(
    logs: ConsoleLogs, files: ConsoleFiles, tmp_path: Path
) -> Iterator[subprocess.Popen[bytes]]:
    logs.prepare(files)
    with qemu(files, tmp_path) as emulator:
        until(lambda: printed(files) == b"ready\n", timeout=30)
        yield emulator


def test_people_type_and_all_see_the_echo(
    hub: ConsoleHub,
    logs: ConsoleLogs,
    files: ConsoleFiles,
    emulator: subprocess.Popen[bytes],
) -> None:
    first, second = hub.attach(files), hub.attach(files)
    first.socket.sendall(b"hello ")
    assert [read(first, 6), read(second, 6)] == [b"hello ", b"hello "]
    second.socket.sendall(b"world")
    assert [read(first, 5), read(second, 5)] == [b"world", b"world"]
    paste = b"0123456789abcdef" * 500
    first.socket.sendall(paste)
    assert read(second, len(paste)) == paste
    first.socket.sendall(b"Q")
    assert rest(second) == b""
    assert second.reason is EndReason.GONE
    emulator.wait(10)
    assert logs.finish(files).complete
    assert printed(files) == b"ready\nhello world" + paste
    first.close()
    second.close()


def test_a_reader_that_never_reads_changes_nothing(
    hub: ConsoleHub,
    logs: ConsoleLogs,
    files: ConsoleFiles,
    emulator: subprocess.Popen[bytes],
) -> None:
    """With a socket chardev the guest would wait here, and bytes would be logged twice."""
    stuck = hub.attach(files)
    typist = hub.attach(files)
    typist.socket.sendall(b"FFQ")
    emulator.wait(60)
    assert logs.finish(files).complete
    assert printed(files) == b"ready\n" + FLOOD * 2
    stuck.close()
    typist.close()


@pytest.mark.parametrize("way", [signal.SIGKILL, signal.SIGSTOP])
def test_a_manager_killed_or_stopped_while_attached_changes_nothing(
    hub: ConsoleHub,
    logs: ConsoleLogs,
    files: ConsoleFiles,
    emulator: subprocess.Popen[bytes],
    way: signal.Signals,
) -> None:
    """The guest prints on; the next manager attaches, types and has the whole log."""
    logs.stop()
    program = [sys.executable, "-c", ATTACHED, str(files.stem), str(files.log)]
    manager = subprocess.Popen(program, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert manager.stdout is not None
    assert manager.stdin is not None
    manager.stdout.readline()
    os.kill(manager.pid, way)
    until(lambda: files.raw.stat().st_size == len(b"ready\n" + FLOOD), timeout=60)
    manager.kill()
    manager.wait()
    manager.stdin.close()
    manager.stdout.close()
    logs.start()
    logs.add(files)
    attachment = hub.attach(files)
    attachment.socket.sendall(b"back")
    assert read(attachment, 4) == b"back"
    attachment.socket.sendall(b"Q")
    emulator.wait(10)
    assert logs.finish(files).complete
    assert printed(files) == b"ready\n" + FLOOD + b"back"
    attachment.close()
