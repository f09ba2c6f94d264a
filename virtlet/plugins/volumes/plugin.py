"""Hook implementations of the built-in volumes."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from attrs import evolve

from virtlet import hookimpl
from virtlet.host.files import remove_file
from virtlet.model.disk import Disk, Share, Volume
from virtlet.model.node import Node
from virtlet.model.option import Annotation, Config, Option
from virtlet.model.vm import Device, Vm, VolumeRequest
from virtlet.plugins.volumes.devices import serve_device
from virtlet.plugins.volumes.kubelet import Origin, origin_of
from virtlet.plugins.volumes.mounts import serve_mount
from virtlet.plugins.volumes.nodes import make_node
from virtlet.plugins.volumes.options import CHOWN_MOUNTS, KUBELET_ROOT_DIR, RAW_DEVICES
from virtlet.plugins.volumes.ownership import give_away


class Plugin:
    """Serves what a kubelet passes: its own files, volumes and block devices."""

    VIRTLET_HOOK_API = 1

    _config: Config
    _node: Node

    @hookimpl
    def virtlet_options(self) -> Sequence[Option[Any]]:
        """Declare the kubelet's directory and the devices that may be given away."""
        return [KUBELET_ROOT_DIR, RAW_DEVICES]

    @hookimpl
    def virtlet_annotations(self) -> Sequence[Annotation[Any]]:
        """Declare the annotation about ownership."""
        return [CHOWN_MOUNTS]

    @hookimpl
    def virtlet_configure(self, config: Config, node: Node) -> None:
        """Keep the settings."""
        self._config, self._node = config, node

    @hookimpl(trylast=True)
    def virtlet_volume(self, vm: Vm, request: VolumeRequest) -> Volume | None:
        """Serve every mount and device, or say why it cannot be had."""
        source = request.source
        if isinstance(source, Device):
            return self._opened(vm, serve_device(source, request.role))
        root = self._config[KUBELET_ROOT_DIR]
        origin = origin_of(source.host_path, root, vm.pod.config.metadata.uid)
        raw_devices = self._config[RAW_DEVICES]
        volume = serve_mount(source, origin, request.role, raw_devices)
        if isinstance(volume, Disk):
            return self._opened(vm, volume)
        writable = isinstance(volume, Share) and not volume.readonly
        if writable and origin is Origin.VOLUME and CHOWN_MOUNTS.of(vm.pod):
            give_away(Path(source.host_path), self._node.emulator_uid, self._node.emulator_gid)
        return volume

    @hookimpl
    def virtlet_release_disk(self, vm: Vm, role: str, volume: Volume | None) -> None:
        """Remove the VM's node of a block device; the device itself is none of ours."""
        remove_file(vm.directory / role)

    def _opened(self, vm: Vm, disk: Disk) -> Disk:
        """The disk by a node that the emulator can open."""
        node, path = self._node, vm.directory / disk.serial
        make_node(disk.path, path, node.emulator_uid, node.emulator_gid, readonly=disk.readonly)
        return evolve(disk, path=path)
