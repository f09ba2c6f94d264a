"""An emulator that plants files and links all the time, from its start to its removal."""

import json
import subprocess
from pathlib import Path
from typing import Any

from tests.plugins.libvirt_qemu import planter
from tests.plugins.libvirt_qemu.other_managers import ROOT, command
from tests.plugins.libvirt_qemu.planting import is_empty, listing, planting, wait_for_rounds
from tests.plugins.libvirt_qemu.rig import Rig, open_directory
from virtlet.host.processes import jail_of
from virtlet.model.hypervisor import DomainState
from virtlet.model.vm import Machine
from virtlet.plugins.libvirt_qemu.domain_logs import LONGEST


def _jail(rig: Rig, machine: Machine) -> str:
    jail = jail_of(rig.pid(machine))
    assert jail is not None
    return jail


def test_nothing_is_planted_around_stop_restart_and_removal(rig: Rig) -> None:
    """Nor does a process of it outlive the VM, or its log grow without a bound."""
    hypervisor: Any = rig.hypervisor
    machine = rig.define()
    own = (machine.vm.directory, machine.runtime_directory)
    libvirt = rig.node.data_dir / "libvirt"
    part = planting(rig, machine)
    before = listing(*own)
    try:
        rig.start(machine, part, alone=False)
        wait_for_rounds(machine.console.output)
        (log,) = (libvirt / "log/qemu").glob(f"*{machine.vm.id[:12]}*.log")
        hypervisor.cut_logs()
        assert log.stat().st_blocks * 512 < LONGEST
        jails = [_jail(rig, machine)]
        rig.hypervisor.stop(machine.vm.id)
        rig.wait_to_hear(machine, DomainState.STOPPED)
        assert is_empty(jails[0])
        rig.start(machine, part, alone=False)
        wait_for_rounds(machine.console.output)
        jails += [_jail(rig, machine)]
        said, after = rig.console(machine), listing(*own)
    finally:
        rig.hypervisor.remove(machine.vm.id)
    assert planter.DONE not in said, said[said.find(planter.DONE) :][:200]
    assert {*after} - {str(machine.runtime_directory / "agent.sock")} == {*before}
    assert all(after[path] == kind for path, kind in before.items())
    assert all(map(is_empty, jails))
    assert not log.exists()
    assert not list((libvirt / "lib/qemu").glob(f"domain-*{machine.vm.id[:12]}*"))


def test_nothing_is_planted_while_the_manager_is_killed_and_another_comes() -> None:
    """It finds the VM as it was, follows no link, and ends all of it."""
    with open_directory() as directory:
        first = subprocess.Popen(
            command("attacked", directory), cwd=ROOT, stdout=subprocess.PIPE, text=True
        )
        assert first.stdout is not None
        told = json.loads(first.stdout.readline())
        first.kill()
        first.wait()
        first.stdout.close()
        console = Path(told["console"])
        try:
            wait_for_rounds(console)
        finally:
            second = subprocess.run(
                command("survived", directory, told["vm"], told["console"]),
                cwd=ROOT,
                capture_output=True,
                text=True,
                timeout=60,
                check=True,
            )
        seen = json.loads(second.stdout)
        said = console.read_bytes()
        assert planter.DONE not in said, said[said.find(planter.DONE) :][:200]
        assert seen == {"state": "running", "jail": told["jail"], "left": []}
        assert is_empty(told["jail"])
        after = listing(*map(Path, told["own"]))
        assert {path for path in after if not path.endswith("agent.sock")} == {*told["before"]}
        assert all(after[path] == kind for path, kind in told["before"].items())
        assert not [path for path in directory.rglob("*") if path.is_symlink()]
