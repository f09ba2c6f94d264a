"""The metrics that are described, against what cAdvisor and critest call them."""

from pathlib import Path

from virtlet.core.cri.metric_table import METRICS
from virtlet.core.cri.stats_calls import IDENTITY

ROOT = Path(__file__).parents[3]
EXPECTED = {
    name: tuple(labels)
    for name, *labels in (
        line.split()
        for line in (ROOT / "tests/golden/cadvisor_metrics.txt").read_text().splitlines()
        if not line.startswith("#")
    )
}
NOT_SERVED = {
    "container_hugetlb_max_usage_bytes",
    "container_hugetlb_usage_bytes",
    "container_spec_memory_reservation_limit_bytes",
}
"""docs/metrics.md says why."""


def test_every_name_that_means_something_for_a_vm_is_described_with_cadvisors_labels() -> None:
    assert len(EXPECTED) == 56
    described = {metric.name: metric.labels for metric in METRICS}
    ours = {name for name in described if name.startswith("virtlet_")}
    assert {name: described[name] for name in set(described) - ours} == {
        name: labels for name, labels in EXPECTED.items() if name not in NOT_SERVED
    }
    assert len(described) == len(METRICS)


def test_labels_tell_pods_and_containers_apart_and_every_metric_has_a_text() -> None:
    assert {"container", "pod", "namespace", "id", "name", "image"} == set(IDENTITY)
    assert all(metric.help.endswith(".") for metric in METRICS)


def test_the_documentation_has_every_name() -> None:
    text = (ROOT / "docs/metrics.md").read_text()
    assert [name for name in EXPECTED if f"`{name}`" not in text] == []
    assert [m.name for m in METRICS if f"`{m.name}`" not in text] == []
