"""The hooks of the built-in network plugin."""

import logging
from collections.abc import Sequence
from typing import Any

from virtlet import hookimpl
from virtlet.errors import FailedPrecondition, VirtletError
from virtlet.model.launch import LaunchPart
from virtlet.model.network import Network
from virtlet.model.node import Node
from virtlet.model.option import Annotation, Option, Settings
from virtlet.model.pod import Pod
from virtlet.model.vm import Machine
from virtlet.plugins.network_cni.admission import check
from virtlet.plugins.network_cni.health import Health
from virtlet.plugins.network_cni.options import (
    CALICO_SUBNET_SIZE,
    CNI_BIN_DIR,
    CNI_CONF_DIR,
    EGRESS,
    ENABLE_SRIOV,
    INGRESS,
)
from virtlet.plugins.network_cni.pod_network import PodNetworks
from virtlet.plugins.network_cni.state import StateStore
from virtlet.plugins.network_cni.supervisor import Supervisor

_log = logging.getLogger(__name__)


class Plugin:
    """Pod networks by CNI."""

    VIRTLET_HOOK_API = 1

    networks: PodNetworks
    _health: Health
    _supervisor: Supervisor | None = None

    @hookimpl
    def virtlet_options(self) -> Sequence[Option[Any]]:
        """Where CNI's plugins and configuration are, and Calico's subnet size."""
        return (CNI_BIN_DIR, CNI_CONF_DIR, CALICO_SUBNET_SIZE, ENABLE_SRIOV)

    @hookimpl
    def virtlet_annotations(self) -> Sequence[Annotation[Any]]:
        """Kubernetes' own annotations for bandwidth."""
        return (INGRESS, EGRESS)

    @hookimpl
    def virtlet_configure(self, settings: Settings, node: Node) -> None:
        """Take the settings, and say in the log what the node lacks."""
        if settings[ENABLE_SRIOV]:
            raise FailedPrecondition(
                "SR-IOV virtual functions cannot be passed to guests yet: take enableSriov "
                f"({ENABLE_SRIOV.flag}, {ENABLE_SRIOV.env}) out of the settings"
            )
        self._health = Health(settings[CNI_BIN_DIR], settings[CNI_CONF_DIR])
        self._supervisor = Supervisor()
        self.networks = PodNetworks(
            plugin_directory=settings[CNI_BIN_DIR],
            configuration_directory=settings[CNI_CONF_DIR],
            calico_subnet_size=settings[CALICO_SUBNET_SIZE],
            namespaces=node.run_dir / "netns",
            store=StateStore(node.state_dir("network_cni")),
            supervisor=self._supervisor,
        )
        try:
            self._health.find_all()
        except VirtletError as error:
            # No error yet: the network add-on of a new node comes as a pod.
            _log.warning("pods get no network until this is mended: %s", error)

    @hookimpl
    def virtlet_reconcile(self, pods: Sequence[Pod]) -> None:
        """Keep the DHCP servers of these pods running, and take down all other networks."""
        self.networks.adopt({pod.id for pod in pods})

    @hookimpl
    def virtlet_shutdown(self) -> None:
        """Leave the DHCP servers to themselves."""
        if self._supervisor is not None:
            self._supervisor.close()
            self._supervisor = None

    @hookimpl
    def virtlet_network_status(self) -> Sequence[str]:
        """Whether there is a usable network."""
        return self._health.problems()

    @hookimpl
    def virtlet_admit_pod(self, pod: Pod) -> None:
        """Refuse names and addresses that are none."""
        check(pod)

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
        """All of it backwards; what is to be undone is known from our own notes."""
        self.networks.take_down(pod)

    @hookimpl
    def virtlet_launch(self, machine: Machine) -> LaunchPart | None:
        """Check a network that is ours; the hypervisor connects its NICs."""
        pod = machine.vm.pod
        if self.networks.made(pod.id):
            self.networks.check(pod, machine.network)
        return None
