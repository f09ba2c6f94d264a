"""Connecting, and connecting again."""

from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import grpc
import pytest

from criproxy.config import Dial, Limits
from tests.criproxy.fakes.proxy import VM, Client, RunningProxy, said
from tests.criproxy.fakes.runtime import FakeRuntime
from tests.polling import until
from virtlet.cri import api_pb2 as cri

Start = Callable[..., RunningProxy]
Connect = Callable[[Path | str], Client]


def test_a_restarted_runtime_is_found_again_with_its_pods(
    client: Client, proxy: RunningProxy, virtlet: FakeRuntime
) -> None:
    pod = client.run_pod(target=VM)
    for _ in range(3):
        virtlet.stop()
        proxy.wait_until(VM, answering=False)
        virtlet.start()
        proxy.wait_until(VM, answering=True)
    assert (
        client.runtime.PodSandboxStatus(cri.PodSandboxStatusRequest(pod_sandbox_id=pod)).status.id
        == pod
    )
    assert proxy.runtime(VM).connects == 4


def test_attempts_are_spaced_out(
    start_proxy: Start, containerd: FakeRuntime, run_dir: Path
) -> None:
    path = run_dir / "shut.sock"
    dial = Dial(timeout=2, first_wait=0.05, longest_wait=0.4)
    times: list[float] = []

    def hang_up() -> None:
        for _ in range(9):
            accepted, _ = listener.accept()
            times.append(time.monotonic())
            accepted.close()

    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen(64)
        listener.settimeout(10)
        door = threading.Thread(target=hang_up)
        door.start()
        start_proxy({"containerd": containerd.path, VM: path}, runtime_options={VM: {"dial": dial}})
        door.join(10)
    gaps = [after - before for before, after in pairwise(times)]
    assert len(gaps) == 8
    assert gaps[0] < gaps[2]
    # Doubled seven times, the first wait would be 6.4 seconds.
    assert 0.39 < gaps[-1] < 5.0


def test_something_that_is_not_a_cri_runtime_stays_away_with_the_reason(
    start_proxy: Start, connect: Connect, containerd: FakeRuntime, virtlet: FakeRuntime
) -> None:
    virtlet.missing.add("Version")
    proxy = start_proxy({"containerd": containerd.path, VM: virtlet.path})
    with pytest.raises(grpc.RpcError) as caught:
        connect(proxy.config.listen).run_pod(target=VM)
    assert caught.value.code() == grpc.StatusCode.UNAVAILABLE
    assert "does not serve the CRI v1" in said(caught)


def test_a_runtime_that_is_still_starting_is_not_used_yet(
    start_proxy: Start, connect: Connect, containerd: FakeRuntime, virtlet: FakeRuntime
) -> None:
    virtlet.instead["ListPodSandbox"] = lambda request, context: context.abort(
        grpc.StatusCode.UNKNOWN, "server is not initialized yet"
    )
    proxy = start_proxy({"containerd": containerd.path, VM: virtlet.path})
    assert "not initialized yet" in proxy.runtime(VM).reason
    virtlet.instead.clear()
    proxy.wait_until(VM, answering=True)


def test_a_regular_file_in_the_sockets_place_is_told(
    start_proxy: Start, containerd: FakeRuntime, run_dir: Path
) -> None:
    path = run_dir / "later.sock"
    proxy = start_proxy({"containerd": containerd.path, VM: path})
    path.write_text("not a socket")
    until(lambda: "is not a socket" in proxy.runtime(VM).reason)


def test_a_proxy_in_front_of_itself_over_a_link_finds_out(
    start_proxy: Start, containerd: FakeRuntime, run_dir: Path
) -> None:
    link = run_dir / "link.sock"
    proxy = start_proxy({"containerd": link})
    os.symlink(run_dir / "p.sock", link)
    until(lambda: "loop" in proxy.runtime("containerd").reason)
    assert not proxy.runtime("containerd").answering


def test_two_proxies_in_front_of_each_other_never_count_as_there(
    start_proxy: Start, run_dir: Path
) -> None:
    first = start_proxy({"second": run_dir / "2.sock"}, name="1.sock")
    second = start_proxy({"first": run_dir / "1.sock"}, name="2.sock")
    until(lambda: "runtime first" in first.runtime("second").reason)
    time.sleep(0.5)
    assert not first.runtime("second").answering
    assert not second.runtime("first").answering
    assert len(first.runtime("second").reason) <= 300


def test_more_calls_than_the_limit_are_refused(
    start_proxy: Start, connect: Connect, containerd: FakeRuntime
) -> None:
    proxy = start_proxy(
        {"containerd": containerd.path}, runtime_options={"containerd": {"limits": Limits(calls=2)}}
    )
    client = connect(proxy.config.listen)
    release = threading.Event()

    def hang(request: object, context: object) -> object:
        release.wait(5)
        return cri.VersionResponse()

    containerd.instead["Version"] = hang
    futures = [client.runtime.Version.future(cri.VersionRequest()) for _ in range(2)]
    until(lambda: len(containerd.called("Version")) >= 3)
    with pytest.raises(grpc.RpcError) as caught:
        client.runtime.Version(cri.VersionRequest())
    assert caught.value.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
    release.set()
    for future in futures:
        future.result(timeout=5)


def test_a_call_limit_in_time_is_kept(
    start_proxy: Start, connect: Connect, containerd: FakeRuntime
) -> None:
    proxy = start_proxy(
        {"containerd": containerd.path},
        runtime_options={"containerd": {"limits": Limits(call_seconds=0.3)}},
    )
    release = threading.Event()

    def hang(request: object, context: object) -> object:
        release.wait(5)
        return cri.VersionResponse()

    containerd.instead["Version"] = hang
    with pytest.raises(grpc.RpcError) as caught:
        connect(proxy.config.listen).runtime.Version(cri.VersionRequest())
    release.set()
    assert caught.value.code() == grpc.StatusCode.DEADLINE_EXCEEDED
    assert "containerd did not answer within 0.3 s" in said(caught)
