"""The hook, as the core calls it."""

import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from attrs import evolve

from tests.fakes import models
from tests.fakes.model import make_config, make_node
from tests.plugins.guest_agent.caller import Caller
from tests.plugins.guest_agent.fake_agent import Conversation, listening
from virtlet.errors import DeadlineExceeded, FailedPrecondition, GuestNotReady, Unavailable
from virtlet.model.disk import Disk
from virtlet.model.event import Event, EventKind
from virtlet.model.execution import GuestCommand
from virtlet.model.flavor import Flavor
from virtlet.model.vm import Console, Machine
from virtlet.plugins.cloudinit.guest_scripts import MARK_CONFIGURED
from virtlet.plugins.guest_agent.plugin import GUEST_AGENT_TIMEOUT, Plugin


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
        console=Console(output=tmp_path / "console.out", input=tmp_path / "console.in"),
        accelerator="qemu",
        vmwrapper=tmp_path / "vmwrapper",
        agent_socket=debian_guest,
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
        plugin.virtlet_guest_exec(evolve(machine, agent_socket=None), GuestCommand(argv=("true",)))


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


@pytest.fixture
def configuring(machine: Machine, tmp_path: Path) -> Iterator[None]:
    """The guest's cloud-init goes on for a while, from before anybody asks for anything."""
    begin = (
        "mkdir /run/cloud-init; (sleep 2; echo {} >/run/cloud-init/result.json) >/dev/null 2>&1 &"
    )
    script(machine, begin)
    yield
    script(machine, "rm -rf /run/cloud-init /run/virtlet")


def script(machine: Machine, text: str) -> None:
    """Run a script by a plugin of its own, which leaves the agent to others again."""
    plugin = Plugin()
    try:
        run(plugin, machine, GuestCommand(argv=("sh", "-c", text), captured=True))
    finally:
        plugin.virtlet_shutdown()


@pytest.mark.parametrize("captured", [True, False])
def test_a_guest_that_still_applies_its_seed_is_waited_for(
    configuring: None, plugin: Plugin, machine: Machine, captured: bool
) -> None:
    command = GuestCommand(argv=("cat", "/run/cloud-init/result.json"), captured=captured)
    assert run(plugin, young(machine), command) == b"{}\n"


def young(machine: Machine) -> Machine:
    """The machine as one that was made just now."""
    return evolve(machine, vm=evolve(machine.vm, created_at=time.time_ns()))


def test_a_probe_of_a_guest_that_still_applies_its_seed_hears_so(
    configuring: None, plugin: Plugin, machine: Machine
) -> None:
    session = plugin.virtlet_guest_exec(young(machine), GuestCommand(argv=("true",), captured=True))
    assert session is not None
    with pytest.raises(
        GuestNotReady, match="not configured yet: cloud-init goes on .* startupProbe"
    ):
        session.run(Caller(), 1)


def test_an_early_command_waits_for_no_seed_and_later_ones_do(
    configuring: None, plugin: Plugin, machine: Machine
) -> None:
    guest = young(machine)
    early = GuestCommand(argv=("ls", "/run/cloud-init"), captured=True, early=True)
    assert run(plugin, guest, early) == b""
    later = GuestCommand(argv=("cat", "/run/cloud-init/result.json"), captured=True)
    assert run(plugin, guest, later) == b"{}\n"


def test_a_guest_that_had_its_time_is_taken_as_it_is(
    configuring: None, plugin: Plugin, machine: Machine
) -> None:
    assert run(plugin, machine, GuestCommand(argv=("ls", "/run/cloud-init"), captured=True)) == b""


def test_the_owners_own_commands_are_not_waited_for(
    configuring: None, plugin: Plugin, machine: Machine
) -> None:
    """Else a hook would wait for a command that waits for it."""
    script(machine, MARK_CONFIGURED)
    assert (
        run(plugin, young(machine), GuestCommand(argv=("ls", "/run/cloud-init"), captured=True))
        == b""
    )


@pytest.fixture
def agentless(machine: Machine, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machine]:
    """A machine that was made just now, in whose guest nobody answers."""

    def deaf(conversation: Conversation) -> None:
        while conversation.read() is not None:
            pass

    socket = tmp_path_factory.mktemp("a") / "s"
    with listening(socket, deaf):
        yield young(evolve(machine, agent_socket=socket))


def test_a_hook_waits_as_long_as_the_setting_says_and_names_it(
    plugin: Plugin, agentless: Machine, tmp_path: Path
) -> None:
    config = make_config((GUEST_AGENT_TIMEOUT,), guestAgentTimeout="2")
    plugin.virtlet_configure(config, make_node(tmp_path))
    session = plugin.virtlet_guest_exec(agentless, GuestCommand(argv=("true",), captured=True))
    assert session is not None
    with pytest.raises(
        GuestNotReady, match=r"no guest agent answers .* waited 2.* s; .* \(--guest-agent-timeout\)"
    ):
        session.run(Caller(), None)
    plugin.virtlet_shutdown()


def test_a_probe_fails_only_after_the_guest_has_had_its_time(
    plugin: Plugin, agentless: Machine
) -> None:
    """A kubelet throws away a probe that is Unavailable, and counts one that takes too long."""
    command = GuestCommand(argv=("true",), captured=True)
    young_one = plugin.virtlet_guest_exec(agentless, command)
    assert young_one is not None
    with pytest.raises(GuestNotReady, match="counts as no failure"):
        young_one.run(Caller(), 0.3)
    plugin.virtlet_event(Event(kind=EventKind.VM_STOPPED, subject=agentless.vm.id))
    old = evolve(agentless, vm=evolve(agentless.vm, created_at=time.time_ns() - 301 * 10**9))
    old_one = plugin.virtlet_guest_exec(old, command)
    assert old_one is not None
    with pytest.raises(DeadlineExceeded, match="no guest agent answers"):
        old_one.run(Caller(), 0.3)
    plugin.virtlet_shutdown()


def test_secrets_stay_out_of_what_is_printed(plugin: Plugin, machine: Machine) -> None:
    for captured in (True, False):
        command = GuestCommand(argv=("true",), environment={"TOKEN": "hunter2"}, captured=captured)
        session = plugin.virtlet_guest_exec(machine, command)
        assert "hunter2" not in repr(session)
