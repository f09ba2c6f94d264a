"""Reaching the ports of a pod's guest, by whichever of its addresses answers first."""

import asyncio
import socket
from asyncio.staggered import staggered_race
from collections.abc import Sequence
from functools import partial

from virtlet.core.lifecycle.context import Context
from virtlet.core.store.records import PodPhase
from virtlet.errors import FailedPrecondition
from virtlet.streaming.sessions import PortForwardRequest

HEAD_START = 0.25
"""Seconds that an address has before the next is tried beside it; source: RFC 8305, section 5."""


async def connect(addresses: Sequence[str], port: int) -> socket.socket:
    """Connect over TCP; an address that is silent holds up none of the others.

    Args:
        addresses: at least one, IPv4 or IPv6, in the order in which they are tried.
        port: the same everywhere.

    Returns:
        A socket that does not block.

    Raises:
        OSError: none of them took the connection; why the first one did not.
    """
    attempts = [partial(_connect, address, port) for address in addresses]
    connection: socket.socket | None
    connection, _, errors = await staggered_race(attempts, HEAD_START)
    if connection is not None:
        return connection
    raise next(error for error in errors if error is not None)


async def _connect(address: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    connection = socket.socket(family, socket.SOCK_STREAM)
    connection.setblocking(False)
    try:
        await asyncio.get_running_loop().sock_connect(connection, (address, port))
    except BaseException:
        connection.close()
        raise
    return connection


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
        record = self._context.store.known_pod(pod_id)
        addresses = record.network.ips if record.network else ()
        if record.phase is not PodPhase.READY or not addresses:
            raise FailedPrecondition(f"pod {record.pod.name} is stopped or has no address")
        return addresses

    async def dial(self, request: PortForwardRequest, port: int) -> socket.socket:
        """Connect to the pod's address that answers first on the port; errors as for `connect`."""
        return await connect(self.check(request.sandbox_id), port)
