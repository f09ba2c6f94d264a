"""Whose an error is, and proxies in a circle."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import pytest

from criproxy.rpc.status import Code, PeerError, RpcError
from criproxy.runtimes.availability import NotAnswered, judged
from tests.criproxy.fakes.proxy import VM, Client, RunningProxy
from tests.criproxy.fakes.runtime import FakeRuntime
from tests.polling import until
from virtlet.cri import api_pb2 as cri


def _is_own(
    error: RpcError, *, seconds: float = 1, timeout: float | None = None, leaving: bool = False
) -> bool:
    found = judged(error, seconds=seconds, timeout=timeout, leaving=leaving)
    assert (found.code, found.message) == (error.code, error.message)
    return not isinstance(found, NotAnswered)


@pytest.mark.parametrize("code", [Code.UNAVAILABLE, Code.DEADLINE_EXCEEDED])
def test_silence_is_a_runtimes_own_word_where_the_runtime_said_it(code: Code) -> None:
    assert _is_own(PeerError(code, "said"))
    assert not _is_own(PeerError(code, "said while it left"), leaving=True)
    assert not _is_own(RpcError(code, "never said"))


def test_any_other_error_is_passed_on_whoever_said_it() -> None:
    assert _is_own(RpcError(Code.INTERNAL, "two messages"))
    assert _is_own(PeerError(Code.NOT_FOUND, "no such pod"), leaving=True)


def test_a_cancelled_call_was_not_answered() -> None:
    assert not _is_own(PeerError(Code.CANCELLED, "given up"))


@pytest.mark.parametrize(
    ("seconds", "timeout", "own"),
    [(2, 10, True), (9.5, 10, False), (0, 0, False), (9.5, None, True)],
)
def test_a_deadline_that_was_ours_is_no_word_of_the_runtimes(
    seconds: float, timeout: float | None, own: bool
) -> None:
    error = PeerError(Code.DEADLINE_EXCEEDED, "late")
    assert _is_own(error, seconds=seconds, timeout=timeout) is own
    assert _is_own(PeerError(Code.UNAVAILABLE, "away"), seconds=seconds, timeout=timeout)


Start = Callable[..., RunningProxy]
Connect = Callable[[Path | str], Client]


def test_a_circle_over_other_runtimes_than_the_primary_is_found_and_left_out(
    start_proxy: Start,
    connect: Connect,
    containerd: FakeRuntime,
    virtlet: FakeRuntime,
    run_dir: Path,
) -> None:
    first = start_proxy({"containerd": containerd.path, "two": run_dir / "2.sock"}, name="1.sock")
    second = start_proxy({VM: virtlet.path, "one": run_dir / "1.sock"}, name="2.sock")
    ends = first.runtime("two"), second.runtime("one")
    until(lambda: any("loop" in end.reason for end in ends))
    # One of the two ways may stay: the other's pods are reached by it.
    until(lambda: [end.answering for end in ends].count(True) <= 1)
    for proxy, runtime in ((first, containerd), (second, virtlet)):
        client = connect(proxy.config.listen)
        pod = client.run_pod()
        assert pod in runtime.sandboxes
        listed = [p.id for p in client.runtime.ListPodSandbox(cri.ListPodSandboxRequest()).items]
        assert pod in listed
        assert len(listed) == len(set(listed))
    time.sleep(0.5)
    assert [end.answering for end in ends].count(True) <= 1


def test_a_chain_of_proxies_is_no_circle(
    start_proxy: Start,
    connect: Connect,
    containerd: FakeRuntime,
    virtlet: FakeRuntime,
    run_dir: Path,
) -> None:
    start_proxy({"containerd": containerd.path, VM: virtlet.path}, name="1.sock")
    second = start_proxy({"first": run_dir / "1.sock"}, name="2.sock")
    client = connect(second.config.listen)
    assert second.runtime("first").answering
    pods = {client.run_pod("a"), client.run_pod("b", handler="virtlet")}
    assert client.pods() == pods


def test_a_socket_that_comes_to_lead_back_takes_its_former_items_with_it(
    start_proxy: Start,
    connect: Connect,
    containerd: FakeRuntime,
    virtlet: FakeRuntime,
    run_dir: Path,
) -> None:
    first = start_proxy({"containerd": containerd.path, "two": run_dir / "2.sock"}, name="1.sock")
    other = FakeRuntime(run_dir / "2.sock", "two").start()
    other_id = connect(run_dir / "2.sock").run_pod("theirs")
    first.wait_until("two", answering=True)
    client = connect(first.config.listen)
    assert client.pods() == {other_id}
    other.stop()
    first.wait_until("two", answering=False)
    second = start_proxy({VM: virtlet.path, "one": run_dir / "1.sock"}, name="2.sock")
    until(lambda: "loop" in first.runtime("two").reason or "loop" in second.runtime("one").reason)
    until(lambda: client.pods() == set())
