"""The proxy in a thread of the test's process, and a client of it."""

from __future__ import annotations

import asyncio
import threading
from pathlib import Path
from typing import Any

import grpc
import pytest
import uvloop

from criproxy.config import Config, Dial, Limits, RuntimeConfig
from criproxy.proxy import Proxy
from criproxy.runtimes.runtime import Runtime
from tests.polling import until
from virtlet.cri import api_pb2 as cri
from virtlet.cri import api_pb2_grpc as stubs

VM = "virtlet.cloud"
#: Quick enough for tests, slow enough for a busy machine.
QUICK = Dial(timeout=5.0, first_wait=0.02, longest_wait=0.1)


class Client:
    """gRPC's own client on a socket, with both services' stubs."""

    def __init__(self, path: Path | str) -> None:
        self.channel = grpc.insecure_channel(
            f"unix:{path}",
            options=(
                ("grpc.max_receive_message_length", -1),
                ("grpc.max_send_message_length", -1),
                # Every test's channel is its own, though sockets may have the same name.
                ("grpc.use_local_subchannel_pool", 1),
                # Not the minimum: gRPC takes it for the time that a connection may take to be
                # greeted, and a test's proxy shares its process with all that the test does.
                ("grpc.initial_reconnect_backoff_ms", 50),
                ("grpc.max_reconnect_backoff_ms", 200),
            ),
        )
        self.runtime: Any = stubs.RuntimeServiceStub(self.channel)  # type: ignore[no-untyped-call]
        self.image: Any = stubs.ImageServiceStub(self.channel)  # type: ignore[no-untyped-call]

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def raw(self, path: str) -> Any:
        """A unary call of bytes, with what gRPC's multi-callables have."""
        return self.channel.unary_unary(path, bytes, bytes)

    def raw_stream(self, path: str) -> Any:
        """A call of bytes with streams in both directions."""
        return self.channel.stream_stream(path, bytes, bytes)

    def close(self) -> None:
        """Close the channel."""
        self.channel.close()

    def run_pod(self, name: str = "pod", handler: str = "", **annotations: str) -> str:
        """Run a sandbox; an annotation `target` is the target-runtime one."""
        target = annotations.pop("target", None)
        if target is not None:
            annotations["kubernetes.io/target-runtime"] = target
        config = cri.PodSandboxConfig(
            metadata=cri.PodSandboxMetadata(name=name, uid=f"uid-{name}", namespace="default"),
            annotations=annotations,
        )
        answer = self.runtime.RunPodSandbox(
            cri.RunPodSandboxRequest(config=config, runtime_handler=handler)
        )
        return str(answer.pod_sandbox_id)

    def create(self, sandbox: str, image: str = "busybox", name: str = "main") -> str:
        """Create a container."""
        config = cri.ContainerConfig(
            metadata=cri.ContainerMetadata(name=name), image=cri.ImageSpec(image=image)
        )
        answer = self.runtime.CreateContainer(
            cri.CreateContainerRequest(pod_sandbox_id=sandbox, config=config)
        )
        return str(answer.container_id)

    def pods(self) -> set[str]:
        """The ids of all sandboxes."""
        answer = self.runtime.ListPodSandbox(cri.ListPodSandboxRequest())
        return {pod.id for pod in answer.items}

    def containers(self) -> dict[str, Any]:
        """All containers by id."""
        answer = self.runtime.ListContainers(cri.ListContainersRequest())
        return {container.id: container for container in answer.containers}


class RunningProxy:
    """A proxy that serves from a thread.

    Args:
        listen: its socket.
        sockets: of the runtimes by name, the primary first.
        options: further values of the configuration; `runtime_options` by runtime name.
    """

    def __init__(
        self,
        listen: Path,
        sockets: dict[str, Path],
        runtime_options: dict[str, dict[str, Any]] | None = None,
        **options: Any,
    ) -> None:
        more = runtime_options or {}
        options.setdefault("state_dir", None)
        self.config = Config(
            listen=str(listen),
            runtimes=tuple(
                RuntimeConfig(
                    **{
                        "name": name,
                        "socket": str(path),
                        "dial": QUICK,
                        "limits": Limits(read_seconds=2.0),
                        **more.get(name, {}),
                    }
                )
                for name, path in sockets.items()
            ),
            **options,
        )
        self._started = threading.Event()
        self._error: BaseException | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._stop: asyncio.Event | None = None
        self._thread = threading.Thread(target=self._run, daemon=True)
        self.proxy: Proxy | None = None

    def start(self) -> RunningProxy:
        """Start and wait until it listens."""
        self._thread.start()
        assert self._started.wait(10)
        if self._error is not None:
            raise self._error
        return self

    def stop(self) -> None:
        """Stop and wait for the end."""
        if self._loop is not None and self._stop is not None and self._thread.is_alive():
            self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(10)
        assert not self._thread.is_alive()

    def runtime(self, name: str) -> Runtime:
        """A runtime as the proxy sees it."""
        assert self.proxy is not None
        return next(r for r in self.proxy.runtimes if r.name == name)

    def wait_until(self, name: str, answering: bool, seconds: float = 20.0) -> None:
        """Wait until a runtime answers, or is away."""
        state = "an answering" if answering else "no answering"
        until(lambda: self.runtime(name).answering is answering, f"{state} {name}", seconds)

    def _run(self) -> None:
        uvloop.run(self._serve())

    async def _serve(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._stop = asyncio.Event()
        self.proxy = Proxy(self.config)
        try:
            await self.proxy.start()
        except BaseException as error:
            self._error = error
        self._started.set()
        if self._error is None:
            await self._stop.wait()
        await self.proxy.stop()


def said(caught: pytest.ExceptionInfo[grpc.RpcError]) -> str:
    """The message of a call's status."""
    return caught.value.details() or ""
