"""An audit trail: one JSON line for every committed change, in a file of the node."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from virtlet.api import PATH, Event, Node, Option, Settings, hookimpl

AUDIT_FILE = Option(
    field="exampleAuditFile",
    flag="--example-audit-file",
    env="VIRTLET_EXAMPLE_AUDIT_FILE",
    kind=PATH,
    default="{data_dir}/audit.jsonl",
    help="where the example plugin writes its audit trail",
)


class Plugin:
    """Writes down what happened, when, and to whom."""

    VIRTLET_HOOK_API = 1

    @hookimpl
    def virtlet_options(self) -> Sequence[Option[Any]]:
        """The file's place."""
        return [AUDIT_FILE]

    @hookimpl
    def virtlet_configure(self, settings: Settings, node: Node) -> None:
        """Remember the file's place."""
        self._file: Path = settings[AUDIT_FILE]

    @hookimpl
    def virtlet_event(self, event: Event) -> None:
        """Append a line; events come one after the other, on one thread."""
        line = {
            "at": event.at,
            "what": event.kind.value,
            "subject": event.subject,
            "pod": event.pod_id,
            "reason": event.reason,
        }
        with self._file.open("a") as file:
            file.write(json.dumps(line) + "\n")
