"""A small CRI runtime in memory, served by gRPC's own server on a unix socket.

Methods are named as the CRI names them, so that they are found by name.
"""
# ruff: noqa: N802

from __future__ import annotations

import queue
import time
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc

from criproxy.methods import BY_PATH
from virtlet.cri import api_pb2 as cri

COMMON_METRIC = "container_cpu_usage_seconds_total"
"""A metric that every runtime has."""

#: Takes the place of a method: gets the request and the context, returns the answer.
Instead = Callable[[Any, grpc.ServicerContext], Any]


class FakeRuntime(grpc.GenericRpcHandler):  # type: ignore[type-arg]
    """One runtime.

    Attributes:
        calls: name and request of every call that came.
        metadata: of the last call of each method.
        instead: functions that take a method's place.
        raw: bytes that a method answers with, whatever they are.
        missing: methods answered with UNIMPLEMENTED.
        ids: the next ids to give out, before random ones.
        compression: of all its answers, whatever the client says that it takes.
        labels: keys of the labels of its metrics; their values tell key and container.
    """

    def __init__(self, path: Path, name: str, handlers: tuple[str, ...] = ()) -> None:
        self.path = path
        self.name = name
        self.handlers = handlers
        self.calls: list[tuple[str, Any]] = []
        self.metadata: dict[str, dict[str, str | bytes]] = {}
        self.instead: dict[str, Instead] = {}
        self.raw: dict[str, bytes] = {}
        self.missing: set[str] = {"RuntimeConfig"}
        self.ids: list[str] = []
        self.labels = ["id", "name"]
        self.sandboxes: dict[str, Any] = {}
        self.containers: dict[str, Any] = {}
        self.images: dict[str, Any] = {}
        self.subscribers: list[queue.Queue[Any]] = []
        self.compression: grpc.Compression | None = None
        self._server: grpc.Server | None = None

    # Life.

    def start(self) -> FakeRuntime:
        """Serve; what it had before a stop is still there."""
        self._server = grpc.server(
            ThreadPoolExecutor(80),
            handlers=[self],
            options=(("grpc.so_reuseport", 0), ("grpc.max_receive_message_length", -1)),
            compression=self.compression,
        )
        assert self._server.add_insecure_port(f"unix:{self.path}")
        self._server.start()
        return self

    def stop(self) -> None:
        """Stop at once, cutting the calls under way."""
        if self._server is not None:
            for subscriber in self.subscribers:
                subscriber.put(None)
            self._server.stop(0).wait()
            self._server = None

    def called(self, method: str) -> list[Any]:
        """The requests that came for a method."""
        return [request for name, request in self.calls if name == method]

    # What tests put in.

    def add_image(self, name: str, image_id: str | None = None) -> Any:
        """Have an image."""
        image = cri.Image(
            id=image_id or f"sha256:{uuid.uuid4().hex * 2}", repo_tags=[name], size=1000
        )
        self.images[image.id] = image
        return image

    def event(self, container_id: str, kind: Any, sandbox_id: str = "") -> None:
        """Tell every subscriber."""
        event = cri.ContainerEventResponse(
            container_id=container_id,
            container_event_type=kind,
            created_at=time.time_ns(),
            pod_sandbox_status=cri.PodSandboxStatus(id=sandbox_id),
        )
        for container in self.containers.values():
            if container.pod_sandbox_id == sandbox_id:
                event.containers_statuses.append(_status(container))
        for subscriber in list(self.subscribers):
            subscriber.put(event)

    # gRPC's side.

    def service(self, details: grpc.HandlerCallDetails) -> Any:
        method = BY_PATH.get(details.method)
        if method is None:
            return grpc.stream_stream_rpc_method_handler(self._unknown)
        name = method.name
        if name in self.raw:
            return grpc.unary_unary_rpc_method_handler(lambda request, context: self.raw[name])
        if method.streaming:
            return grpc.unary_stream_rpc_method_handler(
                lambda request, context: self._answer(name, request, context),
                method.request.FromString,
                method.response.SerializeToString,
            )
        return grpc.unary_unary_rpc_method_handler(
            lambda request, context: self._answer(name, request, context),
            method.request.FromString,
            method.response.SerializeToString,
        )

    def _answer(self, name: str, request: Any, context: grpc.ServicerContext) -> Any:
        self.calls.append((name, request))
        self.metadata[name] = dict(context.invocation_metadata())
        instead = self.instead.get(name)
        if instead is not None:
            return instead(request, context)
        handler = getattr(self, f"_{name}", None)
        if handler is None or name in self.missing:
            context.abort(grpc.StatusCode.UNIMPLEMENTED, f"{self.name} has no {name}")
        return handler(request, context)

    def _unknown(self, requests: Iterator[bytes], context: grpc.ServicerContext) -> Iterator[bytes]:
        self.metadata["unknown"] = dict(context.invocation_metadata())
        for request in requests:
            self.calls.append(("unknown", request))
            yield self.name.encode() + b":" + request

    def _new_id(self) -> str:
        return self.ids.pop(0) if self.ids else uuid.uuid4().hex

    # The CRI.

    def _Version(self, request: Any, context: Any) -> Any:
        return cri.VersionResponse(
            version="0.1.0",
            runtime_name=self.name,
            runtime_version="1.0",
            runtime_api_version="v1",
        )

    def _Status(self, request: Any, context: Any) -> Any:
        answer = cri.StatusResponse()
        answer.status.conditions.add(type="RuntimeReady", status=True)
        answer.status.conditions.add(type="NetworkReady", status=True, reason="Fine")
        for handler in self.handlers:
            answer.runtime_handlers.add(name=handler)
        if request.verbose:
            answer.info["config"] = f'{{"name": "{self.name}"}}'
        return answer

    def _UpdateRuntimeConfig(self, request: Any, context: Any) -> Any:
        return cri.UpdateRuntimeConfigResponse()

    def _RunPodSandbox(self, request: Any, context: Any) -> Any:
        pod = cri.PodSandbox(
            id=self._new_id(),
            metadata=request.config.metadata,
            labels=request.config.labels,
            annotations=request.config.annotations,
            runtime_handler=request.runtime_handler,
            created_at=time.time_ns(),
        )
        self.sandboxes[pod.id] = pod
        return cri.RunPodSandboxResponse(pod_sandbox_id=pod.id)

    def _StopPodSandbox(self, request: Any, context: Any) -> Any:
        pod = self.sandboxes.get(request.pod_sandbox_id)
        if pod is not None:
            pod.state = cri.SANDBOX_NOTREADY
        return cri.StopPodSandboxResponse()

    def _RemovePodSandbox(self, request: Any, context: Any) -> Any:
        self.sandboxes.pop(request.pod_sandbox_id, None)
        for container in list(self.containers.values()):
            if container.pod_sandbox_id == request.pod_sandbox_id:
                del self.containers[container.id]
        return cri.RemovePodSandboxResponse()

    def _PodSandboxStatus(self, request: Any, context: grpc.ServicerContext) -> Any:
        pod = self._get(self.sandboxes, request.pod_sandbox_id, "sandbox", context)
        answer = cri.PodSandboxStatusResponse(
            status=cri.PodSandboxStatus(id=pod.id, metadata=pod.metadata, state=pod.state)
        )
        for container in self.containers.values():
            if container.pod_sandbox_id == pod.id:
                answer.containers_statuses.append(_status(container))
        return answer

    def _ListPodSandbox(self, request: Any, context: Any) -> Any:
        wanted = request.filter
        return cri.ListPodSandboxResponse(
            items=[
                pod
                for pod in list(self.sandboxes.values())
                if pod.id.startswith(wanted.id)
                and (not wanted.HasField("state") or wanted.state.state == pod.state)
                and all(pod.labels.get(k) == v for k, v in wanted.label_selector.items())
            ]
        )

    def _CreateContainer(self, request: Any, context: grpc.ServicerContext) -> Any:
        self._get(self.sandboxes, request.pod_sandbox_id, "sandbox", context)
        container = cri.Container(
            id=self._new_id(),
            pod_sandbox_id=request.pod_sandbox_id,
            metadata=request.config.metadata,
            image=request.config.image,
            image_ref=request.config.image.image,
            state=cri.CONTAINER_CREATED,
            labels=request.config.labels,
        )
        self.containers[container.id] = container
        return cri.CreateContainerResponse(container_id=container.id)

    def _StartContainer(self, request: Any, context: grpc.ServicerContext) -> Any:
        container = self._get(self.containers, request.container_id, "container", context)
        container.state = cri.CONTAINER_RUNNING
        return cri.StartContainerResponse()

    def _StopContainer(self, request: Any, context: Any) -> Any:
        container = self.containers.get(request.container_id)
        if container is not None:
            container.state = cri.CONTAINER_EXITED
        return cri.StopContainerResponse()

    def _RemoveContainer(self, request: Any, context: Any) -> Any:
        self.containers.pop(request.container_id, None)
        return cri.RemoveContainerResponse()

    def _ListContainers(self, request: Any, context: Any) -> Any:
        wanted = request.filter
        return cri.ListContainersResponse(
            containers=[
                c
                for c in list(self.containers.values())
                if c.id.startswith(wanted.id) and c.pod_sandbox_id.startswith(wanted.pod_sandbox_id)
            ]
        )

    def _ContainerStatus(self, request: Any, context: grpc.ServicerContext) -> Any:
        container = self._get(self.containers, request.container_id, "container", context)
        return cri.ContainerStatusResponse(status=_status(container))

    def _ExecSync(self, request: Any, context: grpc.ServicerContext) -> Any:
        self._get(self.containers, request.container_id, "container", context)
        return cri.ExecSyncResponse(stdout=" ".join(request.cmd).encode())

    def _Exec(self, request: Any, context: grpc.ServicerContext) -> Any:
        self._get(self.containers, request.container_id, "container", context)
        return cri.ExecResponse(url=f"http://127.0.0.1:1/exec/{self.name}")

    def _ListContainerStats(self, request: Any, context: Any) -> Any:
        answer = cri.ListContainerStatsResponse()
        for container in list(self.containers.values()):
            answer.stats.add(attributes=cri.ContainerAttributes(id=container.id))
        return answer

    def _ListMetricDescriptors(self, request: Any, context: Any) -> Any:
        answer = cri.ListMetricDescriptorsResponse()
        answer.descriptors.add(name=COMMON_METRIC, help="common", label_keys=self.labels)
        answer.descriptors.add(name=self._own_metric, help="own", label_keys=self.labels)
        return answer

    def _ListPodSandboxMetrics(self, request: Any, context: Any) -> Any:
        answer = cri.ListPodSandboxMetricsResponse()
        for container in list(self.containers.values()):
            pod = answer.pod_metrics.add(pod_sandbox_id=container.pod_sandbox_id)
            values = [f"{label} of {container.id}" for label in self.labels]
            metrics = pod.container_metrics.add(container_id=container.id).metrics
            metrics.add(name=COMMON_METRIC, label_values=values)
            metrics.add(name=self._own_metric, label_values=values)
        return answer

    def _StreamPodSandboxMetrics(self, request: Any, context: Any) -> Iterator[Any]:
        for pod in self._ListPodSandboxMetrics(request, context).pod_metrics:
            yield cri.StreamPodSandboxMetricsResponse(pod_sandbox_metrics=[pod])

    @property
    def _own_metric(self) -> str:
        return f"only_{self.name.replace('.', '_')}"

    def _ImageFsInfo(self, request: Any, context: Any) -> Any:
        answer = cri.ImageFsInfoResponse()
        answer.image_filesystems.add(fs_id=cri.FilesystemIdentifier(mountpoint=f"/{self.name}"))
        return answer

    def _ListImages(self, request: Any, context: Any) -> Any:
        name = request.filter.image.image
        return cri.ListImagesResponse(
            images=[
                i
                for i in list(self.images.values())
                if not name or name == i.id or name in i.repo_tags
            ]
        )

    def _ImageStatus(self, request: Any, context: Any) -> Any:
        return cri.ImageStatusResponse(image=self._image(request.image.image))

    def _PullImage(self, request: Any, context: Any) -> Any:
        image = self._image(request.image.image) or self.add_image(request.image.image)
        return cri.PullImageResponse(image_ref=image.id)

    def _RemoveImage(self, request: Any, context: Any) -> Any:
        image = self._image(request.image.image)
        if image is not None:
            del self.images[image.id]
        return cri.RemoveImageResponse()

    def _StreamPodSandboxes(self, request: Any, context: Any) -> Iterator[Any]:
        for pod in list(self.sandboxes.values()):
            yield cri.StreamPodSandboxesResponse(pod_sandboxes=[pod])

    def _GetContainerEvents(self, request: Any, context: grpc.ServicerContext) -> Iterator[Any]:
        events: queue.Queue[Any] = queue.Queue()
        self.subscribers.append(events)
        context.add_callback(lambda: events.put(None))
        try:
            while (event := events.get()) is not None:
                yield event
        finally:
            self.subscribers.remove(events)

    def _image(self, name: str) -> Any:
        for image in self.images.values():
            if name == image.id or name in image.repo_tags:
                return image
        start = f"sha256:{name.removeprefix('sha256:')}"
        found = [i for i in self.images.values() if 8 <= len(start) < 71 and i.id.startswith(start)]
        return found[0] if len(found) == 1 else None

    def _get(
        self, items: dict[str, Any], some_id: str, kind: str, context: grpc.ServicerContext
    ) -> Any:
        if some_id not in items:
            context.abort(grpc.StatusCode.NOT_FOUND, f"{self.name} has no {kind} {some_id}")
        return items[some_id]


def _status(container: Any) -> Any:
    return cri.ContainerStatus(
        id=container.id,
        metadata=container.metadata,
        state=container.state,
        image=container.image,
        image_ref=container.image_ref,
    )
