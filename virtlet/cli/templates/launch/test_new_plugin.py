"""The plugin without a VM and with one."""

from pathlib import Path

from new_plugin import Plugin

from virtlet.testing import BootGuest, check_plugin, make_machine, make_pod


def test_the_manager_takes_the_plugin() -> None:
    check_plugin(Plugin)


def test_the_pod_s_name_is_an_item(tmp_path: Path) -> None:
    part = Plugin().virtlet_launch(make_machine(tmp_path, make_pod(name="web")))
    assert part is not None
    assert part.arguments == ("-fw_cfg", "name=opt/new-plugin/pod,string=shop/web")


def test_a_guest_is_started_with_it(virtlet_guest: BootGuest) -> None:
    guest = virtlet_guest()
    name = f"default/{guest.pod.metadata.name}"
    assert f"name=opt/new-plugin/pod,string={name}" in guest.command_line
    guest.wait_for_console("login:")
