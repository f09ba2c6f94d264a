"""A stand-in for an API server with its kubelet: enough for kubectl to find a pod and stream.

Discovery and the pod are canned. A streaming request asks the streaming server for a URL, as a
kubelet asks the runtime; its connection is then joined to that URL byte by byte, as the kubelet's
proxy does, with the request line rewritten. The pod's log is read out of the file that the runtime
names, as a kubelet reads it.
"""

import asyncio
import copy
import json
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

from attrs import Factory, define

from virtlet.errors import VirtletError
from virtlet.streaming import (
    AttachRequest,
    ExecRequest,
    PortForwardRequest,
    StreamingServer,
)

from .pod_log import text

POD = "vm"
POD_PATH = f"/api/v1/namespaces/default/pods/{POD}"


def _resource(name: str, kind: str, verbs: list[str]) -> dict[str, Any]:
    return {"name": name, "kind": kind, "namespaced": True, "singularName": "", "verbs": verbs}


_CANNED: dict[str, dict[str, Any]] = {
    "/version": {"major": "1", "minor": "34", "gitVersion": "v1.34.0"},
    "/api": {"kind": "APIVersions", "versions": ["v1"], "serverAddressByClientCIDRs": []},
    "/apis": {"kind": "APIGroupList", "apiVersion": "v1", "groups": []},
    "/api/v1": {
        "kind": "APIResourceList",
        "groupVersion": "v1",
        "resources": [
            _resource("pods", "Pod", ["get", "list"]),
            _resource("pods/log", "Pod", ["get"]),
            _resource("pods/exec", "PodExecOptions", ["create", "get"]),
            _resource("pods/attach", "PodAttachOptions", ["create", "get"]),
            _resource("pods/portforward", "PodPortForwardOptions", ["create", "get"]),
        ],
    },
    POD_PATH: {
        "kind": "Pod",
        "apiVersion": "v1",
        "metadata": {"name": POD, "namespace": "default", "uid": "5e0b"},
        "spec": {
            "runtimeClassName": "virtlet",
            "containers": [{"name": "vm", "image": "tiny", "stdin": True, "tty": True}],
        },
        "status": {
            "phase": "Running",
            "podIP": "10.0.0.7",
            "containerStatuses": [
                {"name": "vm", "ready": True, "state": {"running": {}}, "image": "", "imageID": ""}
            ],
        },
    },
}
_CANNED |= {
    "/api/v1/namespaces/default/pods": {
        "kind": "PodList",
        "apiVersion": "v1",
        "items": [
            _CANNED[POD_PATH],
            {"metadata": {"name": "no-vm", "namespace": "default"}, "spec": {}, "status": {}},
        ],
    },
    "/apis/metrics.k8s.io/v1beta1/namespaces/default/pods": {
        "kind": "PodMetricsList",
        "apiVersion": "metrics.k8s.io/v1beta1",
        "items": [
            {
                "metadata": {"name": POD, "namespace": "default"},
                "timestamp": "2026-01-01T00:00:00Z",
                "window": "10s",
                "containers": [
                    {"name": "vm", "usage": {"cpu": "250123456n", "memory": "131072Ki"}}
                ],
            }
        ],
    },
    "/api/v1/namespaces/default/events": {
        "kind": "EventList",
        "apiVersion": "v1",
        "items": [
            {
                "type": "Warning",
                "reason": "Unhealthy",
                "message": "<img src=x onerror=alert(1)>",
                "lastTimestamp": "2026-01-01T00:00:00Z",
            }
        ],
    },
}


@define
class ApiServer:
    """Serves one pod whose sessions go to the streaming server.

    Args:
        streaming: who gives out URLs.
        log: where the pod's log is, for those who ask for it.
        framing: "websocket" or "SPDY/3.1" refuses the other, to which kubectl falls back by itself.
    """

    streaming: StreamingServer
    log: Path | None = None
    framing: str | None = None
    url: str = ""
    created: list[dict[str, Any]] = Factory(list)
    """Pods that were sent."""
    documents: dict[str, dict[str, Any]] = Factory(lambda: copy.deepcopy(_CANNED))
    """What is answered, by path."""
    forbidden: set[str] = Factory(set)
    """Ends of paths that the user has no right to."""
    looks: int = 0
    """At figures; each finds newer ones."""
    _server: asyncio.Server | None = None
    _tasks: set[asyncio.Task[None]] = Factory(set)

    async def __aenter__(self) -> "ApiServer":
        self._server = await asyncio.start_server(self._accepted, "127.0.0.1", 0)
        self.url = f"http://127.0.0.1:{self._server.sockets[0].getsockname()[1]}"
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._server
        self._server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await asyncio.sleep(0)  # lets asyncio close the sockets of the aborted transports
        await self._server.wait_closed()

    def _accepted(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.ensure_future(self._serve(reader, writer))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                line, _, headers = head.partition(b"\r\n")
                method, target, _ = line.decode().split(" ")
                path = urlsplit(target).path
                if path.endswith(tuple(self.forbidden)):
                    _answer(writer, 403, _failure(f"{path.rpartition('/')[2]} is forbidden: ask"))
                    await writer.drain()
                    return
                if b"upgrade" in headers.lower():
                    await self._stream(reader, writer, method, target, headers)
                    return
                if path == f"{POD_PATH}/log":
                    await self._log(writer, target)
                    return
                if method == "POST":
                    await self._create(reader, writer, headers)
                    continue
                document = self._document(path)
                _answer(writer, 200 if document else 404, document or _failure("not found"))
                await writer.drain()
        except (asyncio.IncompleteReadError, OSError):
            pass
        finally:
            writer.transport.abort()

    def _document(self, path: str) -> dict[str, Any] | None:
        document = self.documents.get(path)
        if document and document["kind"] == "PodMetricsList":
            self.looks += 1
            now = {"timestamp": f"2026-01-01T00:00:{self.looks:02}Z"}
            document = {**document, "items": [{**one, **now} for one in document["items"]]}
        return document

    async def _create(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, headers: bytes
    ) -> None:
        """Take a pod; a second one of its name exists already."""
        named = dict(line.split(": ", 1) for line in headers.decode().strip().split("\r\n"))
        lengths = [value for name, value in named.items() if name.lower() == "content-length"]
        pod = json.loads(await reader.readexactly(int(lengths[0])))
        if pod["metadata"]["name"] == POD:
            _answer(writer, 409, _failure(f'pods "{POD}" already exists'))
        else:
            self.created.append(pod)
            _answer(writer, 201, pod)
        await writer.drain()

    async def _log(self, writer: asyncio.StreamWriter, target: str) -> None:
        """Send the log; its end is the connection's."""
        assert self.log
        follow = parse_qs(urlsplit(target).query).get("follow") == ["true"]
        writer.write(b"HTTP/1.1 200 x\r\nContent-Type: text/plain\r\nConnection: close\r\n\r\n")
        async for piece in text(self.log, follow=follow):
            writer.write(piece)
            await writer.drain()
        writer.close()
        await writer.wait_closed()

    async def _stream(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        method: str,
        target: str,
        headers: bytes,
    ) -> None:
        if self.framing and f"upgrade: {self.framing}\r\n".lower() not in headers.decode().lower():
            _answer(writer, 403, _failure(f"the test wants {self.framing} alone"))
            await writer.drain()
            return
        try:
            parts = urlsplit(self._streaming_url(target))
        except VirtletError as error:
            _answer(writer, 400, _failure(str(error)))
            await writer.drain()
            return
        back_reader, back_writer = await asyncio.open_connection(parts.hostname, parts.port)
        try:
            back_writer.write(f"{method} {parts.path} HTTP/1.1\r\n".encode() + headers)
            ways = [
                asyncio.ensure_future(_copy(reader, back_writer)),
                asyncio.ensure_future(_copy(back_reader, writer)),
            ]
            try:
                await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
            finally:
                for way in ways:
                    way.cancel()
                await asyncio.gather(*ways, return_exceptions=True)
            writer.close()
            await writer.wait_closed()
        finally:
            back_writer.transport.abort()

    def _streaming_url(self, target: str) -> str:
        parts = urlsplit(target)
        query = parse_qs(parts.query)
        wanted = {
            name: query.get(name, ["false"])[0] == "true"
            for name in ("stdin", "stdout", "stderr", "tty")
        }
        match parts.path.removeprefix(POD_PATH + "/"):
            case "exec":
                command = tuple(query["command"])
                request = ExecRequest(container_id="vm-1", command=command, **wanted)
                return self.streaming.exec_url(request)
            case "attach":
                return self.streaming.attach_url(AttachRequest(container_id="vm-1", **wanted))
            case "portforward":
                ports = tuple(
                    int(port) for port in ",".join(query.get("ports", [])).split(",") if port
                )
                return self.streaming.port_forward_url(
                    PortForwardRequest(sandbox_id="pod-1", ports=ports)
                )
        raise AssertionError(f"kubectl asked for {target}")


async def _copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while piece := await reader.read(65536):
        writer.write(piece)
        await writer.drain()


def _failure(message: str) -> dict[str, Any]:
    return {"kind": "Status", "apiVersion": "v1", "status": "Failure", "message": message}


def _answer(writer: asyncio.StreamWriter, status: int, document: dict[str, Any]) -> None:
    body = json.dumps(document).encode()
    head = (
        f"HTTP/1.1 {status} x\r\nContent-Type: application/json\r\n"
        f"Content-Length: {len(body)}\r\n\r\n"
    )
    writer.write(head.encode() + body)
