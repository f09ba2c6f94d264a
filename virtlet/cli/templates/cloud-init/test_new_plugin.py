"""The plugin without a VM and with one."""

from pathlib import Path

from new_plugin import FILE, Plugin

from virtlet.testing import BootGuest, check_plugin, make_pod, make_vm


def test_the_manager_takes_the_plugin() -> None:
    check_plugin(Plugin)


def test_the_file_names_the_pod(tmp_path: Path) -> None:
    part = Plugin().virtlet_cloud_init(make_vm(tmp_path, make_pod(name="web")))
    assert part is not None
    (file,) = part.user_data["write_files"]
    assert (file["path"], file["content"]) == (FILE, "shop/web\n")


def test_a_guest_has_the_file(virtlet_guest: BootGuest) -> None:
    guest = virtlet_guest()
    assert guest.exec("cat", FILE).stdout == f"default/{guest.pod.metadata.name}\n"
