"""The node's metrics over HTTP, scraped by a real Prometheus and checked by its own tool."""

import json
import re
import subprocess
import urllib.parse
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import httpx
import pytest
import yaml

from tests.e2e.conftest import METRICS, ROOT, Pod, PodFactory
from tests.fakes.pod_cgroup import pod_cgroup
from tests.monitoring.test_monitoring import names, queries
from tests.polling import until
from virtlet.cli.playground import Playground
from virtlet.host import netns

PROMETHEUS = ROOT / "build" / "prometheus" / "usr" / "bin" / "prometheus"
LISTEN = "127.0.0.1:19090"
CADVISORS = ("container_",)
"""Beginnings of names that others chose, which promtool would like to be other ones."""


def _get(node: Playground, address: str, path: str) -> str:
    def ask() -> str:
        return httpx.get(f"http://{address}{path}", timeout=10).raise_for_status().text

    return netns.inside(node.netns, ask)


@contextmanager
def _prometheus(node: Playground, directory: Path) -> Iterator[None]:
    """Prometheus in the node's namespace, which scrapes the manager every second."""
    jobs = [
        {"job_name": job, "metrics_path": path, "static_configs": [{"targets": [METRICS]}]}
        for job, path in (("virtlet", "/metrics"), ("virtlet-pods", "/metrics/pods"))
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


def test_every_query_of_dashboard_and_alerts_finds_its_metrics(pod: Pod, tmp_path: Path) -> None:
    """Those of failures find none here, and those of the proxy are looked at in its own tests."""
    with _prometheus(pod.node, tmp_path):
        sampled = 'count_over_time(container_cpu_usage_seconds_total{container=""}[1m]) >= 3'
        assert until(lambda: _query(pod.node, sampled), "three scrapes of a pod", 30)
        for metric in ("virtlet_vms", "virtlet_vm_guest_available_bytes"):
            assert until(partial(_query, pod.node, metric), metric, 60)
        there = {dict(labels)["__name__"] for labels in _query(pod.node, '{job=~"virtlet.*"}')}
        for beginning in ("virtlet", "container", "process"):
            assert names(beginning) - there - {"virtlet_vm_ends_total"} == set()
        for query in queries():
            found = _query(pod.node, query)
            if not re.search("criproxy|failed|code!|ends|[<>]|==", query):
                assert found, query


def test_a_node_that_serves_is_ready(node: Playground) -> None:
    conditions = json.loads(_get(node, METRICS, "/readyz"))["conditions"]
    assert {c["type"]: c["status"] for c in conditions} == {
        "RuntimeReady": True,
        "NetworkReady": True,
    }
