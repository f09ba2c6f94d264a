"""Running a network's plugins one after the other, and what they are told of a pod.

Source: section 3 of the CNI specification, and the capabilities of CNI's conventions. GC is not
among the operations: it removes whatever the caller does not name, and on a node with another
container runtime that one's pods are in the same networks.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from attrs import frozen

from virtlet.errors import VirtletError
from virtlet.model.pod import Pod
from virtlet.plugins.network_cni import result
from virtlet.plugins.network_cni.configuration import (
    SUPPORTED,
    NetworkList,
    PluginConfig,
    at_least,
)
from virtlet.plugins.network_cni.execution import CniError, invoke
from virtlet.plugins.network_cni.options import EGRESS, INGRESS
from virtlet.plugins.network_cni.result import CniResult

WISHES = frozenset({"portMappings", "bandwidth"})
"""Capabilities that a pod asks for; the others just tell of it."""

_BURST = 2**32 - 1
"""Bits a rate may be exceeded by at once: as much as the bandwidth plugin takes."""

IFNAME = "eth0"
"""Name of a pod's interface, as everywhere in Kubernetes."""
_TIMEOUT = 90.0
"""Seconds for one plugin; the kubelet gives RunPodSandbox four minutes."""
_CHECK_TIMEOUT = 10.0
"""Likewise; a VM that waits for its start is worth more than the answer."""


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


@frozen
class Attachment:
    """A pod's place in a network."""

    network: NetworkList
    container_id: str
    netns: Path
    arguments: Mapping[str, str]
    """CNI_ARGS."""
    capabilities: Mapping[str, Any]
    """Capability to its value, for the plugins that declare it."""

    def parameters(self, *, netns: bool = True) -> dict[str, str]:
        """The environment of its plugins."""
        return {
            "CNI_CONTAINERID": self.container_id,
            "CNI_NETNS": str(self.netns) if netns else "",
            "CNI_IFNAME": IFNAME,
            "CNI_ARGS": ";".join(f"{name}={value}" for name, value in self.arguments.items()),
        }

    def execution_config(
        self, plugin: PluginConfig, previous: Mapping[str, Any] | None
    ) -> dict[str, Any]:
        """What a plugin reads: its configuration with the network's and the pod's values."""
        config = _execution_config(self.network, plugin)
        wanted = {k: v for k, v in self.capabilities.items() if k in plugin.capabilities}
        if wanted:
            config["runtimeConfig"] = {**config.get("runtimeConfig", {}), **wanted}
        if previous is not None:
            config["prevResult"] = previous
        return config


def _execution_config(network: NetworkList, plugin: PluginConfig) -> dict[str, Any]:
    return {
        **{key: value for key, value in plugin.document.items() if key != "capabilities"},
        "name": network.name,
        "cniVersion": network.version,
    }


def add(directory: Path, attachment: Attachment, done: Callable[[CniResult], None]) -> CniResult:
    """ADD: run all plugins in order.

    Args:
        directory: where plugins are.
        attachment: what to add.
        done: told of each plugin's result before the next one runs.

    Returns:
        The last plugin's result.

    Raises:
        CniError: a plugin failed or gave a bad result; `delete` undoes what was done.
    """
    last: CniResult | None = None
    for plugin in attachment.network.plugins:
        config = attachment.execution_config(plugin, last.document if last else None)
        document = invoke(
            directory, plugin.type, "ADD", attachment.parameters(), config, timeout=_TIMEOUT
        )
        try:
            last = result.parse(document, attachment.network.version)
        except ValueError as error:
            raise CniError(plugin.type, "ADD", f"its result is wrong: {error}") from None
        done(last)
    assert last is not None  # a network has at least one plugin
    return last


def delete(
    directory: Path, attachment: Attachment, previous: Mapping[str, Any] | None, *, netns: bool
) -> None:
    """DEL: run all plugins in reverse order, also those that ADD never reached. Idempotent.

    Args:
        directory: where plugins are.
        attachment: what to delete, with the configuration it was added with.
        previous: the last result of ADD, if it is known.
        netns: whether the namespace still exists.

    Raises:
        VirtletError: plugins failed; all were run nonetheless.
    """
    if not at_least(attachment.network.version, "0.4.0"):
        previous = None
    errors = []
    for plugin in reversed(attachment.network.plugins):
        config = attachment.execution_config(plugin, previous)
        parameters = attachment.parameters(netns=netns)
        try:
            invoke(directory, plugin.type, "DEL", parameters, config, timeout=_TIMEOUT)
        except VirtletError as error:
            errors.append(error)
    if len(errors) == 1:
        raise errors[0]
    if errors:
        raise VirtletError("; ".join(map(str, errors)))


def check(directory: Path, attachment: Attachment, previous: Mapping[str, Any]) -> None:
    """CHECK: ask all plugins of a checkable network whether what they made is as they made it.

    Raises:
        CniError: a plugin says no.
        VirtletError: a plugin is missing, or does not answer in time.
    """
    for plugin in attachment.network.plugins:
        # Debian 13's portmap (1.1.1) looks for each family's rules among the other's, too, and
        # never finds them: https://github.com/containernetworking/plugins/issues/819
        if plugin.type == "portmap":
            continue
        config = attachment.execution_config(plugin, previous)
        parameters = attachment.parameters()
        invoke(directory, plugin.type, "CHECK", parameters, config, timeout=_CHECK_TIMEOUT)


def versions(directory: Path, plugin: PluginConfig, *, timeout: float) -> tuple[str, ...]:
    """VERSION: which versions of the specification a plugin speaks.

    Raises:
        VirtletError: it does not say.
    """
    document = invoke(
        directory, plugin.type, "VERSION", {}, {"cniVersion": SUPPORTED[-1]}, timeout=timeout
    )
    spoken = document.get("supportedVersions") if isinstance(document, dict) else None
    if not isinstance(spoken, list):
        raise CniError(plugin.type, "VERSION", "it names no supportedVersions")
    return tuple(map(str, spoken))


def status(directory: Path, network: NetworkList, *, timeout: float) -> None:
    """STATUS: ask all plugins whether they could ADD now (specification 1.1 and later).

    Raises:
        VirtletError: one could not, and why.
    """
    if at_least(network.version, "1.1.0"):
        for plugin in network.plugins:
            config = _execution_config(network, plugin)
            invoke(directory, plugin.type, "STATUS", {}, config, timeout=timeout)
