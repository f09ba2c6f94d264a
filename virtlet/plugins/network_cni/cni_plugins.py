"""Running CNI plugins: one of them, or a network's one after the other (ADD, DEL, CHECK).

Source: sections 2 and 3 of the CNI specification, and the capabilities of CNI's conventions. GC is
not among the operations: it removes what the caller does not name, and on a node with another
container runtime the pods of that runtime are in the same networks.
"""

import json
import os
import signal
import subprocess
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, ClassVar

from attrs import frozen

from virtlet.errors import DeadlineExceeded, FailedPrecondition, VirtletError
from virtlet.model.option import PATH, Annotation, Kind, Option
from virtlet.model.pod import Pod
from virtlet.model.quantity import parse_quantity
from virtlet.plugins.network_cni import cni_result
from virtlet.plugins.network_cni.cni_config import (
    NetworkList,
    PluginConfig,
    at_least,
    why_unreadable,
)
from virtlet.plugins.network_cni.cni_result import IFNAME, CniResult

CNI_BIN_DIR: Option[Path] = Option(
    field="cniPluginDir",
    flag="--cni-bin-dir",
    env="VIRTLET_CNI_PLUGIN_DIR",
    kind=PATH,
    default="/opt/cni/bin",
    help="Directory of the CNI plugins.",
)


def _bits_per_second(text: str) -> int:
    # The bounds are the kubelet's (pkg/util/bandwidth).
    rate = parse_quantity(text)
    if not 10**3 <= rate <= 10**15:
        raise ValueError(f"{text!r} is not between 1k and 1P bits per second")
    return int(rate)


_RATE: Kind[int] = Kind(name="bits per second", parse=_bits_per_second)

INGRESS: Annotation[int] = Annotation(
    name="kubernetes.io/ingress-bandwidth",
    kind=_RATE,
    default=0,
    help="Traffic to the pod is kept below this, where the CNI configuration has a bandwidth "
    "plugin.",
)

EGRESS: Annotation[int] = Annotation(
    name="kubernetes.io/egress-bandwidth",
    kind=_RATE,
    default=0,
    help="Traffic from the pod is kept below this, where the CNI configuration has a bandwidth "
    "plugin.",
)

TRY_AGAIN = 11
"""The error code of a problem that passes."""

_MEANINGS = {
    1: "incompatible CNI version",
    2: "unsupported field in the configuration",
    3: "container unknown",
    4: "wrong environment variables",
    5: "input/output failure",
    6: "failed to decode",
    7: "invalid network configuration",
    TRY_AGAIN: "try again later",
    50: "the plugin is not available",
    51: "the plugin is not available, and pods may have lost connectivity",
}
"""Error codes that the specification knows."""


class CniError(VirtletError):
    """A CNI plugin failed, or its answer cannot be read.

    Args:
        plugin: type of the plugin.
        command: ADD, DEL, CHECK, …
        problem: what happened.
        code: the plugin's error code; 0 when it gave none.
    """

    status: ClassVar[str] = "UNAVAILABLE"

    def __init__(self, plugin: str, command: str, problem: str, code: int = 0) -> None:
        self.plugin = plugin
        self.command = command
        self.code = code
        super().__init__(f"CNI plugin {plugin} failed to {command}: {problem}")


def find(directory: Path, plugin: str) -> Path:
    """The executable of a plugin.

    Raises:
        FailedPrecondition: it is missing, or its directory cannot be entered.
    """
    path = directory / plugin
    try:
        os.stat(f"{directory}/.")
    except OSError as error:
        raise FailedPrecondition(
            f"cannot look into the directory of CNI's plugins {directory}: "
            f"{why_unreadable(directory, error, 'the CNI plugins', CNI_BIN_DIR.flag)}"
        ) from None
    if not os.access(path, os.X_OK) or not path.is_file():
        raise FailedPrecondition(f"CNI plugin {plugin} is missing in {directory}: install it")
    return path


def invoke(
    directory: Path,
    plugin: str,
    command: str,
    parameters: Mapping[str, str],
    config: Mapping[str, Any],
    *,
    timeout: float,
) -> Any:
    """Run a plugin.

    Args:
        directory: where plugins are; also where they find the plugins they delegate to.
        plugin: its type.
        command: ADD, DEL, CHECK, STATUS, GC or VERSION.
        parameters: CNI_CONTAINERID, CNI_NETNS, CNI_IFNAME and CNI_ARGS, as the command needs.
        config: the execution configuration it reads.
        timeout: seconds before it is killed.

    Returns:
        The JSON document it printed, or None when it printed nothing.

    Raises:
        FailedPrecondition: the plugin is missing.
        DeadlineExceeded: it took longer than `timeout`.
        CniError: it failed or printed something else.
    """
    path = find(directory, plugin)
    # Plugins may want what the node's administrator gave the manager, but not its settings.
    others = (item for item in os.environ.items() if not item[0].startswith(("CNI_", "VIRTLET_")))
    environment = dict(others)
    environment.update(parameters, CNI_COMMAND=command, CNI_PATH=str(directory))
    try:
        process = subprocess.Popen(
            [path],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=environment,
            start_new_session=True,
        )
    except OSError as error:
        raise CniError(plugin, command, f"cannot run {path}: {error.strerror}") from None
    with process:
        try:
            output, log = process.communicate(json.dumps(config).encode(), timeout)
        except subprocess.TimeoutExpired:
            # The whole group: plugins that it delegated to hold our pipes open.
            os.killpg(process.pid, signal.SIGKILL)
            raise DeadlineExceeded(
                f"CNI plugin {plugin} did not finish {command} within {timeout:g} s"
            ) from None
    if process.returncode != 0:
        raise _error(plugin, command, process.returncode, output, log)
    if not output.strip():
        return None
    try:
        return json.loads(output)
    except (ValueError, RecursionError):
        raise CniError(plugin, command, "it printed no valid JSON") from None


def _error(plugin: str, command: str, status: int, output: bytes, log: bytes) -> CniError:
    """What a failed plugin says of itself."""
    try:
        said = json.loads(output)
        code = int(said.get("code", 0))
        message = ": ".join(str(said[key]) for key in ("msg", "details") if said.get(key))
    except (ValueError, TypeError, AttributeError, RecursionError):
        code, message = 0, ""
    if not code and not message:
        end = (log or output).decode(errors="replace").strip()[-500:]
        return CniError(plugin, command, f"status {status}: {end or 'it said nothing'}")
    meaning = _MEANINGS.get(code)
    problem = f"code {code}" + (f" ({meaning})" if meaning else "")
    return CniError(plugin, command, f"{problem}: {message[:1000] or 'it gave no message'}", code)


WISHES = frozenset({"portMappings", "bandwidth"})
"""Capabilities that a pod asks for; the others only describe it."""

_BURST = 2**32 - 1
"""Bits a rate may be exceeded by at once: as much as the bandwidth plugin takes."""

_TIMEOUT = 90.0
"""Seconds for one plugin; the kubelet gives RunPodSandbox four minutes."""
_CHECK_TIMEOUT = 10.0
"""Likewise; a VM waits for it."""


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
    """Capability to the pod's value for it, where the pod has one."""
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
class CniAttachment:
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
        config = self.network.execution_config(plugin)
        wanted = {k: v for k, v in self.capabilities.items() if k in plugin.capabilities}
        if wanted:
            config["runtimeConfig"] = {**config.get("runtimeConfig", {}), **wanted}
        if previous is not None:
            config["prevResult"] = previous
        return config


def add(directory: Path, attachment: CniAttachment, done: Callable[[CniResult], None]) -> CniResult:
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
            last = cni_result.parse(document, attachment.network.version)
        except ValueError as error:
            raise CniError(plugin.type, "ADD", f"its result is wrong: {error}") from None
        done(last)
    assert last is not None  # a network has at least one plugin
    return last


def delete(
    directory: Path, attachment: CniAttachment, previous: Mapping[str, Any] | None, *, netns: bool
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


def check(directory: Path, attachment: CniAttachment, previous: Mapping[str, Any]) -> None:
    """CHECK: ask all plugins of a checkable network whether what they made is still in order.

    Raises:
        CniError: a plugin says no.
        VirtletError: a plugin is missing, or does not answer in time.
    """
    for plugin in attachment.network.plugins:
        # Debian 13's portmap (1.1.1) looks for each family's rules among the other's, too, and
        # never finds them: https://github.com/containernetworking/plugins/issues/819
        if plugin.type == "portmap":
            continue
        config = attachment.execution_config(plugin, _with_gateways(previous))
        parameters = attachment.parameters()
        invoke(directory, plugin.type, "CHECK", parameters, config, timeout=_CHECK_TIMEOUT)


def _with_gateways(result: Mapping[str, Any]) -> dict[str, Any]:
    """A result whose routes say their gateways.

    CNI's own plugins make a route without one by the gateway of its family's address, and look for
    one without a gateway later (1.1.1).
    """
    gateways: dict[bool, str] = {}
    for address in result.get("ips") or ():
        if address.get("gateway"):
            gateways.setdefault(":" in address["gateway"], address["gateway"])
    routes = []
    for route in result.get("routes") or ():
        gateway = gateways.get(":" in route["dst"])
        # Of a default route they compare no gateway.
        silent = not route.get("gw") and not route["dst"].endswith("/0")
        routes.append({**route, "gw": gateway} if silent and gateway else route)
    return {**result, "routes": routes} if routes else dict(result)
