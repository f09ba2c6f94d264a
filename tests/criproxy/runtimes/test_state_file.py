"""What a proxy knows after its own restart."""

from __future__ import annotations

import stat
from collections.abc import Callable
from pathlib import Path

import grpc
import pytest

from criproxy.runtimes.last_known import InventoryFile, LastKnown
from tests.criproxy.fakes.proxy import VM, Client, RunningProxy, said
from tests.criproxy.fakes.runtime import FakeRuntime
from tests.polling import until
from virtlet.cri import api_pb2 as cri

Start = Callable[..., RunningProxy]
Connect = Callable[[Path | str], Client]


@pytest.fixture
def restart(
    start_proxy: Start,
    connect: Connect,
    containerd: FakeRuntime,
    virtlet: FakeRuntime,
    run_dir: Path,
) -> Callable[[], tuple[RunningProxy, Client]]:
    """Stops the last proxy and starts another with the same state."""
    running: list[RunningProxy] = []

    def start() -> tuple[RunningProxy, Client]:
        for proxy in running:
            proxy.stop()
        proxy = start_proxy(
            {"containerd": containerd.path, VM: virtlet.path}, state_dir=str(run_dir / "state")
        )
        running[:] = [proxy]
        return proxy, connect(proxy.config.listen)

    return start


Restart = Callable[[], tuple[RunningProxy, Client]]


def test_ids_find_their_owners_again(restart: Restart, virtlet: FakeRuntime) -> None:
    _, client = restart()
    pod = client.run_pod(target=VM)
    container = client.create(pod)
    _, client = restart()
    status = client.runtime.ContainerStatus(cri.ContainerStatusRequest(container_id=container))
    assert status.status.id == container


def test_pods_of_a_runtime_that_is_away_stay_listed_and_keep_their_owner(
    restart: Restart, virtlet: FakeRuntime
) -> None:
    proxy, client = restart()
    ordinary, vm = client.run_pod("a"), client.run_pod("b", target=VM)
    until(lambda: not proxy.runtime(VM).last.outdated(10.0))
    virtlet.stop()
    proxy, client = restart()
    assert client.pods() == {ordinary, vm}
    with pytest.raises(grpc.RpcError) as caught:
        client.runtime.StopPodSandbox(cri.StopPodSandboxRequest(pod_sandbox_id=vm))
    assert caught.value.code() == grpc.StatusCode.UNAVAILABLE
    with pytest.raises(grpc.RpcError) as caught:
        client.run_pod("c", handler="virtlet")
    assert caught.value.code() == grpc.StatusCode.UNAVAILABLE
    assert VM in said(caught)


def test_a_pod_made_just_before_its_runtime_went_is_known_after_a_restart(
    restart: Restart, virtlet: FakeRuntime
) -> None:
    proxy, client = restart()
    vm = client.run_pod(target=VM)
    virtlet.stop()
    proxy.wait_until(VM, answering=False)
    _, client = restart()
    assert client.pods() == {vm}


def test_a_proxy_that_is_killed_has_saved_what_a_runtime_had_when_it_came_and_when_it_went(
    restart: Restart, containerd: FakeRuntime, virtlet: FakeRuntime, run_dir: Path
) -> None:
    def saved() -> set[str]:
        last = LastKnown()
        InventoryFile(str(run_dir / "state"), VM, str(virtlet.path)).load(last)
        return last.sandboxes

    old = cri.PodSandbox(id="old")
    virtlet.sandboxes[old.id] = old
    # Sooner than what it has would be asked for again.
    _, client = restart()
    until(lambda: saved() == {old.id})
    new = client.run_pod(target=VM)
    virtlet.stop()
    until(lambda: saved() == {old.id, new})


def test_an_unknown_id_may_be_one_of_a_runtime_that_only_an_earlier_proxy_heard(
    restart: Restart, virtlet: FakeRuntime
) -> None:
    restart()
    virtlet.stop()
    _, client = restart()
    with pytest.raises(grpc.RpcError) as caught:
        client.runtime.StopPodSandbox(cri.StopPodSandboxRequest(pod_sandbox_id="made-meanwhile"))
    assert caught.value.code() == grpc.StatusCode.UNAVAILABLE
    assert f"may be an id of {VM}" in said(caught)


def test_what_the_runtime_says_replaces_what_was_saved(
    restart: Restart, connect: Connect, virtlet: FakeRuntime
) -> None:
    _, client = restart()
    old = client.run_pod("old", target=VM)
    client.run_pod("older", target=VM)
    restart()
    del virtlet.sandboxes[old]
    _, client = restart()
    assert old not in client.pods()
    assert len(client.pods()) == 1


def test_the_files_are_for_the_owner_only(restart: Restart, run_dir: Path) -> None:
    restart()
    restart()
    files = list((run_dir / "state").iterdir())
    assert len(files) == 2
    assert {stat.S_IMODE(f.stat().st_mode) for f in files} == {0o600}


@pytest.mark.parametrize(
    "text",
    [
        "",
        "not json",
        "[]",
        '{"version": 99}',
        '{"version": 1}',
        '{"version": 1, "answers": {"ListContainers": "Cv//"}}',
    ],
)
def test_a_file_that_cannot_be_used_is_left_aside(
    restart: Restart, run_dir: Path, text: str, virtlet: FakeRuntime
) -> None:
    _, client = restart()
    pod = client.run_pod(target=VM)
    restart()
    for file in (run_dir / "state").iterdir():
        file.write_text(text)
    _, client = restart()
    assert client.pods() == {pod}


def test_a_directory_that_cannot_be_written_is_no_reason_to_fail(
    start_proxy: Start,
    connect: Connect,
    containerd: FakeRuntime,
    virtlet: FakeRuntime,
    run_dir: Path,
) -> None:
    (run_dir / "file").write_text("in the way")
    proxy = start_proxy(
        {"containerd": containerd.path, VM: virtlet.path}, state_dir=str(run_dir / "file" / "x")
    )
    client = connect(proxy.config.listen)
    assert client.run_pod() in client.pods()


def test_a_verbose_status_is_not_what_is_kept(
    restart: Restart, virtlet: FakeRuntime, containerd: FakeRuntime
) -> None:
    proxy, client = restart()
    client.runtime.Status(cri.StatusRequest(verbose=True))
    pods = {client.run_pod("a"), client.run_pod("b", target=VM)}
    for name in ("containerd", VM):
        until(lambda name=name: not proxy.runtime(name).last.outdated(10.0))  # type: ignore[misc]
    for runtime in (containerd, virtlet):
        runtime.stop()
    for name in ("containerd", VM):
        proxy.wait_until(name, answering=False)
    virtlet.start()
    containerd.start()
    for name in ("containerd", VM):
        proxy.wait_until(name, answering=True)
    assert client.pods() == pods
    assert not any(client.runtime.Status(cri.StatusRequest()).info)


def test_a_state_that_cannot_be_summed_up_ends_no_connector(
    restart: Restart, virtlet: FakeRuntime
) -> None:
    proxy, client = restart()
    # What no code of ours stores, for the connector's sake alone.
    proxy.runtime(VM).last.answers["Status"] = b"\xff"
    pod = client.run_pod("b", target=VM)
    until(lambda: proxy.runtime(VM).connects > 1)
    proxy.wait_until(VM, answering=True)
    assert client.pods() == {pod}


@pytest.mark.parametrize("heard", [True, False])
def test_what_all_were_told_reaches_a_runtime_that_was_away_also_after_a_restart(
    restart: Restart, virtlet: FakeRuntime, heard: bool
) -> None:
    if heard:
        restart()
    virtlet.stop()
    _, client = restart()
    request = cri.UpdateRuntimeConfigRequest()
    request.runtime_config.network_config.pod_cidr = "10.1.0.0/16"
    client.runtime.UpdateRuntimeConfig(request)
    proxy, client = restart()
    assert client.pods() == set()
    assert proxy.runtime(VM).last.seen is heard
    virtlet.start()
    proxy.wait_until(VM, answering=True)
    assert virtlet.called("UpdateRuntimeConfig") == [request]
    restart()
    assert virtlet.called("UpdateRuntimeConfig") == [request]


def test_statistics_of_pods_whose_numbers_nobody_heard_fail_and_name_the_runtime(
    restart: Restart, virtlet: FakeRuntime
) -> None:
    proxy, client = restart()
    client.create(client.run_pod("a"))
    client.create(client.run_pod("b", target=VM))
    request = cri.ListContainerStatsRequest()
    assert len(client.runtime.ListContainerStats(request).stats) == 2
    until(lambda: not proxy.runtime(VM).last.outdated(10.0))
    virtlet.stop()
    _, client = restart()
    assert len(client.pods()) == 2
    with pytest.raises(grpc.RpcError) as caught:
        client.runtime.ListContainerStats(request)
    assert caught.value.code() == grpc.StatusCode.UNAVAILABLE
    assert VM in said(caught)
    client.image.ImageFsInfo(cri.ImageFsInfoRequest())


def test_what_a_runtime_without_pods_never_told_is_nothing(
    restart: Restart, virtlet: FakeRuntime
) -> None:
    restart()
    virtlet.stop()
    _, client = restart()
    client.create(client.run_pod("a"))
    assert len(client.runtime.ListContainerStats(cri.ListContainerStatsRequest()).stats) == 1


def test_a_runtime_that_never_came_is_not_taken_for_one_that_was_there(
    start_proxy: Start, connect: Connect, containerd: FakeRuntime, run_dir: Path
) -> None:
    sockets = {"containerd": containerd.path, VM: run_dir / "never.sock"}
    for _ in range(2):
        proxy = start_proxy(sockets, state_dir=str(run_dir / "state"), grace=0.0)
        assert connect(proxy.config.listen).pods() == set()
        proxy.stop()
