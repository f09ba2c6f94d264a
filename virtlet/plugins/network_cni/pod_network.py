"""Setting up, checking and taking down the network of one pod, step by step."""

import contextlib
import functools
import logging
import os
import threading
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from attrs import evolve, frozen

from virtlet.errors import FailedPrecondition, PodBroken, VirtletError
from virtlet.host import netns, processes
from virtlet.host.links import open_tap
from virtlet.model.network import Network
from virtlet.model.option import Annotation, choice
from virtlet.model.pod import Pod
from virtlet.plugins.network_cni import bridging, cni_config, cni_plugins, dhcp, guest_view
from virtlet.plugins.network_cni.bridging import BridgedNic
from virtlet.plugins.network_cni.cni_config import NetworkList
from virtlet.plugins.network_cni.cni_plugins import TRY_AGAIN, CniAttachment, CniError
from virtlet.plugins.network_cni.cni_result import CniResult
from virtlet.plugins.network_cni.dhcp import DhcpServer
from virtlet.plugins.network_cni.network_state import PodState, StateStore
from virtlet.plugins.network_cni.passed_nics import Hardware
from virtlet.plugins.network_cni.supervisor import Supervisor

_log = logging.getLogger(__name__)

ATTACHMENT: Annotation[str] = Annotation(
    name="VirtletNicAttachment",
    kind=choice("bridge", "redirect"),
    default="bridge",
    help="How veth interfaces of the pod become NICs; `redirect` leaves them as CNI made them. "
    "Others are always redirected.",
)

_ROUNDS = 5
"""A process may start another one just before it is ended."""
_PATIENCE = 2.0
"""Seconds that interrupted CNI plugins may take to end; they take milliseconds."""


@frozen
class PodNetworks:
    """The networks of this node's pods."""

    plugin_directory: Path
    configuration_directory: Path
    calico_subnet_size: int
    namespaces: Path
    """Directory of the namespaces' files; it has no others."""
    store: StateStore
    supervisor: Supervisor
    hardware: Hardware | None = None
    """The node's PCI devices, where guests may have them."""

    def namespace(self, pod_id: str) -> Path:
        """The file of a pod's namespace."""
        return self.namespaces / pod_id

    def made(self, pod_id: str) -> bool:
        """Whether a pod has a network by this plugin: a state, or a namespace."""
        return self.store.known(pod_id) or self.namespace(pod_id).exists()

    def set_up(self, pod: Pod) -> Network:
        """Make the pod's namespace, and have CNI's plugins fill it.

        Returns:
            The guest's view of it, with the taps that `serve` makes.

        Raises:
            VirtletError: something failed; `take_down` undoes what was done.
        """
        path = self.namespace(pod.id)
        if self.made(pod.id):
            self.take_down(pod)  # an earlier attempt
        values = cni_plugins.capabilities(pod)
        attachment = self._attachment(pod.id, cni_plugins.arguments(pod), values)
        for wish in cni_plugins.WISHES & values.keys() - attachment.network.capabilities:
            # No error: some networks (Cilium's) do it without the capability.
            _log.warning(
                "pod %s asks for %s: %s has no such plugin", pod.name, wish, attachment.network.name
            )
        # Before anything is made: a DEL could not be run either.
        for plugin in attachment.network.plugins:
            for executable in plugin.executables:
                cni_plugins.find(self.plugin_directory, executable)
        state = PodState(attachment)
        self.store.save(pod.id, state)
        netns.create(path)
        netns.inside(path, bridging.prepare)
        result = self._add(pod, state)
        return netns.inside(path, lambda: self._seen_by_guest(pod, path, result))

    def serve(self, pod: Pod, network: Network) -> None:
        """Connect a guest to what `set_up` made, and start its DHCP server.

        Args:
            pod: whose network.
            network: as the guest is to see it.

        Raises:
            VirtletError: something failed; `take_down` undoes what was done.
        """
        state = self.store.load(pod.id)
        if state is None:
            raise VirtletError(f"the state of the network of pod {pod.name} is lost")
        path = self.namespace(pod.id)
        sandbox = netns.inside(path, bridging.read_sandbox)
        lent = self.hardware.plan(sandbox, network) if self.hardware else ()
        state = evolve(state, passed=lent)
        bridged = netns.inside(path, lambda: self._connect(pod, state, network))
        if self.hardware:
            self.hardware.lend(lent, network)
        if not bridged:
            return
        hostname = pod.config.hostname or pod.config.metadata.name
        server = self._server(pod.id)
        server.configure(dhcp.configuration(hostname, network, bridged))
        self.supervisor.start(pod.id, server)

    def take_down(self, pod: Pod) -> None:
        """Undo `set_up`, however far it came. Idempotent.

        Raises:
            VirtletError: CNI's DEL failed; all else is undone, and DEL can be tried again.
        """
        state = self.store.load(pod.id)
        if state is None and self.made(pod.id):
            values = cni_plugins.capabilities(pod)
            state = self._guess(pod.id, cni_plugins.arguments(pod), values)
        self._undo(pod.id, state)

    def check(self, pod: Pod, network: Network) -> None:
        """See whether a VM can have the network; before a further one, CNI is asked too.

        Raises:
            PodBroken: the network is not in order any more.
            FailedPrecondition: a tap is held by another process.
        """
        path = network.netns
        if path is None or not netns.exists(path):
            raise PodBroken(
                f"the network namespace {path} is gone: the pod is stopped; run it again"
            )
        with contextlib.ExitStack() as held:
            for nic in network.nics:
                if nic.kind != "tap":
                    continue
                # As long as the taps are held here, no other VM of the pod can start.
                several = nic.queues > 1
                opening = functools.partial(open_tap, nic.device, multi_queue=several)
                tap = netns.inside(path, opening)
                held.callback(os.close, tap)
            if not self.store.first_launch(pod.id):
                self._check(pod.id)

    def _check(self, pod_id: str) -> None:
        """Ask CNI's plugins whether the pod's network is still as they made it.

        They look for what the guest took over, so that it is restored for the check. A check that
        is interrupted leaves it so, and the next one hands it over again.

        Raises:
            PodBroken: it is not.
        """
        state = self.store.load(pod_id)
        if state is None or state.result is None or not state.attachment.network.checkable:
            return
        if state.passed:
            return  # they would look for interfaces that are not there while a guest has them
        nics = state.nics
        self._restore(pod_id, state)
        problem = self._problem(state.attachment, state.result)
        try:
            netns.inside(state.attachment.netns, lambda: bridging.hand_over(nics))
        except VirtletError as error:
            problem = problem or str(error)
        if problem:
            raise PodBroken(
                f"the network of pod {pod_id} is not as CNI's plugins made it any more: {problem}. "
                "The pod is stopped; run it again"
            )

    def _problem(self, attachment: CniAttachment, result: Mapping[str, Any]) -> str:
        """What CNI's plugins find wrong; "" if nothing, or if they cannot be asked."""
        try:
            cni_plugins.check(self.plugin_directory, attachment, result)
        except VirtletError as error:
            if isinstance(error, CniError) and error.code != TRY_AGAIN:
                return str(error)
            _log.warning("pod %s: its network is not checked: %s", attachment.container_id, error)
        return ""

    def adopt(self, pods: Collection[str]) -> None:
        """Take over the pods of an earlier manager: serve their guests, undo orphaned networks.

        CNI plugins that it left running are ended first.

        A power cut may lose the core's last records, and with them pods that CNI's plugins still
        hold addresses for. Namespaces may even be there without a state.

        Args:
            pods: ids of the pods that there are; the network of any other is an orphan.
        """
        noted = set(self.store.pods())
        found = noted | {path.name for path in self.namespaces.glob("*")}
        _end_interrupted(self.plugin_directory, found)
        orphans = sorted(found.difference(pods))
        for pod_id in noted.intersection(pods):
            self.supervisor.adopt(pod_id, self._server(pod_id))
        if orphans:
            # CNI's plugins may take long while other parts of the node are not up.
            threading.Thread(
                target=self._undo_orphans, args=(orphans,), name="network-orphans", daemon=True
            ).start()

    def _undo_orphans(self, orphans: Sequence[str]) -> None:
        for pod_id in orphans:
            _log.warning("taking down the network of pod %s, which no longer exists", pod_id)
            try:
                state = self.store.load(pod_id) or self._guess(pod_id, {"IgnoreUnknown": "1"}, {})
                self._undo(pod_id, state)
            except (VirtletError, OSError) as error:
                _log.error("the network of pod %s stays until the next start: %s", pod_id, error)

    def _undo(self, pod_id: str, state: PodState | None) -> None:
        path = self.namespace(pod_id)
        self.supervisor.stop(pod_id, self._server(pod_id))
        if state is not None:
            alive = netns.exists(path)
            if alive:
                self._restore(pod_id, state)
            if state.passed:
                (self.hardware or Hardware()).give_back(state.passed, path)
                # A device that has its driver again may become another pod's.
                state = evolve(state, passed=())
                self.store.save(pod_id, state)
            self._delete(state, alive=alive)
        netns.delete(path)
        self.store.remove(pod_id)

    def _delete(self, state: PodState, *, alive: bool) -> None:
        """Have CNI's plugins undo ADD, with the namespace if it is `alive`.

        A configuration that its plugins cannot read fails to ADD, and to DEL too. Once it is
        corrected, the pods that it has stopped are taken down by what it is now, in the network as
        it was called then: addresses are held by that name. Only the first plugin has been asked
        for anything; another one in its place would say that it is done, and leave what is held.
        """
        try:
            cni_plugins.delete(self.plugin_directory, state.attachment, state.result, netns=alive)
        except VirtletError:
            old = state.attachment
            guess = self._guess(old.container_id, old.arguments, old.capabilities)
            if (
                guess is None
                or state.result
                or not _corrects(guess.attachment.network, old.network)
            ):
                raise
            network = evolve(guess.attachment.network, name=old.network.name)
            attachment = evolve(guess.attachment, network=network)
            cni_plugins.delete(self.plugin_directory, attachment, None, netns=alive)

    def _guess(
        self, pod_id: str, arguments: Mapping[str, str], capabilities: Mapping[str, Any]
    ) -> PodState | None:
        """A state to undo a pod without one by: today's configuration is the best guess."""
        try:
            return PodState(self._attachment(pod_id, arguments, capabilities))
        except VirtletError as error:
            _log.error("pod %s: CNI's plugins cannot be told to clean up: %s", pod_id, error)
            return None

    def _attachment(
        self, pod_id: str, arguments: Mapping[str, str], capabilities: Mapping[str, Any]
    ) -> CniAttachment:
        return CniAttachment(
            network=cni_config.load(self.configuration_directory),
            container_id=pod_id,
            netns=self.namespace(pod_id),
            arguments=arguments,
            capabilities=capabilities,
        )

    def _add(self, pod: Pod, state: PodState) -> CniResult:
        def keep(result: CniResult) -> None:
            self.store.save(pod.id, evolve(state, result=result.document))

        return cni_plugins.add(self.plugin_directory, state.attachment, keep)

    def _seen_by_guest(self, pod: Pod, path: Path, result: CniResult) -> Network:
        """Inside the namespace: what CNI made, as the guest is to see it."""
        sandbox = bridging.read_sandbox()
        veths = guest_view.links(
            sandbox,
            result,
            guest_view.NETWORKS.of(pod),
            hardware=self.hardware is not None,
        )
        nics = guest_view.nics(sandbox, result, veths, self.calico_subnet_size)
        return Network(
            netns=path,
            nics=tuple(
                evolve(nic, device=bridging.tap(n)) if nic.kind == "tap" else nic
                for n, nic in enumerate(nics)
            ),
            dns=guest_view.dns(pod.config.dns, result.dns),
        )

    def _connect(self, pod: Pod, state: PodState, network: Network) -> tuple[BridgedNic, ...]:
        """Inside the namespace: hand what CNI made over to the guest."""
        bridged = bridging.plan(
            bridging.read_sandbox(),
            network.nics,
            _reached(network),
            redirect=_attachment(pod) == "redirect",
        )
        self.store.save(pod.id, evolve(state, nics=bridged))
        bridging.connect(bridged, spoofing=_may_spoof(pod, state.attachment.network))
        return bridged

    def _restore(self, pod_id: str, state: PodState) -> None:
        if not state.nics:
            return
        try:
            netns.inside(state.attachment.netns, lambda: bridging.restore(state.nics))
        except VirtletError as error:
            # After an interrupted set-up this is normal, and DEL has to cope with it.
            _log.debug("pod %s: not all interfaces are as CNI left them: %s", pod_id, error)

    def _server(self, pod_id: str) -> DhcpServer:
        return DhcpServer(self.namespace(pod_id), self.store.directory(pod_id))


def _corrects(network: NetworkList, old: NetworkList) -> bool:
    """Whether what the old network's first plugin holds is undone by this one's."""
    same_plugin = network.plugins[0].executables == old.plugins[0].executables
    return network.name == old.name or same_plugin


def _may_spoof(pod: Pod, network: NetworkList) -> bool:
    """Whether a guest may send from any address: set by the node, never by the pod."""
    extras = pod.profile.flavor.get("extras")
    by_flavor = isinstance(extras, Mapping) and extras.get("spoofing") == "allow"
    return network.allow_spoofing or by_flavor


def _attachment(pod: Pod) -> str:
    """How the pod's veths become NICs: its annotation wins over its flavor.

    Raises:
        FailedPrecondition, InvalidArgument: it is asked for what there is not.
    """
    if ATTACHMENT.name in pod.config.annotations:
        return ATTACHMENT.of(pod)
    extras = pod.profile.flavor.get("extras")
    wanted = extras.get("attachment") if isinstance(extras, Mapping) else None
    try:
        return ATTACHMENT.default if wanted is None else ATTACHMENT.kind.parse(str(wanted))
    except ValueError as error:
        raise FailedPrecondition(f"flavor: extras: attachment: {error}") from None


def _reached(network: Network) -> set[str]:
    """Addresses that the guest has to reach."""
    gateways = (r.gateway for nic in network.nics for r in nic.routes if r.gateway)
    return {*network.ips, *network.dns.servers, *gateways}


def _end_interrupted(directory: Path, container_ids: Iterable[str]) -> None:
    """End CNI plugins that an earlier manager started and that still run, with their children.

    They would interfere with what is done to their pods from now on. A daemon that a plugin left
    behind has a session of its own, and goes on.

    Args:
        directory: where plugins are.
        container_ids: whose plugins; other runtimes use the directory, too.
    """
    path = os.fsencode(f"CNI_PATH={directory}")
    ours = {os.fsencode(f"CNI_CONTAINERID={container_id}") for container_id in container_ids}
    if not ours:
        return

    def is_ours(environment: Collection[bytes]) -> bool:
        return path in environment and not ours.isdisjoint(environment)

    begun: set[int] = set()
    for _ in range(_ROUNDS):
        sessions = processes.sessions()
        begun.update(
            leader
            for leader, members in sessions.items()
            if leader in members
            and is_ours(processes.environment(leader))
            and _runs_from(directory, leader)
        )
        members = [pid for leader in begun for pid in sessions.get(leader, ())]
        opened = (processes.open_started(pid, is_ours) for pid in members)
        found = [pidfd for pidfd in opened if pidfd is not None]
        if not found:
            return
        _log.warning("ending CNI plugins that an earlier manager left running")
        over = processes.kill(found, within=_PATIENCE)
        for pidfd in found:
            os.close(pidfd)
        if not over:
            _log.error("a CNI plugin that an earlier manager left running does not end")
            return


def _runs_from(directory: Path, pid: int) -> bool:
    """Whether a process was started from a directory; a script is an argument of its shell."""
    return any(
        os.path.dirname(argument) == os.fsencode(directory) for argument in processes.arguments(pid)
    )
