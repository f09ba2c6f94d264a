"""The example plugin that adds a watchdog to domain documents."""

import configparser
import importlib
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from attrs import evolve

from tests.fakes.model import make_pod
from tests.plugins.domain_xml.machines import plain
from virtlet.errors import InvalidArgument
from virtlet.plugins.domain_xml.render import Renderer

EXAMPLE = Path(__file__).parents[2] / "examples" / "plugin-domain"


@pytest.fixture
def plugin(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """What the package's entry point names."""
    setup = configparser.ConfigParser()
    setup.read(EXAMPLE / "setup.cfg")
    entry = setup["options.entry_points"]["virtlet"].partition("=")[2].strip()
    module_name, _, name = entry.partition(":")
    monkeypatch.syspath_prepend(str(EXAMPLE))
    yield getattr(importlib.import_module(module_name), name)()
    del sys.modules[module_name]


def edited(plugin: Any, annotations: dict[str, str]) -> ElementTree.Element:
    """A rendered document after the plugin has edited it."""
    machine = plain()
    machine = evolve(machine, vm=evolve(machine.vm, pod=make_pod(annotations)))
    domain = Renderer(1, 1, "").render(machine)
    plugin.virtlet_customize_domain(machine, domain)
    return domain


def test_every_machine_gets_one_watchdog(plugin: Any, tmp_path: Path) -> None:
    """In a document that libvirt's schema still takes."""
    domain = edited(plugin, {})
    found = domain.findall("devices/watchdog")
    assert [w.attrib for w in found] == [{"model": "i6300esb", "action": "reset"}]
    document = tmp_path / "domain.xml"
    document.write_text(ElementTree.tostring(domain, encoding="unicode"))
    subprocess.run(["virt-xml-validate", document, "domain"], check=True, capture_output=True)


def test_the_pod_chooses_what_it_does(plugin: Any) -> None:
    """By the plugin's own annotation."""
    (watchdog,) = edited(plugin, {"ExampleWatchdogAction": "poweroff"}).iter("watchdog")
    assert watchdog.get("action") == "poweroff"


def test_a_wrong_action_is_refused_by_name(plugin: Any) -> None:
    """The core checks declared annotations before it makes anything."""
    (annotation,) = plugin.virtlet_annotations()
    with pytest.raises(InvalidArgument, match="ExampleWatchdogAction"):
        annotation.of(make_pod({"ExampleWatchdogAction": "bark"}))


def test_a_watchdog_of_the_renderers_gives_way(plugin: Any) -> None:
    """q35 takes one."""
    domain = edited(plugin, {})
    plugin.virtlet_customize_domain(plain(), domain)
    assert len(domain.findall("devices/watchdog")) == 1
