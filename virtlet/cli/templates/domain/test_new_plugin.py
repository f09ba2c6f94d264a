"""The plugin without a VM and with one."""

from pathlib import Path
from xml.etree.ElementTree import Element, fromstring

from new_plugin import Plugin

from virtlet.testing import BootGuest, check_plugin, make_machine, make_pod


def edited(directory: Path, **annotations: str) -> Element:
    """A document after the plugin has edited it."""
    domain = fromstring("<domain><devices/></domain>")
    machine = make_machine(directory, make_pod(annotations))
    Plugin().virtlet_customize_domain(machine, domain)
    return domain


def test_the_manager_takes_the_plugin() -> None:
    check_plugin(Plugin)


def test_the_pod_decides_on_the_device(tmp_path: Path) -> None:
    assert edited(tmp_path).find("devices/watchdog") is not None
    assert edited(tmp_path, NewPluginWatchdog="false").find("devices/watchdog") is None


def test_a_guest_has_the_device(virtlet_guest: BootGuest) -> None:
    guest = virtlet_guest()
    assert "i6300esb" in " ".join(guest.command_line)
    guest.wait_for_console("login:")
