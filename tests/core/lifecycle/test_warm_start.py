"""VMs that start from a template: what fails, or dies on the way, leaves a VM that boots."""

import os
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from xml.etree import ElementTree
from xml.etree.ElementTree import Element

import pytest
from attrs import evolve

from tests.core.lifecycle.conftest import Managers
from tests.fakes.manager import Killed, Manager, Node
from tests.polling import until
from virtlet.core.lifecycle import template_store, templates, warm_start
from virtlet.core.lifecycle.template_store import MOST, Templates, reconcile
from virtlet.core.store.records import VmPhase
from virtlet.errors import FailedPrecondition, Unavailable, VirtletError
from virtlet.model.event import EventKind
from virtlet.model.flavor import Flavor
from virtlet.model.launch import LaunchPart
from virtlet.model.vm import Machine


@pytest.fixture
def template(node: Node, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """One that fits every VM, whose guests thaw."""
    node.flavor = lambda vm: Flavor(warm=True)
    node.guest = lambda: b""
    directory = tmp_path / "template"
    directory.mkdir()
    (directory / templates.DISK).write_bytes(b"as it was")
    monkeypatch.setattr(warm_start, "_template", lambda *arguments: directory)
    return directory


def made(manager: Manager) -> str:
    return manager.create(manager.run())


def started_from(node: Node, vm_id: str) -> Path | None:
    """The template that a VM runs from."""
    assert vm_id in node.hypervisor.running
    machine = node.hypervisor.machines[vm_id]
    if machine.template is None:
        assert machine.root.path.name == "root"
        assert not (machine.vm.directory / "warm.qcow2").exists()
        return None
    assert machine.template.frozen
    assert machine.root.path.read_bytes() == b"as it was"
    return machine.template.directory


def test_a_vm_starts_from_its_template_and_leaves_nothing(
    manager: Manager, node: Node, template: Path
) -> None:
    vm_id = made(manager)
    manager.start(vm_id)
    assert started_from(node, vm_id) == template
    assert manager.store.vms[vm_id].phase is VmPhase.RUNNING
    assert not [e for e in manager.told.events if e.kind is EventKind.VM_NOTICE]
    manager.remove_pod(manager.store.vms[vm_id].vm.pod.id)
    assert node.left == []


@pytest.mark.parametrize("what", ["define", "start", "started", "guest", "disk"])
def test_what_fails_is_undone_and_the_vm_boots(
    manager: Manager, node: Node, template: Path, what: str
) -> None:
    """Its owner is told, and the template is no other VM's."""
    vm_id = made(manager)
    if what == "guest":
        node.guest = None
    elif what == "disk":
        (template / templates.DISK).unlink()
    else:
        node.faults.once[what] = Unavailable("out of order")
    manager.start(vm_id)
    assert started_from(node, vm_id) is None
    (notice,) = [e for e in manager.told.events if e.kind is EventKind.VM_NOTICE]
    assert "boots instead of starting from a template" in notice.reason
    assert not template.exists()
    manager.remove_pod(manager.store.vms[vm_id].vm.pod.id)
    assert node.left == []


POINTS = [
    f"{kind}:{moment}"
    for kind in ("warm", "running")
    for moment in ("before-intent", "intended", "applied", "recorded")
]


@pytest.mark.parametrize("point", [*POINTS, "vm-running:before-commit"])
def test_a_crash_on_the_way_leaves_a_vm_that_boots(
    managers: Managers, node: Node, template: Path, point: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At its next start; nothing of the first one is left."""
    vm_id = made(managers.now)
    managers.now.at[point] = Killed()
    with pytest.raises(Killed):
        managers.now.start(vm_id)
    manager = managers.restart()
    assert manager.store.vms[vm_id].phase is VmPhase.CREATED
    monkeypatch.setattr(warm_start, "_template", lambda *arguments: None)
    manager.start(vm_id)
    assert started_from(node, vm_id) is None
    manager.remove_pod(manager.store.vms[vm_id].vm.pod.id)
    assert node.left == []


@pytest.mark.parametrize("point", ["before-revert", "reverted", "forgotten"])
def test_a_crash_while_a_failed_start_is_undone_leaves_a_vm_that_boots(
    managers: Managers, node: Node, template: Path, point: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    vm_id = made(managers.now)
    node.faults.once["start"] = Unavailable("out of order")
    managers.now.at[f"warm:{point}"] = Killed()
    with pytest.raises(Killed):
        managers.now.start(vm_id)
    manager = managers.restart()
    monkeypatch.setattr(warm_start, "_template", lambda *arguments: None)
    manager.start(vm_id)
    assert started_from(node, vm_id) is None


def test_a_manager_that_restarts_leaves_clones_running(
    managers: Managers, node: Node, template: Path
) -> None:
    vm_id = made(managers.now)
    managers.now.start(vm_id)
    manager = managers.restart()
    assert manager.store.vms[vm_id].phase is VmPhase.RUNNING
    assert started_from(node, vm_id) == template


def test_a_plugin_that_adds_to_the_start_keeps_a_vm_from_templates(
    manager: Manager, node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What it adds may not be the same for each VM."""
    node.flavor = lambda vm: Flavor(warm=True)
    monkeypatch.setattr(templates, "unfit", lambda *arguments: "")
    part = LaunchPart(arguments=("-device", "thing"))
    monkeypatch.setattr(manager.context.hooks, "launch", lambda machine: [("thing", part)])
    vm_id = made(manager)
    manager.start(vm_id)
    (notice,) = [e for e in manager.told.events if e.kind is EventKind.VM_NOTICE]
    assert "plugin thing adds to its emulator's start" in notice.reason


DOCUMENT = """<domain><name>virtlet-{short}-web</name><uuid>{uuid}</uuid><title>{short}</title>
<devices><disk><source file="{directory}/root"/><target dev="{target}"/></disk>
<serial><source path="{runtime}/console"/></serial></devices></domain>"""


def _document(machine: Machine, target: str = "vda") -> Element:
    vm = machine.vm
    text = DOCUMENT.format(
        short=vm.id[:12],
        uuid=vm.id,
        directory=vm.directory,
        runtime=machine.runtime_directory,
        target=target,
    )
    return ElementTree.fromstring(text)


@pytest.fixture
def keyed(
    manager: Manager, node: Node, monkeypatch: pytest.MonkeyPatch
) -> Callable[[Machine], str]:
    monkeypatch.setattr(templates, "domain_document", lambda h, y, m: _document(m))
    return lambda machine: templates.key_of(manager.context, "fake", machine)


def _machine(manager: Manager, name: str = "web") -> Machine:
    vm_id = manager.create(manager.run(name))
    machine = manager.store.vms[vm_id].machine
    assert machine is not None
    return machine


def test_vms_of_two_pods_have_one_key(manager: Manager, keyed: Callable[[Machine], str]) -> None:
    """Names, paths and users are their own."""
    one, other = _machine(manager, "one"), _machine(manager, "other")
    assert one.vm.id != other.vm.id
    assert keyed(one) == keyed(other)


def _other_namespace(machine: Machine) -> Machine:
    pod = machine.vm.pod
    config = evolve(pod.config, metadata=evolve(pod.config.metadata, namespace="other"))
    return evolve(machine, vm=evolve(machine.vm, pod=evolve(pod, config=config)))


CHANGES: Mapping[str, Callable[[Machine], Machine]] = {
    "namespace": _other_namespace,
    "image": lambda m: evolve(m, vm=evolve(m.vm, image=evolve(m.vm.image, id="sha256:other"))),
    "withheld": lambda m: evolve(m, withheld=1 << 20),
    **{
        field: lambda m, change={field: value}: evolve(m, flavor=evolve(m.flavor, **change))  # type: ignore[misc]
        for field, value in {
            "memory": 1 << 29,
            "vcpus": 2,
            "cpu_model": "host-model",
            "machine": "pc",
            "firmware": "uefi",
            "disk_bus": "nvme",
            "root_size": 1 << 31,
            "extras": {"domain_cpu": "<cpu/>"},
        }.items()
    },
}


@pytest.mark.parametrize("part", CHANGES)
def test_each_part_of_a_machine_makes_another_key(
    manager: Manager, keyed: Callable[[Machine], str], part: str
) -> None:
    machine = _machine(manager)
    assert keyed(CHANGES[part](machine)) != keyed(machine)


def test_devices_and_versions_make_another_key(
    manager: Manager,
    node: Node,
    keyed: Callable[[Machine], str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    machine = _machine(manager)
    keys = [keyed(machine)]
    for basis in ({"qemu": "10.0"}, {"qemu": "10.1"}, {"cpu": "flags: sse2"}):
        monkeypatch.setattr(node.hypervisor, "template_basis", lambda basis=basis: basis)
        keys.append(keyed(machine))
    monkeypatch.setattr(templates, "domain_document", lambda h, y, m: _document(m, "sda"))
    keys.append(keyed(machine))
    assert len(set(keys)) == len(keys)


class Making:
    """Makes templates when it is let."""

    def __init__(self) -> None:
        self.may, self.made = threading.Event(), 0
        self.error: VirtletError | None = None

    def __call__(self, place: Path) -> None:
        assert self.may.wait(20)
        self.made += 1
        if self.error:
            raise self.error
        (place / "ram").touch()


@pytest.fixture
def parent(tmp_path: Path) -> Path:
    path = tmp_path / "templates"
    path.mkdir()
    return path


def test_nobody_waits_and_one_is_made_at_a_time(parent: Path) -> None:
    store, making = Templates(), Making()
    assert [store.find(parent, key, making) for key in ("one", "one", "other")] == [None] * 3
    making.may.set()
    store.wait(20)
    found = store.find(parent, "one", making)
    assert found is not None
    assert (found / "ram").exists()
    assert making.made == 1


def test_one_that_cannot_be_made_is_not_tried_again_and_says_why(parent: Path) -> None:
    store, making = Templates(), Making()
    making.error = FailedPrecondition("its guest has no virtlet-thaw")
    making.may.set()
    assert store.find(parent, "one", making) is None
    store.wait(20)
    with pytest.raises(FailedPrecondition, match="no virtlet-thaw"):
        store.find(parent, "one", making)
    assert making.made == 1
    assert list(parent.iterdir()) == []


def test_the_one_that_was_used_least_recently_makes_way(parent: Path) -> None:
    store, making = Templates(), Making()
    making.may.set()
    for number in range(MOST + 1):
        store.find(parent, str(number), making)
        store.wait(20)
        until(lambda n=number: store.find(parent, str(n), making) is not None, "it")  # type: ignore[misc]
        for path in parent.iterdir():
            if path.name.endswith(f"-{number}"):
                os.utime(path, (number, number))
    names = sorted(path.name.partition("-")[2] for path in parent.iterdir())
    assert names == [str(number) for number in range(1, MOST + 1)]


def test_what_is_half_made_or_of_another_boot_is_removed(
    parent: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(template_store, "_boot", lambda: "now")
    for name in ("now-one", "now-two.new", "then-one"):
        (parent / name).mkdir()
    reconcile(parent)
    assert [path.name for path in parent.iterdir()] == ["now-one"]


def test_a_disk_is_copied_with_its_holes(tmp_path: Path) -> None:
    source, target = tmp_path / "source", tmp_path / "target"
    with source.open("wb") as file:
        file.truncate(8 << 20)
        file.seek(4 << 20)
        file.write(b"x" * 5000)
    with target.open("wb") as file:
        templates.copy(source, file.fileno())
    assert target.read_bytes() == source.read_bytes()
    assert target.stat().st_blocks * 512 < 1 << 20
    with target.open("wb") as file, pytest.raises(FailedPrecondition, match="a template's disk"):
        templates.copy(tmp_path / "none", file.fileno())
