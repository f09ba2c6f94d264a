"""Hook implementations of the built-in flavors.

A guest is told what it needs to put to use what a running VM is given. Kernels leave hot-plugged
CPUs offline until somebody in the guest says otherwise, and some leave memory so. Distributions
differ in whether their udev says it; ours says it for all of them.
Source: cpu_hotplug.rst and memory-hotplug.rst of the Linux documentation, udev(7).
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from virtlet import hookimpl
from virtlet.cluster.api import KUBECONFIG, Cluster
from virtlet.cluster.follow import Resource
from virtlet.cluster.objects import Objects
from virtlet.model.cloudinit import CloudInitPart
from virtlet.model.flavor import Flavor
from virtlet.model.image import Image
from virtlet.model.node import Node
from virtlet.model.option import PATH, Annotation, Option, Settings
from virtlet.model.pod import Pod
from virtlet.model.vm import VmConfig
from virtlet.plugins.flavors import annotations, placement
from virtlet.plugins.flavors.choose import check_flavors, choose, machine_of
from virtlet.plugins.flavors.named import KIND, FlavorFiles, Flavors, NamedFlavor, read_spec

FLAVORS_DIR: Option[Path] = Option(
    field="flavorsDir",
    flag="--flavors-dir",
    env="VIRTLET_FLAVORS_DIR",
    kind=PATH,
    default="/etc/virtlet/flavors",
    help="directory of the node's own VirtletFlavors (*.yaml), which win over the cluster's; "
    "read again when they change",
)

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

    _cluster: Cluster
    _objects: Objects[NamedFlavor]
    _flavors: Flavors

    @hookimpl
    def virtlet_options(self) -> Sequence[Option[Any]]:
        """Declare the directory of flavors."""
        return (FLAVORS_DIR,)

    @hookimpl
    def virtlet_annotations(self) -> Sequence[Annotation[Any]]:
        """Declare the annotations about the machine."""
        return annotations.ALL

    @hookimpl
    def virtlet_configure(self, settings: Settings, node: Node) -> None:
        """Refuse a section that no pod could get its machine from; follow the cluster's flavors."""
        handlers = settings.sections.get("handlers", {})
        check_flavors(handlers)
        self._cluster = Cluster(settings[KUBECONFIG])
        copy = node.state_dir("flavors") / "objects.json"
        kind = Resource(KIND, "virtletflavors")
        self._objects = Objects(self._cluster, kind, copy, "flavor", read_spec)
        files = FlavorFiles(settings[FLAVORS_DIR])
        self._flavors = Flavors(files, self._objects, handlers)
        self._objects.start()

    @hookimpl
    def virtlet_pod_flavor(self, pod: Pod) -> Mapping[str, Any] | None:
        """The settings of a named flavor, over those of the pod's handler."""
        return self._flavors.section_of(pod)

    @hookimpl
    def virtlet_admit_pod(self, pod: Pod) -> None:
        """Refuse a machine that cannot be, before anything is made."""
        machine_of(pod)

    @hookimpl
    def virtlet_admit_vm(self, pod: Pod, config: VmConfig) -> None:
        """Refuse a machine that cannot be with these resources, before anything is made."""
        chosen = choose(pod, config)
        placement.check_kernel(pod, chosen, config.mounts)
        placement.check_pages(pod, chosen, config.resources)
        placement.check_vsock(pod, chosen)

    @hookimpl
    def virtlet_flavor(self, pod: Pod, config: VmConfig, image: Image) -> Flavor | None:
        """Answer for every pod."""
        return choose(pod, config)

    @hookimpl
    def virtlet_cloud_init(self, flavor: Flavor) -> CloudInitPart | None:
        """Have the guest use CPUs and memory that come while it runs."""
        return hotplug_part(flavor)

    @hookimpl
    def virtlet_shutdown(self) -> None:
        """Follow the cluster's objects no more."""
        self._objects.stop()
        self._cluster.close()
