"""The hook, as the core calls it."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from attrs import evolve

from tests.fakes import models
from tests.plugins.guest_agent.caller import Caller
from virtlet.errors import FailedPrecondition, Unavailable
from virtlet.model.disk import Disk
from virtlet.model.event import Event, EventKind
from virtlet.model.execution import GuestCommand
from virtlet.model.flavor import Flavor
from virtlet.model.vm import Console, Machine
from virtlet.plugins.guest_agent.plugin import Plugin


@pytest.fixture
def plugin() -> Iterator[Plugin]:
    plugin = Plugin()
    yield plugin
    plugin.virtlet_shutdown()


@pytest.fixture
def machine(debian_guest: Path, tmp_path: Path) -> Machine:
    return Machine(
        vm=models.vm(tmp_path, envs=(("COLOUR", "red"), ("HOME", "/srv"))),
        flavor=Flavor(),
        root=Disk(path=tmp_path / "root"),
        volumes=(),
        seed=None,
        console=Console(pipe=tmp_path / "console"),
        accelerator="qemu",
        emulator=tmp_path / "vmwrapper",
        guest_agent=debian_guest,
    )


def run(plugin: Plugin, machine: Machine, command: GuestCommand) -> bytes:
    session = plugin.virtlet_guest_exec(machine, command)
    assert session is not None
    caller = Caller()
    assert session.run(caller, 20) == 0
    return caller.output


@pytest.mark.parametrize("captured", [True, False])
def test_commands_find_the_containers_environment(
    plugin: Plugin, machine: Machine, captured: bool
) -> None:
    argv = ("sh", "-c", "echo $COLOUR $HOME $SHAPE $TERM; echo $PATH")
    more = {"SHAPE": "round"}
    lines = run(
        plugin, machine, GuestCommand(argv=argv, environment=more, captured=captured)
    ).splitlines()
    assert lines[0] == b"red /srv round"
    assert b"/usr/bin" in lines[1].split(b":")


def test_a_machine_without_a_channel_says_which_setting_it_lacks(
    plugin: Plugin, machine: Machine
) -> None:
    with pytest.raises(FailedPrecondition, match="flavor says `guest_agent: false`"):
        plugin.virtlet_guest_exec(evolve(machine, guest_agent=None), GuestCommand(argv=("true",)))


def test_the_connection_is_kept_while_the_machine_runs_and_closed_when_it_ends(
    plugin: Plugin, machine: Machine, debian_guest: Path
) -> None:
    command = GuestCommand(argv=("true",), captured=True)
    session = plugin.virtlet_guest_exec(machine, command)
    assert session is not None
    assert session.run(Caller(), 20) == 0
    plugin.virtlet_event(Event(kind=EventKind.VM_STOPPED, subject=machine.vm.id))
    with pytest.raises(Unavailable, match="stopping"):
        session.run(Caller(), 20)
    # The agent serves one client at a time: this one gets through because the other has left.
    assert run(plugin, machine, command) == b""


def test_secrets_stay_out_of_what_is_printed(plugin: Plugin, machine: Machine) -> None:
    for captured in (True, False):
        command = GuestCommand(argv=("true",), environment={"TOKEN": "hunter2"}, captured=captured)
        session = plugin.virtlet_guest_exec(machine, command)
        assert "hunter2" not in repr(session)
