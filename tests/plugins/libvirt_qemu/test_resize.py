"""Running VMs are changed, and unchanged where that fails. Guests that follow are in tests/e2e."""

import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from attrs import evolve

from tests.plugins.libvirt_qemu.rig import Rig
from virtlet.errors import FailedPrecondition, NotFound, Unavailable
from virtlet.model.disk import Share
from virtlet.model.hypervisor import Resize
from virtlet.model.vm import Machine
from virtlet.plugins.libvirt_qemu.domain_resize import Resizer

MIB = 1 << 20
HERE = frozenset(os.sched_getaffinity(0))


@contextmanager
def _growing(rig: Rig) -> Iterator[Machine]:
    """A guest that can have three vCPUs and more memory; it drives neither."""
    machine = rig.machine()
    flavor = evolve(machine.flavor, max_vcpus=3, max_memory=192 * MIB)
    with rig.running(machine=evolve(machine, flavor=flavor)) as machine:
        yield machine


def _threads(pid: int) -> dict[str, set[int]]:
    """Name and number of each of the emulator's threads to the CPUs it may run on."""
    found = {}
    for task in Path(f"/proc/{pid}/task").iterdir():
        found[f"{(task / 'comm').read_text().strip()} {task.name}"] = os.sched_getaffinity(
            int(task.name)
        )
    return found


def test_every_thread_is_put_where_the_vm_belongs_new_vcpus_too(rig: Rig) -> None:
    """And a second time nothing changes; what comes back undoes it."""
    one = frozenset({min(HERE)})
    with _growing(rig) as machine:
        resize = partial(rig.hypervisor.resize, machine.vm.id)
        before = resize(Resize(cpus=one))
        assert before.cpus is not None
        assert before.cpus >= HERE
        assert resize(Resize(cpus=one)) == Resize(cpus=one)
        assert resize(Resize(vcpus=3)) == Resize(vcpus=1)
        assert resize(Resize(vcpus=3)) == Resize(vcpus=3)
        threads = _threads(rig.pid(machine))
        assert sum("CPU" in name for name in threads) == 3
        assert all(cpus == one for cpus in threads.values())
        resize(before)
        assert all(cpus == HERE for cpus in _threads(rig.pid(machine)).values())


def test_without_kvm_vcpus_are_never_taken_away(rig: Rig) -> None:
    """QEMU would abort at the next one that is added."""
    with _growing(rig) as machine:
        for vcpus in (3, 1, 2, 3):
            rig.hypervisor.resize(machine.vm.id, Resize(vcpus=vcpus))
            assert sum("CPU" in name for name in _threads(rig.pid(machine))) == 3


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (Resize(vcpus=4), "4 vCPUs need a restart: it can have 3"),
        (Resize(memory=193 * MIB), "193 MiB of memory need a restart: it can have 192 MiB"),
        (Resize(memory=128 * MIB), "took up 0 of 64 MiB"),
        (Resize(memory=48 * MIB), "does not tell how much memory it can spare"),
        (Resize(cpus=frozenset({1 << 12})), "cannot resize VM"),
    ],
)
def test_what_cannot_be_done_is_refused_and_all_is_as_before(
    rig: Rig, change: Resize, why: str
) -> None:
    """This guest has no drivers: whatever needs its help fails."""
    with _growing(rig) as machine:
        pinned = evolve(change, cpus=change.cpus or frozenset({min(HERE)}))
        with pytest.raises(FailedPrecondition, match=why):
            rig.hypervisor.resize(machine.vm.id, pinned)
        same = Resize(vcpus=1, memory=64 * MIB, cpus=HERE)
        was = rig.hypervisor.resize(machine.vm.id, same)
        assert (was.vcpus, was.memory) == (1, 64 * MIB)
        assert was.cpus is not None
        assert was.cpus >= HERE
        threads = _threads(rig.pid(machine))
        assert all(cpus == HERE for cpus in threads.values())


def test_a_refusal_that_cannot_be_undone_does_not_say_that_all_is_as_before(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The caller puts back what it left."""
    outcomes = iter((None, OSError("the CPU is gone")))

    def pin(resizer: Resizer, cpus: frozenset[int]) -> None:
        if error := next(outcomes):
            raise error

    monkeypatch.setattr(Resizer, "_pin", pin)
    with (
        _growing(rig) as machine,
        pytest.raises(Unavailable, match=r"it can have 3.*not undone: the CPU is gone"),
    ):
        rig.hypervisor.resize(machine.vm.id, Resize(vcpus=4, cpus=HERE))


def test_what_is_not_there_or_does_not_run_is_not_resized(rig: Rig) -> None:
    """Each with its own error."""
    with pytest.raises(NotFound):
        rig.hypervisor.resize(uuid.uuid4().hex, Resize(vcpus=1))
    machine = rig.define()
    try:
        with pytest.raises(FailedPrecondition, match="does not run"):
            rig.hypervisor.resize(machine.vm.id, Resize(vcpus=1))
    finally:
        rig.hypervisor.remove(machine.vm.id)


@pytest.mark.parametrize(
    ("flavor", "shared"),
    [
        ({"machine": "pc", "vcpus": 2}, False),
        ({"vcpus": 3, "cpu_model": "Nehalem"}, True),
        (
            {"extras": {"domain_cpu": "<cpu><topology sockets='1' cores='3' threads='1'/></cpu>"}},
            False,
        ),
    ],
)
def test_machines_of_every_kind_have_room_to_grow(
    rig: Rig, flavor: dict[str, Any], shared: bool
) -> None:
    """With shared memory, as virtiofs needs it, too."""
    machine = rig.machine()
    room = evolve(machine.flavor, max_vcpus=3, max_memory=192 * MIB)
    machine = evolve(machine, flavor=evolve(room, **flavor))
    if shared:
        path = machine.vm.directory / "share"
        path.mkdir()
        rig.give_away(path, machine)
        machine = evolve(
            machine,
            volumes=(Share(host_path=path, guest_path="/mnt", tag="share", driver="virtiofs"),),
        )
    with rig.running(machine=machine):
        had = rig.hypervisor.resize(machine.vm.id, Resize(vcpus=3, memory=64 * MIB))
        assert had == Resize(vcpus=flavor.get("vcpus", 1), memory=64 * MIB)
