"""A routed tap per pod: the node at one end, the guest at the other, nothing in between."""

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
    field="exampleSubnet",
    flag="--example-subnet",
    env="VIRTLET_EXAMPLE_SUBNET",
    kind=Kind(name="IPv4 network", parse=IPv4Network),
    default="10.78.0.0/16",
    help="Where the example network plugin takes a /30 for every pod from.",
)

MTU = 1500


class Plugin:
    """Gives pods a tap of the node's own namespace."""

    VIRTLET_HOOK_API = 1

    @hookimpl
    def virtlet_options(self) -> Sequence[Option[Any]]:
        """The subnet."""
        return [SUBNET]

    @hookimpl
    def virtlet_configure(self, settings: Settings, node: Node) -> None:
        """Remember the subnet, and make the directory of what is taken of it."""
        self._subnet = settings[SUBNET]
        self._taken: Path = node.state_dir("example_network")
        self._taken.mkdir(parents=True, exist_ok=True)

    @hookimpl
    def virtlet_setup_network(self, pod: Pod) -> Network:
        """Take a /30 and make a tap with its first address."""
        self.virtlet_teardown_network(pod, None)  # whatever a crash left
        node_end, guest_end = list(self._take(pod).hosts())
        tap = tap_of(pod)
        with Links() as links:
            links.add_tap(tap)
            links.add_address(tap, f"{node_end}/30")
            links.set(tap, mtu=MTU, up=True)
        nic = Nic(
            name="eth0",
            mac="02:" + ":".join(pod.id[i : i + 2] for i in range(0, 10, 2)),
            mtu=MTU,
            addresses=(f"{guest_end}/30",),
            routes=(Route(destination="0.0.0.0/0", gateway=str(node_end)),),
            device=tap,
        )
        return Network(netns=None, nics=(nic,), dns=pod.config.dns)

    @hookimpl
    def virtlet_teardown_network(self, pod: Pod, network: Network | None) -> None:
        """Remove the tap and give the /30 back; both are known by the pod's id."""
        with Links() as links:
            links.delete(tap_of(pod))
        for path in self._taken.iterdir():
            with contextlib.suppress(FileNotFoundError):  # another pod's, given back meanwhile
                if os.readlink(path) == pod.id:
                    path.unlink()

    def _take(self, pod: Pod) -> IPv4Network:
        """A /30 that no other pod has; a symbolic link is made by one taker only."""
        for part in self._subnet.subnets(new_prefix=30):
            with contextlib.suppress(FileExistsError):
                (self._taken / str(part.network_address)).symlink_to(pod.id)
                return part
        raise ResourceExhausted(f"exampleSubnet {self._subnet} has no /30 left")


def tap_of(pod: Pod) -> str:
    """The pod's tap; interface names end at 15 characters."""
    return f"vt{pod.id[:13]}"
