"""Exec, ExecSync, Attach and PortForward: commands, consoles and ports of guests."""

from typing import Protocol

from virtlet.core.cri import requests
from virtlet.core.cri.calls import Call, CallClient, CallKind
from virtlet.core.guest_sessions.attach_and_forward import ConsoleAttacher, GuestDialer
from virtlet.core.guest_sessions.executions import ExecResult, Executions, checked, running_machine
from virtlet.core.lifecycle.context import Context
from virtlet.core.lifecycle.notices import tell_owner
from virtlet.cri import api_pb2 as cri
from virtlet.errors import GuestNotReady, InvalidArgument
from virtlet.streaming.handlers import AttachRequest, ExecRequest, PortForwardRequest
from virtlet.streaming.streaming_server import StreamingServer

REPLY_LIMIT = (16 << 20) - (4 << 10)
"""Bytes of both outputs together: the kubelet takes no message of more than 16 MiB."""
_ERRORS_SHARE = REPLY_LIMIT // 4


class ExecUrls(Protocol):
    """The streaming server, as far as it is needed here."""

    def exec_url(self, request: ExecRequest) -> str:
        """The URL of a new exec session."""


class ExecCalls:
    """Serves commands in VMs."""

    def __init__(self, context: Context, executions: Executions, urls: ExecUrls) -> None:
        self._context = context
        self._executions = executions
        self._urls = urls

    def calls(self) -> list[Call]:
        """The calls served here."""
        return [
            Call("RuntimeService.ExecSync", CallKind.WORK, self.exec_sync, attended=True),
            Call("RuntimeService.Exec", CallKind.READ, self.exec),
        ]

    def exec_sync(self, request: cri.ExecSyncRequest, caller: CallClient) -> cri.ExecSyncResponse:
        """ExecSync; `timeout` is in seconds, 0 for as long as the client waits. Ends with its
        client at the latest."""
        vm_id = requests.required_id(request.container_id, "container")
        if request.timeout < 0:
            raise InvalidArgument(f"timeout {request.timeout} is negative")
        timeout = float(request.timeout) if request.timeout else _patience(caller)
        try:
            result = self._executions.exec_sync(vm_id, tuple(request.cmd), timeout, caller.waits)
        except GuestNotReady as error:
            if timeout is None:
                self._tell_owner(vm_id, error)
            raise
        output, errors = _fitting(result)
        return cri.ExecSyncResponse(stdout=output, stderr=errors, exit_code=result.exit_code)

    def _tell_owner(self, vm_id: str, error: GuestNotReady) -> None:
        """Say why a hook did not run: a kubelet kills the VM then, and its event has no reason."""
        record = self._context.store.vms.get(vm_id)
        if record is not None:
            text = f"a command without a time limit, as a postStart hook is, did not run: {error}"
            tell_owner(self._context, record.vm, text, "CommandNotRun")

    def exec(self, request: cri.ExecRequest) -> cri.ExecResponse:
        """Exec: the URL at which the command runs once somebody connects."""
        vm_id = requests.required_id(request.container_id, "container")
        wanted = ExecRequest(
            container_id=vm_id,
            command=checked(request.cmd),
            stdin=request.stdin,
            stdout=request.stdout,
            stderr=request.stderr,
            tty=request.tty,
        )
        running_machine(self._context.store, vm_id)
        return cri.ExecResponse(url=self._urls.exec_url(wanted))


def _patience(caller: CallClient) -> float | None:
    """Seconds for a command, so that its caller can still be told why they were not enough; None
    for no limit."""
    left = caller.time_left()
    # gRPC rounds up what a client allows, by as much as a hundredth.
    return None if left is None else max(0.98 * left - 0.5, left / 2)


def _fitting(result: ExecResult) -> tuple[bytes, bytes]:
    """As much of both outputs as one message holds; a quarter is the errors' if need be."""
    errors = result.errors[: max(_ERRORS_SHARE, REPLY_LIMIT - len(result.output))]
    return result.output[: REPLY_LIMIT - len(errors)], errors


class StreamingCalls:
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
            Call("RuntimeService.Attach", CallKind.READ, self.attach),
            Call("RuntimeService.PortForward", CallKind.READ, self.port_forward),
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
