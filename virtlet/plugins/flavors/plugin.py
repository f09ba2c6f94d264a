"""Hook implementations of the built-in flavors."""

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
from virtlet.plugins.flavors.choose import choose, machine_of
from virtlet.plugins.flavors.hotplug import hotplug_part
from virtlet.plugins.flavors.profile import check_flavors


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

    @hookimpl(trylast=True)
    def virtlet_flavor(self, pod: Pod, config: VmConfig, image: Image) -> Flavor | None:
        """Answer for every pod."""
        return choose(pod, config)

    @hookimpl
    def virtlet_cloud_init(self, flavor: Flavor) -> CloudInitPart | None:
        """Have the guest use CPUs and memory that come while it runs."""
        return hotplug_part(flavor)
