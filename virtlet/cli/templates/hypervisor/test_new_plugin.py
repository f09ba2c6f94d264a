"""The hypervisor with a program that stands for QEMU, and with a guest."""

import os
from pathlib import Path
from threading import Event

import pytest
from attrs import evolve
from new_plugin import NewPlugin, Plugin

from virtlet.api import DomainState, FailedPrecondition, Machine, NotFound, Observation
from virtlet.testing import BootGuest, check_plugin, make_machine, make_node

EMULATOR = """\
#!/bin/sh
while [ "$1" != -pidfile ]; do shift; done
echo $$ > "$2"
exec sleep 60
"""

as_root = pytest.mark.skipif(os.geteuid() != 0, reason="starting as another user takes root")


def machine_of(directory: Path, emulator: str) -> Machine:
    """A machine with a program for an emulator."""
    program = directory / "emulator"
    program.write_text(emulator)
    program.chmod(0o755)
    return evolve(
        make_machine(directory),
        vmwrapper=program,
        environment={"PATH": os.defpath},
    )


def test_the_manager_takes_the_plugin() -> None:
    check_plugin(Plugin)


@as_root
def test_a_vm_s_life_is_told(tmp_path: Path) -> None:
    told: list[Observation] = []
    over = Event()

    def tell(seen: Observation) -> None:
        told.append(seen)
        if seen.state is DomainState.STOPPED:
            over.set()

    hypervisor, machine = NewPlugin(make_node(tmp_path)), machine_of(tmp_path, EMULATOR)
    hypervisor.subscribe(tell)
    hypervisor.open()
    hypervisor.define(machine, None)
    hypervisor.start(machine.vm.id)
    hypervisor.stop(machine.vm.id)
    hypervisor.stop(machine.vm.id)
    assert over.wait(10)
    assert [seen.state for seen in told] == [DomainState.RUNNING, DomainState.STOPPED]
    hypervisor.remove(machine.vm.id)
    hypervisor.remove(machine.vm.id)
    assert hypervisor.list() == {}


@as_root
def test_an_emulator_that_does_not_start_is_told_with_its_words(tmp_path: Path) -> None:
    hypervisor = NewPlugin(make_node(tmp_path))
    machine = machine_of(tmp_path, "#!/bin/sh\necho no memory >&2\nexit 1\n")
    hypervisor.open()
    with pytest.raises(NotFound):
        hypervisor.start(machine.vm.id)
    hypervisor.define(machine, None)
    with pytest.raises(FailedPrecondition, match="did not start: no memory"):
        hypervisor.start(machine.vm.id)
    hypervisor.close()


def test_a_guest_boots(virtlet_guest: BootGuest) -> None:
    virtlet_guest().wait_for_console("login:")
