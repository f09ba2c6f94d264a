"""What is asked of the node: Version, RuntimeConfig, UpdateRuntimeConfig, Status."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import grpc
import pytest

from criproxy.config import Limits
from tests.criproxy.fakes.proxy import VM, Client, RunningProxy, said
from tests.criproxy.fakes.runtime import FakeRuntime
from tests.polling import until
from virtlet.cri import api_pb2 as cri


def status(client: Client, verbose: bool = False) -> Any:
    return client.runtime.Status(cri.StatusRequest(verbose=verbose))


def test_conditions_of_all_are_told_and_each_reason_names_its_runtime(client: Client) -> None:
    told = [(c.type, c.status, c.reason) for c in status(client).status.conditions]
    assert told == [
        ("RuntimeReady", True, "containerd"),
        ("NetworkReady", True, "containerd: Fine"),
        ("RuntimeReady", True, VM),
        ("NetworkReady", True, f"{VM}: Fine"),
    ]


def test_handlers_and_features_are_united(
    client: Client, containerd: FakeRuntime, virtlet: FakeRuntime
) -> None:
    answer = virtlet._Status(cri.StatusRequest(), None)
    answer.runtime_handlers.add(
        name="kvm", features=cri.RuntimeHandlerFeatures(recursive_read_only_mounts=True)
    )
    answer.features.supplemental_groups_policy = True
    virtlet.instead["Status"] = lambda request, context: answer
    merged = status(client)
    assert [h.name for h in merged.runtime_handlers] == ["", "runc", "virtlet", "kvm"]
    assert merged.runtime_handlers[3].features.recursive_read_only_mounts
    assert merged.features.supplemental_groups_policy


def test_a_primary_that_lists_no_handler_has_the_nameless_one_as_soon_as_another_lists_any(
    client: Client, containerd: FakeRuntime
) -> None:
    containerd.handlers = ()
    handlers = status(client).runtime_handlers
    assert [h.name for h in handlers] == ["", "virtlet"]
    assert handlers[0].features == cri.RuntimeHandlerFeatures()


def test_the_nameless_handler_is_there_too_while_the_primary_is_away(
    client: Client, proxy: RunningProxy, containerd: FakeRuntime
) -> None:
    containerd.handlers = ()
    status(client)
    containerd.stop()
    proxy.wait_until("containerd", answering=False)
    assert [h.name for h in status(client).runtime_handlers] == ["", "virtlet"]


def test_where_nobody_lists_a_handler_there_is_none(
    client: Client, containerd: FakeRuntime, virtlet: FakeRuntime
) -> None:
    containerd.handlers = virtlet.handlers = ()
    assert not status(client).runtime_handlers


def test_handlers_configured_for_a_primary_that_lists_none_are_listed(
    start_proxy: Callable[..., RunningProxy],
    connect: Callable[[Path | str], Client],
    containerd: FakeRuntime,
    virtlet: FakeRuntime,
) -> None:
    containerd.handlers = ()
    proxy = start_proxy(
        {"containerd": containerd.path, VM: virtlet.path},
        runtime_options={"containerd": {"handlers": ("kata",)}},
    )
    handlers = status(connect(proxy.config.listen)).runtime_handlers
    assert [h.name for h in handlers] == ["", "kata", "virtlet"]


def test_verbose_information_keeps_whose_it_is(client: Client) -> None:
    info = status(client, verbose=True).info
    assert json.loads(info["config"])["name"] == "containerd"
    assert json.loads(info[f"{VM}/config"])["name"] == VM
    assert [r["name"] for r in json.loads(info["criproxy"])] == ["containerd", VM]


def test_a_runtime_that_is_away_is_not_ready_and_the_node_still_is(
    client: Client, proxy: RunningProxy, virtlet: FakeRuntime
) -> None:
    virtlet.stop()
    proxy.wait_until(VM, answering=False)
    merged = status(client)
    first: dict[str, Any] = {}
    for condition in merged.status.conditions:
        first.setdefault(condition.type, condition)
    assert first["RuntimeReady"].status
    assert first["NetworkReady"].status
    away = [c for c in merged.status.conditions if not c.status]
    assert [c.type for c in away] == ["RuntimeReady", "NetworkReady"]
    assert all(c.reason == f"{VM}: Away" and "b.sock" in c.message for c in away)
    assert "virtlet" in [h.name for h in merged.runtime_handlers]


def test_a_primary_that_is_away_makes_the_node_not_ready(
    client: Client, proxy: RunningProxy, containerd: FakeRuntime
) -> None:
    containerd.stop()
    proxy.wait_until("containerd", answering=False)
    first = status(client).status.conditions[0]
    assert (first.type, first.status, first.reason) == ("RuntimeReady", False, "containerd: Away")


def test_an_error_of_another_runtime_makes_it_not_ready_and_the_node_stays_ready(
    client: Client, proxy: RunningProxy, virtlet: FakeRuntime
) -> None:
    virtlet.instead["Status"] = lambda request, context: context.abort(
        grpc.StatusCode.INTERNAL, "no idea"
    )
    answer = status(client)
    told = [(c.type, c.status, c.reason, c.message) for c in answer.status.conditions]
    assert [ready for _, ready, _, _ in told[:2]] == [True, True]
    assert told[2:] == [
        ("RuntimeReady", False, f"{VM}: Error", "no idea"),
        ("NetworkReady", False, f"{VM}: Error", "no idea"),
    ]
    assert "virtlet" in [h.name for h in answer.runtime_handlers]
    assert proxy.runtime(VM).answering


@pytest.mark.parametrize("code", [grpc.StatusCode.INTERNAL, grpc.StatusCode.UNAVAILABLE])
def test_an_error_of_the_primary_is_the_nodes(
    client: Client, containerd: FakeRuntime, code: grpc.StatusCode
) -> None:
    containerd.instead["Status"] = lambda request, context: context.abort(code, "no idea")
    with pytest.raises(grpc.RpcError) as caught:
        status(client)
    assert (caught.value.code(), said(caught)) == (code, "no idea")


def test_a_status_that_comes_late_holds_up_one_status_and_makes_that_runtime_not_ready(
    start_proxy: Callable[..., RunningProxy],
    connect: Callable[[Path | str], Client],
    containerd: FakeRuntime,
    virtlet: FakeRuntime,
) -> None:
    proxy = start_proxy(
        {"containerd": containerd.path, VM: virtlet.path},
        runtime_options={VM: {"limits": Limits(read_seconds=1.0)}},
    )
    client = connect(proxy.config.listen)
    release = threading.Event()

    def hang(request: Any, context: Any) -> Any:
        release.wait(20)
        return virtlet._Status(request, context)

    virtlet.instead["Status"] = hang
    for number in range(11):
        if number == 1:
            start = time.monotonic()
        conditions = status(client).status.conditions
        assert [c.reason for c in conditions if not c.status] == [f"{VM}: Late"] * 2
        assert "no answer to Status within 1 s" in conditions[2].message
    assert time.monotonic() - start < 8, "each takes the runtime's second otherwise"
    assert client.run_pod(target=VM) in client.pods()
    virtlet.instead.clear()
    release.set()
    until(lambda: all(c.status for c in status(client).status.conditions), timeout=30)


def test_with_one_runtime_the_answer_is_its_own(
    start_proxy: Callable[..., RunningProxy],
    connect: Callable[[Path | str], Client],
    containerd: FakeRuntime,
) -> None:
    proxy = start_proxy({"containerd": containerd.path})
    assert status(connect(proxy.config.listen)) == status(connect(containerd.path))


UPDATE = cri.UpdateRuntimeConfigRequest(
    runtime_config=cri.RuntimeConfig(network_config=cri.NetworkConfig(pod_cidr="10.1.0.0/16"))
)


def test_version_is_the_primarys(client: Client) -> None:
    assert client.runtime.Version(cri.VersionRequest()).runtime_name == "containerd"


def test_runtime_config_is_the_primarys(
    client: Client, containerd: FakeRuntime, virtlet: FakeRuntime
) -> None:
    linux = cri.LinuxRuntimeConfiguration(cgroup_driver=cri.CGROUPFS)
    containerd.instead["RuntimeConfig"] = lambda request, context: cri.RuntimeConfigResponse(
        linux=linux
    )
    assert client.runtime.RuntimeConfig(cri.RuntimeConfigRequest()).linux == linux
    assert not virtlet.called("RuntimeConfig")


def test_an_update_is_told_to_everyone(
    client: Client, containerd: FakeRuntime, virtlet: FakeRuntime
) -> None:
    client.runtime.UpdateRuntimeConfig(UPDATE)
    for runtime in (containerd, virtlet):
        assert runtime.called("UpdateRuntimeConfig") == [UPDATE]


def test_a_runtime_that_was_away_is_told_when_it_comes(
    client: Client, proxy: RunningProxy, virtlet: FakeRuntime
) -> None:
    virtlet.stop()
    proxy.wait_until(VM, answering=False)
    client.runtime.UpdateRuntimeConfig(UPDATE)
    virtlet.start()
    until(lambda: virtlet.called("UpdateRuntimeConfig") == [UPDATE])


def test_a_runtime_without_the_call_is_left_out(client: Client, virtlet: FakeRuntime) -> None:
    virtlet.missing.add("UpdateRuntimeConfig")
    client.runtime.UpdateRuntimeConfig(UPDATE)


def test_a_refusal_is_told_with_its_runtime(client: Client, virtlet: FakeRuntime) -> None:
    virtlet.instead["UpdateRuntimeConfig"] = lambda request, context: context.abort(
        grpc.StatusCode.INVALID_ARGUMENT, "bad CIDR"
    )
    with pytest.raises(grpc.RpcError) as caught:
        client.runtime.UpdateRuntimeConfig(UPDATE)
    assert said(caught) == f"CRI runtime {VM}: bad CIDR"


def test_without_the_primary_an_update_fails(
    client: Client, proxy: RunningProxy, containerd: FakeRuntime
) -> None:
    containerd.stop()
    proxy.wait_until("containerd", answering=False)
    with pytest.raises(grpc.RpcError) as caught:
        client.runtime.UpdateRuntimeConfig(UPDATE)
    assert caught.value.code() == grpc.StatusCode.UNAVAILABLE
    assert "containerd" in said(caught)
