"""Commands with a terminal: by script and python3 of Debian, by telnetd of busybox."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.plugins.guest_agent.caller import Caller, capture, stream
from tests.plugins.guest_agent.debian_agent import running_agent
from tests.plugins.guest_agent.test_captured import gone
from virtlet.errors import FailedPrecondition
from virtlet.plugins.guest_agent.agent import Agent
from virtlet.plugins.guest_agent.answers import ReplyBudget
from virtlet.plugins.guest_agent.live import BASE

SCRIPT, PYTHON = "/usr/bin/script", "/usr/bin/python3"


@pytest.fixture(params=["script", "python3", "telnetd"])
def guest(
    request: pytest.FixtureRequest,
    qemu_ga: Path,
    tiny_guest: Path,
    tmp_path_factory: pytest.TempPathFactory,
    budget: ReplyBudget,
) -> Iterator[Agent]:
    """A guest with one of the helpers; telnetd is the tiny guest's."""
    if request.param == "telnetd":
        agent = Agent(tiny_guest, "default/web/guest", budget)
        yield agent
        agent.close()
        return
    hidden = [] if request.param == "script" else [SCRIPT]
    yield from _debian(qemu_ga, tmp_path_factory, budget, hidden)


@pytest.fixture
def bare_guest(
    qemu_ga: Path, tmp_path_factory: pytest.TempPathFactory, budget: ReplyBudget
) -> Iterator[Agent]:
    """A guest without any of them."""
    hidden = [str(path) for name in ("script", "python3", "busybox") for path in _found(name)]
    yield from _debian(qemu_ga, tmp_path_factory, budget, hidden)


def _found(name: str) -> list[Path]:
    """Where a guest would find a program."""
    places = ("/usr/local/sbin", "/usr/local/bin", "/usr/sbin", "/usr/bin")
    return [path for place in places if (path := Path(place, name)).exists()]


def _debian(
    qemu_ga: Path, directories: pytest.TempPathFactory, budget: ReplyBudget, hidden: list[str]
) -> Iterator[Agent]:
    with running_agent(qemu_ga, directories.mktemp("d") / "x", hidden) as socket:
        agent = Agent(socket, "default/web/guest", budget)
        yield agent
        agent.close()


def test_a_command_has_a_terminal_of_the_callers_size(guest: Agent) -> None:
    caller = Caller(sizes=[(101, 37)])
    script = "tty; stty size; echo $TERM; echo err >&2; printf 'a\\tb\\n'; exit 5"
    result = stream(guest, "sh", "-c", script, caller=caller, tty=True)
    lines = result.output.split(b"\r\n")
    assert result.code == 5
    assert lines[0].startswith(b"/dev/pts/")
    assert lines[1:] == [b"37 101", b"xterm", b"err", b"a\tb", b""]
    assert result.errors == b""


def test_a_shell_is_talked_to_and_echoes_and_sees_a_new_size_and_an_interrupt(
    guest: Agent,
) -> None:
    class Resizing(Caller):
        sizes = ((80, 24), (90, 30))

        def terminal_size(self) -> tuple[int, int] | None:
            wanted = self.sizes[b"=3=" in self.output]
            return None if getattr(self, "last", None) == wanted else self.resize(wanted)

        def resize(self, size: tuple[int, int]) -> tuple[int, int]:
            self.last = size
            return size

    # The shell forks before it gives the terminal away, and misses an interrupt in between: the
    # command itself says that it is there to be interrupted.
    endless = b"sh -c 'echo a$((1+1)); exec sleep 4731'\r"
    watch = "until stty size | grep -q 90; do sleep 0.1; done; echo size $((1+1))"
    caller = Resizing(
        [
            (b"# ", b"echo =$((1+2))=\r"),
            (b"=3=", watch.encode() + b"\r"),
            (b"size 2", endless),
            (b"a2", b"\x03"),
            (b"# ", b"echo c$((40+2)); exit 6\r"),
        ],
        open_end=True,
    )
    result = stream(guest, "sh", caller=caller, stdin=True, tty=True)
    assert result.code == 6, result.output
    assert b"echo =$((1+2))=" in result.output
    assert b"\nc42\r\n" in result.output
    assert gone(guest, "4731")


def test_a_caller_who_leaves_takes_the_terminal_along(guest: Agent) -> None:
    caller = Caller(leaves_at=b"going", open_end=True)
    script = "trap '' HUP; sleep 4732 & echo going; sleep 4733"
    code = stream(guest, "sh", "-c", script, caller=caller, stdin=True, tty=True, timeout=None).code
    assert code == 137
    assert gone(guest, "4732", "4733")
    assert capture(guest, "sh", "-c", f"ls -A {BASE}").output == b""


def test_input_that_ends_is_an_end_of_file_for_the_terminal(guest: Agent) -> None:
    result = stream(guest, "cat", caller=Caller([(0.2, b"typed\n")]), stdin=True, tty=True)
    assert (result.code, result.output) == (0, b"typed\r\ntyped\r\n")


def test_a_guest_that_cannot_make_a_terminal_says_what_to_install(bare_guest: Agent) -> None:
    with pytest.raises(FailedPrecondition, match="without -t, or install `script`"):
        stream(bare_guest, "sh", tty=True)
    assert stream(bare_guest, "echo", "plain").output == b"plain\n"
