#!/usr/bin/env python3
"""Write deploy/monitoring/dashboard.json, the dashboard for Grafana.

`make docs` runs it; tests/monitoring fails when the file is not what this prints.
"""

import json
import sys
from collections.abc import Iterator
from typing import Any

from attrs import frozen

WIDTH = 24  # of Grafana's grid
HEIGHT = 8
SOURCE = {"type": "prometheus", "uid": "${source}"}


@frozen
class Panel:
    """A plot of some queries, each with its legend."""

    title: str
    unit: str
    queries: dict[str, str]
    """Legend to expression."""
    text: str = ""


MANAGER = 'instance=~"$instance"'
POD = f'{MANAGER},job="virtlet-pods"'
"""A kubelet serves metrics of the same names."""
STARTS = 'method=~"RunPodSandbox|CreateContainer|StartContainer"'


def _quantile(share: float, metric: str, by: str, labels: str = "") -> str:
    chosen = ",".join(part for part in (MANAGER, labels) if part)
    rate = f"sum by (le,{by}) (rate({metric}_bucket{{{chosen}}}[$__rate_interval]))"
    return f"histogram_quantile({share}, {rate})"


def _rate(metric: str, by: str, labels: str = "") -> str:
    base = POD if metric.startswith("container_") else MANAGER
    chosen = ",".join(part for part in (base, labels) if part)
    return f"sum by ({by}) (rate({metric}{{{chosen}}}[$__rate_interval]))"


ROWS = {
    "Nodes": (
        Panel("VMs by state", "short", {"{{state}}": f"sum by (state) (virtlet_vms{{{MANAGER}}})"}),
        Panel(
            "Hypervisor",
            "short",
            {"{{instance}} {{plugin}}": f"virtlet_hypervisor_ready{{{MANAGER}}}"},
            "1 is ready. Why not: /readyz of the manager.",
        ),
        Panel("Images", "bytes", {"{{instance}}": f"virtlet_image_bytes{{{MANAGER}}}"}),
    ),
    "Starts": (
        Panel(
            "Calls that start a pod, nine of ten are quicker",
            "s",
            {"{{method}}": _quantile(0.9, "virtlet_call_seconds", "method", STARTS)},
        ),
        Panel(
            "Steps, on average",
            "s",
            {
                "{{step}}": _rate("virtlet_step_seconds_sum", "step")
                + " / "
                + _rate("virtlet_step_seconds_count", "step")
            },
        ),
        Panel(
            "Steps that failed",
            "ops",
            {"{{step}}": _rate("virtlet_step_seconds_count", "step", 'outcome="failed"')},
        ),
    ),
    "Calls": (
        Panel("Calls", "ops", {"{{method}}": _rate("virtlet_calls_total", "method")}),
        Panel(
            "Calls that failed",
            "ops",
            {"{{method}} {{code}}": _rate("virtlet_calls_total", "method,code", 'code!="OK"')},
        ),
        Panel(
            "Work on a pod waited for earlier work",
            "s",
            {"nine of ten waited less": _quantile(0.9, "virtlet_pod_wait_seconds", "instance")},
        ),
    ),
    "Ends": (
        Panel("VMs that ended", "ops", {"{{reason}}": _rate("virtlet_vm_ends_total", "reason")}),
        Panel("Committed changes", "ops", {"{{kind}}": _rate("virtlet_events_total", "kind")}),
        Panel(
            "Effects under way",
            "short",
            {"{{instance}}": f"virtlet_open_effects{{{MANAGER}}}"},
            "Those that stay are left by a crash, or by a removal that does not succeed.",
        ),
    ),
    "Pods": (
        Panel(
            "CPU",
            "short",
            {
                "{{namespace}}/{{pod}}": _rate(
                    "container_cpu_usage_seconds_total", "namespace,pod", 'container=""'
                )
            },
            "Cores that the pod takes: guest, emulator and helpers.",
        ),
        Panel(
            "Memory",
            "bytes",
            {
                "{{namespace}}/{{pod}}": "sum by (namespace,pod) "
                f'(container_memory_working_set_bytes{{{POD},container=""}})'
            },
            "What the node gives and eviction compares.",
        ),
        Panel(
            "Memory that the guest could use",
            "bytes",
            {"{{namespace}}/{{pod}}": f"virtlet_vm_guest_available_bytes{{{POD}}}"},
        ),
        Panel(
            "Network",
            "Bps",
            {
                "{{pod}} in": _rate("container_network_receive_bytes_total", "pod"),
                "{{pod}} out": _rate("container_network_transmit_bytes_total", "pod"),
            },
        ),
        Panel(
            "Disks",
            "bytes",
            {
                "{{namespace}}/{{pod}}": "sum by (namespace,pod) "
                f"(container_fs_usage_bytes{{{POD}}})"
            },
            "Allocated bytes of the VM's disks.",
        ),
        Panel(
            "The managers themselves",
            "bytes",
            {"{{instance}}": f'process_resident_memory_bytes{{{MANAGER},job="virtlet"}}'},
        ),
    ),
    "CRI proxy": (
        Panel(
            "Runtimes",
            "short",
            {"{{instance}} {{runtime}}": f"criproxy_runtime_up{{{MANAGER}}}"},
            "1 answers, 0 does not.",
        ),
        Panel(
            "Calls to runtimes, nine of ten are quicker",
            "s",
            {"{{runtime}}": _quantile(0.9, "criproxy_runtime_call_seconds", "runtime")},
        ),
        Panel(
            "Calls of clients that failed",
            "ops",
            {"{{method}} {{code}}": _rate("criproxy_calls_total", "method,code", 'code!="OK"')},
        ),
    ),
}


def dashboard() -> dict[str, Any]:
    """The dashboard as Grafana 9 and later import it."""
    return {
        "title": "Virtlet",
        "uid": "virtlet",
        "tags": ["virtlet", "kubernetes"],
        "schemaVersion": 38,
        "editable": True,
        "refresh": "30s",
        "time": {"from": "now-3h", "to": "now"},
        "templating": {"list": list(_variables())},
        "panels": list(_panels()),
    }


def _variables() -> Iterator[dict[str, Any]]:
    yield {"name": "source", "label": "Prometheus", "type": "datasource", "query": "prometheus"}
    yield {
        "name": "instance",
        "label": "Node",
        "type": "query",
        "datasource": SOURCE,
        "query": 'label_values(up{job=~"virtlet.*|criproxy"}, instance)',
        "includeAll": True,
        "multi": True,
        "allValue": ".*",
        "current": {"text": "All", "value": "$__all"},
        "refresh": 2,
    }


def _panels() -> Iterator[dict[str, Any]]:
    number = 1
    y = 0
    for row, panels in ROWS.items():
        yield {"id": number, "type": "row", "title": row, "gridPos": _place(0, y, WIDTH, 1)}
        number, y = number + 1, y + 1
        across = 3
        for position, panel in enumerate(panels):
            width = WIDTH // across
            down, column = divmod(position, across)
            place = _place(column * width, y + down * HEIGHT, width, HEIGHT)
            yield {"id": number, "gridPos": place, **_panel(panel)}
            number += 1
        y += HEIGHT * -(-len(panels) // across)


def _place(x: int, y: int, w: int, h: int) -> dict[str, int]:
    return {"x": x, "y": y, "w": w, "h": h}


def _panel(panel: Panel) -> dict[str, Any]:
    targets = [
        {"refId": chr(ord("A") + number), "datasource": SOURCE, "expr": query, "legendFormat": name}
        for number, (name, query) in enumerate(panel.queries.items())
    ]
    return {
        "type": "timeseries",
        "title": panel.title,
        "description": panel.text,
        "datasource": SOURCE,
        "fieldConfig": {"defaults": {"unit": panel.unit, "min": 0}, "overrides": []},
        "options": {"tooltip": {"mode": "multi"}},
        "targets": targets,
    }


if __name__ == "__main__":
    sys.stdout.write(json.dumps(dashboard(), indent=1) + "\n")
