"""VMs of plain QEMU."""

from pathlib import Path

from virtlet_example_hypervisor import Plugin

from virtlet.testing import BootGuest, check_plugin


def test_the_manager_takes_the_plugin() -> None:
    check_plugin(Plugin)


def test_a_guest_boots_runs_a_command_and_powers_off(virtlet_guest: BootGuest) -> None:
    guest = virtlet_guest()
    assert guest.exec("hostname").stdout.strip() == guest.pod.hostname
    assert f"virtlet-{guest.vm[:12]}" in guest.command_line
    guest.stop(60)
    assert (guest.status.exit_code, guest.status.reason) == (0, "Completed")
    kept = guest.node.data_dir / "plugins" / "example_hypervisor"
    guest.down()
    assert list(Path(kept).iterdir()) == []
