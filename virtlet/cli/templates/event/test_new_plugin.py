"""The plugin without a VM and with one."""

import json
from pathlib import Path

from new_plugin import Plugin

from virtlet.api import Event, EventKind
from virtlet.testing import BootGuest, MakeNode, check_plugin, configured


def test_the_manager_takes_the_plugin() -> None:
    check_plugin(Plugin)


def test_an_event_is_a_line(tmp_path: Path) -> None:
    plugin = configured(Plugin(), tmp_path, newPluginFile=str(tmp_path / "events"))
    plugin.virtlet_event(Event(kind=EventKind.VM_STARTED, subject="a", at=5))
    line = json.loads((tmp_path / "events").read_text())
    assert line == {"at": 5, "what": "vm-started", "subject": "a"}


def test_a_guest_s_start_is_written(virtlet_node: MakeNode, virtlet_guest: BootGuest) -> None:
    guest = virtlet_guest()
    guest.wait_for_console("login:")
    lines = (virtlet_node().data_dir / "new-plugin.jsonl").read_text().splitlines()
    assert ("vm-started", guest.vm) in [
        (line["what"], line["subject"]) for line in map(json.loads, lines)
    ]
