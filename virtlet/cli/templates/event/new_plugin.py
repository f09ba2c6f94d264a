"""Every change of a pod, VM or image is a line in a file of the node."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from virtlet.api import PATH, Event, Node, Option, Settings, hookimpl

FILE = Option(
    field="newPluginFile",
    flag="--new-plugin-file",
    env="NEW_PLUGIN_FILE",
    kind=PATH,
    default="{data_dir}/new-plugin.jsonl",
    help="where changes of pods, VMs and images are written",
)


class Plugin:
    """Hears of what the manager has done."""

    VIRTLET_HOOK_API = 1

    @hookimpl
    def virtlet_options(self) -> Sequence[Option[Any]]:
        """Declare the file."""
        return [FILE]

    @hookimpl
    def virtlet_configure(self, settings: Settings, node: Node) -> None:
        """Remember the file."""
        self._file: Path = settings[FILE]

    @hookimpl
    def virtlet_event(self, event: Event) -> None:
        """Write a line; events come one at a time, after what they tell of was committed."""
        line = {"at": event.at, "what": event.kind.value, "subject": event.subject}
        with self._file.open("a") as file:
            file.write(json.dumps(line) + "\n")
