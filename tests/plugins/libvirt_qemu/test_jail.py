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

from tests.fakes.pod_cgroup import pod_cgroup
from tests.plugins.libvirt_qemu import attack
from tests.plugins.libvirt_qemu.rig import Rig
from virtlet.errors import FailedPrecondition
from virtlet.host import cgroups
from virtlet.model.launch import ENV_SOCKET, LaunchPart
from virtlet.model.vm import Machine
from vmwrapper.__main__ import MOST_THREADS

_NEWUSER = 0x10000000
_HELD_ANYWAY = {
    "another VM's agent",
    "libvirt's state",
    "libvirt's library",
    "libvirt's logs",
    "libvirt's directory of another VM",
    "a descriptor that leads out",
}
"""What owners and modes keep from any emulator without a jail; nor does it inherit a way out."""
_HELD_BY_ITS_USER = {
    "another VM's disk",
    "another VM's image",
    "another VM's directory",
    "a link in another VM's directory",
    "another VM's console",
    "another VM's keyboard",
    "a link in another VM's sockets",
    "a link in its own directory",
    "a link in its own sockets",
    "a link in the place of its own disk",
    "another emulator's end",
    "another emulator's limits",
    "another emulator's CPUs",
    "another emulator's priority",
    "another emulator's memory by ptrace",
    "another emulator's memory by proc",
    "another emulator's files by proc",
    "another emulator's variables",
    "another VM's launch",
    "the launch socket",
}
"""What a user of its own keeps from an emulator without a jail."""


@contextmanager
def _neighbour(rig: Rig, *, shared: bool) -> Iterator[tuple[Machine, int]]:
    """Another VM, running, and its emulator's process; it is about to be started once more."""
    with rig.running(machine=rig.machine(shared=shared)) as machine:
        rig.launches.arm(machine.vm.id, "another token", [], rig.door(machine))
        try:
            yield machine, rig.pid(machine)
        finally:
            rig.launches.disarm(machine.vm.id)


@contextmanager
def _attacker(rig: Rig, *, shared: bool) -> Iterator[tuple[Machine, Path]]:
    """A VM that is defined, and the program that is started instead of its emulator."""
    machine = rig.define(rig.machine(shared=shared))
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
    (other_library,) = (libvirt / "lib/qemu").glob(f"domain-*-virtlet-{other.vm.id[:12]}")
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
        "libvirt's directory of another VM": ("write", str(other_library)),
        "the launch socket": ("connect", str(rig.launches.path)),
        "another VM's launch": ("connect", other.environment[ENV_SOCKET]),
        "the node's loopback": ("dial", port),
        "the node's users": ("read", "/etc/passwd"),
        "the data directory": ("read", str(data / "bin")),
        "temporary files": ("write", "/var/tmp"),
        "shared memory": ("write", "/dev/shm"),
        "a core dump": ("dump", None),
        "privileges": ("gain", None),
        "io_uring": ("ring", None),
        "another emulator's end by a file's signal": ("signal by file", pid),
        "another emulator's end by a socket's signal": ("signal by socket", pid),
        "another emulator's core": ("share", pid),
        "a hold on whoever opens its disk": ("lease", str(mine.root.path)),
        "the node's vsock": ("family", socket.AF_VSOCK),
        "the kernel's messages": ("family", socket.AF_NETLINK),
        "page faults": ("fault", None),
        "a descriptor that leads out": ("inherit", None),
        "a process of its own": ("start", None),
        "a file anywhere": ("fill", None),
        "capabilities by a namespace": ("enter", _NEWUSER),
        "threads without end": ("crowd", MOST_THREADS + 256),
    }
    return {"report": str(mine.root.path), "tries": tries}


def _attack(rig: Rig, *, jail: bool, shared: bool = False) -> dict[str, dict[str, str]]:
    """Run the attack beside another VM.

    Args:
        rig: has both VMs.
        jail: whether the attacker is jailed.
        shared: whether both run as one user.

    Returns:
        What was said of each try, under "succeeded" or "refused".
    """
    listener = socket.create_server(("127.0.0.1", 0))
    with (
        listener,
        _neighbour(rig, shared=shared) as (other, pid),
        _attacker(rig, shared=shared) as (mine, program),
    ):
        other.vm.image.path.touch()
        if jail or shared:
            # What the node lets everybody read and pass through is the worst case.
            for path in (other.vm.directory, other.runtime_directory):
                path.chmod(0o777)
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


@pytest.mark.parametrize("shared", [False, True])
def test_a_compromised_emulator_reaches_nothing_but_its_own_vm(rig: Rig, shared: bool) -> None:
    """Whatever the modes of the node's files are, and whether the two share a user."""
    assert _attack(rig, jail=True, shared=shared)["succeeded"] == {}


def test_each_wall_is_the_jails(rig: Rig) -> None:
    """Without the jail the same tries succeed of emulators that share a user, but for those that
    only root could."""
    refused = _attack(rig, jail=False, shared=True)["refused"]
    assert set(refused) == _HELD_ANYWAY, refused


def test_a_user_of_its_own_is_a_second_wall(rig: Rig) -> None:
    """Without the jail an emulator reaches what is everybody's, and nothing of other VMs, nor can
    it put anything in the place of what root opens."""
    refused = _attack(rig, jail=False)["refused"]
    assert set(refused) == _HELD_ANYWAY | _HELD_BY_ITS_USER, refused


def test_an_emulators_cgroup_bounds_its_threads(rig: Rig) -> None:
    """Below what the jail has for those without one."""
    with pod_cgroup() as parent, _attacker(rig, shared=False) as (mine, program):
        groups = cgroups.create(parent, mine.vm.id)
        try:
            if not any((group / "pids.max").exists() for group in groups):
                pytest.skip("no hierarchy counts processes here")
            assert cgroups.bound_tasks(groups, 64) == {}
            plan = {"report": str(mine.root.path), "tries": {"threads": ("crowd", 256)}}
            variables = {"ATTACK": json.dumps(plan)}
            part = LaunchPart(emulator=program, environment=variables, cgroups=groups)
            with pytest.raises(FailedPrecondition, match="did not start"):
                rig.start(mine, part)
        finally:
            cgroups.remove(parent, mine.vm.id)
        said = json.loads(mine.root.path.read_bytes().partition(b"\n")[0])
    assert said == {"succeeded": {}, "refused": {"threads": "no more than 63"}}


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
