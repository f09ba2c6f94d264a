"""Small plugins, good and bad, for the tests of the hook machinery."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from virtlet import hookimpl
from virtlet.model.cloudinit import CloudInitPart
from virtlet.model.flavor import Flavor
from virtlet.model.image import RecognizedImage
from virtlet.model.option import TEXT, Annotation, Option


class Current:
    """What every plugin has to say: the version of the plugin API it was built for."""

    VIRTLET_HOOK_API = 1


class Good(Current):
    """Declares one option and one annotation and answers nothing else."""

    @hookimpl
    def virtlet_options(self) -> Sequence[Option[Any]]:
        return [
            Option(
                field="colour",
                flag="--colour",
                env="VIRTLET_COLOUR",
                kind=TEXT,
                default="red",
                help="of the test",
            )
        ]

    @hookimpl
    def virtlet_annotations(self) -> Sequence[Annotation[Any]]:
        return [Annotation(name="VirtletColour", kind=TEXT, default="red", help="of the test")]


class Twin(Good):
    """Declares what Good declares."""


class Shades(Current):
    """Declares an annotation that Good declares too."""

    @hookimpl
    def virtlet_annotations(self) -> Sequence[Annotation[Any]]:
        return [Annotation(name="VirtletColour", kind=TEXT, default="grey", help="of the test")]


class RaisesWhenMade:
    """Cannot be made."""

    def __init__(self) -> None:
        raise ValueError("no luck")


class Misspelt(Current):
    """Implements a hook that does not exist."""

    @hookimpl
    def virtlet_setup_netwrk(self, pod: object) -> None:
        return None


class UnknownArgument(Current):
    """Wants an argument that the hook does not have."""

    @hookimpl
    def virtlet_setup_network(self, pod: object, colour: str) -> None:
        return None


class Unmarked(Current):
    """Marks nothing, and misspells what it would mark."""

    def virtlet_lanch(self, machine: object) -> None:
        return None


class Undeclared:
    """Does not say for which version of the plugin API it was built."""


class OtherApi:
    """Was built for another version of the plugin API."""

    VIRTLET_HOOK_API = 99


class SmallFlavor(Current):
    """Answers with one vCPU."""

    @hookimpl
    def virtlet_flavor(self, pod: object, config: object, image: object) -> Flavor:
        return Flavor(vcpus=1)


class LargeFlavor(Current):
    """Answers with eight vCPUs."""

    @hookimpl
    def virtlet_flavor(self, pod: object, config: object, image: object) -> Flavor:
        return Flavor(vcpus=8)


class Declines(Current):
    """Has the hook and never answers."""

    @hookimpl
    def virtlet_flavor(self, pod: object, config: object, image: object) -> None:
        return None


class Raises(Current):
    """Raises what is not ours, with a secret in its text."""

    @hookimpl
    def virtlet_flavor(self, pod: object, config: object, image: object) -> Flavor:
        raise RuntimeError("hunter2")

    @hookimpl
    def virtlet_event(self, event: object) -> None:
        raise RuntimeError("observer broke")


class WrongType(Current):
    """Returns a dict where a flavor is wanted, and a string where a part is."""

    @hookimpl
    def virtlet_flavor(self, pod: object, config: object, image: object) -> Any:
        return {"vcpus": 4}

    @hookimpl
    def virtlet_hypervisor(self) -> Any:
        return "qemu:///system"

    @hookimpl
    def virtlet_guest_exec(self, machine: object, command: object) -> Any:
        return 0

    @hookimpl
    def virtlet_cloud_init(self, vm: object, volumes: object) -> Any:
        return "#cloud-config"


class Contributes(Current):
    """Adds to the seed."""

    @hookimpl
    def virtlet_cloud_init(self, vm: object, volumes: object) -> CloudInitPart:
        return CloudInitPart(meta_data={"colour": "red"})


class Nameless(Current):
    """Recognises an image and does not say as what."""

    @hookimpl
    def virtlet_recognize_image(self, name: str, file: Path) -> RecognizedImage | None:
        return RecognizedImage(format="")


class Shrinks(Current):
    """Recognises a disk that is smaller than nothing."""

    @hookimpl
    def virtlet_recognize_image(self, name: str, file: Path) -> RecognizedImage | None:
        return RecognizedImage(format="raw", virtual_size=-1)


class Scribbles(Current):
    """Writes to the file of an image that it looks at."""

    @hookimpl
    def virtlet_recognize_image(self, name: str, file: Path) -> RecognizedImage | None:
        file.write_bytes(b"mine")
        return None


class Takes(Current):
    """Takes the file of an image away."""

    @hookimpl
    def virtlet_recognize_image(self, name: str, file: Path) -> RecognizedImage | None:
        file.unlink()
        return RecognizedImage(format="raw")
