"""Hook implementations of the built-in flavors.

A guest is told what it needs to put to use what a running VM is given. Kernels leave hot-plugged
CPUs offline until somebody in the guest says otherwise, and some leave memory so. Distributions
differ in whether their udev says it; ours says it for all of them.
Source: cpu_hotplug.rst and memory-hotplug.rst of the Linux documentation, udev(7).
"""

from collections.abc import Sequence
from typing import Any

from virtlet import hookimpl
from virtlet.model.cloudinit import CloudInitPart
from virtlet.model.flavor import Flavor
from virtlet.model.image import Image
from virtlet.model.node import Node
from virtlet.model.option import Annotation, Settings
from virtlet.model.pod import Pod
from virtlet.model.vm import VmConfig
from virtlet.plugins.flavors import annotations
from virtlet.plugins.flavors.choose import check_flavors, choose, machine_of

_PATH = "/etc/udev/rules.d/80-virtlet-hotplug.rules"
_CPUS = 'SUBSYSTEM=="cpu", ACTION=="add", ATTR{online}=="0", ATTR{online}="1"\n'
_MEMORY = 'SUBSYSTEM=="memory", ACTION=="add", ATTR{state}=="offline", ATTR{state}="online"\n'


def hotplug_part(flavor: Flavor) -> CloudInitPart | None:
    """Rules for the guest's udev; None for a machine that cannot grow."""
    rules = ""
    if flavor.max_vcpus > 1:
        rules += _CPUS
    if flavor.max_memory > flavor.memory:
        rules += _MEMORY
    if not rules:
        return None
    file = {"path": _PATH, "permissions": "0644", "content": rules}
    return CloudInitPart(user_data={"write_files": [file]})


class Plugin:
    """Chooses machines from limits, annotations and the handler's `flavor:` section."""

    VIRTLET_HOOK_API = 1

    @hookimpl
    def virtlet_annotations(self) -> Sequence[Annotation[Any]]:
        """Declare the annotations about the machine."""
        return annotations.ALL

    @hookimpl
    def virtlet_configure(self, settings: Settings, node: Node) -> None:
        """Refuse a handler's section that no pod of it could get its machine from."""
        check_flavors(settings.sections.get("handlers", {}))

    @hookimpl
    def virtlet_admit_pod(self, pod: Pod) -> None:
        """Refuse a machine that cannot be, before anything is made."""
        machine_of(pod)

    @hookimpl
    def virtlet_admit_vm(self, pod: Pod, config: VmConfig) -> None:
        """Refuse a machine that cannot be with these resources, before anything is made."""
        choose(pod, config)

    @hookimpl
    def virtlet_flavor(self, pod: Pod, config: VmConfig, image: Image) -> Flavor | None:
        """Answer for every pod."""
        return choose(pod, config)

    @hookimpl
    def virtlet_cloud_init(self, flavor: Flavor) -> CloudInitPart | None:
        """Have the guest use CPUs and memory that come while it runs."""
        return hotplug_part(flavor)
