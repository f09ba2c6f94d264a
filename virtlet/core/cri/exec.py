"""The Exec calls: commands in guests."""

from typing import Protocol

from virtlet.core.cri import requests
from virtlet.core.cri.calls import Call, Caller, Kind
from virtlet.core.lifecycle.context import Context
from virtlet.core.lifecycle.notices import tell_owner
from virtlet.core.sessions.executions import ExecResult, Executions, checked, running_machine
from virtlet.cri import api_pb2 as cri
from virtlet.errors import GuestNotReady, InvalidArgument
from virtlet.streaming.sessions import ExecRequest

REPLY_LIMIT = (16 << 20) - (4 << 10)
"""Bytes of both outputs together: the kubelet takes no message of more than 16 MiB."""
_ERRORS_SHARE = REPLY_LIMIT // 4


class ExecUrls(Protocol):
    """The streaming server, as far as it is needed here."""

    def exec_url(self, request: ExecRequest) -> str:
        """The URL of a new exec session."""


class Exec:
    """Serves commands in VMs."""

    def __init__(self, context: Context, executions: Executions, urls: ExecUrls) -> None:
        self._context = context
        self._executions = executions
        self._urls = urls

    def calls(self) -> list[Call]:
        """The calls served here."""
        return [
            Call("RuntimeService.ExecSync", Kind.WORK, self.exec_sync, attended=True),
            Call("RuntimeService.Exec", Kind.READ, self.exec),
        ]

    def exec_sync(self, request: cri.ExecSyncRequest, caller: Caller) -> cri.ExecSyncResponse:
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
            tell_owner(self._context, record.vm, text)

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


def _patience(caller: Caller) -> float | None:
    """Seconds for a command, so that its caller can still be told why they were not enough; None
    for no limit."""
    left = caller.time_left()
    # gRPC rounds up what a client allows, by as much as a hundredth.
    return None if left is None else max(0.98 * left - 0.5, left / 2)


def _fitting(result: ExecResult) -> tuple[bytes, bytes]:
    """As much of both outputs as one message holds; a quarter is the errors' if need be."""
    errors = result.errors[: max(_ERRORS_SHARE, REPLY_LIMIT - len(result.output))]
    return result.output[: REPLY_LIMIT - len(errors)], errors
