"""One domain document from the renderer over the editors to the hypervisor, and who is blamed."""

from collections.abc import Callable
from pathlib import Path
from typing import Any
from xml.etree.ElementTree import Element, SubElement

import pluggy
import pytest

from tests.fakes import models
from tests.fakes.hypervisor import FakeHypervisor, Faults
from tests.fakes.manager import Manager, Node
from tests.fakes.model import make_config, make_node
from virtlet import PROJECT, hookimpl, hookspecs
from virtlet.core.hooks.facade import Hooks
from virtlet.core.hooks.registry import Registry
from virtlet.core.lifecycle.domain import domain_document
from virtlet.errors import FailedPrecondition, PluginError
from virtlet.model.hypervisor import Hypervisor, HypervisorInfo
from virtlet.model.vm import Machine
from virtlet.plugins.domain_xml.plugin import OPTIONS
from virtlet.plugins.domain_xml.plugin import Plugin as DomainXml
from virtlet.plugins.libvirt_qemu.hypervisor import LibvirtHypervisor
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
