"""A watchdog in every machine, without a VM and with one."""

import subprocess
from pathlib import Path
from xml.etree.ElementTree import Element, tostring

import pytest
from virtlet_example_domain import ACTION, Plugin

from virtlet.api import InvalidArgument
from virtlet.testing import BootGuest, check_plugin, make_machine, make_pod, rendered


def edited(directory: Path, **annotations: str) -> Element:
    """A rendered document after the plugin has edited it."""
    machine = make_machine(directory, make_pod(annotations))
    domain = rendered(machine)
    Plugin().virtlet_customize_domain(machine, domain)
    return domain


def test_the_manager_takes_the_plugin() -> None:
    check_plugin(Plugin)


def test_every_machine_gets_one_watchdog(tmp_path: Path) -> None:
    """In a document that libvirt's schema still takes."""
    domain = edited(tmp_path)
    found = domain.findall("devices/watchdog")
    assert [w.attrib for w in found] == [{"model": "i6300esb", "action": "reset"}]
    document = tmp_path / "domain.xml"
    document.write_text(tostring(domain, encoding="unicode"))
    subprocess.run(["virt-xml-validate", document, "domain"], check=True, capture_output=True)


def test_the_pod_chooses_what_it_does(tmp_path: Path) -> None:
    """By the plugin's own annotation."""
    (watchdog,) = edited(tmp_path, ExampleWatchdogAction="poweroff").iter("watchdog")
    assert watchdog.get("action") == "poweroff"


def test_a_wrong_action_is_refused_by_name() -> None:
    """The core checks declared annotations before it makes anything."""
    with pytest.raises(InvalidArgument, match="ExampleWatchdogAction"):
        ACTION.of(make_pod({"ExampleWatchdogAction": "bark"}))


def test_a_watchdog_of_the_renderer_s_gives_way(tmp_path: Path) -> None:
    """q35 takes one."""
    domain = edited(tmp_path)
    Plugin().virtlet_customize_domain(make_machine(tmp_path), domain)
    assert len(domain.findall("devices/watchdog")) == 1


def test_a_guest_has_the_watchdog(virtlet_guest: BootGuest) -> None:
    guest = virtlet_guest(annotations={"ExampleWatchdogAction": "none"})
    assert "i6300esb" in " ".join(guest.command_line)
    guest.wait_for_console("login:")
