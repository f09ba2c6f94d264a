"""Asking the servers of a registry for manifests and blobs.

Source: OCI's distribution specification; "Token Authentication Specification" of the distribution
project for tokens; containerd for the parameter `ns`, which tells a mirror whose image is meant.
"""

import hashlib
import json
import logging
import re
import threading
import time
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any, TypeVar
from urllib.parse import urlencode, urlsplit

import httpx
from attrs import evolve, frozen

from virtlet.errors import (
    FailedPrecondition,
    NotFound,
    PermissionDenied,
    Unavailable,
    VirtletError,
)
from virtlet.image_servers.authorization import Authorization, authorization
from virtlet.image_servers.pace import Bounds, Pace
from virtlet.image_servers.session import Session
from virtlet.model.image import Credentials, ImageSource, Transport
from virtlet.plugins.image_oci.hosts import Endpoint
from virtlet.plugins.image_oci.manifests import INDEXES, LARGEST, MANIFESTS, Descriptor

log = logging.getLogger(__name__)

T = TypeVar("T")

_PASSING = (408, 425, 429, 500, 502, 503, 504)
_CONTENT_RANGE = re.compile(r"bytes (\d{1,18})-\d{1,18}/(?:\d{1,18}|\*)")
_CHALLENGE = re.compile(
    r'\b(basic|bearer)\s+((?:[a-z_]+\s*=\s*(?:"[^"]*"|[^\s",]+)\s*,?\s*)*)', re.I
)
_PARAMETER = re.compile(r'([a-z_]+)\s*=\s*(?:"([^"]*)"|([^\s",]+))', re.I)
_MOST_BREAKS = 20
"""Times that a blob is gone on with; each after bytes have come."""
_DELAY = 0.5
_DOCKER = ("docker.io", "index.docker.io", "registry-1.docker.io")


class NoRegistry(FailedPrecondition):
    """A server does not speak the protocol of registries."""


@frozen
class Content:
    """A document that was fetched, with its digest."""

    data: bytes
    media_type: str
    digest: str
    """`sha256:…`, whatever it was asked for by."""


@frozen
class Repository:
    """What is pulled."""

    registry: str
    """`HOST[:PORT]`."""
    name: str


class _Server:
    """One endpoint, and what it is shown for one repository."""

    def __init__(self, endpoint: Endpoint, shown: Authorization) -> None:
        self.endpoint = endpoint
        self.secret = shown
        """The pod's, or nothing."""
        # A token that a pull secret holds is shown at once; other secrets where they are asked for.
        self.current = shown if shown.header.startswith("Bearer ") else evolve(shown, header="")


class Registry:
    """The servers of a registry, asked for one repository of it.

    Args:
        source: the image.
        repository: where it is.
        endpoints: the servers, in the order in which they are asked.
        credentials: for the registry itself.
        bounds: of the node.
        user: `USER:PASSWORD` of the image's address, percent-encoded, or "".

    Raises:
        InvalidArgument: the credentials are malformed.
    """

    def __init__(
        self,
        source: ImageSource,
        repository: Repository,
        endpoints: tuple[Endpoint, ...],
        credentials: Credentials,
        bounds: Bounds,
        user: str = "",
    ) -> None:
        self._source = source
        self._about = f"image {source.name}"
        self._repository = repository
        self._bounds = bounds
        self._user = user
        self._lock = threading.Lock()
        self._session: Session | None = None
        self._ended = False
        self._servers = [
            _Server(endpoint, self._shown(endpoint, credentials)) for endpoint in endpoints
        ]

    def close(self) -> None:
        """End the connection, from any thread; what is asked for later fails at once."""
        with self._lock:
            self._ended = True
            if self._session is not None:
                self._session.close()

    def manifest(self, reference: str) -> Content:
        """A manifest or index.

        Args:
            reference: its tag, or its digest, which is verified.

        Raises:
            NoRegistry: the registry's own server does not speak the protocol.
            NotFound, PermissionDenied: it says so.
            FailedPrecondition: it is too long, or not what the digest says.
            Unavailable: the server cannot be reached, or the connection broke.
        """
        by_digest = ":" in reference
        accepted = {"Accept": ", ".join((*INDEXES, *MANIFESTS))}

        def ask(server: _Server) -> Content:
            path = f"manifests/{reference}"
            with self._get(server, path, accepted) as (session, response):
                if response.status_code != 200:
                    raise self._refusal(session, response, "the manifest")
                data = _read(response, LARGEST)
                kind = response.headers.get("Content-Type", "").partition(";")[0].strip().lower()
                told = "docker-distribution-api-version" in response.headers
            known = told or kind in (*INDEXES, *MANIFESTS)
            if not (known or _json(data).get("schemaVersion") == 2):
                raise NoRegistry(f"{self._about}: {session.server} is no image registry")
            if len(data) > LARGEST:
                raise FailedPrecondition(
                    f"{self._about}: its manifest is larger than {LARGEST} bytes"
                )
            if by_digest and not _matches(data, reference):
                raise self._other(session.server, "manifest", reference)
            return Content(data, kind, f"sha256:{hashlib.sha256(data).hexdigest()}")

        return self._ask(ask, resolving=not by_digest)

    def document(self, descriptor: Descriptor) -> bytes:
        """A small blob, whole and verified.

        Raises:
            FailedPrecondition: it is too long, or not what its digest says.
            NotFound, PermissionDenied, Unavailable: as `manifest`.
        """
        if descriptor.size > LARGEST:
            raise FailedPrecondition(
                f"{self._about}: its configuration is larger than {LARGEST} bytes"
            )
        return b"".join(self.blob(descriptor))

    def blob(self, descriptor: Descriptor) -> Generator[bytes, None, None]:
        """A blob in chunks, verified at its end; what breaks is gone on with where it broke.

        Raises:
            FailedPrecondition: it is not what its descriptor says, or comes too slowly.
            NotFound, PermissionDenied, Unavailable: as `manifest`.
        """
        hashing, there, tries = hashlib.new(descriptor.digest.partition(":")[0]), 0, 0
        while True:
            before = there
            try:
                for chunk in self._blob_from(descriptor, there):
                    there += len(chunk)
                    hashing.update(chunk)
                    yield chunk
                if there < descriptor.size:
                    raise Unavailable(
                        f"{self._about}: {descriptor.digest} ended after {there} of "
                        f"{descriptor.size} bytes"
                    )
                break
            except Unavailable as error:
                tries += 1
                if there == before or tries > _MOST_BREAKS:
                    raise
                log.warning(
                    "image download broken, going on",
                    extra={"image": self._source.name, "size": there, "problem": str(error)},
                )
                time.sleep(_DELAY)
        if hashing.hexdigest() != descriptor.digest.partition(":")[2]:
            raise self._other(self._repository.registry, "blob", descriptor.digest)

    def _blob_from(self, descriptor: Descriptor, start: int) -> Iterator[bytes]:
        """What of a blob follows its first `start` bytes."""
        headers = {"Range": f"bytes={start}-"} if start else {}
        with ExitStack() as stack:

            def ask(server: _Server) -> tuple[Session, httpx.Response]:
                path = f"blobs/{descriptor.digest}"
                with ExitStack() as attempt:
                    session, response = attempt.enter_context(self._get(server, path, headers))
                    if response.status_code == 416 and start:
                        raise FailedPrecondition(
                            f"{self._about}: {session.server} has {start} of the "
                            f"{descriptor.size} bytes of {descriptor.digest}"
                        )
                    if response.status_code not in (200, 206):
                        raise self._refusal(session, response, "a blob", of_registry=True)
                    stack.push(attempt.pop_all())
                return session, response

            session, response = self._ask(ask)
            passed = self._passed(session, response, start)
            length = response.headers.get("Content-Length", "")
            if length.isdigit() and passed + int(length[:19]) > descriptor.size:
                raise self._longer(session, descriptor)
            try:
                for chunk in Pace(self._bounds.least_rate).chunks(response.iter_raw()):
                    skip = min(len(chunk), max(0, start - passed))
                    passed += len(chunk)
                    if passed > descriptor.size:
                        raise self._longer(session, descriptor)
                    if skip < len(chunk):
                        yield chunk[skip:] if skip else chunk
            except TimeoutError:
                raise FailedPrecondition(
                    f"{self._about}: {session.server} sends less than {self._bounds.least_rate} "
                    "bytes a second, so that it would hold up other pulls; use a faster registry, "
                    "or set imageLeastRate lower"
                ) from None

    def _passed(self, session: Session, response: httpx.Response, start: int) -> int:
        """Bytes of a blob that come before an answer's body."""
        if response.status_code == 200:
            return 0
        match = _CONTENT_RANGE.fullmatch(response.headers.get("Content-Range", ""))
        if match is None or int(match[1]) != start:
            raise FailedPrecondition(
                f"{self._about}: {session.server} sends another part of a blob than asked for"
            )
        return start

    # Servers

    def _ask(self, ask: Callable[[_Server], T], *, resolving: bool = False) -> T:
        """Ask the servers in turn; the last one's error is the pull's."""
        able = [
            server
            for server in self._servers
            if (server.endpoint.resolves if resolving else server.endpoint.pulls)
        ]
        if not able:
            what = "resolve" if resolving else "pull"
            raise FailedPrecondition(
                f"{self._about}: no host in the hosts.toml of {self._repository.registry} has the "
                f"capability {what}"
            )
        for server in able[:-1]:
            try:
                return ask(server)
            except VirtletError as error:
                log.info(
                    "mirror passed over",
                    extra={"image": self._source.name, "problem": str(error)},
                )
        return ask(able[-1])

    @contextmanager
    def _get(
        self, server: _Server, path: str, headers: Mapping[str, str]
    ) -> Iterator[tuple[Session, httpx.Response]]:
        """A server's answer, after it was shown what it asks for."""
        endpoint = server.endpoint
        url = f"{endpoint.url}/{self._repository.name}/{path}"
        if not endpoint.is_registry:
            url += "?" + urlencode({"ns": self._repository.registry})
        for last in (False, True):
            session = self._new_session(server, url, server.current)
            with session.get(headers) as response:
                if (
                    last
                    or response.status_code != 401
                    or not session.own
                    or (wanted := _challenges(response)) is None
                ):
                    yield session, response
                    return
            server.current = self._answer(server, wanted)

    def _answer(self, server: _Server, wanted: Mapping[str, Mapping[str, str]]) -> Authorization:
        """What to show to a server that asks for something."""
        if server.secret.header.startswith("Bearer "):
            return server.secret
        if "bearer" not in wanted:
            return server.secret
        token = self._token(server, wanted["bearer"])
        secret = server.secret
        return Authorization(f"Bearer {token}", of_pod=bool(secret.header) and secret.of_pod)

    def _token(self, server: _Server, wanted: Mapping[str, str]) -> str:
        """A token from the server that the registry names for it."""
        realm = wanted.get("realm", "")
        query = {"service": wanted.get("service", ""), "scope": wanted.get("scope", "")}
        query["scope"] = query["scope"] or f"repository:{self._repository.name}:pull"
        try:
            address = urlsplit(realm)
            scheme, has_host = address.scheme, bool(address.hostname)
        except ValueError:
            scheme, has_host = "", False
        secure = scheme == "https" or (scheme == "http" and server.endpoint.url.startswith("http:"))
        if not secure or not has_host or address.username is not None:
            raise FailedPrecondition(
                f"{self._about}: {_server_of(server.endpoint)} names no https:// address as the "
                "server of its tokens"
            )
        joint = "&" if address.query else "?"
        url = f"{realm.partition('#')[0]}{joint}{urlencode({k: v for k, v in query.items() if v})}"
        session = self._new_session(server, url, server.secret)
        with session.get({"Accept": "application/json"}) as response:
            if response.status_code != 200:
                raise self._refusal(session, response, "a token", of_registry=True)
            data = _read(response, LARGEST)
        answer = _json(data)
        token = answer.get("token") or answer.get("access_token")
        if not (isinstance(token, str) and token.isascii() and token.isprintable()):
            raise FailedPrecondition(f"{self._about}: {session.server} answers without a token")
        return token

    def _new_session(self, server: _Server, url: str, shown: Authorization) -> Session:
        endpoint = server.endpoint
        # The administrator names an endpoint, not the servers that it names.
        own = urlsplit(url).netloc == urlsplit(endpoint.url).netloc
        transport = endpoint.transport if own else _authorities(endpoint.transport)
        trusted = endpoint.trusted and own
        source = evolve(self._source, url=url, transport=transport, trusted=trusted)
        headers = endpoint.headers if own else {}
        session = Session(source, shown, self._bounds.reach, headers)
        with self._lock:
            self._session = session
            if self._ended:
                session.close()
        return session

    def _shown(self, endpoint: Endpoint, credentials: Credentials) -> Authorization:
        """The pod's secret, or the address's own, where it is meant for an endpoint."""
        if not endpoint.is_registry:
            return Authorization(refusal="pull secrets are not sent to mirrors")
        registry, named = self._repository.registry, credentials.server_address
        if registry in _DOCKER and _host(named) in _DOCKER:
            named = registry
        user = f"{self._user}@" if self._user else ""
        address = f"{urlsplit(endpoint.url).scheme}://{user}{registry}"
        shown = authorization(
            evolve(self._source, url=address), evolve(credentials, server_address=named)
        )
        return evolve(shown, of_pod=shown.of_pod and not endpoint.plain)

    # Errors

    def _refusal(
        self, session: Session, response: httpx.Response, what: str, *, of_registry: bool = False
    ) -> VirtletError:
        status = response.status_code
        about = f"{self._about}: {session.server}"
        if status in _PASSING:
            return Unavailable(f"{about} cannot serve it now (HTTP {status})")
        of_registry = of_registry or not session.own or _speaks(response)
        if not of_registry:
            return NoRegistry(f"{about} is no image registry (HTTP {status})")
        if status in (404, 410):
            return NotFound(
                f"{about} does not have {what} of {self._repository.name} (HTTP {status})"
            )
        if status in (401, 403):
            why = session.kept_back or "check the name and the image pull secret"
            return PermissionDenied(f"{about} refuses {what} (HTTP {status}); {why}")
        return FailedPrecondition(f"{about} answers with HTTP {status}")

    def _longer(self, session: Session, descriptor: Descriptor) -> FailedPrecondition:
        return FailedPrecondition(
            f"{self._about}: {session.server} sends more of {descriptor.digest} than the "
            f"{descriptor.size} bytes of its manifest"
        )

    def _other(self, server: str, what: str, digest: str) -> FailedPrecondition:
        return FailedPrecondition(
            f"{self._about}: the {what} that {server} sends is not {digest}; its content was "
            "changed or damaged"
        )


def _read(response: httpx.Response, most: int) -> bytes:
    """A body, or a byte more than the most that it may have."""
    data = b""
    for chunk in response.iter_raw():
        data += chunk[: most + 1 - len(data)]
        if len(data) > most:
            break
    return data


def _matches(data: bytes, digest: str) -> bool:
    algorithm, _, wanted = digest.partition(":")
    return hashlib.new(algorithm, data).hexdigest() == wanted


def _speaks(response: httpx.Response) -> bool:
    """Whether an error is a registry's."""
    if "docker-distribution-api-version" in response.headers:
        return True
    return isinstance(_json(_read(response, LARGEST)).get("errors"), list)


def _json(data: bytes) -> Mapping[str, Any]:
    try:
        document = json.loads(data)
    except (ValueError, RecursionError):
        return {}
    return document if isinstance(document, dict) else {}


def _challenges(response: httpx.Response) -> Mapping[str, Mapping[str, str]] | None:
    """What a server asks for, by the scheme in lower case; None for nothing that is known."""
    found: dict[str, Mapping[str, str]] = {}
    for header in response.headers.get_list("WWW-Authenticate"):
        for match in _CHALLENGE.finditer(header[:4096]):
            found[match[1].lower()] = {
                name.lower(): quoted or plain
                for name, quoted, plain in _PARAMETER.findall(match[2])
            }
    return found or None


def _authorities(transport: Transport) -> Transport:
    """What of a transport holds for another server."""
    authorities = tuple(each for each in transport.certificates if each.key is None)
    return evolve(transport, certificates=authorities, insecure=False)


def _host(address: str) -> str:
    try:
        return urlsplit(address if "://" in address else f"//{address}").hostname or ""
    except ValueError:
        return ""


def _server_of(endpoint: Endpoint) -> str:
    return urlsplit(endpoint.url).netloc
