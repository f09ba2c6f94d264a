"""Plugins that are uninstalled while pods of theirs are there."""

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tests.fakes.plugins import Current
from virtlet import hookimpl
from virtlet.model.disk import Disk
from virtlet.model.option import TEXT, Option
from virtlet.model.vm import Vm


class Light(Current):
    """Makes a disk in the VM's own directory, and leaves out the inverse: there is none to do."""

    @hookimpl
    def virtlet_root_disk(self, vm: Vm, flavor: object) -> Disk:
        path = vm.directory / "light.raw"
        path.touch()
        return Disk(path=path, format="raw")


class Careful(Light):
    """Has a setting, and undoes what it did."""

    @hookimpl
    def virtlet_options(self) -> Sequence[Option[Any]]:
        return [
            Option(
                field="streamPorts",
                flag="--stream-ports",
                env="STREAM_PORTS",
                kind=TEXT,
                default="",
                help="of the test",
            )
        ]

    @hookimpl
    def virtlet_release_root_disk(self, vm: Vm, disk: object) -> None:
        (vm.directory / "light.raw").unlink(missing_ok=True)


class Stuck(Current):
    """Never comes back."""

    @hookimpl
    def virtlet_root_disk(self, vm: Vm, flavor: object) -> Disk:
        time.sleep(3600)
        return Disk(path=Path("/nonexistent"))
