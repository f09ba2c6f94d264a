"""Hook implementations of the built-in flavors."""

from collections.abc import Sequence
from typing import Any

from virtlet import hookimpl
from virtlet.model.cloudinit import CloudInitPart
from virtlet.model.disk import Volume
from virtlet.model.flavor import Flavor
from virtlet.model.image import Image
from virtlet.model.node import Node
from virtlet.model.option import Annotation, Config
from virtlet.model.pod import Pod
from virtlet.model.vm import Vm, VmConfig
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
    def virtlet_configure(self, config: Config, node: Node) -> None:
        """Refuse a handler's section that no pod of it could get its machine from."""
        check_flavors(config.sections.get("handlers", {}))

    @hookimpl
    def virtlet_admit(self, pod: Pod, vm: VmConfig | None) -> None:
        """Refuse a machine that cannot be, before anything is made."""
        if vm is None:
            machine_of(pod)
        else:
            choose(pod, vm)

    @hookimpl(trylast=True)
    def virtlet_flavor(self, pod: Pod, vm: VmConfig, image: Image) -> Flavor | None:
        """Answer for every pod."""
        return choose(pod, vm)

    @hookimpl
    def virtlet_cloud_init(self, vm: Vm, volumes: Sequence[Volume]) -> CloudInitPart | None:
        """Have the guest use CPUs and memory that come while it runs."""
        return hotplug_part(choose(vm.pod, vm.config))
