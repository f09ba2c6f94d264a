"""A CRI client for people and tests: what the kubelet does, one call at a time."""

import contextlib
import os
import socket
import struct
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO

import grpc

from virtlet.cli.ending import CommandFailed
from virtlet.cri import api_pb2 as cri
from virtlet.cri import api_pb2_grpc
from virtlet.model.endpoint import socket_path
from virtlet.model.vm import HIBERNATE

DEFAULT_SOCKET = "/run/virtlet.sock"
SOCKET_ENVIRONMENT = "VIRTLET_CRI_SOCKET_PATH"
TIMEOUT = 120.0
"""Seconds for one call; the kubelet's own default is 2 minutes."""
_PEER = struct.Struct("3i")
"""struct ucred of unix(7): PID, UID and GID."""


class CallFailed(CommandFailed):
    """A call was answered with an error; the text names the call, the status and the reason."""

    def __init__(self, method: str, error: grpc.RpcError) -> None:
        self.code: grpc.StatusCode = error.code()
        self.details: str = error.details() or ""
        super().__init__(f"{method}: {self.code.name}: {self.details}")


class NoRuntime(CommandFailed):
    """Nobody listens on the socket; the text says what to do."""


class Client:
    """A connection to a CRI socket.

    Args:
        endpoint: the runtime's unix socket, as a path or a unix:// URL.
        timeout: seconds for one call.
        metadata: of each unary call.

    Raises:
        NoRuntime: it is not that of a unix socket.
    """

    def __init__(
        self,
        endpoint: str | Path,
        timeout: float = TIMEOUT,
        metadata: Sequence[tuple[str, str]] = (),
    ) -> None:
        try:
            self.socket = Path(socket_path(str(endpoint)))
        except ValueError as error:
            raise NoRuntime(str(error)) from None
        self._timeout = timeout
        self._metadata = tuple(metadata)
        self._channel = grpc.insecure_channel(
            f"unix:{self.socket}", options=[("grpc.max_receive_message_length", 16 << 20)]
        )
        self.runtime: Any = api_pb2_grpc.RuntimeServiceStub(self._channel)  # type: ignore[no-untyped-call]
        self.images: Any = api_pb2_grpc.ImageServiceStub(self._channel)  # type: ignore[no-untyped-call]

    def __enter__(self) -> "Client":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        tb: TracebackType | None,
    ) -> None:
        self._channel.close()

    def call(self, method: str, request: Any, timeout: float | None = None) -> Any:
        """Make a unary call by its name.

        Raises:
            CallFailed: the runtime answered with an error, or went away.
            NoRuntime: there is no socket, nobody listens on it, or it may not be opened.
        """
        stub = getattr(self.runtime, method, None) or getattr(self.images, method)
        try:
            return stub(request, timeout=timeout or self._timeout, metadata=self._metadata)
        except grpc.RpcError as error:
            if error.code() is grpc.StatusCode.UNAVAILABLE:
                self._look_why()
            raise CallFailed(method, error) from None

    def _look_why(self) -> None:
        """Tell what keeps us from the runtime where the socket shows it; gRPC tells too little.

        Raises:
            NoRuntime: there is no socket, nobody listens on it, or it may not be opened.
        """
        try:
            with socket.socket(socket.AF_UNIX) as connection:
                connection.settimeout(1.0)
                connection.connect(str(self.socket))
        except PermissionError:
            raise NoRuntime(
                f"{self.socket}: permission denied: run this as root or as a user who may write "
                "to the socket"
            ) from None
        except (FileNotFoundError, ConnectionRefusedError, NotADirectoryError):
            raise NoRuntime(
                f"no runtime listens on {self.socket}: start it (`virtlet serve`), or name its "
                f"socket with --socket or {SOCKET_ENVIRONMENT}"
            ) from None
        except OSError:
            return  # It is busy, say: what gRPC told stands.

    def other_network(self) -> Path | None:
        """The network namespace of who serves the socket, where it is not ours.

        That of a manager in a container, say: what listens on its loopback address is in there.
        """
        try:
            with socket.socket(socket.AF_UNIX) as connection:
                connection.connect(str(self.socket))
                told = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _PEER.size)
            pid, _, _ = _PEER.unpack(told)
            theirs = Path(f"/proc/{pid}/ns/net")
            return None if theirs.samefile("/proc/self/ns/net") else theirs
        except OSError:
            return None  # Without root we may not look; from another PID namespace we see none.

    def run_pod(self, config: cri.PodSandboxConfig, handler: str = "") -> str:
        """RunPodSandbox; returns the pod's id."""
        request = cri.RunPodSandboxRequest(config=config, runtime_handler=handler)
        reply: cri.RunPodSandboxResponse = self.call("RunPodSandbox", request)
        return reply.pod_sandbox_id

    def pull(
        self,
        image: str | cri.ImageSpec,
        config: cri.PodSandboxConfig | None = None,
        handler: str = "",
    ) -> str:
        """PullImage; returns the image's id.

        Args:
            image: its name, or all that is said of it.
            config: the pod that it is for.
            handler: whose plugins serve it; a kubelet never says this.
        """
        spec = image if isinstance(image, cri.ImageSpec) else cri.ImageSpec(image=image)
        if handler:
            spec.runtime_handler = handler
        request = cri.PullImageRequest(image=spec, sandbox_config=config)
        reply: cri.PullImageResponse = self.call("PullImage", request, timeout=3600.0)
        return reply.image_ref

    def image_id(self, image: cri.ImageSpec) -> str:
        """ImageStatus; returns the image's id, or nothing where the store has none."""
        reply: cri.ImageStatusResponse = self.call(
            "ImageStatus", cri.ImageStatusRequest(image=image)
        )
        return reply.image.id

    def create(
        self, pod_id: str, container: cri.ContainerConfig, config: cri.PodSandboxConfig
    ) -> str:
        """CreateContainer; returns the container's id."""
        request = cri.CreateContainerRequest(
            pod_sandbox_id=pod_id, config=container, sandbox_config=config
        )
        reply: cri.CreateContainerResponse = self.call("CreateContainer", request)
        return reply.container_id

    def start(self, container_id: str) -> None:
        """StartContainer."""
        self.call("StartContainer", cri.StartContainerRequest(container_id=container_id))

    def stop(self, container_id: str, grace: int) -> None:
        """StopContainer with a grace period in seconds."""
        request = cri.StopContainerRequest(container_id=container_id, timeout=grace)
        self.call("StopContainer", request, timeout=grace + self._timeout)

    def remove(self, container_id: str) -> None:
        """RemoveContainer."""
        self.call("RemoveContainer", cri.RemoveContainerRequest(container_id=container_id))

    def checkpoint(self, container_id: str, location: str, seconds: int = 0) -> None:
        """CheckpointContainer within some seconds, 0 for as many as the runtime allows."""
        request = cri.CheckpointContainerRequest(
            container_id=container_id, location=location, timeout=seconds
        )
        self.call("CheckpointContainer", request, timeout=(seconds or 600) + self._timeout)

    def hibernate(self, container_id: str, *, on: bool) -> None:
        """Put a VM's memory on disk, or have it go on; CRI has no call of its own for it."""
        request = cri.UpdateContainerResourcesRequest(
            container_id=container_id, annotations={HIBERNATE: "true" if on else "false"}
        )
        self.call("UpdateContainerResources", request, timeout=600.0)

    def checkpoint_pod(
        self,
        pod_id: str,
        container_ids: Sequence[str],
        directory: str,
        seconds: float,
        options: Mapping[str, str] | None = None,
    ) -> None:
        """CheckpointPod within some seconds."""
        request = cri.CheckpointPodRequest(
            pod_sandbox_id=pod_id,
            output_path=directory,
            container_ids=container_ids,
            options=options,
        )
        self.call("CheckpointPod", request, timeout=seconds)

    def restore_pod(
        self,
        directory: str,
        config: cri.PodSandboxConfig,
        container: cri.ContainerConfig,
        handler: str = "",
        options: Mapping[str, str] | None = None,
    ) -> tuple[str, str]:
        """RestorePod; returns ids of the pod and its container."""
        request = cri.RestorePodRequest(
            checkpoint_path=directory,
            config=config,
            runtime_handler=handler,
            container_configs=[container],
            options=options,
        )
        reply: cri.RestorePodResponse = self.call("RestorePod", request, timeout=600.0)
        (restored,) = reply.restored_containers
        return reply.pod_sandbox_id, restored.container_id

    def stop_pod(self, pod_id: str) -> None:
        """StopPodSandbox."""
        self.call("StopPodSandbox", cri.StopPodSandboxRequest(pod_sandbox_id=pod_id))

    def remove_pod(self, pod_id: str) -> None:
        """RemovePodSandbox."""
        self.call("RemovePodSandbox", cri.RemovePodSandboxRequest(pod_sandbox_id=pod_id))

    def pods(self) -> list[cri.PodSandbox]:
        """ListPodSandbox, all of them."""
        request = cri.ListPodSandboxRequest(filter=cri.PodSandboxFilter())
        return list(self.call("ListPodSandbox", request).items)

    def containers(self, pod_id: str = "") -> list[cri.Container]:
        """ListContainers; those of one pod or all."""
        request = cri.ListContainersRequest(filter=cri.ContainerFilter())
        found = self.call("ListContainers", request).containers
        return [one for one in found if pod_id in ("", one.pod_sandbox_id)]

    def pod_status(self, pod_id: str) -> cri.PodSandboxStatus:
        """PodSandboxStatus."""
        request = cri.PodSandboxStatusRequest(pod_sandbox_id=pod_id)
        reply: cri.PodSandboxStatusResponse = self.call("PodSandboxStatus", request)
        return reply.status

    def status(self, container_id: str) -> cri.ContainerStatus:
        """ContainerStatus."""
        request = cri.ContainerStatusRequest(container_id=container_id)
        reply: cri.ContainerStatusResponse = self.call("ContainerStatus", request)
        return reply.status


def default_socket() -> str:
    """The socket the environment names, or Virtlet's own."""
    return os.environ.get(SOCKET_ENVIRONMENT, DEFAULT_SOCKET)


def follow_log(
    path: Path,
    *,
    follow: bool,
    ended: Callable[[], bool] | None = None,
    tail: int | None = None,
    since: str = "",
) -> Iterator[bytes]:
    """Payload of a CRI log, as it comes, over rotations.

    Args:
        path: the log; it may appear later.
        follow: go on until `ended()` and the log's end.
        ended: says whether nothing more will be written.
        tail: how many of the lines that are there at first are given.
        since: give lines from this time on, as far as it goes in the log's form of RFC 3339 in UTC.
    """
    rest = b""
    file: BinaryIO | None = None
    try:
        while True:
            done = not follow or (ended is not None and ended())
            if file is None:
                with contextlib.suppress(FileNotFoundError):
                    file = path.open("rb")
            # Asked first: once another file is there, nobody writes on in this one.
            rotated = file is not None and _is_another(path, file)
            *lines, rest = (rest + (file.read() if file else b"")).split(b"\n")
            entries = [line.split(b" ", 3) for line in lines]
            entries = [entry for entry in entries if entry[0].decode() >= since]
            if tail is not None and file is not None:
                entries, tail = _last(entries, tail), None
            for _, _, tag, payload in entries:
                yield payload + (b"\n" if tag == b"F" else b"")
            if rotated:
                assert file is not None
                file.close()
                file = None
            elif done:
                return
            else:
                time.sleep(0.05)
    finally:
        if file is not None:
            file.close()


def _last(entries: list[list[bytes]], lines: int) -> list[list[bytes]]:
    """Entries of the last whole lines, and of the line after them."""
    ends = [number for number, (_, _, tag, _) in enumerate(entries, 1) if tag == b"F"]
    return entries[ends[-lines - 1] :] if len(ends) > lines else entries


def _is_another(path: Path, file: BinaryIO) -> bool:
    """Whether the file now at a path is not the open one."""
    try:
        return not os.path.samestat(path.stat(), os.fstat(file.fileno()))
    except FileNotFoundError:
        return False
