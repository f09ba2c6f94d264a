"""What all tests share."""

import configparser
import signal
from importlib.metadata import entry_points
from pathlib import Path

import pytest
from hypothesis import settings
from xdist.remote import Producer
from xdist.scheduler import LoadScopeScheduling

from tests.interrupts import Interrupts

# No bound on the time of an example: the machine may be busy with other tests.
settings.register_profile("virtlet", deadline=None)
settings.load_profile("virtlet")

TESTS = Path(__file__).parent
SHARED = ("criproxy/real/",)
"""Directories whose tests share a node that takes long to set up."""


def pytest_addoption(parser: pytest.Parser) -> None:
    """One switch writes every golden document again."""
    parser.addoption(
        "--refresh-golden", action="store_true", help="write the golden documents again"
    )


def pytest_configure(config: pytest.Config) -> None:
    """What an interrupted run has made is taken away; a stale environment is told at once."""
    setup = configparser.ConfigParser()
    setup.read(TESTS.parent / "setup.cfg")
    wanted = {line.partition("=")[0].strip() for line in _lines(setup, "virtlet")}
    if wanted - entry_points(group="virtlet").names:
        raise pytest.UsageError("setup.cfg has built-in plugins that .venv does not: `make setup`")
    config.pluginmanager.register(Interrupts(config))
    # A shell starts what runs in the background with SIGINT ignored. Programs that tests interrupt
    # would inherit that, and do not inherit a handler.
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, lambda number, frame: None)


def pytest_make_parametrize_id(val: object, argname: str) -> str | None:
    """Name long bytes by their length: a compressed file holds the time it was made at.

    Workers that import a module in different seconds would otherwise collect other tests.
    """
    return f"{argname}-{len(val)}-bytes" if isinstance(val, bytes) and len(val) > 32 else None


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The examples' guests are real ones."""
    for item in items:
        if "virtlet_node" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.e2e)


def _lines(setup: configparser.ConfigParser, group: str) -> list[str]:
    """The entry points of a group, as setup.cfg has them."""
    return setup["options.entry_points"][group].strip().splitlines()


class Scheduler(LoadScopeScheduling):
    """Where tests run on several processes, those that share a node or a file run on one."""

    def _split_scope(self, nodeid: str) -> str:
        file = nodeid.split("::", 1)[0]
        below = file.removeprefix(f"{TESTS.name}/")
        return next((shared for shared in SHARED if below.startswith(shared)), file)


def pytest_xdist_make_scheduler(config: pytest.Config, log: Producer) -> LoadScopeScheduling:
    """How tests are shared out with `-n`."""
    return Scheduler(config, log)


@pytest.fixture
def refresh_golden(request: pytest.FixtureRequest) -> bool:
    """Whether golden documents are to be written instead of compared."""
    return bool(request.config.getoption("--refresh-golden"))
