"""The hooks of cloud-init."""

from collections.abc import Sequence
from typing import Any

from virtlet import hookimpl
from virtlet.cluster.api import KUBECONFIG, Cluster
from virtlet.errors import InvalidArgument
from virtlet.host.files import remove_file
from virtlet.model.cloudinit import CloudInit, CloudInitPart
from virtlet.model.disk import Disk, Volume
from virtlet.model.node import Node
from virtlet.model.option import Annotation, Option, Settings
from virtlet.model.pod import Pod
from virtlet.model.vm import Vm
from virtlet.plugins.cloudinit.datasources import meta_data, network_config
from virtlet.plugins.cloudinit.object_sources import check_sources, read_sources
from virtlet.plugins.cloudinit.seed import FILE_NAME, write_seed
from virtlet.plugins.cloudinit.seed_annotations import (
    ALL,
    FORCE_DHCP,
    USER_DATA,
    USER_DATA_SCRIPT,
)
from virtlet.plugins.cloudinit.sysctls import check_sysctls
from virtlet.plugins.cloudinit.userdata import user_data


class Plugin:
    """Tells the guest its name, keys, network, files and volumes, on a CD-ROM."""

    VIRTLET_HOOK_API = 1

    _node: Node

    def __init__(self) -> None:
        self._cluster = Cluster("")

    @hookimpl
    def virtlet_options(self) -> Sequence[Option[Any]]:
        """Declare how the cluster is reached."""
        return (KUBECONFIG,)

    @hookimpl
    def virtlet_annotations(self) -> Sequence[Annotation[Any]]:
        """Declare the annotations about cloud-init."""
        return ALL

    @hookimpl
    def virtlet_configure(self, settings: Settings, node: Node) -> None:
        """Keep the emulator's user, and the way to the cluster."""
        self._node = node
        self._cluster = Cluster(settings[KUBECONFIG])

    @hookimpl
    def virtlet_admit_pod(self, pod: Pod) -> None:
        """Refuse user-data that is both a document and a script, and sysctls it cannot carry."""
        check_sysctls(pod)
        check_sources(pod)
        if USER_DATA_SCRIPT.of(pod) and USER_DATA.of(pod):
            raise InvalidArgument(
                f"annotations {USER_DATA_SCRIPT.name} and "
                f"{USER_DATA.name}: the script is the whole user-data, so choose one"
            )

    @hookimpl
    def virtlet_admit_vm(self, pod: Pod) -> None:
        """Refuse a VM whose objects cannot be read, before anything is made for it."""
        read_sources(pod, self._cluster)

    @hookimpl
    def virtlet_cloud_init(self, vm: Vm, volumes: Sequence[Volume]) -> CloudInitPart | None:
        """Contribute what follows from the pod, its network and its volumes."""
        sources = read_sources(vm.pod, self._cluster)
        told = user_data(vm, volumes, sources)
        force_dhcp = FORCE_DHCP.of(vm.pod)
        return CloudInitPart(
            meta_data=meta_data(vm.pod, sources.keys),
            user_data=told.document,
            overrides=told.overrides,
            script=told.script,
            network_config=None if force_dhcp else network_config(vm.network),
        )

    @hookimpl
    def virtlet_seed(self, vm: Vm, cloud_init: CloudInit) -> Disk | None:
        """Write the seed as an ISO image."""
        return write_seed(vm, cloud_init, self._node.emulator_uid, self._node.emulator_gid)

    @hookimpl
    def virtlet_release_seed(self, vm: Vm, disk: Disk | None) -> None:
        """Remove the seed, finished or not."""
        remove_file(vm.directory / FILE_NAME)

    @hookimpl
    def virtlet_shutdown(self) -> None:
        """Close connections to the cluster."""
        self._cluster.close()
