"""Streaming URLs as a kubelet gets them: by CRI, from the manager."""

from tests.e2e.conftest import Pod
from virtlet.cri import api_pb2 as cri
from virtlet.streaming import AttachRequest, ExecRequest, PortForwardRequest


class CriUrls:
    """Asks the manager for URLs, as a kubelet does; stands where the streaming server stood."""

    def __init__(self, pod: Pod) -> None:
        self.pod = pod

    def exec_url(self, request: ExecRequest) -> str:
        wanted = cri.ExecRequest(
            container_id=self.pod.vm,
            cmd=request.command,
            tty=request.tty,
            stdin=request.stdin,
            stdout=request.stdout,
            stderr=request.stderr,
        )
        return str(self.pod.client.call("Exec", wanted).url)

    def attach_url(self, request: AttachRequest) -> str:
        wanted = cri.AttachRequest(
            container_id=self.pod.vm,
            stdin=request.stdin,
            tty=request.tty,
            stdout=request.stdout,
            stderr=request.stderr,
        )
        return str(self.pod.client.call("Attach", wanted).url)

    def port_forward_url(self, request: PortForwardRequest) -> str:
        wanted = cri.PortForwardRequest(pod_sandbox_id=self.pod.id, port=request.ports)
        return str(self.pod.client.call("PortForward", wanted).url)
