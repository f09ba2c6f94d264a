"""A network namespace in a guest's place, so that a pod's path can be measured at full speed.

It has the guest's MAC and addresses and hangs on the pod's bridge by a cable of its own, where
the tap of an emulator would: all that is between the node and the guest stays as it is.
"""

import json
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from attrs import frozen

from bench.node import Node
from virtlet.cri import api_pb2 as cri
from virtlet.host import netns

_BRIDGE = "vbr0"
"""The bridge of a pod's first NIC, in the pod's namespace."""


@frozen
class StandIn:
    """Where a guest would be."""

    pod: str
    address: str
    netns: Path


@contextmanager
def stand_in(node: Node) -> Iterator[StandIn]:
    """A pod without a VM, and somebody at its address."""
    manifest = node.manifest("stand-in")
    pod = node.client.run_pod(manifest.pod)
    request = cri.PodSandboxStatusRequest(pod_sandbox_id=pod, verbose=True)
    reply = node.client.call("PodSandboxStatus", request)
    info = json.loads(reply.info["info"])
    place = node.playground.directory / "stand-in"
    netns.create(place)
    try:
        nic = info["interfaces"][0]
        _connect(place, info["netns"], nic["mac"], nic["addresses"][0])
        yield StandIn(pod, reply.status.network.ip, place)
    finally:
        netns.delete(place)
        node.client.stop_pod(pod)
        node.client.remove_pod(pod)


def _connect(place: Path, pod: str, mac: str, address: str) -> None:
    inside = f"""
        ip link set lo up
        ip link add eth0 address {mac} type veth peer name cable0 netns {pod}
        ip address add {address} dev eth0
        ip link set eth0 up
    """
    _run(place, inside)
    _run(Path(pod), f"ip link set cable0 master {_BRIDGE} up")


def _run(place: Path, script: str) -> None:
    subprocess.run(["nsenter", f"--net={place}", "sh", "-ec", script], check=True)
