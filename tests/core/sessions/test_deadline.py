"""How long an ExecSync waits, by the socket: what it asks for, else what its caller gives it."""

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.core.cri.serving import Serving
from tests.core.sessions.test_calls import Urls
from tests.core.sessions.world import running
from virtlet.cli.client import CallFailed, Client
from virtlet.core.cri.session_calls import ExecCalls
from virtlet.cri import api_pb2 as cri
from virtlet.errors import DeadlineExceeded
from virtlet.model.execution import GuestCommand, GuestStreams


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
