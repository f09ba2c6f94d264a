"""An emulator that plants files and links all the time, from its start to its removal."""

import json
import os
import shutil
from pathlib import Path
from typing import Any

from tests.plugins.libvirt_qemu import planter
from tests.plugins.libvirt_qemu.rig import Rig
from tests.polling import until
from virtlet.host.processes import jail_of, open_all_in
from virtlet.model.hypervisor import DomainState
from virtlet.model.launch import LaunchPart
from virtlet.model.vm import Machine
from virtlet.plugins.libvirt_qemu.domain_logs import LONGEST


def _wait_for_rounds(rig: Rig, machine: Machine) -> None:
    """Wait until it has tried everything once more, from now on."""
    before = rig.console(machine).count(planter.ROUND)
    many = before + 20  # each of its processes has begun and ended one
    until(lambda: rig.console(machine).count(planter.ROUND) > many, "another round")


def _listing(*directories: Path) -> dict[str, int]:
    """Paths and types of all files below some directories."""
    files = (file for directory in directories for file in directory.rglob("*"))
    return {str(file): file.lstat().st_mode >> 12 for file in files}


def _jail(rig: Rig, machine: Machine) -> str:
    jail = jail_of(rig.pid(machine))
    assert jail is not None
    return jail


def _is_empty(jail: str) -> bool:
    pidfds = open_all_in(jail)
    for pidfd in pidfds:
        os.close(pidfd)
    return not pidfds


def test_nothing_is_planted_around_stop_restart_and_removal(rig: Rig) -> None:
    """Nor does a process of it outlive the VM, or its log grow without a bound."""
    program = rig.node.data_dir / "planter"
    shutil.copy(planter.__file__, program)
    program.write_text("#!/usr/bin/python3 -IS\n" + program.read_text())
    program.chmod(0o755)
    hypervisor: Any = rig.hypervisor
    machine = rig.define()
    own = (machine.vm.directory, machine.runtime_directory)
    libvirt = rig.node.data_dir / "libvirt"
    places = [machine.root.path, machine.console.output, machine.console.input, *own]
    places += [rig.node.data_dir, rig.node.run_dir, libvirt / "run/qemu", libvirt / "lib/qemu"]
    places += [Path(name) for name in ("/", "/tmp", "/var/tmp", "/dev/shm", "/run", "/dev")]
    environment = {
        "PLACES": json.dumps([str(place) for place in places]),
        "CONSOLE": str(machine.console.output),
    }
    part = LaunchPart(emulator=program, environment=environment)
    before = _listing(*own)
    try:
        rig.start(machine, part)
        _wait_for_rounds(rig, machine)
        (log,) = (libvirt / "log/qemu").glob(f"*{machine.vm.id[:12]}*.log")
        hypervisor.cut_logs()
        assert log.stat().st_blocks * 512 < LONGEST
        jails = [_jail(rig, machine)]
        rig.hypervisor.stop(machine.vm.id)
        rig.wait_to_hear(machine, DomainState.STOPPED)
        assert _is_empty(jails[0])
        rig.start(machine, part)
        _wait_for_rounds(rig, machine)
        jails += [_jail(rig, machine)]
        said, listing = rig.console(machine), _listing(*own)
    finally:
        rig.hypervisor.remove(machine.vm.id)
    assert planter.DONE not in said, said[said.find(planter.DONE) :][:200]
    assert {*listing} - {str(machine.runtime_directory / "agent.sock")} == {*before}
    assert all(listing[path] == kind for path, kind in before.items())
    assert all(map(_is_empty, jails))
    assert not log.exists()
    assert not list((libvirt / "lib/qemu").glob(f"domain-*{machine.vm.id[:12]}*"))
