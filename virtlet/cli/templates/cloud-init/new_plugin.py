"""Guests have a file that names their pod."""

from virtlet.api import CloudInitPart, Vm, hookimpl

FILE = "/etc/new-plugin"


class Plugin:
    """Contributes to what cloud-init in the guest is told."""

    VIRTLET_HOOK_API = 1

    @hookimpl
    def virtlet_cloud_init(self, vm: Vm) -> CloudInitPart | None:
        """Add a file; lists of several plugins are joined, two values of one key are an error."""
        file = {"path": FILE, "content": f"{vm.pod.name}\n", "permissions": "0644"}
        return CloudInitPart(user_data={"write_files": [file]})
