"""Guests find the name of their pod in the firmware's configuration."""

from virtlet.api import LaunchPart, Machine, hookimpl


class Plugin:
    """Adds to the emulator's start."""

    VIRTLET_HOOK_API = 1

    @hookimpl
    def virtlet_launch(self, machine: Machine) -> LaunchPart | None:
        """Add arguments; a LaunchPart can also have descriptors, an environment and cgroups."""
        # In the guest: /sys/firmware/qemu_fw_cfg/by_name/opt/new-plugin/pod/raw
        item = f"name=opt/new-plugin/pod,string={machine.vm.pod.name}"
        return LaunchPart(arguments=("-fw_cfg", item))
