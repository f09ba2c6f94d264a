"""A person who waits is told what keeps a call."""

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.criproxy.fakes.runtime import FakeRuntime
from virtlet.cli import attended
from virtlet.cli.attended import AttendedClient
from virtlet.cri import api_pb2 as cri


@pytest.fixture
def runtime(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeRuntime]:
    """A runtime that is waited for."""
    monkeypatch.setattr(attended, "SLOW", 0.1)
    runtime = FakeRuntime(tmp_path / "r.sock", "fake").start()
    yield runtime
    runtime.stop()


def _stop(runtime: FakeRuntime, answers: threading.Event) -> None:
    def stop(request: Any, context: Any) -> Any:
        assert answers.wait(20)
        return cri.StopPodSandboxResponse()

    runtime.instead["StopPodSandbox"] = stop
    with AttendedClient(runtime.path) as client:
        client.call("StopPodSandbox", cri.StopPodSandboxRequest(pod_sandbox_id="p"))


def test_what_keeps_a_call_is_told_once_where_the_runtime_knows(
    runtime: FakeRuntime, capsys: pytest.CaptureFixture[str]
) -> None:
    answers = threading.Event()
    asked: list[str] = []

    def status(request: Any, context: Any) -> Any:
        asked.append("Status")
        answer = cri.StatusResponse()
        why = {"reason": "LibvirtUnavailable", "message": "it hangs"} if len(asked) > 1 else {}
        answer.status.conditions.add(type="RuntimeReady", status=not why, **why)
        if why:
            threading.Timer(0.5, answers.set).start()
        return answer

    runtime.instead["Status"] = status
    _stop(runtime, answers)
    said = "StopPodSandbox waits; the node is not ready: LibvirtUnavailable: it hangs\n"
    assert capsys.readouterr().err == said
    assert len(asked) == 2


def test_a_slow_call_of_a_node_that_is_ready_is_left_alone(
    runtime: FakeRuntime, capsys: pytest.CaptureFixture[str]
) -> None:
    answers = threading.Event()
    threading.Timer(0.5, answers.set).start()
    _stop(runtime, answers)
    assert runtime.called("Status")
    assert capsys.readouterr().err == ""
