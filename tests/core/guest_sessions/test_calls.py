"""The calls ExecSync and Exec, without a socket; and how long an ExecSync waits, by the socket."""

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.core.cri.serving import Serving
from tests.core.guest_sessions.world import World, running
from virtlet.cli.client import CallFailed, Client
from virtlet.core.cri.calls import CallClient
from virtlet.core.cri.session_calls import REPLY_LIMIT, ExecCalls
from virtlet.cri import api_pb2 as cri
from virtlet.errors import (
    DeadlineExceeded,
    FailedPrecondition,
    GuestNotReady,
    InvalidArgument,
    NotFound,
)
from virtlet.model.event import Event
from virtlet.model.execution import GuestCommand, GuestStreams
from virtlet.streaming.handlers import ExecRequest

MIB = 1 << 20


class Urls:
    """Gives out URLs and keeps what they stand for."""

    def __init__(self) -> None:
        self.requests: list[ExecRequest] = []

    def exec_url(self, request: ExecRequest) -> str:
        self.requests.append(request)
        return "http://127.0.0.1:1/exec/token"


def calls(world: World) -> tuple[ExecCalls, Urls]:
    urls = Urls()
    context: Any = world  # only its store is used
    return ExecCalls(context, world.executions, urls), urls


WAITING = CallClient(waits=lambda: True, time_left=lambda: None)
"""A client that waits for its answer, however long."""


def printing(output: int, errors: int) -> Any:
    def guest(command: GuestCommand, streams: GuestStreams, timeout: float | None) -> int:
        streams.write_output(b"o" * output)
        streams.write_error(b"e" * errors)
        return 0 if timeout is None else int(timeout)

    return guest


@pytest.mark.parametrize(
    ("output", "errors", "kept"),
    [
        (5, 6, (5, 6)),
        (20 * MIB, 0, (REPLY_LIMIT, 0)),
        (20 * MIB, 100, (REPLY_LIMIT - 100, 100)),
        (0, 20 * MIB, (0, REPLY_LIMIT)),
        (20 * MIB, 20 * MIB, (REPLY_LIMIT - REPLY_LIMIT // 4, REPLY_LIMIT // 4)),
        (10 * MIB, 12 * MIB, (10 * MIB, REPLY_LIMIT - 10 * MIB)),
    ],
)
def test_an_answer_always_fits_into_a_message_of_the_kubelet(
    tmp_path: Path, output: int, errors: int, kept: tuple[int, int]
) -> None:
    with running(tmp_path, printing(output, errors)) as world:
        request = cri.ExecSyncRequest(container_id="vm", cmd=["x"])
        reply = calls(world)[0].exec_sync(request, WAITING)
    assert (len(reply.stdout), len(reply.stderr)) == kept
    assert reply.ByteSize() < 16 * MIB


def test_the_timeout_is_in_seconds_and_zero_is_none(tmp_path: Path) -> None:
    with running(tmp_path, printing(0, 0)) as world:
        exec_sync = calls(world)[0].exec_sync
        request = cri.ExecSyncRequest(container_id="vm", cmd=["x"], timeout=9)
        assert exec_sync(request, WAITING).exit_code == 9
        request.timeout = 0
        assert exec_sync(request, WAITING).exit_code == 0
        request.timeout = -1
        with pytest.raises(InvalidArgument, match="timeout -1 is negative"):
            exec_sync(request, WAITING)


def test_a_url_stands_for_the_command_and_its_streams(tmp_path: Path) -> None:
    with running(tmp_path, printing(0, 0)) as world:
        exec_calls, urls = calls(world)
        request = cri.ExecRequest(
            container_id="vm", cmd=["sh", "-l"], tty=True, stdin=True, stdout=True
        )
        assert exec_calls.exec(request).url == "http://127.0.0.1:1/exec/token"
    wanted = ExecRequest(
        container_id="vm", command=("sh", "-l"), stdin=True, stdout=True, stderr=False, tty=True
    )
    assert urls.requests == [wanted]


class Notices:
    """What the pod's owner is told, in place of consoles and observers."""

    def __init__(self, store: Any) -> None:
        self.store = store
        self.consoles = self.events = self
        self.told: list[str] = []

    def tell(self, subject: Any, text: str) -> None:
        if not isinstance(subject, Event):
            self.told.append(text)


@pytest.mark.parametrize(("timeout", "told"), [(0, ["hook"]), (5, [])])
def test_the_owner_is_told_why_a_hook_did_not_run_and_not_of_every_probe(
    tmp_path: Path, timeout: int, told: list[str]
) -> None:
    """A kubelet kills the VM of a failed hook, and shows no reason; a probe's reason it shows."""

    def booting(command: GuestCommand, streams: GuestStreams, timeout: float | None) -> int:
        raise GuestNotReady("no guest agent answers; use the setting")

    with running(tmp_path, booting) as world:
        notices: Any = Notices(world.store)
        request = cri.ExecSyncRequest(container_id="vm", cmd=["x"], timeout=timeout)
        with pytest.raises(GuestNotReady):
            ExecCalls(notices, world.executions, Urls()).exec_sync(request, WAITING)
    assert [
        ("hook" if "hook" in text and "use the setting" in text else text) for text in notices.told
    ] == told


@pytest.mark.parametrize(
    ("fields", "error"),
    [
        ({"container_id": ""}, InvalidArgument),
        ({"cmd": []}, InvalidArgument),
        ({"cmd": ["x" * (1 << 20)]}, InvalidArgument),
        ({"stdout": False}, InvalidArgument),
        ({"tty": True, "stderr": True}, InvalidArgument),
        ({"container_id": "unknown"}, NotFound),
        ({"container_id": "exited"}, FailedPrecondition),
    ],
)
def test_nobody_gets_a_url_for_what_cannot_run(
    tmp_path: Path, fields: dict[str, Any], error: type[Exception]
) -> None:
    with running(tmp_path, printing(0, 0)) as world:
        exec_calls, urls = calls(world)
        right = {"container_id": "vm", "cmd": ["x"], "stdout": True}
        with pytest.raises(error):
            exec_calls.exec(cri.ExecRequest(**{**right, **fields}))
    assert not urls.requests


def guest(command: GuestCommand, streams: GuestStreams, timeout: float | None) -> int:
    """Print how long the command may take, or fail late: when that is over."""
    if command.argv == ("late",):
        assert timeout is not None
        time.sleep(timeout)
        raise DeadlineExceeded("no time left: no guest agent answers")
    streams.write_output(str(timeout).encode())
    return 0


@pytest.fixture
def client(tmp_path: Path) -> Iterator[Client]:
    with running(tmp_path, guest) as world:
        context: Any = world  # only its store is used
        calls = ExecCalls(context, world.executions, Urls()).calls()
        serving = Serving(tmp_path / "s.sock", lambda loop: calls)
        with Client(tmp_path / "s.sock") as client:
            yield client
        serving.stop()


def allowed(client: Client, timeout: int, deadline: float | None) -> float | None:
    """Seconds that a command gets.

    Args:
        timeout: the request's.
        deadline: seconds that the client waits for the reply.
    """
    request = cri.ExecSyncRequest(container_id="vm", cmd=["x"], timeout=timeout)
    said = client.runtime.ExecSync(request, timeout=deadline).stdout.decode()
    return None if said == "None" else float(said)


def test_a_timeout_that_is_asked_for_counts_whatever_the_caller_waits(client: Client) -> None:
    assert allowed(client, 9, None) == allowed(client, 9, 200) == allowed(client, 9, 5) == 9


def test_without_one_a_command_gets_the_time_that_its_caller_waits(client: Client) -> None:
    seconds = allowed(client, 0, 200)
    assert seconds is not None
    assert 190 < seconds < 200


def test_without_any_it_gets_what_it_needs(client: Client) -> None:
    assert allowed(client, 0, None) is None


def test_the_caller_hears_why_its_time_was_not_enough(client: Client) -> None:
    """It is answered just before its own time is up, from where on it would hear nothing."""
    request = cri.ExecSyncRequest(container_id="vm", cmd=["late"])
    with pytest.raises(CallFailed, match="no guest agent answers"):
        client.call("ExecSync", request, timeout=2)
