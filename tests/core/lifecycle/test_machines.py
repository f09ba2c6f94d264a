"""The machine of a VM: its document from the renderer to the hypervisor, and its memory."""

from collections.abc import Callable
from pathlib import Path
from typing import Any
from xml.etree.ElementTree import Element, SubElement

import pluggy
import pytest
from attrs import evolve

from tests.core.lifecycle.conftest import Managers
from tests.fakes import models
from tests.fakes.hypervisor import FakeHypervisor, Faults
from tests.fakes.manager import IMAGE, Manager, Node
from tests.fakes.model import make_config, make_node
from virtlet import PROJECT, hookimpl, hookspecs
from virtlet.core.hooks.facade import Hooks
from virtlet.core.hooks.registry import Registry
from virtlet.core.lifecycle import image_handlers, pods, vms
from virtlet.core.lifecycle.machines import domain_document
from virtlet.core.lifecycle.resize import resize_vm
from virtlet.errors import FailedPrecondition, InvalidArgument, PluginError
from virtlet.model.event import EventKind
from virtlet.model.flavor import Flavor
from virtlet.model.hypervisor import Hypervisor, HypervisorInfo, Resize
from virtlet.model.image import Credentials
from virtlet.model.pod import PodConfig, PodMetadata
from virtlet.model.reference import parse_reference
from virtlet.model.resources import Resources
from virtlet.model.vm import Machine, VmConfig, VmMetadata
from virtlet.plugins.domain_xml.plugin import OPTIONS
from virtlet.plugins.domain_xml.plugin import Plugin as DomainXml
from virtlet.plugins.libvirt_qemu.libvirt_hypervisor import LibvirtHypervisor
from virtlet.plugins.libvirt_qemu.qemu_conf import locate

Edit = Callable[[Element], object]


class Renderer:
    """Makes what the test wants."""

    def __init__(self, answer: Any) -> None:
        self.answer = answer

    @hookimpl
    def virtlet_render_domain(self, machine: Machine) -> Any:
        return self.answer


class Editor:
    """Does to the document what the test wants, and keeps it."""

    def __init__(self, edit: Edit) -> None:
        self.seen: list[Element] = []
        self.edit = edit

    @hookimpl
    def virtlet_customize_domain(self, machine: Machine, domain: Element) -> None:
        self.seen.append(domain)
        self.edit(domain)


@pytest.fixture
def renderer(tmp_path: Path) -> DomainXml:
    """The built-in one."""
    plugin = DomainXml()
    plugin.virtlet_configure(make_config(OPTIONS), make_node(tmp_path))
    return plugin


@pytest.fixture
def libvirt(tmp_path: Path) -> Hypervisor:
    """The built-in one, which need not be open to review a document."""
    place = locate(f"qemu:///embed?root={tmp_path}", tmp_path)
    info = HypervisorInfo(name="QEMU", version="1", accelerator="qemu")
    return LibvirtHypervisor(place, make_node(tmp_path), info)


def _document(hypervisor: Hypervisor, directory: Path, **plugins: object) -> Element | None:
    """The document of a machine in the hands of these plugins."""
    manager = pluggy.PluginManager(PROJECT)
    manager.add_hookspecs(hookspecs)
    for name, plugin in plugins.items():
        manager.register(plugin, name)
    names = tuple(plugins)
    hooks = Hooks(Registry(manager, (), names))
    return domain_document(hooks, hypervisor, models.machine(directory, plugins=names))


def _only(domain: Element, path: str) -> Element:
    (element,) = domain.findall(path)
    return element


def _set(path: str, text: str) -> Edit:
    return lambda domain: setattr(_only(domain, path), "text", text)


def _remove(path: str, parent: str) -> Edit:
    return lambda domain: _only(domain, parent).remove(_only(domain, path))


UNFIT: list[tuple[Edit, str]] = [
    (_set("name", "mine"), "<name>"),
    (_set("uuid", "c" * 32), "<uuid>"),
    (_set("devices/emulator", "/usr/bin/qemu-system-x86_64"), "<emulator>"),
    (_remove("name", "."), "<name>"),
    (_remove("uuid", "."), "<uuid>"),
    (_remove("devices/emulator", "devices"), "<emulator>"),
    (lambda domain: SubElement(domain, "uuid"), "<uuid>"),
    (lambda domain: setattr(domain, "tag", "network"), "<domain>"),
    (lambda domain: domain.set("hunter2", models.untyped(5)), "cannot be written as XML"),
    (lambda domain: domain.set("two hunter2", "x"), "cannot be written as XML .line 1, column"),
    (lambda domain: setattr(domain, "text", "hunter2\0"), "cannot be written as XML"),
    (lambda domain: domain.append(domain), "cannot be written as XML"),
]
"""Edits after which a document is no use to libvirt, and what is said of it."""


def test_renderer_editors_and_hypervisor_share_one_tree(
    tmp_path: Path, renderer: DomainXml, libvirt: Hypervisor
) -> None:
    first, second = Editor(lambda d: SubElement(d, "a")), Editor(lambda d: SubElement(d, "b"))
    domain = _document(libvirt, tmp_path, renderer=renderer, first=first, second=second)
    assert domain is not None
    assert [element.tag for element in domain][-2:] == ["a", "b"]
    assert first.seen[0] is second.seen[0] is domain


@pytest.mark.parametrize(("edit", "words"), UNFIT)
def test_an_editor_that_leaves_a_document_unfit_is_named(
    tmp_path: Path, renderer: DomainXml, libvirt: Hypervisor, edit: Edit, words: str
) -> None:
    """And the one after it is not asked."""
    later = Editor(lambda domain: None)
    with pytest.raises(PluginError, match=words) as caught:
        _document(libvirt, tmp_path, renderer=renderer, mine=Editor(edit), other=later)
    assert (caught.value.plugin, caught.value.hook) == ("mine", "virtlet_customize_domain")
    assert caught.value.remedy
    assert "hunter2" not in str(caught.value)
    assert not later.seen


@pytest.mark.parametrize(("edit", "words"), UNFIT)
def test_a_renderer_of_an_unfit_document_is_named_though_nobody_edits(
    tmp_path: Path, renderer: DomainXml, libvirt: Hypervisor, edit: Edit, words: str
) -> None:
    domain = renderer.virtlet_render_domain(models.machine(tmp_path))
    assert domain is not None
    edit(domain)
    with pytest.raises(PluginError, match=words) as caught:
        _document(libvirt, tmp_path, mine=Renderer(domain))
    assert (caught.value.plugin, caught.value.hook) == ("mine", "virtlet_render_domain")
    assert "hunter2" not in str(caught.value)


def test_a_renderer_that_answers_with_text_is_named(tmp_path: Path, libvirt: Hypervisor) -> None:
    """As it was right before hook API 1."""
    with pytest.raises(PluginError, match="'mine'.*returned a str instead of Element"):
        _document(libvirt, tmp_path, mine=Renderer("<domain>hunter2</domain>"))


def test_a_hypervisor_that_reads_documents_needs_a_renderer(
    tmp_path: Path, libvirt: Hypervisor
) -> None:
    with pytest.raises(FailedPrecondition, match="renders the domain document"):
        _document(libvirt, tmp_path, editor=Editor(lambda domain: None))


def test_where_no_document_is_read_nobody_is_asked_for_one(tmp_path: Path) -> None:
    editor = Editor(lambda domain: None)
    renderer = Renderer(Element("domain"))
    hypervisor = FakeHypervisor(Faults())
    assert _document(hypervisor, tmp_path, renderer=renderer, editor=editor) is None
    assert not editor.seen


def test_a_vm_is_defined_without_a_document_where_none_is_read(
    manager: Manager, node: Node
) -> None:
    """No plugin of this node would render one."""
    vm = manager.create(manager.run())
    assert node.hypervisor.documents == {vm: None}


def test_a_vm_is_not_made_where_a_document_is_read_and_nobody_renders(
    manager: Manager, node: Node
) -> None:
    node.hypervisor.reads = True
    with pytest.raises(FailedPrecondition, match="renders the domain document"):
        manager.create(manager.run())
    assert not manager.store.vms


MIB = 1 << 20
NEED = 100 * MIB
GROUP = "/kubepods/pod1"

Create = Callable[..., str]


@pytest.fixture
def create(manager: Manager, node: Node) -> Create:
    """Make a pod and its VM; every emulator needs 100 MiB."""
    node.flavor = lambda vm: Flavor(
        memory=vm.resources.memory_limit or 1 << 30, max_memory=1 << 30, guest_agent=False
    )
    node.hypervisor.need = NEED
    # The group is a name only here.
    manager.context.launches.cgroup_required = False  # type: ignore[misc]

    def make(limit: int, overhead: int = 0, cgroup_parent: str = GROUP) -> str:
        config = PodConfig(
            metadata=PodMetadata(name="web", uid="uid", namespace="default"),
            log_directory=str(node.root / "logs"),
            cgroup_parent=cgroup_parent,
            overhead=Resources(memory_limit=overhead * MIB),
        )
        pod_id = pods.run_pod(manager.context, config, "")
        image_handlers.pull(manager.context, parse_reference(IMAGE), Credentials())
        asked = Resources(memory_limit=limit * MIB)
        vm = VmConfig(
            metadata=VmMetadata(name="guest"),
            image=IMAGE,
            log_path="guest/0.log",
            resources=asked,
        )
        return vms.create_vm(manager.context, pod_id, vm)

    return make


def _memory(node: Node, vm_id: str) -> int:
    """MiB of RAM of the machine that was defined last."""
    return node.hypervisor.machines[vm_id].flavor.memory // MIB


@pytest.mark.parametrize(
    ("limit", "overhead", "cgroup_parent", "memory"),
    [
        (256, 100, GROUP, 256),
        (256, 160, GROUP, 256),
        (256, 99, GROUP, 255),
        (256, 0, GROUP, 156),
        (228, 0, GROUP, 128),
        (32, 160, GROUP, 32),
        (256, 0, "", 256),
        (0, 0, GROUP, 1024),
    ],
)
def test_the_guest_gets_its_limit_or_what_the_emulator_leaves_of_it(
    create: Create, node: Node, limit: int, overhead: int, cgroup_parent: str, memory: int
) -> None:
    """Where the pod has no control group or no limit, nothing is taken."""
    assert _memory(node, create(limit, overhead, cgroup_parent)) == memory


@pytest.mark.parametrize(("limit", "overhead"), [(227, 0), (64, 50)])
def test_a_pod_that_cannot_hold_both_is_refused_with_what_to_write(
    create: Create, manager: Manager, node: Node, limit: int, overhead: int
) -> None:
    with pytest.raises(InvalidArgument) as caught:
        create(limit, overhead)
    said = str(caught.value)
    assert f"limit of {limit}Mi and the RuntimeClass's overhead of {overhead}Mi" in said
    assert "overhead: {podFixed: {memory: 100Mi}}" in said
    assert f"raise the limit to {228 - overhead}Mi" in said
    (pod_id,) = manager.store.pods
    assert list(manager.store.vms) == []
    assert node.disks == set()
    manager.remove_pod(pod_id)
    assert node.left == []


def test_memory_on_huge_pages_is_beside_the_pods_memory(
    create: Create, manager: Manager, node: Node
) -> None:
    """Which the emulator has for itself then, and needs."""
    node.flavor = lambda vm: Flavor(memory=512 * MIB, page_size=2 * MIB, guest_agent=False)
    with pytest.raises(InvalidArgument, match="on huge pages, .* limit of 64Mi .* to 90Mi or more"):
        create(64, 10)
    (pod_id,) = manager.store.pods
    manager.remove_pod(pod_id)
    assert _memory(node, create(64, 36)) == 512


def test_the_owner_is_told_what_the_guest_does_not_get(create: Create, manager: Manager) -> None:
    vm_id = create(256, 40)
    manager.start(vm_id)
    manager.start(vm_id)
    (notice,) = [e for e in manager.told.events if e.kind is EventKind.VM_NOTICE]
    assert "has 196Mi of RAM, not the 256Mi" in notice.reason
    assert "overhead: {podFixed: {memory: 100Mi}}" in notice.reason


def test_a_guest_with_all_of_its_limit_is_told_nothing(create: Create, manager: Manager) -> None:
    manager.start(create(256, 100))
    assert [e for e in manager.told.events if e.kind is EventKind.VM_NOTICE] == []


def test_a_resize_follows_the_same_rule(create: Create, manager: Manager, node: Node) -> None:
    """Before the start, and while the VM runs."""
    vm_id = create(256, 40)
    resize_vm(manager.context, vm_id, Resources(memory_limit=300 * MIB))
    assert _memory(node, vm_id) == 240
    with pytest.raises(InvalidArgument, match="do not hold|does not hold"):
        resize_vm(manager.context, vm_id, Resources(memory_limit=100 * MIB))
    manager.start(vm_id)
    resize_vm(manager.context, vm_id, Resources(memory_limit=400 * MIB))
    assert node.hypervisor.sizes[vm_id].memory == 340 * MIB
    with pytest.raises(InvalidArgument, match="does not hold"):
        resize_vm(manager.context, vm_id, Resources(memory_limit=100 * MIB))
    resources = manager.vm(vm_id).resources
    assert resources is not None
    assert resources.memory_limit == 400 * MIB


def test_a_vm_from_before_the_rule_keeps_its_memory_until_its_limit_changes(
    create: Create, managers: Managers, node: Node
) -> None:
    """A kubelet sends the memory limit with every change of another."""
    node.hypervisor.need = 0
    vm_id = create(256)
    managers.now.start(vm_id)
    node.hypervisor.need = NEED
    managers.restart()
    change = Resources(memory_limit=256 * MIB, cpuset_cpus="0")
    resize_vm(managers.now.context, vm_id, change)
    assert node.hypervisor.sizes[vm_id] == Resize(vcpus=1, memory=256 * MIB, cpus=frozenset({0}))
    resize_vm(managers.now.context, vm_id, evolve(change, memory_limit=300 * MIB))
    assert node.hypervisor.sizes[vm_id].memory == 200 * MIB
    resize_vm(managers.now.context, vm_id, change)
    assert node.hypervisor.sizes[vm_id].memory == 256 * MIB
