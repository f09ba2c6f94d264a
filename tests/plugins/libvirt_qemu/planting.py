"""A VM whose emulator plants files and links wherever it can, and what there is then."""

import json
import os
import shutil
from pathlib import Path

from tests.plugins.libvirt_qemu import planter
from tests.plugins.libvirt_qemu.rig import Rig
from tests.polling import until
from virtlet.host.processes import ended, open_all_in
from virtlet.model.launch import LaunchPart
from virtlet.model.vm import Machine


def planting(rig: Rig, machine: Machine) -> LaunchPart:
    """The launch of such an emulator, which may start processes: `Rig.start` has to let it."""
    program = rig.node.data_dir / "planter"
    shutil.copy(planter.__file__, program)
    program.write_text("#!/usr/bin/python3 -IS\n" + program.read_text())
    program.chmod(0o755)
    libvirt = rig.node.data_dir / "libvirt"
    places = [machine.root.path, machine.console.output, machine.console.input]
    places += [machine.vm.directory, machine.runtime_directory]
    places += [rig.node.data_dir, rig.node.run_dir, libvirt / "run/qemu", libvirt / "lib/qemu"]
    places += [Path(name) for name in ("/", "/tmp", "/var/tmp", "/dev/shm", "/run", "/dev")]
    environment = {
        "PLACES": json.dumps([str(place) for place in places]),
        "CONSOLE": str(machine.console.output),
    }
    return LaunchPart(emulator=program, environment=environment)


def wait_for_rounds(console: Path) -> None:
    """Wait until it has tried everything once more, from now on."""
    many = console.read_bytes().count(planter.ROUND) + 20  # each process has begun and ended one
    until(lambda: console.read_bytes().count(planter.ROUND) > many, "another round")


def listing(*directories: Path) -> dict[str, int]:
    """Paths and types of all files below some directories."""
    files = (file for directory in directories for file in directory.rglob("*"))
    return {str(file): file.lstat().st_mode >> 12 for file in files}


def is_empty(jail: str) -> bool:
    """Whether no process is in a jail, but for those that have ended and nobody has reaped."""
    pidfds = open_all_in(jail)
    try:
        return all(ended(pidfd) for pidfd in pidfds)
    finally:
        for pidfd in pidfds:
            os.close(pidfd)
