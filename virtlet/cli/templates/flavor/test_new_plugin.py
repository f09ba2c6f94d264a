"""The plugin without a VM and with one."""

from pathlib import Path

from new_plugin import Plugin

from virtlet.api import Flavor
from virtlet.testing import BootGuest, check_plugin, make_image, make_pod, make_vm_config


def chosen(directory: Path, **annotations: str) -> Flavor | None:
    """The machine of a pod with annotations."""
    image = make_image(directory / "image")
    return Plugin().virtlet_flavor(make_pod(annotations), make_vm_config(), image)


def test_the_manager_takes_the_plugin() -> None:
    check_plugin(Plugin)


def test_a_size_is_a_machine(tmp_path: Path) -> None:
    large = chosen(tmp_path, NewPluginSize="large")
    assert large is not None
    assert large.vcpus == 2
    assert chosen(tmp_path) is None


def test_a_guest_has_the_machine(virtlet_guest: BootGuest) -> None:
    guest = virtlet_guest(annotations={"NewPluginSize": "small"})
    guest.wait_for_console("login:")
    assert guest.exec("nproc").stdout.strip() == "1"
