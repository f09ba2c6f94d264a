"""Runtimes that do not answer, answer late, or lead back to the proxy."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest

from criproxy.config import Dial, Limits
from criproxy.methods import BY_NAME
from criproxy.rpc.messages import Code, PeerError, RpcError
from criproxy.runtimes.availability import NotAnswered, judged
from tests.criproxy.fakes.proxy import VM, Client, RunningProxy, said
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


def test_any_other_error_is_passed_on_from_every_runtime() -> None:
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


@pytest.fixture
def impatient(start_proxy: Start, containerd: FakeRuntime, virtlet: FakeRuntime) -> RunningProxy:
    """A proxy that waits a second for the other runtime's answers."""
    return start_proxy(
        {"containerd": containerd.path, VM: virtlet.path},
        runtime_options={VM: {"limits": Limits(read_seconds=1.0)}},
    )


@pytest.fixture
def hang(virtlet: FakeRuntime) -> Iterator[Callable[..., None]]:
    """Lets methods of the other runtime hang; they are let go at the end."""
    release = threading.Event()

    def wait(request: Any, context: Any) -> Any:
        release.wait(20)
        context.abort(grpc.StatusCode.INTERNAL, "let go")

    def hang(*names: str) -> None:
        virtlet.instead |= dict.fromkeys(names, wait)

    yield hang
    release.set()


def test_a_runtime_that_hangs_holds_lists_up_once_and_then_counts_as_away(
    impatient: RunningProxy, connect: Connect, virtlet: FakeRuntime, hang: Callable[..., None]
) -> None:
    client = connect(impatient.config.listen)
    ordinary, vm = client.run_pod("a"), client.run_pod("b", target=VM)
    assert client.pods() == {ordinary, vm}
    hang("ListPodSandbox", "Version")
    assert client.pods() == {ordinary, vm}
    impatient.wait_until(VM, answering=False, seconds=20)
    start = time.monotonic()
    for _ in range(10):
        assert client.pods() == {ordinary, vm}
    assert time.monotonic() - start < 8, "each takes the runtime's second otherwise"
    virtlet.instead.clear()
    impatient.wait_until(VM, answering=True, seconds=20)


def test_one_late_list_is_filled_in_and_holds_nothing_else_up(
    impatient: RunningProxy, connect: Connect, virtlet: FakeRuntime, hang: Callable[..., None]
) -> None:
    client = connect(impatient.config.listen)
    pod = client.run_pod(target=VM)
    container = client.create(pod)
    request = cri.ListContainerStatsRequest()
    assert len(client.runtime.ListContainerStats(request).stats) == 1
    hang("ListContainerStats")
    versions = len(virtlet.called("Version"))
    assert len(client.runtime.ListContainerStats(request).stats) == 1
    until(lambda: len(virtlet.called("Version")) > versions)
    start = time.monotonic()
    for _ in range(10):
        assert len(client.runtime.ListContainerStats(request).stats) == 1
    client.runtime.StartContainer(cri.StartContainerRequest(container_id=container))
    assert client.containers()[container].state == cri.CONTAINER_RUNNING
    other = client.run_pod("c", target=VM)
    assert client.pods() == {pod, other}
    assert time.monotonic() - start < 8, "each list takes the runtime's second otherwise"
    assert impatient.runtime(VM).answering
    assert impatient.runtime(VM).connects == 1
    new = client.create(other)
    virtlet.instead.clear()
    # It is asked for again beside its callers.
    until(lambda: impatient.runtime(VM).reads(BY_NAME["ListContainerStats"]), timeout=30)
    answer = client.runtime.ListContainerStats(request)
    assert {s.attributes.id for s in answer.stats} == {container, new}


def test_a_list_that_is_late_for_longer_than_the_grace_period_fails(
    start_proxy: Start,
    connect: Connect,
    containerd: FakeRuntime,
    virtlet: FakeRuntime,
    hang: Callable[..., None],
) -> None:
    proxy = start_proxy(
        {"containerd": containerd.path, VM: virtlet.path},
        runtime_options={VM: {"limits": Limits(read_seconds=0.3)}},
        grace=0.5,
    )
    client = connect(proxy.config.listen)
    pod = client.run_pod(target=VM)
    assert client.pods() == {pod}
    hang("ListPodSandbox")
    assert client.pods() == {pod}
    until(lambda: not proxy.runtime(VM).may_fill_in(BY_NAME["ListPodSandbox"]))
    with pytest.raises(grpc.RpcError) as caught:
        client.pods()
    assert caught.value.code() == grpc.StatusCode.UNAVAILABLE
    assert "no answer to ListPodSandbox within 0.3 s" in said(caught)
    assert VM in said(caught)
    assert client.containers() == {}
    assert proxy.runtime(VM).answering


def test_calls_for_a_runtime_that_hangs_fail_at_once_too(
    impatient: RunningProxy, connect: Connect, hang: Callable[..., None]
) -> None:
    client = connect(impatient.config.listen)
    pod = client.run_pod(target=VM)
    hang("ListPodSandbox", "PodSandboxStatus", "RunPodSandbox", "Later", "Version")
    client.pods()
    impatient.wait_until(VM, answering=False, seconds=20)
    start = time.monotonic()
    for call in (
        lambda: client.run_pod("new", target=VM),
        lambda: client.runtime.PodSandboxStatus(cri.PodSandboxStatusRequest(pod_sandbox_id=pod)),
        lambda: client.raw("/runtime.v1.RuntimeService/Later")(b"\x0a\x20" + pod.encode()),
    ):
        with pytest.raises(grpc.RpcError) as caught:
            call()
        assert caught.value.code() == grpc.StatusCode.UNAVAILABLE
        assert "no answer to ListPodSandbox" in said(caught)
    assert time.monotonic() - start < 10, "they hang for twenty seconds each otherwise"


def test_a_runtime_that_hangs_does_not_hold_up_what_all_are_told(
    impatient: RunningProxy, connect: Connect, virtlet: FakeRuntime, hang: Callable[..., None]
) -> None:
    client = connect(impatient.config.listen)
    request = cri.UpdateRuntimeConfigRequest()
    request.runtime_config.network_config.pod_cidr = "10.1.0.0/16"
    hang("UpdateRuntimeConfig", "Version")
    client.runtime.UpdateRuntimeConfig(request, timeout=10)
    impatient.wait_until(VM, answering=False, seconds=20)
    told = len(virtlet.called("UpdateRuntimeConfig"))
    virtlet.instead.clear()
    impatient.wait_until(VM, answering=True, seconds=20)
    assert virtlet.called("UpdateRuntimeConfig")[told:] == [request]


def test_a_runtime_that_was_too_slow_for_what_all_are_told_is_told_again(
    impatient: RunningProxy, connect: Connect, virtlet: FakeRuntime, hang: Callable[..., None]
) -> None:
    client = connect(impatient.config.listen)
    request = cri.UpdateRuntimeConfigRequest()
    request.runtime_config.network_config.pod_cidr = "10.1.0.0/16"
    hang("UpdateRuntimeConfig")
    client.runtime.UpdateRuntimeConfig(request, timeout=10)
    told = len(virtlet.called("UpdateRuntimeConfig"))
    virtlet.instead.clear()
    until(lambda: request in virtlet.called("UpdateRuntimeConfig")[told:], timeout=30)
    until(lambda: impatient.runtime(VM).last.pending_update is None)
    assert impatient.runtime(VM).connects == 1


@pytest.mark.parametrize(
    "code",
    [grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED, grpc.StatusCode.ABORTED],
)
def test_an_error_that_the_runtime_itself_answers_with_is_told_and_makes_it_not_away(
    client: Client, proxy: RunningProxy, virtlet: FakeRuntime, code: grpc.StatusCode
) -> None:
    ordinary, vm = client.run_pod("a"), client.run_pod("b", target=VM)
    assert client.pods() == {ordinary, vm}

    def fail(request: Any, context: Any) -> Any:
        context.abort(code, "its own trouble")

    virtlet.instead |= dict.fromkeys(("ListPodSandbox", "StreamPodSandboxes"), fail)
    # The proxy's own look at what was changed meets the error too.
    before = len(virtlet.called("ListPodSandbox"))
    client.runtime.StopPodSandbox(cri.StopPodSandboxRequest(pod_sandbox_id=vm))
    until(lambda: len(virtlet.called("ListPodSandbox")) > before)
    for call in (
        client.pods,
        lambda: list(client.runtime.StreamPodSandboxes(cri.StreamPodSandboxesRequest())),
        lambda: client.runtime.StopPodSandbox(cri.StopPodSandboxRequest(pod_sandbox_id="who")),
    ):
        with pytest.raises(grpc.RpcError) as caught:
            call()
        assert caught.value.code() in (code, grpc.StatusCode.UNAVAILABLE)
        assert said(caught).endswith(f"{VM}: its own trouble")
    assert proxy.runtime(VM).answering
    assert proxy.runtime(VM).connects == 1
    virtlet.instead.clear()
    assert client.pods() == {ordinary, vm}


def test_the_last_known_items_of_a_runtime_that_hangs_are_streamed(
    impatient: RunningProxy, connect: Connect, virtlet: FakeRuntime, hang: Callable[..., None]
) -> None:
    client = connect(impatient.config.listen)
    pods = {client.run_pod("a"), client.run_pod("b", target=VM)}
    assert client.pods() == pods
    release = threading.Event()

    def silent(request: Any, context: Any) -> Iterator[Any]:
        release.wait(20)
        yield from ()

    hang("ListPodSandbox")
    virtlet.instead["StreamPodSandboxes"] = silent
    messages = client.runtime.StreamPodSandboxes(cri.StreamPodSandboxesRequest(), timeout=20)
    assert {pod.id for message in messages for pod in message.pod_sandboxes} == pods
    start = time.monotonic()
    for _ in range(10):
        messages = client.runtime.StreamPodSandboxes(cri.StreamPodSandboxesRequest(), timeout=20)
        assert {pod.id for message in messages for pod in message.pod_sandboxes} == pods
    assert time.monotonic() - start < 8, "each takes the runtime's second otherwise"
    release.set()


def test_the_proxy_listens_soon_also_beside_a_runtime_that_hangs_from_the_start(
    start_proxy: Start,
    connect: Connect,
    containerd: FakeRuntime,
    virtlet: FakeRuntime,
    hang: Callable[..., None],
) -> None:
    hang("Version")
    start = time.monotonic()
    proxy = start_proxy(
        {"containerd": containerd.path, VM: virtlet.path},
        runtime_options={VM: {"dial": Dial(timeout=30)}},
    )
    assert time.monotonic() - start < 10, "it hangs for twenty seconds"
    client = connect(proxy.config.listen)
    assert client.run_pod() in client.pods()
