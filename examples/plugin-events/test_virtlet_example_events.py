"""The audit trail, without a VM."""

import json
from pathlib import Path

from virtlet_example_events import Plugin

from virtlet.api import Event, EventKind
from virtlet.testing import check_plugin, configured


def test_the_manager_takes_the_plugin() -> None:
    check_plugin(Plugin)


def test_every_event_is_a_line(tmp_path: Path) -> None:
    plugin = configured(Plugin(), tmp_path)
    plugin.virtlet_event(Event(kind=EventKind.POD_CREATED, subject="a", pod_id="a", at=5))
    plugin.virtlet_event(Event(kind=EventKind.POD_REMOVED, subject="a", pod_id="a", reason="Gone"))
    lines = [json.loads(line) for line in (tmp_path / "audit.jsonl").read_text().splitlines()]
    assert [(line["what"], line["subject"], line["reason"]) for line in lines] == [
        ("pod-created", "a", ""),
        ("pod-removed", "a", "Gone"),
    ]


def test_the_file_s_place_is_an_option(tmp_path: Path) -> None:
    plugin = configured(Plugin(), tmp_path, exampleAuditFile=str(tmp_path / "mine"))
    plugin.virtlet_event(Event(kind=EventKind.POD_CREATED, subject="a"))
    assert (tmp_path / "mine").exists()
