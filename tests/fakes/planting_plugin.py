"""A plugin whose VMs have emulators that their guests have taken over; see planter.c."""

import os
from pathlib import Path

from tests.fakes.plugins import Current
from virtlet import hookimpl
from virtlet.model.disk import Share
from virtlet.model.launch import LaunchPart, Visible
from virtlet.model.node import Node
from virtlet.model.vm import Machine

LIBRARY, VICTIM = "PLANTER_LIBRARY", "PLANTER_VICTIM"
"""Environment variables of the manager: the compiled planter.c, and what its links lead to."""
_OUTSIDE = ("/", "/tmp", "/var/tmp", "/dev", "/dev/shm", "/run", "/etc", "/proc/self", "/usr")


def below(directory: Path) -> list[Path]:
    """All that is in a directory, where things come and go meanwhile."""
    found = os.walk(directory)
    return [Path(place, name) for place, within, files in found for name in (*within, *files)]


class Plugin(Current):
    """Has the emulator try every path that there is of the manager, and its own."""

    _node: Node

    @hookimpl
    def virtlet_configure(self, node: Node) -> None:
        """Keep the directories."""
        self._node = node

    @hookimpl
    def virtlet_launch(self, machine: Machine) -> LaunchPart:
        """The library and what it is told."""
        library = os.environ[LIBRARY]
        (share,) = (v.host_path for v in machine.volumes if isinstance(v, Share))
        roots = {self._node.data_dir, self._node.run_dir}
        inside = {path for root in roots for path in below(root) if share not in path.parents}
        places = sorted({*map(str, roots | inside), *_OUTSIDE})
        return LaunchPart(
            environment={
                "LD_PRELOAD": library,
                "PLACES": ":".join(places),
                "SHARE": str(share),
                "VICTIM": os.environ[VICTIM],
            },
            visible=(Visible(path=Path(library)),),
        )
