"""A compromised emulator reaches nothing but its own VM: tried in a real jail, and without one.

The program of attack.py is started through libvirt, vmwrapper and the launch server in QEMU's
place. Every try has to be refused; the same tries without the jail succeed, so each wall matters.
"""

import json
import os
import shutil
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from attrs import evolve

from tests.plugins.libvirt_qemu import attack
from tests.plugins.libvirt_qemu.rig import Rig
from virtlet.errors import FailedPrecondition
from virtlet.model.launch import LaunchPart
from virtlet.model.vm import Machine

_NEWUSER = 0x10000000
_HELD_ANYWAY = {"another VM's agent"}
"""What libvirt's own modes keep from the emulator's user."""


@contextmanager
def _neighbour(rig: Rig) -> Iterator[tuple[Machine, int]]:
    """Another VM, running, and its emulator's process."""
    with rig.running() as machine:
        yield machine, rig.pid(machine)


@contextmanager
def _attacker(rig: Rig) -> Iterator[tuple[Machine, Path]]:
    """A VM that is defined, and the program that is started instead of its emulator."""
    machine = rig.define()
    program = rig.node.data_dir / "attack"
    shutil.copy(attack.__file__, program)
    program.write_text("#!/usr/bin/python3 -IS\n" + program.read_text())
    program.chmod(0o755)
    try:
        yield machine, program
    finally:
        rig.hypervisor.remove(machine.vm.id)


def _plan(rig: Rig, mine: Machine, other: Machine, pid: int, port: int) -> dict[str, Any]:
    """All that is tried."""
    data, libvirt = rig.node.data_dir, rig.node.data_dir / "libvirt"
    assert other.agent_socket is not None
    mine_runtime, other_runtime = mine.runtime_directory, other.runtime_directory
    tries: dict[str, tuple[str, Any]] = {
        "another VM's disk": ("write", str(other.root.path)),
        "another VM's image": ("read", str(other.vm.image.path)),
        "another VM's directory": ("read", str(other.vm.directory)),
        "a link in another VM's directory": ("write", str(other.vm.directory)),
        "another VM's console": ("read", str(other.console.output)),
        "another VM's keyboard": ("write", str(other.console.input)),
        "another VM's agent": ("connect", str(other.agent_socket)),
        "a link in another VM's sockets": ("write", str(other_runtime)),
        "a link in its own directory": ("write", str(mine.vm.directory)),
        "a link in its own sockets": ("write", str(mine_runtime)),
        "a link in the place of its own disk": ("replace", str(mine.root.path)),
        "another emulator's end": ("touch", pid),
        "another emulator's limits": ("limit", pid),
        "another emulator's CPUs": ("hinder", pid),
        "another emulator's priority": ("slow", pid),
        "another emulator's memory by ptrace": ("trace", pid),
        "another emulator's memory by proc": ("read", f"/proc/{pid}/mem"),
        "another emulator's files by proc": ("read", f"/proc/{pid}/fd"),
        "another emulator's variables": ("read", f"/proc/{pid}/environ"),
        "other processes": ("look", None),
        "libvirt's state": ("write", str(libvirt / "run/qemu")),
        "libvirt's library": ("write", str(libvirt / "lib/qemu")),
        "libvirt's logs": ("read", str(libvirt / "log/qemu")),
        "the launch socket": ("connect", str(rig.launches.path)),
        "the node's loopback": ("dial", port),
        "the node's users": ("read", "/etc/passwd"),
        "the data directory": ("read", str(data / "bin")),
        "temporary files": ("write", "/var/tmp"),
        "shared memory": ("write", "/dev/shm"),
        "capabilities by a namespace": ("enter", _NEWUSER),
        "a core dump": ("dump", None),
        "privileges": ("gain", None),
        "io_uring": ("ring", None),
    }
    return {"report": str(mine.root.path), "tries": tries}


def _attack(rig: Rig, *, jail: bool) -> dict[str, dict[str, str]]:
    """Run the attack beside another VM.

    Returns:
        What was said of each try, under "succeeded" or "refused".
    """
    listener = socket.create_server(("127.0.0.1", 0))
    with listener, _neighbour(rig) as (other, pid), _attacker(rig) as (mine, program):
        # What the node lets everybody read and pass through is the worst case.
        for path in (other.vm.directory, other.runtime_directory):
            path.chmod(0o777)
        other.vm.image.path.touch()
        plan = _plan(rig, mine, other, pid, listener.getsockname()[1])
        part = LaunchPart(emulator=program, environment={"ATTACK": json.dumps(plan)})
        launch = rig.hypervisor.launch
        if not jail:
            rig.hypervisor.launch = lambda machine: evolve(  # type: ignore[method-assign]
                launch(machine), jail=False
            )
        try:
            with pytest.raises(FailedPrecondition, match="did not start"):
                rig.start(mine, part)
        finally:
            rig.hypervisor.launch = launch  # type: ignore[method-assign]
        # The report stands before what was on the disk.
        said = mine.root.path.read_bytes().partition(b"\n")[0]
        assert os.path.exists(f"/proc/{pid}")
    result: dict[str, dict[str, str]] = json.loads(said)
    assert len(result["succeeded"]) + len(result["refused"]) == len(plan["tries"])
    return result


def test_a_compromised_emulator_reaches_nothing_but_its_own_vm(rig: Rig) -> None:
    """Whatever the modes of the node's files are."""
    assert _attack(rig, jail=True)["succeeded"] == {}


def test_each_wall_is_the_jails(rig: Rig) -> None:
    """Without the jail the same tries succeed."""
    refused = _attack(rig, jail=False)["refused"]
    assert set(refused) == _HELD_ANYWAY, refused


def test_a_running_emulator_is_in_the_jail(rig: Rig) -> None:
    """QEMU itself, with the guest running: namespaces of its own, nothing writable but its disk,
    console and devices."""
    with rig.running() as machine:
        process = Path(f"/proc/{rig.pid(machine)}")
        for name in ("user", "mnt", "net", "ipc", "uts"):
            assert os.readlink(process / "ns" / name) != os.readlink(f"/proc/self/ns/{name}"), name
        fields = (line.split() for line in (process / "mountinfo").read_text().splitlines())
        writable = {field[4] for field in fields if "rw" in field[5].split(",")}
        devices = {f"/dev/{name}" for name in ("null", "zero", "random", "urandom")}
        own = {machine.root.path, machine.console.output, machine.console.input}
        assert writable == devices | {str(path) for path in own}
        status = (process / "status").read_text()
        # QEMU's own filter, and the jail's.
        assert "Seccomp_filters:\t2" in status
        assert "NoNewPrivs:\t1" in status


def test_a_link_in_the_place_of_a_disk_is_refused(rig: Rig) -> None:
    """One that was planted while an older, unjailed emulator ran."""
    machine = rig.define()
    try:
        machine.root.path.unlink()
        machine.root.path.symlink_to("/etc/shadow")
        with pytest.raises(FailedPrecondition, match="is a link"):
            rig.start(machine)
    finally:
        rig.hypervisor.remove(machine.vm.id)
