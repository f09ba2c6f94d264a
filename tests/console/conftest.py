"""A running log writer and a console to follow."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.console.support import Emulator, console_files
from virtlet.console.console_files import ConsoleFiles
from virtlet.console.log_writer import ConsoleLogs


@pytest.fixture
def logs() -> Iterator[ConsoleLogs]:
    logs = ConsoleLogs()
    logs.start()
    yield logs
    logs.stop()


@pytest.fixture
def files(tmp_path: Path) -> ConsoleFiles:
    return console_files(tmp_path)


@pytest.fixture
def guest(logs: ConsoleLogs, files: ConsoleFiles) -> Iterator[Emulator]:
    """An emulator whose console is followed."""
    logs.prepare(files)
    emulator = Emulator(files)
    yield emulator
    emulator.exit()
