"""Reaching the ports of a pod's guest."""

import socket

from virtlet.core.lifecycle.context import Context
from virtlet.core.sessions.race import connect
from virtlet.core.store.records import PodPhase
from virtlet.errors import FailedPrecondition, NotFound
from virtlet.streaming.sessions import PortForwardRequest


class GuestDialer:
    """Serves port-forward sessions: a PortDialer to the guest's addresses.

    The guest has the pod's addresses itself, so it is dialled from the node, as the kubelet's
    probes do: from the pod's namespace, where only the bridge is, it would send its answers past
    us (docs/decisions/0013-port-forward-from-the-node.md). A port that it serves on its own
    loopback only is out of reach.
    """

    def __init__(self, context: Context) -> None:
        self._context = context

    def check(self, pod_id: str) -> tuple[str, ...]:
        """Addresses of a pod whose ports can be reached, the primary first.

        Raises:
            NotFound: no such pod.
            FailedPrecondition: it is stopped, or has no address.
        """
        record = self._context.store.pods.get(pod_id)
        if record is None or not record.visible:
            raise NotFound(f"there is no pod sandbox {pod_id}")
        addresses = record.network.addresses if record.network else ()
        if record.phase is not PodPhase.READY or not addresses:
            raise FailedPrecondition(f"pod {record.pod.name} is stopped or has no address")
        return addresses

    async def dial(self, request: PortForwardRequest, port: int) -> socket.socket:
        """Connect to the pod's address that answers first on the port; errors as for `connect`."""
        return await connect(self.check(request.sandbox_id), port)
