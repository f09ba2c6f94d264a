"""What CNI plugins are told of a pod: CNI_ARGS and the capabilities of CNI's conventions."""

from typing import Any

from virtlet.model.pod import Pod
from virtlet.plugins.network_cni.options import EGRESS, INGRESS

WISHES = frozenset({"portMappings", "bandwidth"})
"""Capabilities that a pod asks for; the others just tell of it."""

_BURST = 2**32 - 1
"""Bits a rate may be exceeded by at once: as much as the bandwidth plugin takes."""


def arguments(pod: Pod) -> dict[str, str]:
    """CNI_ARGS, with the names that Kubernetes runtimes agree on."""
    metadata = pod.config.metadata
    return {
        "IgnoreUnknown": "1",
        "K8S_POD_NAMESPACE": metadata.namespace,
        "K8S_POD_NAME": metadata.name,
        "K8S_POD_INFRA_CONTAINER_ID": pod.id,
        "K8S_POD_UID": metadata.uid,
    }


def capabilities(pod: Pod) -> dict[str, Any]:
    """Values for every capability that this pod has something to say to."""
    config = pod.config
    values: dict[str, Any] = {}
    mappings = [
        {
            "hostPort": mapping.host_port,
            "containerPort": mapping.container_port,
            "protocol": mapping.protocol.lower(),
            "hostIP": mapping.host_ip,
        }
        for mapping in config.port_mappings
        if mapping.host_port
    ]
    if mappings:
        values["portMappings"] = mappings
    bandwidth = _bandwidth(pod)
    if bandwidth:
        values["bandwidth"] = bandwidth
    if config.dns.servers or config.dns.searches or config.dns.options:
        values["dns"] = {
            "servers": list(config.dns.servers),
            "searches": list(config.dns.searches),
            "options": list(config.dns.options),
        }
    if config.cgroup_parent:
        values["cgroupPath"] = config.cgroup_parent
    if config.annotations:
        values["io.kubernetes.cri.pod-annotations"] = dict(config.annotations)
    return values


def _bandwidth(pod: Pod) -> dict[str, int]:
    rates: dict[str, int] = {}
    for direction, rate in (("ingress", INGRESS.of(pod)), ("egress", EGRESS.of(pod))):
        if rate:
            rates[f"{direction}Rate"] = rate
            rates[f"{direction}Burst"] = _BURST
    return rates
