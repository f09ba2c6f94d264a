"""Guests with an agent: the tiny one with busybox, and Debian's agent among this machine's
programs."""

import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.plugins.guest_agent.debian_agent import running_agent
from tests.polling import serves, until
from tests.tiny.conftest import tiny_image  # noqa: F401  a fixture
from tests.tiny.tiny_guest import BOOT_SECONDS, ROOT, Guest, JsonSocket
from virtlet.plugins.guest_agent.agent import Agent
from virtlet.plugins.guest_agent.answers import ReplyBudget


@pytest.fixture(scope="session")
def short_directory() -> Iterator[Path]:
    """A directory whose path leaves room for sockets."""
    path = Path(tempfile.mkdtemp(prefix="vl-agent-", dir="/var/tmp"))
    yield path
    shutil.rmtree(path)


@pytest.fixture(scope="session")
def tiny_guest(tiny_image: Path, short_directory: Path) -> Iterator[Path]:  # noqa: F811
    """The agent's socket of a running tiny guest."""
    with Guest(tiny_image, short_directory) as guest:
        until(lambda: serves(guest.agent_path), "the agent's socket", 90)
        with JsonSocket(guest.agent_path, BOOT_SECONDS) as agent:
            agent.ask("guest-ping")
        yield guest.agent_path


@pytest.fixture(scope="session")
def qemu_ga(tiny_image: Path, short_directory: Path) -> Path:  # noqa: F811
    """Debian's agent: installed, or out of the package that the tiny guest was made of."""
    if found := shutil.which("qemu-ga", path="/usr/sbin:/usr/bin"):
        return Path(found)
    packages = sorted((ROOT / "build" / "tiny-cache").glob("qemu-guest-agent_*.deb"))
    assert packages, "the tiny guest's packages are gone: images/tiny/build.sh --force"
    subprocess.run(["dpkg-deb", "-x", packages[-1], short_directory / "qga"], check=True)
    return short_directory / "qga" / "usr" / "sbin" / "qemu-ga"


@pytest.fixture(scope="session")
def debian_guest(qemu_ga: Path, short_directory: Path) -> Iterator[Path]:
    """The socket of Debian's agent with this machine's programs, in namespaces of its own."""
    with running_agent(qemu_ga, short_directory / "debian") as socket:
        yield socket


@pytest.fixture
def budget() -> ReplyBudget:
    """Room for large answers."""
    return ReplyBudget(256 << 20)


@pytest.fixture(params=["tiny", "debian"])
def agent(request: pytest.FixtureRequest, budget: ReplyBudget) -> Iterator[Agent]:
    """The agent of either guest."""
    yield from _agent(request.getfixturevalue(f"{request.param}_guest"), budget)


@pytest.fixture
def debian(debian_guest: Path, budget: ReplyBudget) -> Iterator[Agent]:
    """The agent of the quick one."""
    yield from _agent(debian_guest, budget)


@pytest.fixture
def tiny(tiny_guest: Path, budget: ReplyBudget) -> Iterator[Agent]:
    """The agent of the real machine."""
    yield from _agent(tiny_guest, budget)


def _agent(path: Path, budget: ReplyBudget) -> Iterator[Agent]:
    agent = Agent(path, "default/web/guest (attempt 0)", budget)
    yield agent
    agent.close()
