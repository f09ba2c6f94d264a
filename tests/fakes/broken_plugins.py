"""Plugins that break their contract in service; the end-to-end tests put them on a node."""

from typing import Any

from tests.fakes.plugins import Current
from virtlet import hookimpl


class Raises(Current):
    """Cannot make root disks, and quotes the user's own script when it says so."""

    @hookimpl
    def virtlet_root_disk(self, vm: Any, flavor: object) -> Any:
        return {}[vm.pod.config.annotations["VirtletCloudInitUserDataScript"]]


class WrongType(Current):
    """Takes a path for a disk."""

    @hookimpl
    def virtlet_root_disk(self, vm: object, flavor: object) -> Any:
        return "/var/lib/disk.img"


class Clash(Current):
    """Sets the guest's name, which the built-in plugin sets too."""

    @hookimpl
    def virtlet_cloud_init(self, vm: object, volumes: object) -> Any:
        from virtlet.model.cloudinit import CloudInitPart

        return CloudInitPart(meta_data={"local-hostname": "mine"})


class Misspelt(Current):
    """Names a hook that does not exist."""

    @hookimpl
    def virtlet_rot_disk(self, vm: object) -> None:
        return None


class OtherApi:
    """Was built for another major version of the plugin API."""

    VIRTLET_HOOK_API = 99


class FailsToStart(Current):
    """Cannot say what it is set with."""

    @hookimpl
    def virtlet_options(self) -> Any:
        raise ValueError("no colour is set")


class FailsToConfigure(Current):
    """Does not take its settings."""

    @hookimpl
    def virtlet_configure(self, settings: object, node: object) -> None:
        raise ValueError("no red today")


class Exits(Current):
    """Wants the manager to end."""

    @hookimpl
    def virtlet_admit_pod(self, pod: object) -> None:
        raise SystemExit(3)


class Spoilt(Current):
    """Adds to the launch what is no text."""

    @hookimpl
    def virtlet_launch(self, machine: object) -> Any:
        from virtlet.model.launch import LaunchPart

        numbers: Any = (1, 2)
        return LaunchPart(arguments=numbers)


class NoXml(Current):
    """Puts into the document what no document can hold."""

    @hookimpl
    def virtlet_customize_domain(self, machine: object, domain: Any) -> None:
        domain.set("x", 5)
