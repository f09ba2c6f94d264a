"""Attach and PortForward: URLs of the streaming server."""

from virtlet.core.cri import requests
from virtlet.core.cri.calls import Call, Kind
from virtlet.core.sessions.attach import ConsoleAttacher
from virtlet.core.sessions.dialer import GuestDialer
from virtlet.cri import api_pb2 as cri
from virtlet.streaming.server import StreamingServer
from virtlet.streaming.sessions import AttachRequest, PortForwardRequest


class Streaming:
    """Serves the calls that answer with a URL."""

    def __init__(
        self, server: StreamingServer, attacher: ConsoleAttacher, dialer: GuestDialer
    ) -> None:
        self._server = server
        self._attacher = attacher
        self._dialer = dialer

    def calls(self) -> list[Call]:
        """The calls served here."""
        return [
            Call("RuntimeService.Attach", Kind.READ, self.attach),
            Call("RuntimeService.PortForward", Kind.READ, self.port_forward),
        ]

    def attach(self, request: cri.AttachRequest) -> cri.AttachResponse:
        """Attach."""
        vm_id = requests.required_id(request.container_id, "container")
        self._attacher.check(vm_id)
        wanted = AttachRequest(
            container_id=vm_id,
            stdin=request.stdin,
            stdout=request.stdout,
            stderr=request.stderr,
            tty=request.tty,
        )
        return cri.AttachResponse(url=self._server.attach_url(wanted))

    def port_forward(self, request: cri.PortForwardRequest) -> cri.PortForwardResponse:
        """PortForward."""
        pod_id = requests.required_id(request.pod_sandbox_id, "pod sandbox")
        self._dialer.check(pod_id)
        wanted = PortForwardRequest(sandbox_id=pod_id, ports=tuple(request.port))
        return cri.PortForwardResponse(url=self._server.port_forward_url(wanted))
