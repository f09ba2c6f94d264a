"""Pods get a /30 of a subnet, and a tap between the node and the guest."""

import contextlib
import os
from collections.abc import Sequence
from ipaddress import IPv4Network
from pathlib import Path
from typing import Any

from virtlet.api import (
    Kind,
    Links,
    Network,
    Nic,
    Node,
    Option,
    Pod,
    ResourceExhausted,
    Route,
    Settings,
    hookimpl,
)

SUBNET: Option[IPv4Network] = Option(
    field="newPluginSubnet",
    flag="--new-plugin-subnet",
    env="NEW_PLUGIN_SUBNET",
    kind=Kind(name="IPv4 network", parse=IPv4Network),
    default="10.79.0.0/16",
    help="where every pod's /30 is taken from",
)


class Plugin:
    """Makes a network for a pod, and takes it away."""

    VIRTLET_HOOK_API = 1

    @hookimpl
    def virtlet_options(self) -> Sequence[Option[Any]]:
        """Declare the subnet."""
        return [SUBNET]

    @hookimpl
    def virtlet_configure(self, settings: Settings, node: Node) -> None:
        """Remember the subnet, and make a directory for what is taken of it."""
        self._subnet = settings[SUBNET]
        self._taken: Path = node.state_dir("new_plugin")
        self._taken.mkdir(parents=True, exist_ok=True)

    @hookimpl
    def virtlet_setup_network(self, pod: Pod) -> Network | None:
        """Make the tap; the hypervisor connects it by what the NIC says."""
        self.virtlet_teardown_network(pod, None)  # what a crash may have left
        node_end, guest_end = list(self._take(pod).hosts())
        tap = tap_of(pod)
        with Links() as links:
            links.add_tap(tap)
            links.add_address(tap, f"{node_end}/30")
            links.set(tap, up=True)
        nic = Nic(
            name="eth0",
            mac="02:" + ":".join(pod.id[i : i + 2] for i in range(0, 10, 2)),
            mtu=1500,
            addresses=(f"{guest_end}/30",),
            routes=(Route(destination="0.0.0.0/0", gateway=str(node_end)),),
            device=tap,
        )
        return Network(netns=None, nics=(nic,), dns=pod.config.dns)

    @hookimpl
    def virtlet_teardown_network(self, pod: Pod, network: Network | None) -> None:
        """Undo it all by the pod's id alone; `network` is None after a crash or an error."""
        with Links() as links:
            links.delete(tap_of(pod))
        for path in self._taken.iterdir():
            with contextlib.suppress(FileNotFoundError):
                if os.readlink(path) == pod.id:
                    path.unlink()

    def _take(self, pod: Pod) -> IPv4Network:
        """A /30 that no other pod has: only one pod can make its symbolic link."""
        for part in self._subnet.subnets(new_prefix=30):
            with contextlib.suppress(FileExistsError):
                (self._taken / str(part.network_address)).symlink_to(pod.id)
                return part
        raise ResourceExhausted(f"newPluginSubnet {self._subnet} has no /30 left")


def tap_of(pod: Pod) -> str:
    """The pod's tap; the name of an interface has at most 15 characters."""
    return f"np{pod.id[:13]}"
