"""Plugins with flaws that the contract check is to find, and one without."""

from collections.abc import Sequence
from typing import Any

from virtlet.api import TEXT, Annotation, Option, Vm, hookimpl, integer


class Sound:
    """Declares what it may."""

    VIRTLET_HOOK_API = 1

    @hookimpl
    def virtlet_options(self) -> Sequence[Option[Any]]:
        return [
            Option(
                field="soundOption",
                flag="--sound-option",
                env="SOUND_OPTION",
                kind=TEXT,
                default="{data_dir}/sound",
                help="",
            )
        ]


class Misspelt:
    """Names a hook that does not exist."""

    VIRTLET_HOOK_API = 1

    @hookimpl
    def virtlet_rot_disk(self, vm: Vm) -> None:
        return None


class Ageless:
    """Does not say which API it was built for."""


class TakesAnOption:
    """Declares an option of the core's."""

    VIRTLET_HOOK_API = 1

    @hookimpl
    def virtlet_options(self) -> Sequence[Option[Any]]:
        option = Option(field="dataDir", flag="--mine", env="MINE", kind=TEXT, default="", help="")
        return [option]


class DefaultsWrongly:
    """Declares a default that its own kind does not take."""

    VIRTLET_HOOK_API = 1

    @hookimpl
    def virtlet_options(self) -> Sequence[Option[Any]]:
        option = Option(
            field="count", flag="--count", env="COUNT", kind=integer(1, 9), default="ten", help=""
        )
        return [option]


class TakesAnAnnotation:
    """Declares an annotation that a built-in plugin declares."""

    VIRTLET_HOOK_API = 1

    @hookimpl
    def virtlet_annotations(self) -> Sequence[Annotation[Any]]:
        return [Annotation(name="VirtletVCPUCount", kind=TEXT, default="", help="")]


class LeavesThings:
    """Has an effect that nothing undoes."""

    VIRTLET_HOOK_API = 1

    @hookimpl
    def virtlet_seed(self, vm: Vm) -> None:
        return None
