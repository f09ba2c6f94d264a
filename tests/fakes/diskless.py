"""A hypervisor plugin that needs neither QEMU nor disks: its VMs are kernels, in memory."""

from pathlib import Path

from tests.fakes.hypervisor import FakeHypervisor, Faults
from tests.fakes.plugins import Current
from virtlet import hookimpl
from virtlet.model.disk import Disk
from virtlet.model.flavor import Flavor
from virtlet.model.hypervisor import Hypervisor
from virtlet.model.image import RecognizedImage
from virtlet.model.network import Network
from virtlet.model.pod import Pod
from virtlet.model.vm import Vm


class Plugin(Current):
    """Network, image format, disk and hypervisor of a handler."""

    def __init__(self) -> None:
        self._hypervisor = FakeHypervisor(Faults())

    @hookimpl
    def virtlet_hypervisor(self) -> Hypervisor:
        return self._hypervisor

    @hookimpl
    def virtlet_recognize_image(self, name: str, file: Path) -> RecognizedImage | None:
        with file.open("rb") as content:
            return RecognizedImage(format="kernel") if content.read(2) == b"MZ" else None

    @hookimpl
    def virtlet_setup_network(self, pod: Pod) -> Network:
        return Network(netns=None)

    @hookimpl
    def virtlet_flavor(self, pod: object, config: object, image: object) -> Flavor:
        return Flavor(guest_agent=False)

    @hookimpl
    def virtlet_root_disk(self, vm: Vm, flavor: Flavor) -> Disk | None:
        return Disk(path=vm.image.path, readonly=True) if vm.image.format == "kernel" else None
