"""The hooks of the built-in network plugin."""

import logging
import re
from collections.abc import Sequence
from typing import Any

from virtlet import hookimpl
from virtlet.errors import InvalidArgument, VirtletError
from virtlet.model.launch import LaunchPart
from virtlet.model.network import Network
from virtlet.model.node import Node
from virtlet.model.option import BOOLEAN, Annotation, Option, Settings
from virtlet.model.pod import Pod
from virtlet.model.strict_ip import ip_address
from virtlet.model.vm import Machine
from virtlet.plugins.network_cni.cni_config import CNI_CONF_DIR
from virtlet.plugins.network_cni.cni_plugins import CNI_BIN_DIR, EGRESS, INGRESS
from virtlet.plugins.network_cni.cni_result import DOMAIN
from virtlet.plugins.network_cni.guest_view import CALICO_SUBNET_SIZE, NETWORKS
from virtlet.plugins.network_cni.network_state import StateStore
from virtlet.plugins.network_cni.passed_nics import Hardware
from virtlet.plugins.network_cni.pod_network import ATTACHMENT, PodNetworks
from virtlet.plugins.network_cni.readiness import NetworkReadiness
from virtlet.plugins.network_cni.supervisor import Supervisor

_log = logging.getLogger(__name__)

ENABLE_SRIOV: Option[bool] = Option(
    field="enableSriov",
    flag="--enable-sriov",
    env="VIRTLET_SRIOV_SUPPORT",
    kind=BOOLEAN,
    default="false",
    help="Guests have the PCI devices that CNI gives their pods as NICs: SR-IOV virtual functions.",
)

_HOST = re.compile(r"[A-Za-z0-9_]([A-Za-z0-9_.-]{0,251}[A-Za-z0-9_])?")
_WORD = re.compile(r"[A-Za-z0-9_.:@-]*")


class Plugin:
    """Pod networks by CNI.

    Args:
        hardware: the node's, another one in tests.
    """

    VIRTLET_HOOK_API = 1

    networks: PodNetworks
    _node: Node
    _readiness: NetworkReadiness
    _supervisor: Supervisor | None = None

    def __init__(self, hardware: Hardware | None = None) -> None:
        self._hardware = hardware or Hardware()

    @hookimpl
    def virtlet_options(self) -> Sequence[Option[Any]]:
        """Where CNI's plugins and configuration are, and Calico's subnet size."""
        return (CNI_BIN_DIR, CNI_CONF_DIR, CALICO_SUBNET_SIZE, ENABLE_SRIOV)

    @hookimpl
    def virtlet_annotations(self) -> Sequence[Annotation[Any]]:
        """The bandwidth annotations of Kubernetes, and NICs' order and attachment."""
        return (INGRESS, EGRESS, ATTACHMENT, NETWORKS)

    @hookimpl
    def virtlet_configure(self, settings: Settings, node: Node) -> None:
        """Take the settings, and log what the node lacks."""
        self._node = node
        self._readiness = NetworkReadiness(settings[CNI_BIN_DIR], settings[CNI_CONF_DIR])
        self._supervisor = Supervisor()
        self.networks = PodNetworks(
            plugin_directory=settings[CNI_BIN_DIR],
            configuration_directory=settings[CNI_CONF_DIR],
            calico_subnet_size=settings[CALICO_SUBNET_SIZE],
            namespaces=node.run_dir / "netns",
            store=StateStore(node.state_dir("network_cni")),
            supervisor=self._supervisor,
            hardware=self._hardware if settings[ENABLE_SRIOV] else None,
        )
        try:
            self._readiness.find_all()
        except VirtletError as error:
            # No error: the network add-on of a new node comes as a pod.
            _log.warning("pods get no network until this is mended: %s", error)

    @hookimpl
    def virtlet_reconcile(self, pods: Sequence[Pod]) -> None:
        """Keep the DHCP servers of these pods running, and take down all other networks."""
        self.networks.adopt({pod.id for pod in pods})

    @hookimpl
    def virtlet_shutdown(self) -> None:
        """Stop watching the DHCP servers, which go on."""
        if self._supervisor is not None:
            self._supervisor.close()
            self._supervisor = None

    @hookimpl
    def virtlet_network_status(self) -> Sequence[str]:
        """Whether there is a usable network."""
        return self._readiness.problems()

    @hookimpl
    def virtlet_admit_pod(self, pod: Pod) -> None:
        """Refuse malformed names, addresses and ports."""
        _check(pod)

    @hookimpl
    def virtlet_setup_network(self, pod: Pod) -> Network:
        """Namespace and CNI's ADD."""
        return self.networks.set_up(pod)

    @hookimpl
    def virtlet_serve_network(self, pod: Pod, network: Network) -> None:
        """Bridges, taps and the DHCP server."""
        self.networks.serve(pod, network)

    @hookimpl
    def virtlet_teardown_network(self, pod: Pod, network: Network | None) -> None:
        """Undo all of it in reverse order, going by the plugin's own state."""
        self.networks.take_down(pod)

    @hookimpl
    def virtlet_launch(self, machine: Machine) -> LaunchPart | None:
        """Check a network of this plugin; the hypervisor connects its NICs."""
        vm, pod = machine.vm, machine.vm.pod
        if not self.networks.made(pod.id):
            return None
        self.networks.check(pod, machine.network)
        # Whatever the setting says by now.
        return self._hardware.launch_part(machine.network, vm.directory, *self._node.user_of(vm))


def _check(pod: Pod) -> None:
    """Look at the names, addresses and ports of a pod.

    They reach the configuration of a DHCP server and the environment of CNI's plugins, where a
    line break or a separator would mean something else.

    Raises:
        InvalidArgument: one is wrong; the message names it.
    """
    config = pod.config
    metadata = config.metadata
    for what, text in (
        ("name", metadata.name),
        ("namespace", metadata.namespace),
        ("uid", metadata.uid),
    ):
        if not _WORD.fullmatch(text):
            raise InvalidArgument(f"pod metadata: {what} {text!r} has characters no {what} has")
    hostname = config.hostname or metadata.name
    if not _HOST.fullmatch(hostname):
        raise InvalidArgument(f"hostname {hostname!r} is not a host name")
    for server in config.dns.servers:
        try:
            ip_address(server)
        except ValueError:
            raise InvalidArgument(f"DNS server {server!r} is not an address") from None
    for domain in config.dns.searches:
        if not DOMAIN.fullmatch(domain):
            raise InvalidArgument(f"DNS search domain {domain!r} is not a domain")
    for mapping in config.port_mappings:
        if not (0 < mapping.container_port < 65536 and 0 <= mapping.host_port < 65536):
            raise InvalidArgument(
                f"port mapping {mapping.host_port} to {mapping.container_port}: no such port"
            )
