"""One trace of a pod's start: the kubelet's, the proxy's, the manager's and its hooks'."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from attrs import frozen

from hack.draw_trace import Bar, draw
from tests.criproxy.fakes.command import ProxyProcess
from tests.criproxy.fakes.proxy import VM
from tests.e2e.conftest import ROOT, TINY, Pod, make_manifest
from tests.fakes.collector import Collector, Seen
from tests.polling import until
from virtlet.cli.client import CallFailed, Client
from virtlet.cli.playground import Playground
from virtlet.cri import api_pb2 as cri

TRACE, SYNC_POD = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
"""The span of a kubelet's syncPod, in its trace."""
KUBELET = (("traceparent", f"00-{TRACE}-{SYNC_POD}-01"), ("tracestate", "kubelet=1"))
SOON = {"OTEL_BSP_SCHEDULE_DELAY": "200"}
SECRET = "hunter2-of-the-user-data"
START = ("RunPodSandbox", "PullImage", "CreateContainer", "StartContainer")
SCRIPT = "VirtletCloudInitUserDataScript"
NOBODY = "0" * 32
PICTURE = ROOT / "docs" / "pictures" / "trace.svg"


@frozen
class Traced:
    """What came to the collector of a pod that was started and removed."""

    collector: Collector
    pod: Pod
    proxy: Path

    def spans(self) -> list[Seen]:
        """Those of the kubelet's trace."""
        return [span for span in self.collector.spans() if span.trace == TRACE]

    def call(self, service: str, method: str) -> Seen:
        """The one span of a call that did not fail."""
        [span] = [
            span
            for span in self.spans()
            if (span.service, span.failed) == (service, "")
            and span.name.endswith(f"Service/{method}")
        ]
        return span

    def below(self, parent: Seen) -> list[Seen]:
        """The spans of a span's steps, in their order."""
        return [span for span in self.spans() if span.parent == parent.id]


@pytest.fixture(scope="module")
def traced(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Traced]:
    """A node whose manager and proxy have a collector; one pod was started as part of a trace."""
    directory = tmp_path_factory.mktemp("proxy")
    listen = directory / "p.sock"
    node = Playground({"tiny": TINY}, settings={"handlers": {"virtlet": {}}})
    with Collector() as collector:
        # The manager connects when it has something to tell: only then somebody has to listen.
        port = "http://127.0.0.1:4317"
        node.environment.update(SOON, OTEL_EXPORTER_OTLP_ENDPOINT=port)
        with node:
            assert collector.listen(node.netns, 4317) == port
            environment = {"OTEL_EXPORTER_OTLP_ENDPOINT": collector.listen(), **SOON}
            connect = f"{VM}:{node.socket}"
            arguments = ("--connect", connect, "--state-dir", str(directory / "s"))
            with (
                ProxyProcess(listen, *arguments, environment=environment),
                Client(listen, metadata=KUBELET) as client,
            ):
                manifest = make_manifest(node)
                manifest.pod.annotations[SCRIPT] += f"# {SECRET}\n"
                pod = Pod(node, client, manifest).up()
                with pytest.raises(CallFailed):
                    request = cri.StartContainerRequest(container_id=NOBODY)
                    client.call("StartContainer", request)
                with Client(listen) as untraced:
                    untraced.pods()
                    untraced.remove_pod(NOBODY)
                client.pods()
                pod.down()
                traced = Traced(collector, pod, listen)
                ends = ("criproxy", "RemovePodSandbox"), ("virtlet", "RemovePodSandbox")
                until(lambda: all(_ended(traced, *end) for end in ends), "the last spans", 30)
                yield traced


def _ended(traced: Traced, service: str, method: str) -> bool:
    return any(span.service == service and span.name.endswith(method) for span in traced.spans())


def _subtree(traced: Traced, top: Seen, depth: int = 0) -> Iterator[tuple[int, Seen]]:
    yield depth, top
    for span in traced.below(top):
        yield from _subtree(traced, span, depth + 1)


def test_the_chain_goes_from_the_kubelet_over_the_proxy_to_the_manager(traced: Traced) -> None:
    for method in START:
        proxy, manager = (traced.call(service, method) for service in ("criproxy", "virtlet"))
        assert (proxy.parent, manager.parent) == (SYNC_POD, proxy.id)
        assert proxy.start <= manager.start <= manager.end
        assert (
            manager.name
            == f"runtime.v1.{'Image' if 'Image' in method else 'Runtime'}Service/{method}"
        )


@pytest.mark.parametrize(
    ("method", "chains"),
    [
        ("RunPodSandbox", {("virtlet_admit_pod",), ("network", "virtlet_setup_network")}),
        ("PullImage", {("virtlet_resolve_image",), ("virtlet_fetch_image",)}),
        (
            "CreateContainer",
            {
                ("disk", "virtlet_root_disk"),
                ("disk", "virtlet_seed"),
                ("virtlet_cloud_init",),
                ("virtlet_render_domain",),
                ("domain", "define"),
            },
        ),
        ("StartContainer", {("running", "start")}),
    ],
)
def test_hooks_and_effects_are_below_their_calls(
    traced: Traced, method: str, chains: set[tuple[str, ...]]
) -> None:
    found: set[tuple[str, ...]] = set()
    way: list[Seen] = []
    for depth, span in _subtree(traced, traced.call("virtlet", method)):
        way[depth:] = [span]
        found.add(tuple(one.name for one in way[1:]))
        assert all(outer.start <= span.start for outer in way)
    assert chains <= found


def test_a_span_says_whose_it_is(traced: Traced) -> None:
    pod, metadata = traced.pod, traced.pod.pod.metadata
    for service in ("criproxy", "virtlet"):
        told = traced.call(service, "StartContainer").attributes
        assert told["container.id"] == pod.vm
        assert told["k8s.namespace.name"] == metadata.namespace
        assert told["k8s.pod.name"] == metadata.name
        assert told["rpc.response.status_code"] == "OK"
    assert traced.call("virtlet", "RunPodSandbox").attributes["virtlet.pod.id"] == pod.id
    [network] = [span for span in traced.spans() if span.name == "virtlet_setup_network"]
    assert network.attributes == {"virtlet.plugin": "network_cni"}


def test_a_call_that_fails_says_why(traced: Traced) -> None:
    failed = [span for span in traced.spans() if span.failed and "/" in span.name]
    assert {(span.service, span.name.rpartition("/")[2]) for span in failed} == {
        ("criproxy", "StartContainer"),
        ("virtlet", "StartContainer"),
    }
    assert all(NOBODY in span.failed for span in failed)


def test_without_a_context_what_changes_something_begins_a_trace(traced: Traced) -> None:
    own = [span for span in traced.collector.spans() if span.trace != TRACE]
    proxy, manager = (
        next(span for span in own if span.service == service) for service in ("criproxy", "virtlet")
    )
    assert (proxy.parent, manager.parent) == ("", proxy.id)
    calls = {span.name.rpartition("/")[2] for span in own if "/" in span.name}
    assert calls == {"RemovePodSandbox"}
    assert any(span.name.endswith("/ListPodSandbox") for span in traced.spans())


def test_nothing_of_the_user_data_is_told(traced: Traced) -> None:
    assert SECRET.encode() not in traced.collector.received
    assert b"UserData" not in traced.collector.received


def test_the_trace_of_a_start_is_drawn(
    traced: Traced, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    bars = [
        Bar(span.service, span.name, depth, span.start, span.end)
        for method in START
        for depth, span in _subtree(traced, traced.call("criproxy", method))
        if span.end - span.start > 1e6
    ]
    drawn = draw("The start of a pod: spans of a millisecond and more", bars)
    assert all(f">{method} (virtlet)<" in drawn for method in START)
    picture = PICTURE if request.config.getoption("--refresh-golden") else tmp_path / PICTURE.name
    picture.write_text(drawn)
