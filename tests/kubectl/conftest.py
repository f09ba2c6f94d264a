"""A cluster of canned answers, which the real kubectl asks."""

import json
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
from click.testing import CliRunner, Result

from virtlet.kubectl.main import group

PODS = "/api/v1/namespaces/shop/pods"
CLASSES = "/apis/node.k8s.io/v1/runtimeclasses"


class ApiServer(ThreadingHTTPServer):
    """Answers with documents or texts by their path; what has none is not found."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.documents: dict[str, Any] = {}
        self.asked: list[str] = []
        self.posted: list[tuple[str, bytes]] = []
        """Path and body."""

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def refuse(self, path: str, code: int, reason: str, message: str) -> None:
        """Have a path answered with a failure."""
        self.documents[path] = {
            "kind": "Status",
            "apiVersion": "v1",
            "status": "Failure",
            "message": message,
            "reason": reason,
            "code": code,
        }


class _Handler(BaseHTTPRequestHandler):
    server: ApiServer

    def do_POST(self) -> None:
        length = int(self.headers.get("Content-Length") or 0)
        self.server.posted.append((self.path, self.rfile.read(length)))
        self.do_GET()

    def do_GET(self) -> None:
        self.server.asked.append(self.path)
        path = self.path.partition("?")[0]
        if path not in self.server.documents:
            self.server.refuse(path, 404, "NotFound", "the server could not find it")
        document = self.server.documents[path]
        text = isinstance(document, str)
        body = document.encode() if text else json.dumps(document).encode()
        failed = not text and document.get("kind") == "Status"
        self.send_response(document["code"] if failed else 200)
        self.send_header("Content-Type", "text/plain" if text else "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing."""


def pod(name: str, runtime: str | None = "virtlet", **status: Any) -> dict[str, Any]:
    """A pod as an API server has it."""
    running = {"name": "vm", "ready": True, "restartCount": 1, "state": {"running": {}}}
    vm = {"name": "vm", "image": "virtlet.cloud/tiny", "resources": {"limits": {"cpu": "2"}}}
    return {
        "metadata": {"name": name, "namespace": "shop", "uid": f"uid-of-{name}"},
        "spec": {"runtimeClassName": runtime, "nodeName": "node-1", "containers": [vm]},
        "status": {
            "phase": "Running",
            "podIP": "10.0.0.7",
            "containerStatuses": [running],
            **status,
        },
    }


@pytest.fixture
def api() -> Iterator[ApiServer]:
    with ApiServer() as server:
        classes = [
            {"metadata": {"name": "fast"}, "handler": "virtlet-large"},
            {"metadata": {"name": "sandboxed"}, "handler": "runsc"},
        ]
        server.documents[CLASSES] = {"items": classes}
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()


Run = Callable[..., Result]


@pytest.fixture
def run(api: ApiServer, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Runs a command in the namespace `shop` of the cluster."""
    monkeypatch.setenv("KUBECONFIG", "/dev/null")

    def invoke(command: str, *words: str) -> Result:
        return CliRunner().invoke(group, [*command.split(), "-n", "shop", "-s", api.url, *words])

    return invoke
