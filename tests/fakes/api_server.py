"""A small API server, which answers as Kubernetes' does, field by field, over TLS with a token.

It serves get of ConfigMaps and Secrets, list and watch of our own kinds, create and patch of
events; what an account may do it takes from the manifest deploy/cluster/rbac.yaml, with the
bindings that a test adds.
"""

import base64
import json
import ssl
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import trustme
import yaml
from attrs import define, field

ROOT = Path(__file__).parents[2]
TOKEN = "eyJhbGciOiJSUzI1NiJ9.of-the-manager"
ACCOUNT = "system:serviceaccount:kube-system:virtlet"
MAPPINGS, FLAVORS = "virtletimagemappings", "virtletflavors"
CONFIGS = "virtletconfigmappings"
GROUPS = {"configmaps": "", "secrets": "", MAPPINGS: "virtlet.k8s", FLAVORS: "virtlet.k8s"}
GROUPS |= {CONFIGS: "virtlet.k8s", "nodes": "", "events": ""}
KINDS = {
    "configmaps": ("v1", "ConfigMap"),
    "secrets": ("v1", "Secret"),
    MAPPINGS: ("virtlet.k8s/v1", "VirtletImageMapping"),
    FLAVORS: ("virtlet.k8s/v1", "VirtletFlavor"),
    CONFIGS: ("virtlet.k8s/v1", "VirtletConfigMapping"),
    "nodes": ("v1", "Node"),
}


def status(code: int, reason: str, message: str, details: Mapping[str, str] | None = None) -> Any:
    """A Status object of a failure."""
    made = {
        "kind": "Status",
        "apiVersion": "v1",
        "metadata": {},
        "status": "Failure",
        "message": message,
        "reason": reason,
        "code": code,
    }
    return made | ({"details": dict(details)} if details else {})


@define(eq=False)
class ApiServer:
    """What is in the cluster, and who may read it."""

    namespaces: set[str] = field(factory=set)
    """Those where the manager's account is bound to the role for pods' objects."""
    has_mappings: bool = True
    has_flavors: bool = True
    """Whether the CustomResourceDefinition is there."""
    token: str = TOKEN
    """Of the manager's account."""
    requests: list[str] = field(factory=list)
    """Method and path of what was asked."""
    broken: int = 0
    """Status code of every answer; 0 for honest ones."""
    denied: set[str] = field(factory=set)
    """Resources that nobody may read, whatever the roles say."""
    posted: dict[str, dict[str, Any]] = field(factory=dict)
    """Events by their names, as they are by now."""
    _version: int = 1000
    _compacted: int = 0
    _created: int = 0
    _objects: dict[tuple[str, str, str], dict[str, Any]] = field(factory=dict)
    _events: list[tuple[int, str, dict[str, Any]]] = field(factory=list)
    _changed: threading.Condition = field(factory=threading.Condition)
    _generation: int = 0

    def put(
        self,
        resource: str,
        namespace: str,
        name: str,
        labels: Mapping[str, str] | None = None,
        **content: Any,
    ) -> None:
        """Create or update an object; namespace "" for one of the cluster as a whole."""
        with self._changed:
            self._version += 1
            place = (resource, namespace, name)
            kind = "MODIFIED" if place in self._objects else "ADDED"
            created = f"2026-01-02T03:{self._created // 60:02}:{self._created % 60:02}Z"
            self._created += 1
            metadata = {
                "name": name,
                **({"namespace": namespace} if namespace else {}),
                **({"labels": dict(labels)} if labels else {}),
                "uid": f"{resource}-{name}",
                "resourceVersion": str(self._version),
                "creationTimestamp": created,
            }
            if place in self._objects:
                metadata["creationTimestamp"] = self._objects[place]["metadata"][
                    "creationTimestamp"
                ]
            made = {"metadata": metadata, **content}
            self._objects[place] = made
            self._events.append((self._version, kind, _typed(resource, made)))
            self._changed.notify_all()

    def delete(self, resource: str, namespace: str, name: str) -> None:
        """Remove an object."""
        with self._changed:
            self._version += 1
            gone = self._objects.pop((resource, namespace, name))
            gone["metadata"]["resourceVersion"] = str(self._version)
            self._events.append((self._version, "DELETED", _typed(resource, gone)))
            self._changed.notify_all()

    def bookmark(self) -> None:
        """Move all watches on without an object."""
        with self._changed:
            self._version += 1
            mark = {
                "kind": "VirtletImageMapping",
                "apiVersion": "virtlet.k8s/v1",
                "metadata": {"resourceVersion": str(self._version), "creationTimestamp": None},
            }
            self._events.append((self._version, "BOOKMARK", mark))
            self._changed.notify_all()

    @contextmanager
    def hold(self) -> Iterator[None]:
        """Have what is changed meanwhile seen at once."""
        with self._changed:
            yield

    def compact(self) -> None:
        """Forget all changes up to now: who watches from before gets 410 Gone."""
        with self._changed:
            self._compacted = self._version
            self._events.clear()

    def cut(self) -> None:
        """End all watches, as a server does after their time, or when it restarts."""
        with self._changed:
            self._generation += 1
            self._changed.notify_all()

    def may(self, verb: str, resource: str, namespace: str) -> bool:
        """Whether deploy/cluster/rbac.yaml, and the test's bindings, allow it."""
        if resource in self.denied:
            return False
        rights = ROOT / "deploy" / "cluster" / "rbac.yaml"
        documents = list(yaml.safe_load_all(rights.read_text()))
        roles = {(d["kind"], d["metadata"]["name"]): d.get("rules", ()) for d in documents if d}
        bound = [
            (d["roleRef"]["kind"], d["roleRef"]["name"])
            for d in documents
            if d["kind"] == "ClusterRoleBinding"
            or (d["kind"] == "RoleBinding" and d["metadata"]["namespace"] == namespace)
        ]
        if namespace in self.namespaces:
            bound.append(("ClusterRole", "virtlet-pod-objects"))
        return any(
            GROUPS[resource] in rule["apiGroups"]
            and resource in rule["resources"]
            and verb in rule["verbs"]
            for role in bound
            for rule in roles[role]
        )

    def answer(self, handler: "_Handler") -> None:
        """Serve one GET request."""
        url = urlsplit(handler.path)
        query = {key: values[-1] for key, values in parse_qs(url.query).items()}
        self.requests.append(f"{url.path}{' (watch)' if 'watch' in query else ''}")
        if self.broken:
            return handler.send(self.broken, status(self.broken, "InternalError", "broken"))
        # The scheme's name has no case (RFC 9110, 11.1).
        scheme, _, token = handler.headers.get("Authorization", "").partition(" ")
        if (scheme.lower(), token) != ("bearer", self.token):
            return handler.send(401, status(401, "Unauthorized", "Unauthorized"))
        match url.path.split("/")[1:]:
            case ["api", "v1", "namespaces", namespace, ("configmaps" | "secrets") as kind, name]:
                return self._get(handler, kind, namespace, name)
            case ["apis", "virtlet.k8s", "v1", "namespaces", namespace, "virtletimagemappings"] if (
                self.has_mappings
            ):
                return self._list(handler, MAPPINGS, namespace, query)
            case ["api", "v1", "nodes", name]:
                return self._get(handler, "nodes", "", name)
            case ["apis", "virtlet.k8s", "v1", "namespaces", namespace, "virtletconfigmappings"]:
                return self._list(handler, CONFIGS, namespace, query)
            case ["apis", "virtlet.k8s", "v1", "virtletflavors"] if self.has_flavors:
                return self._list(handler, FLAVORS, "", query)
        return handler.send_text(404, "404 page not found\n")

    def change(self, handler: "_Handler", verb: str, sent: Any) -> None:
        """Serve one request that creates or patches an event."""
        place = urlsplit(handler.path).path
        self.requests.append(f"{verb} {place}")
        if self.broken:
            return handler.send(self.broken, status(self.broken, "InternalError", "broken"))
        match verb, place.split("/")[1:]:
            case "create", ["api", "v1", "namespaces", namespace, "events"]:
                name = sent["metadata"]["name"]
            case "patch", ["api", "v1", "namespaces", namespace, "events", name]:
                pass
            case _:
                return handler.send_text(404, "404 page not found\n")
        if not self.may(verb, "events", namespace):
            return handler.send(403, _forbidden(verb, "events", namespace, name))
        if verb == "patch":
            if name not in self.posted:
                return handler.send(404, status(404, "NotFound", f'events "{name}" not found'))
            kinds = ("application/merge-patch+json", "application/strategic-merge-patch+json")
            assert handler.headers["Content-Type"] in kinds
            self.posted[name] |= sent
        else:
            self.posted[name] = sent
        return handler.send(200 if verb == "patch" else 201, self.posted[name])

    def _get(self, handler: "_Handler", resource: str, namespace: str, name: str) -> None:
        if not self.may("get", resource, namespace):
            return handler.send(403, _forbidden("get", resource, namespace, name))
        found = self._objects.get((resource, namespace, name))
        if found is None:
            details = {"name": name, "kind": resource}
            message = f'{resource} "{name}" not found'
            return handler.send(404, status(404, "NotFound", message, details))
        return handler.send(200, _typed(resource, found))

    def _list(
        self, handler: "_Handler", kind: str, namespace: str, query: Mapping[str, str]
    ) -> None:
        verb = "watch" if query.get("watch") in ("true", "True", "1") else "list"
        if not self.may(verb, kind, namespace):
            return handler.send(403, _forbidden(verb, kind, namespace, ""))
        if verb == "watch":
            return self._watch(handler, kind, namespace, query)
        with self._changed:
            items = [
                _typed(resource, made)
                for (resource, where, _), made in sorted(self._objects.items())
                if resource == kind and where == namespace
            ]
            metadata = {"continue": "", "resourceVersion": str(self._version)}
        listed = {
            "apiVersion": "virtlet.k8s/v1",
            "kind": f"{KINDS[kind][1]}List",
            "metadata": metadata,
            "items": items,
        }
        return handler.send(200, listed)

    def _watch(
        self, handler: "_Handler", resource: str, namespace: str, query: Mapping[str, str]
    ) -> None:
        seen = int(query.get("resourceVersion", "0"))
        until = time.monotonic() + float(query.get("timeoutSeconds", "300"))
        handler.begin_stream()
        if seen < self._compacted:
            gone = status(410, "Expired", f"too old resource version: {seen} ({self._compacted})")
            return handler.end_stream({"type": "ERROR", "object": gone})
        generation = self._generation
        while True:
            with self._changed:
                fresh = [event for event in self._events if event[0] > seen]
                if not fresh and self._generation == generation and time.monotonic() < until:
                    self._changed.wait(until - time.monotonic())
                    continue
                if not fresh:
                    break
            for version, kind, made in fresh:
                seen = version
                if kind == "BOOKMARK" and "allowWatchBookmarks" not in query:
                    continue
                of = (made["kind"], made["metadata"].get("namespace", ""))
                if kind == "BOOKMARK" or of == (KINDS[resource][1], namespace):
                    handler.send_event({"type": kind, "object": made})
        return handler.end_stream()


def _typed(resource: str, made: Mapping[str, Any]) -> dict[str, Any]:
    version, kind = KINDS[resource]
    return json.loads(json.dumps({"apiVersion": version, "kind": kind, **made}))  # type: ignore[no-any-return]


def _forbidden(verb: str, resource: str, namespace: str, name: str) -> Any:
    group = GROUPS[resource]
    full = f"{resource}.{group}" if group else resource
    message = (
        f'{full} {f"{name!r} " if name else ""}is forbidden: User "{ACCOUNT}" cannot {verb} '
        f'resource "{resource}" in API group "{group}" in the namespace "{namespace}"'
    )
    return status(403, "Forbidden", message, {"name": name, "group": group, "kind": resource})


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    api: ApiServer

    def do_GET(self) -> None:
        self.api.answer(self)

    def do_POST(self) -> None:
        self.api.change(self, "create", self._sent())

    def do_PATCH(self) -> None:
        self.api.change(self, "patch", self._sent())

    def _sent(self) -> Any:
        return json.loads(self.rfile.read(int(self.headers["Content-Length"])))

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def send(self, code: int, document: Any) -> None:
        self._send(code, json.dumps(document).encode(), "application/json")

    def send_text(self, code: int, text: str) -> None:
        self._send(code, text.encode(), "text/plain; charset=utf-8")

    def _send(self, code: int, body: bytes, kind: str) -> None:
        self.send_response(code)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def begin_stream(self) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()

    def send_event(self, event: Any) -> None:
        line = json.dumps(event).encode() + b"\n"
        self.wfile.write(f"{len(line):x}\r\n".encode() + line + b"\r\n")

    def end_stream(self, event: Any = None) -> None:
        if event is not None:
            self.send_event(event)
        self.wfile.write(b"0\r\n\r\n")


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: Any, client_address: Any) -> None:
        pass  # a client that leaves a watch


@define(eq=False)
class Served:
    """A server that runs, and how a client finds it."""

    api: ApiServer
    kubeconfig: Path
    port: int
    authority: trustme.CA


@contextmanager
def serving(
    directory: Path, api: ApiServer, *, port: int = 0, authority: trustme.CA | None = None
) -> Iterator[Served]:
    """Serve a cluster on loopback, with a kubeconfig of the manager's account.

    Args:
        directory: for the kubeconfig.
        api: the cluster.
        port: to listen on; 0 for a free one.
        authority: that issues the server's certificate; None for a new one.
    """
    authority = authority or trustme.CA()
    certificate = authority.issue_cert("localhost", "127.0.0.1")
    handler = type("Handler", (_Handler,), {"api": api})
    server = _Server(("127.0.0.1", port), handler)
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    certificate.configure_cert(tls)
    server.socket = tls.wrap_socket(server.socket, server_side=True)
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), name="api-server")
    thread.start()
    kubeconfig = directory / "kubeconfig"
    write_kubeconfig(kubeconfig, authority, server.server_address[1])
    try:
        yield Served(api, kubeconfig, server.server_address[1], authority)
    finally:
        server.shutdown()
        api.cut()
        thread.join()
        server.server_close()


def write_kubeconfig(
    path: Path, authority: trustme.CA | None, port: int, token: str = TOKEN
) -> None:
    """A kubeconfig for the manager's account; without an authority, for the one in it."""
    if authority is None:
        data = yaml.safe_load(path.read_text())["clusters"][0]["cluster"]
        pem = data["certificate-authority-data"]
    else:
        pem = base64.b64encode(authority.cert_pem.bytes()).decode()
    cluster = {"server": f"https://localhost:{port}", "certificate-authority-data": pem}
    document = {
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": "c", "cluster": cluster}],
        "users": [{"name": "virtlet", "user": {"token": token}}],
        "contexts": [{"name": "c", "context": {"cluster": "c", "user": "virtlet"}}],
        "current-context": "c",
    }
    path.write_text(yaml.safe_dump(document))
    path.chmod(0o600)
