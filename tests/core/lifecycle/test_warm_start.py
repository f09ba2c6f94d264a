"""VMs that start from a template: what fails, or dies on the way, leaves a VM that boots."""

import os
import shutil
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from xml.etree import ElementTree
from xml.etree.ElementTree import Element

import pytest
from attrs import evolve

from tests.core.lifecycle.conftest import Managers
from tests.fakes.manager import Killed, Manager, Node
from tests.polling import until
from virtlet.core.lifecycle import guest_hold, template_store, templates, warm_start
from virtlet.core.lifecycle.template_store import (
    ABOUT,
    FAILED,
    MAKING,
    READY,
    Bounds,
    NoTemplate,
    Templates,
    reconcile,
)
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


def none_yet(*arguments: object) -> Path:
    """In the place of `warm_start._template`."""
    raise NoTemplate("none yet", "one is being made")


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
    monkeypatch.setattr(warm_start, "_template", none_yet)
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
    monkeypatch.setattr(warm_start, "_template", none_yet)
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


def _with_arguments(document: Element, words: str) -> Element:
    """A document that appends to the emulator's command line."""
    namespace = "{http://libvirt.org/schemas/domain/qemu/1.0}"
    line = ElementTree.SubElement(document, f"{namespace}commandline")
    for word in words.split():
        ElementTree.SubElement(line, f"{namespace}arg", value=word)
    return document


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


def test_another_hold_in_guests_makes_another_key(
    manager: Manager, keyed: Callable[[Machine], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    machine = _machine(manager)
    before = keyed(machine)
    monkeypatch.setattr(guest_hold, "VERSION", "another one")
    assert keyed(machine) != before


def test_devices_and_versions_make_another_key(
    manager: Manager,
    node: Node,
    keyed: Callable[[Machine], str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    machine = _machine(manager)
    keys = [keyed(machine)]
    basis = {"libvirt": "11", "qemu": "10.0", "accelerator": "qemu", "cpu": "sse2", "emulator": "1"}
    for part in ("", *basis):
        other = {**basis, part: "another one"} if part else basis
        monkeypatch.setattr(node.hypervisor, "template_basis", lambda other=other: other)
        keys.append(keyed(machine))
    for change in ("sda", "vda' bus='sata", "vda'/><address slot='0x4"):
        target = change.replace("'", '"')
        monkeypatch.setattr(templates, "domain_document", lambda h, y, m, t=target: _document(m, t))
        keys.append(keyed(machine))
    for words in ("-cpu max", "-device thing"):
        monkeypatch.setattr(
            templates, "domain_document", lambda h, y, m, w=words: _with_arguments(_document(m), w)
        )
        keys.append(keyed(machine))
    assert len(set(keys)) == len(keys)


class Clock:
    """Stands still until it is set."""

    now = 1_000_000.0

    def __call__(self) -> float:
        return self.now


class Making:
    """Makes templates when it is let."""

    def __init__(self) -> None:
        self.may, self.made = threading.Event(), 0
        self.error: VirtletError | None = None
        self.size = 0

    def __call__(self, place: Path) -> None:
        assert self.may.wait(20)
        self.made += 1
        if self.error:
            raise self.error
        (place / "ram").write_bytes(b"x" * self.size)


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
    store, making = Templates(now=lambda: 100.0), Making()
    making.may.set()
    for number in range(Bounds().number + 1):
        store.find(parent, str(number), making)
        store.wait(20)
        until(lambda n=number: store.find(parent, str(n), making) is not None, "it")  # type: ignore[misc]
        for path in parent.iterdir():
            if path.name.endswith(f"-{number}"):
                os.utime(path, (number, number))
    names = sorted(path.name.partition("-")[2] for path in parent.iterdir())
    assert names == [str(number) for number in range(1, Bounds().number + 1)]


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
    with target.open("wb") as file, pytest.raises(FailedPrecondition, match="a VM's disk"):
        templates.copy(tmp_path / "none", file.fileno())


def _made(store: Templates, parent: Path, key: str, memory: int = 1 << 20) -> None:
    making = Making()
    making.may.set()
    assert store.find(parent, key, making, {"memory": memory, "image": key}) is None
    store.wait(20)


def _keys(store: Templates, parent: Path, state: str = READY) -> set[str]:
    return {known.key for known in store.known(parent) if known.state == state}


def test_one_that_could_not_be_made_is_tried_again_after_longer_and_longer(parent: Path) -> None:
    clock, making = Clock(), Making()
    store = Templates(now=clock)
    making.may.set()
    making.error = FailedPrecondition("the disk is full")
    pauses = []
    for _ in range(4):
        assert store.find(parent, "one", making) is None
        store.wait(20)
        (failed,) = store.known(parent)
        assert (failed.state, failed.reason) == (FAILED, "the disk is full")
        pauses.append(failed.retry_at - clock.now)
        clock.now = failed.retry_at - 1
        with pytest.raises(NoTemplate, match=r"the disk is full \(tried again in 1 min\)"):
            store.find(parent, "one", making)
        clock.now += 2
    assert pauses == [600, 1200, 2400, 4800]
    assert making.made == 4
    making.error = None
    assert store.find(parent, "one", making) is None
    store.wait(20)
    assert _keys(store, parent) == {"one"}
    assert store.counts() == {("failed", ""): 4, ("made", ""): 1}


def test_what_does_not_do_is_removed_and_left_alone_for_a_while(parent: Path) -> None:
    """Until a VM has started from it."""
    clock = Clock()
    store = Templates(now=clock)
    _made(store, parent, "one")
    found = store.find(parent, "one", Making())
    assert found is not None
    store.discard(found, "its guest does not thaw")
    assert not found.exists()
    with pytest.raises(NoTemplate, match="does not thaw"):
        store.find(parent, "one", Making())
    clock.now += 601
    _made(store, parent, "one")
    store.worked(found)
    assert _keys(store, parent, FAILED) == set()
    assert store.counts()["evicted", "broken"] == 1


def test_those_that_nobody_uses_go_after_their_age(parent: Path) -> None:
    clock = Clock()
    store = Templates(now=clock, bounds=Bounds(age=3600))
    _made(store, parent, "idle")
    _made(store, parent, "used")
    clock.now += 3000
    assert store.find(parent, "used", Making()) is not None
    clock.now += 601
    assert store.evict(parent) > 0
    assert _keys(store, parent) == {"used"}
    assert store.counts()["evicted", "age"] == 1
    clock.now += 3001
    store.evict(parent)
    assert list(parent.iterdir()) == []


@pytest.mark.parametrize("bound", ["number", "memory", "disk"])
def test_each_bound_has_the_least_recently_used_make_way(parent: Path, bound: str) -> None:
    clock = Clock()
    bounds = {"number": 2, "memory": 2 << 20, "disk": 3 << 20}
    store = Templates(now=clock, bounds=Bounds(**{bound: bounds[bound]}))

    def make(place: Path) -> None:
        (place / "ram").write_bytes(b"x" * (1 << 20))

    for key in ("one", "two", "three"):
        clock.now += 1
        store.find(parent, key, make, {"memory": 1 << 20})
        store.wait(20)
        if key == "two":
            clock.now += 1
            assert store.find(parent, "one", make) is not None
    assert _keys(store, parent) == {"one", "three"}
    assert store.counts()["evicted", bound] == 1
    assert {path.suffix for path in parent.iterdir()} == {""}


def test_one_beyond_the_bounds_alone_is_not_made_or_not_kept(parent: Path) -> None:
    making = Making()
    with pytest.raises(NoTemplate, match="2Mi of memory are more than the 1Mi of templateMemory"):
        Templates(bounds=Bounds(memory=1 << 20)).find(parent, "a", making, {"memory": 2 << 20})
    with pytest.raises(NoTemplate, match="templateLimit is 0"):
        Templates(bounds=Bounds(number=0)).find(parent, "a", making)
    assert making.made == 0

    store = Templates(bounds=Bounds(disk=1 << 20))
    making.may.set()
    making.size = 2 << 20
    store.find(parent, "a", making)
    store.wait(20)
    (failed,) = store.known(parent)
    assert "more than the 1Mi of templateDisk" in failed.reason
    assert list(parent.iterdir()) == []


def test_failures_are_bounded(parent: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever makes many kinds of machines does not fill the manager."""
    monkeypatch.setattr(template_store, "_MOST_FAILURES", 3)
    store, making = Templates(), Making()
    making.may.set()
    making.error = FailedPrecondition("no")
    for number in range(5):
        store.find(parent, str(number), making)
        store.wait(20)
    assert _keys(store, parent, FAILED) == {"2", "3", "4"}


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (OSError(28, "No space left on device", "/secret"), "No space left on device"),
        (ValueError("secret"), "ValueError"),
    ],
)
def test_what_a_bug_or_the_node_says_is_not_told_to_pods(
    parent: Path, error: Exception, words: str
) -> None:
    def make(place: Path) -> None:
        (place / "ram").touch()
        raise error

    store = Templates()
    store.find(parent, "one", make)
    store.wait(20)
    (failed,) = store.known(parent)
    assert failed.reason == f"none could be made: {words}"
    assert list(parent.iterdir()) == []


def test_one_that_is_taken_away_beside_the_manager_is_made_again(parent: Path) -> None:
    """Nor do files that are no description, or none at all, keep it from the list."""
    store = Templates()
    _made(store, parent, "one")
    (directory,) = parent.iterdir()
    (directory / ABOUT).write_text("[")
    assert _keys(store, parent) == {"one"}
    shutil.rmtree(directory)
    assert store.known(parent) == []
    making = Making()
    assert store.find(parent, "one", making) is None
    assert store.making == "one"
    assert _keys(store, parent, MAKING) == {"one"}
    making.may.set()
    store.wait(20)
    assert (store.making, _keys(store, parent)) == ("", {"one"})


@pytest.fixture
def freezing(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    """Everything that templates take."""
    node.flavor = lambda vm: Flavor(warm=True, memory=1 << 20)
    node.guest = lambda: b""
    node.overlays = node.hypervisor.freezes = True
    (node.root / "templates").mkdir(exist_ok=True)


def _cold(manager: Manager, name: str) -> str:
    """What the owner of a new pod is told, which boots."""
    before = len(manager.told.events)
    vm_id = manager.create(manager.run(name))
    manager.start(vm_id)
    assert manager.node.hypervisor.machines[vm_id].template is None
    manager.context.templates.wait(20)
    events = manager.told.events[before:]
    (told,) = (e.reason for e in events if e.kind is EventKind.VM_NOTICE)
    return told


def _report(manager: Manager) -> list[dict[str, object]]:
    return warm_start.report(manager.context)


def test_the_first_boots_and_is_told_that_later_ones_do_not(
    manager: Manager, node: Node, freezing: None
) -> None:
    """The report has the template with what it is of, and who runs from it."""
    assert "one is being made, for VMs like it that start later" in _cold(manager, "first")
    (ready,) = _report(manager)
    assert ready["state"] == READY
    assert (ready["image"], ready["memory"], ready["vms"]) == ("tiny", 1 << 20, [])
    vm_id = made(manager)
    manager.start(vm_id)
    template = node.hypervisor.machines[vm_id].template
    assert template is not None
    assert str(template.directory) == ready["directory"]
    assert [known["vms"] for known in _report(manager)] == [[vm_id]]
    counts = manager.context.templates.counts()
    assert counts == {("cold", "none yet"): 1, ("made", ""): 1, ("warm", ""): 1}
    for pod in list(manager.store.pods):
        manager.remove_pod(pod)
    assert node.left == []


@pytest.mark.parametrize(
    ("deed", "error"),
    [
        ("freeze", FailedPrecondition("a template's state: No space left on device")),
        ("freeze", Unavailable("its emulator has ended: Killed")),
        ("start", Unavailable("its emulator has ended: Killed")),
        ("define", Unavailable("libvirt is gone")),
    ],
)
def test_a_template_that_cannot_be_made_leaves_nothing_and_pods_boot(
    manager: Manager, node: Node, freezing: None, deed: str, error: VirtletError
) -> None:
    """A full disk, or an emulator that the kernel killed for want of memory, among others."""
    vm_id = made(manager)
    pod_id = manager.store.vms[vm_id].vm.pod.id
    began, go_on = threading.Event(), threading.Event()
    make = templates.make

    def later(*arguments: Any) -> None:
        began.set()
        assert go_on.wait(20)
        node.faults.once[deed] = error
        make(*arguments)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(templates, "make", later)
        manager.start(vm_id)
        assert began.wait(20)
        go_on.set()
        manager.context.templates.wait(20)
    (failed,) = _report(manager)
    assert failed["state"] == FAILED
    assert str(error) in str(failed["reason"])
    assert str(error) in _cold(manager, "second")
    assert list((node.root / "templates").iterdir()) == []
    assert len(node.hypervisor.domains) == 2
    for pod in [pod_id, *manager.store.pods]:
        manager.remove_pod(pod)
    assert node.left == []


@pytest.mark.parametrize("short", ["disk", "memory"])
def test_none_is_made_where_it_would_take_the_nodes_last(
    manager: Manager, node: Node, freezing: None, short: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if short == "disk":
        full = SimpleNamespace(free=2 << 20)
        monkeypatch.setattr("shutil.disk_usage", lambda path: full)
    else:
        info = node.root / "meminfo"
        info.write_text("MemTotal: 9 kB\nMemAvailable:    1024 kB\n")
        monkeypatch.setattr(templates, "MEMORY_INFO", info)
    _cold(manager, "first")
    (failed,) = _report(manager)
    assert {"disk": "2Mi are free", "memory": "spared of 1Mi"}[short] in str(failed["reason"])
    assert list((node.root / "templates").iterdir()) == []


def test_what_cannot_be_removed_keeps_nothing_else_from_going(
    manager: Manager, node: Node, freezing: None
) -> None:
    """libvirt is away when the template's VM is to be removed: its files go all the same."""
    vm_id = made(manager)
    node.faults.once["remove"] = Unavailable("libvirt is gone")
    manager.start(vm_id)
    manager.context.templates.wait(20)
    (failed,) = _report(manager)
    assert "libvirt is gone" in str(failed["reason"])
    assert [path.name for path in (node.root / "volumes").iterdir()] == [vm_id]


def test_a_guest_that_cannot_be_frozen_gets_no_template(
    manager: Manager, node: Node, freezing: None
) -> None:
    """One whose kernel does not know the VM generation id, say: its clones would be one machine."""
    node.guest_code = 3
    _cold(manager, "first")
    assert "its guest cannot be frozen (exit code 3)" in _cold(manager, "second")
    assert _report(manager)[0]["state"] == FAILED
    assert list((node.root / "templates").iterdir()) == []
