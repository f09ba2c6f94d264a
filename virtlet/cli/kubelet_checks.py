"""The kubelet, its runtime's socket and the CRI proxy on this node; checks of `virtlet doctor`."""

import re
from collections.abc import Callable, Iterable, Iterator

from criproxy.kubelet_node import Kubelet
from criproxy.kubelet_node import Node as Files
from virtlet.cli.findings import FAULT, NOTE, OK, Finding
from virtlet.cli.node_checks import Node
from virtlet.core.config import options

OLDEST, NEWEST = (1, 33), (1, 37)
"""Kubelets that Virtlet is made for."""
PROXY = "/run/criproxy/criproxy.sock"


def kubelet(node: Node) -> Iterator[Finding]:
    """The kubelet's version, the runtime it speaks to, and its cgroup driver."""
    found = Files(node.root).kubelet()
    if found.unit is None:
        remedy = "install it and join the node to a cluster; `virtlet run` tries VMs without"
        yield Finding("kubelet", NOTE, "there is no kubelet.service on this node", remedy)
        return
    yield from _version(node)
    yield from _endpoint(node, found)
    ours = node.config[options.CGROUP_DRIVER]
    if found.cgroup_driver and found.cgroup_driver != ours:
        remedy = f"set cgroupDriver: {found.cgroup_driver}"
        text = f"the kubelet's cgroupDriver is {found.cgroup_driver}, Virtlet's {ours}"
        yield Finding("kubelet", FAULT, text, remedy)


def _version(node: Node) -> Iterator[Finding]:
    said = node.probes.run(["kubelet", "--version"])
    match = re.search(r"v(\d+)\.(\d+)\.\S+", said)
    if match is None:
        yield Finding("kubelet", NOTE, "the kubelet does not say its version")
        return
    version = int(match[1]), int(match[2])
    text = f"kubelet {match[0]}"
    if version < OLDEST:
        remedy = f"upgrade it to {'.'.join(map(str, OLDEST))} or later"
        yield Finding("kubelet", FAULT, f"{text} is older than what Virtlet is made for", remedy)
    elif version > NEWEST:
        remedy = f"tried up to {'.'.join(map(str, NEWEST))}"
        yield Finding("kubelet", NOTE, f"{text} is newer than what was tried", remedy)
    else:
        yield Finding("kubelet", OK, text)


def _endpoint(node: Node, found: Kubelet) -> Iterator[Finding]:
    ours = str(node.config[options.LISTEN])
    endpoint = found.endpoint
    where = f"{endpoint or 'its default'}{f' ({found.source})' if found.source else ''}"
    if endpoint == ours:
        text = f"the kubelet speaks to Virtlet alone, {where}: pods of containers cannot run"
        yield Finding("kubelet", OK, text)
    elif endpoint == PROXY:
        yield Finding("kubelet", OK, f"the kubelet speaks to the CRI proxy, {where}")
        if not node.path(PROXY).exists():
            remedy = "systemctl start criproxy; `criproxy-setup --check` says more"
            yield Finding("kubelet", FAULT, f"nobody serves on {PROXY}", remedy)
    else:
        yield Finding(
            "kubelet",
            FAULT,
            f"the kubelet speaks to {where}, so Virtlet gets no pods",
            "`criproxy-setup` puts the CRI proxy between them (--dry-run only says how); "
            f"a node for VMs alone takes --container-runtime-endpoint=unix://{ours}",
        )


def containerd(node: Node) -> Iterator[Finding]:
    """The runtime of ordinary pods, and its cgroup driver."""
    files = Files(node.root)
    found = files.kubelet()
    if found.endpoint == str(node.config[options.LISTEN]):
        return  # a node for VMs alone
    primary = files.primary(found)
    if node.path(primary).exists():
        yield Finding("containerd", OK, f"{primary} is there")
    else:
        remedy = "start containerd (systemctl start containerd), or CRI-O"
        level = FAULT if found.unit else NOTE
        yield Finding("containerd", level, f"{primary} is not there", remedy)
    theirs = files.containerd_driver()
    if theirs and found.cgroup_driver and theirs != found.cgroup_driver:
        wanted = str(found.cgroup_driver == "systemd").lower()
        remedy = f"set SystemdCgroup = {wanted} in /etc/containerd/config.toml"
        text = f"containerd's cgroup driver is {theirs}, the kubelet's {found.cgroup_driver}"
        yield Finding("containerd", FAULT, text, remedy)


CHECKS: tuple[tuple[str, Callable[[Node], Iterable[Finding]]], ...] = (
    ("kubelet", kubelet),
    ("containerd", containerd),
)
"""Name of a check, and the function that makes it."""
