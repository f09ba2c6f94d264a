"""Plugins whose answers are spoilt inside, and who raise what ends processes."""

import asyncio
import os
from typing import Any

from tests.fakes.models import untyped
from tests.fakes.plugins import Current, Raises
from virtlet import hookimpl
from virtlet.model.cloudinit import CloudInitPart
from virtlet.model.flavor import Flavor
from virtlet.model.hypervisor import Hypervisor
from virtlet.model.launch import LaunchFd, LaunchPart


class Spoils(Current):
    """Makes answers with something wrong inside each."""

    @hookimpl
    def virtlet_flavor(self, pod: object, config: object, image: object) -> Any:
        return Flavor(vcpus=untyped("hunter2"))

    @hookimpl
    def virtlet_network_status(self) -> Any:
        return [1]

    @hookimpl
    def virtlet_cloud_init(self, vm: object, volumes: object) -> Any:
        return CloudInitPart(meta_data=untyped(["x"]))

    @hookimpl
    def virtlet_launch(self, machine: object) -> Any:
        return LaunchPart(arguments=untyped((1,)))


class Misuses(Current):
    """Makes models and objects of the API in ways in which they cannot be made."""

    @hookimpl
    def virtlet_flavor(self, pod: object, config: object, image: object) -> Any:
        return untyped(Flavor)(4)

    @hookimpl
    def virtlet_cloud_init(self, vm: object, volumes: object) -> Any:
        return CloudInitPart(**untyped({"hunter2": 1}))

    @hookimpl
    def virtlet_launch(self, machine: object) -> Any:
        return LaunchPart(fds=(untyped(LaunchFd)(name="hunter2"),))

    @hookimpl
    def virtlet_hypervisor(self) -> Any:
        return untyped(Hypervisor)()


class Pipes(Current):
    """Gives an emulator an open descriptor."""

    @hookimpl
    def virtlet_launch(self, machine: object) -> LaunchPart:
        return LaunchPart(fds=(LaunchFd(name="pipe", fd=os.pipe()[0]),))


class SameCode(Raises):
    """Shares its code with another plugin."""


class Exits(Current):
    """Wants the process to end."""

    @hookimpl
    def virtlet_flavor(self, pod: object, config: object, image: object) -> Any:
        raise SystemExit(3)

    @hookimpl
    def virtlet_shutdown(self) -> None:
        raise SystemExit(3)


class Interrupts(Current):
    """Raises what no plugin has to."""

    @hookimpl
    def virtlet_flavor(self, pod: object, config: object, image: object) -> Any:
        raise KeyboardInterrupt

    @hookimpl
    def virtlet_cloud_init(self, vm: object, volumes: object) -> Any:
        raise asyncio.CancelledError
