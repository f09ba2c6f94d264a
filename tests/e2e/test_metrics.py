"""The node's metrics over HTTP, scraped by a real Prometheus and checked by its own tool."""

import json
import re
import subprocess
import time
import urllib.parse
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import httpx
import pytest
import yaml

from hack.document_dashboard import dashboard
from hack.draw_dashboard import Series, draw
from tests.criproxy.fakes.command import ProxyProcess
from tests.criproxy.fakes.proxy import VM
from tests.e2e.conftest import METRICS, ROOT, Pod, PodFactory, make_manifest
from tests.fakes.pod_cgroup import pod_cgroup
from tests.monitoring.test_monitoring import names, queries
from tests.polling import until
from virtlet.cli.client import CallFailed, Client
from virtlet.cli.playground import Playground
from virtlet.cri import api_pb2 as cri
from virtlet.host import netns

PROMETHEUS = ROOT / "build" / "prometheus" / "usr" / "bin" / "prometheus"
LISTEN = "127.0.0.1:19090"
PROXY = "127.0.0.1:10012"
PICTURE = ROOT / "docs" / "pictures" / "dashboard.svg"
SHOWN = 150.0
"""Seconds that the picture in the documentation shows."""
CADVISORS = ("container_",)
"""Beginnings of names that others chose, which promtool would like to be other ones."""


def _get(node: Playground, address: str, path: str) -> str:
    def ask() -> str:
        return httpx.get(f"http://{address}{path}", timeout=10).raise_for_status().text

    return netns.inside(node.netns, ask)


@contextmanager
def _prometheus(node: Playground, directory: Path) -> Iterator[None]:
    """Prometheus in the node's namespace, which scrapes manager and proxy every second."""
    jobs = [
        {"job_name": job, "metrics_path": path, "static_configs": [{"targets": [address]}]}
        for job, address, path in (
            ("virtlet", METRICS, "/metrics"),
            ("virtlet-pods", METRICS, "/metrics/pods"),
            ("criproxy", PROXY, "/metrics"),
        )
    ]
    config = directory / "prometheus.yml"
    config.write_text(yaml.safe_dump({"global": {"scrape_interval": "1s"}, "scrape_configs": jobs}))
    argv = [
        *("nsenter", f"--net={node.netns}", str(PROMETHEUS)),
        *(f"--config.file={config}", f"--storage.tsdb.path={directory / 'data'}"),
        f"--web.listen-address={LISTEN}",
    ]
    log = (directory / "log").open("w")
    with log, subprocess.Popen(argv, stdout=log, stderr=subprocess.STDOUT) as process:
        try:
            yield
        finally:
            process.terminate()
            process.wait(30)


def _query(node: Playground, expression: str) -> dict[frozenset[tuple[str, str]], float]:
    """Value by labels of an instant query; empty while Prometheus does not answer."""
    path = f"/api/v1/query?{urllib.parse.urlencode({'query': expression})}"
    try:
        result = json.loads(_get(node, LISTEN, path))["data"]["result"]
    except httpx.HTTPError:
        return {}
    return {frozenset(row["metric"].items()): float(row["value"][1]) for row in result}


def _range(node: Playground, since: float, expression: str) -> Sequence[Series]:
    """A range query from a time until now, its times from that time on."""
    wanted = {"query": expression, "start": since, "end": time.time(), "step": SHOWN / 60}
    path = f"/api/v1/query_range?{urllib.parse.urlencode(wanted)}"
    return [
        Series(row["metric"], [(at - since, float(value)) for at, value in row["values"]])
        for row in json.loads(_get(node, LISTEN, path))["data"]["result"]
    ]


@contextmanager
def _proxy(node: Playground, directory: Path) -> Iterator[Client]:
    """A client of a proxy that shows its metrics beside the manager."""
    listen = directory / "p.sock"
    words = ("--connect", f"{VM}:{node.socket}", "--state-dir", str(directory / "s"))
    proxy = ProxyProcess(listen, *words, "--http", PROXY)
    netns.inside(node.netns, proxy.start)
    with Client(listen) as client:
        try:
            yield client
        finally:
            proxy.stop()


def _something_happens(node: Playground, client: Client) -> None:
    """Pods come and go, and a call fails."""
    for name in ("web", "database"):
        with pod_cgroup() as parent:
            pod = Pod(node, client, make_manifest(node, name))
            pod.pod.linux.cgroup_parent = parent
            pod = pod.up()
            pod.wait_for_console("login:")
            with pytest.raises(CallFailed):
                client.call("StartContainer", cri.StartContainerRequest(container_id="0" * 32))
            pod.down()


@pytest.fixture
def pod(new_pod: PodFactory) -> Iterator[Pod]:
    """One that runs in a control group, as a kubelet's."""
    with pod_cgroup() as parent:
        pod = new_pod()
        pod.pod.linux.cgroup_parent = parent
        pod = pod.up()
        try:
            yield pod
        finally:
            pod.down()


def test_promtool_has_nothing_to_say_of_our_names(pod: Pod) -> None:
    for path in ("/metrics", "/metrics/pods"):
        text = _get(pod.node, METRICS, path)
        argv = ["promtool", "check", "metrics"]
        said = subprocess.run(argv, input=text, capture_output=True, text=True)
        complaints = [
            line
            for line in (said.stdout + said.stderr).splitlines()
            if line and not line.startswith(CADVISORS)
        ]
        assert complaints == [], path
        assert "virtlet_" in text


def test_a_prometheus_scrapes_manager_and_pods(pod: Pod, tmp_path: Path) -> None:
    name = pod.manifest.pod.metadata.name
    with _prometheus(pod.node, tmp_path):
        running = 'virtlet_vms{state="running"} >= 1'
        assert until(lambda: _query(pod.node, running), "the manager's metrics", 30)
        steps = _query(pod.node, 'virtlet_step_seconds_count{outcome="done"} > 0')
        done = {dict(labels)["step"] for labels in steps}
        assert {"network", "disk", "domain", "console", "running"} <= done
        calls = _query(pod.node, 'virtlet_calls_total{method="StartContainer", code="OK"} >= 1')
        assert calls
        memory = f'container_memory_usage_bytes{{pod="{name}", container="guest"}} > 0'
        assert until(lambda: _query(pod.node, memory), "the pod's metrics", 30)


def test_every_query_of_dashboard_and_alerts_finds_its_metrics_and_is_drawn(
    pod: Pod, tmp_path: Path, refresh_golden: bool
) -> None:
    """Those of failures find none here."""
    since = time.time()
    with _proxy(pod.node, tmp_path) as client, _prometheus(pod.node, tmp_path):
        client.pods()
        sampled = 'count_over_time(container_cpu_usage_seconds_total{container=""}[1m]) >= 3'
        assert until(lambda: _query(pod.node, sampled), "three scrapes of a pod", 30)
        for metric in ("virtlet_vms", "virtlet_vm_guest_available_bytes", "criproxy_calls_total"):
            assert until(partial(_query, pod.node, metric), metric, 60)
        there = {dict(labels)["__name__"] for labels in _query(pod.node, '{job=~"virtlet.*"}')}
        for beginning in ("virtlet", "container", "process"):
            assert names(beginning) - there - {"virtlet_vm_ends_total"} == set()
        for query in queries():
            found = _query(pod.node, query)
            if not re.search("failed|code!|ends|[<>]|==", query):
                assert found, query
        if refresh_golden:
            _something_happens(pod.node, client)
            until(lambda: time.time() > since + SHOWN, "enough to show", SHOWN)
        picture = PICTURE if refresh_golden else tmp_path / PICTURE.name
        draw(partial(_range, pod.node, since), "1m", picture)
    drawn = picture.read_text()
    assert all(f">{panel['title']}<" in drawn for panel in dashboard()["panels"])
    metadata = pod.manifest.pod.metadata
    assert f">{metadata.namespace}/{metadata.name}<" in drawn


def test_a_node_that_serves_is_ready(node: Playground) -> None:
    conditions = json.loads(_get(node, METRICS, "/readyz"))["conditions"]
    assert {c["type"]: c["status"] for c in conditions} == {
        "RuntimeReady": True,
        "NetworkReady": True,
    }
