"""Pods choose their machine by a size."""

from collections.abc import Sequence
from typing import Any

from virtlet.api import Annotation, Flavor, Image, Pod, VmConfig, choice, hookimpl

SIZES = {
    "small": Flavor(vcpus=1, memory=256 << 20),
    "large": Flavor(vcpus=2, memory=4 << 30),
}
SIZE: Annotation[str] = Annotation(
    name="NewPluginSize",
    kind=choice("", *SIZES),
    default="",
    help="Size of the VM: small or large",
)


class Plugin:
    """Chooses the machine a VM gets."""

    VIRTLET_HOOK_API = 1

    @hookimpl
    def virtlet_annotations(self) -> Sequence[Annotation[Any]]:
        """Declare what a pod may ask for; the core refuses a wrong value."""
        return [SIZE]

    @hookimpl
    def virtlet_flavor(self, pod: Pod, config: VmConfig, image: Image) -> Flavor | None:
        """Choose; None leaves a pod without the annotation to other plugins."""
        return SIZES.get(SIZE.of(pod))
