"""Asking one server of a registry, and what it is shown.

Source: "Token Authentication Specification" of the distribution project; containerd for the
parameter `ns`, which tells a mirror whose image is meant.
"""

import json
import re
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any
from urllib.parse import urlencode, urlsplit

import httpx
from attrs import evolve, field, frozen

from virtlet.errors import (
    FailedPrecondition,
    NotFound,
    PermissionDenied,
    Unavailable,
    VirtletError,
)
from virtlet.image_servers.authorization import Authorization, authorization
from virtlet.image_servers.pace import Bounds, paced
from virtlet.image_servers.session import Session
from virtlet.model.image import Credentials, ImageSource, Transport
from virtlet.plugins.image_oci.hosts import Endpoint
from virtlet.plugins.image_oci.manifests import LARGEST

_PASSING = (408, 425, 429, 500, 502, 503, 504)
_PARAMETER = re.compile(r'([a-z_]+)\s*=\s*(?:"([^"]*)"|([^\s",]+))', re.I)
_CHALLENGE = re.compile(
    r'\b(basic|bearer)\s+((?:[a-z_]+\s*=\s*(?:"[^"]*"|[^\s",]+)\s*,?\s*)*)', re.I
)
_DOCKER = ("docker.io", "index.docker.io", "registry-1.docker.io")


class NoRegistry(FailedPrecondition):
    """A server does not speak the protocol of registries."""


@frozen
class Repository:
    """What is pulled."""

    registry: str
    """`HOST[:PORT]`."""
    name: str
    user: str = field(default="", repr=False)
    """`USER:PASSWORD` of the address, percent-encoded, or ""."""


class Server:
    """One endpoint, asked for one repository.

    Args:
        endpoint: the server.
        source: the image.
        repository: where it is.
        shown: what it may be shown.
        bounds: of the node.
    """

    def __init__(
        self,
        endpoint: Endpoint,
        source: ImageSource,
        repository: Repository,
        shown: Authorization,
        bounds: Bounds,
    ) -> None:
        self.endpoint = endpoint
        self._source = source
        self._about = f"image {source.name}"
        self._repository = repository
        self._secret = shown
        # A token that a pull secret holds is shown at once; other secrets where they are asked for.
        is_token = shown.header.startswith("Bearer ")
        self._current = shown if is_token else evolve(shown, header="")
        self._bounds = bounds
        self._lock = threading.Lock()
        self._session: Session | None = None
        self._ended = False

    def close(self) -> None:
        """End the connection, from any thread; what is asked for later fails at once."""
        with self._lock:
            self._ended = True
            if self._session is not None:
                self._session.close()

    @contextmanager
    def get(
        self, path: str, headers: Mapping[str, str]
    ) -> Iterator[tuple[Session, httpx.Response]]:
        """Its answer, after it was shown what it asks for.

        Args:
            path: below the repository's name.
            headers: of the request.
        """
        endpoint = self.endpoint
        url = f"{endpoint.url}/{self._repository.name}/{path}"
        if not endpoint.is_registry:
            url += "?" + urlencode({"ns": self._repository.registry})
        for last in (False, True):
            session = self._new_session(url, self._current)
            with session.get(headers) as response:
                if (
                    last
                    or response.status_code != 401
                    or not session.own
                    or (wanted := _challenges(response)) is None
                ):
                    yield session, response
                    return
            self._current = self._answer(wanted)

    def _answer(self, wanted: Mapping[str, Mapping[str, str]]) -> Authorization:
        """What to show to a server that asks for something."""
        if self._secret.header.startswith("Bearer "):
            return self._secret
        if "bearer" not in wanted:
            return self._secret
        token = self._token(wanted["bearer"])
        secret = self._secret
        return Authorization(f"Bearer {token}", of_pod=bool(secret.header) and secret.of_pod)

    def _token(self, wanted: Mapping[str, str]) -> str:
        """A token from the server that the registry names for it."""
        realm = wanted.get("realm", "")
        query = {"service": wanted.get("service", ""), "scope": wanted.get("scope", "")}
        query["scope"] = query["scope"] or f"repository:{self._repository.name}:pull"
        try:
            address = urlsplit(realm)
            scheme, has_host = address.scheme, bool(address.hostname)
        except ValueError:
            scheme, has_host = "", False
        secure = scheme == "https" or (scheme == "http" and self.endpoint.url.startswith("http:"))
        if not secure or not has_host or address.username is not None:
            raise FailedPrecondition(
                f"{self._about}: {urlsplit(self.endpoint.url).netloc} names no https:// address as "
                "the server of its tokens"
            )
        joint = "&" if address.query else "?"
        url = f"{realm.partition('#')[0]}{joint}{urlencode({k: v for k, v in query.items() if v})}"
        session = self._new_session(url, self._secret)
        with session.get({"Accept": "application/json"}) as response:
            if response.status_code != 200:
                raise self.refusal(session, response, "a token", of_registry=True)
            data = self.read(session, response)
        answer = parse_json(data)
        token = answer.get("token") or answer.get("access_token")
        if not (isinstance(token, str) and token.isascii() and token.isprintable()):
            raise FailedPrecondition(f"{self._about}: {session.server} answers without a token")
        return token

    def _new_session(self, url: str, shown: Authorization) -> Session:
        endpoint = self.endpoint
        # The administrator names an endpoint, not the servers that it names.
        own = urlsplit(url).netloc == urlsplit(endpoint.url).netloc
        transport = endpoint.transport if own else _authorities(endpoint.transport)
        trusted = endpoint.trusted and own
        source = evolve(self._source, url=url, transport=transport, trusted=trusted)
        headers = endpoint.headers if own else {}
        if urlsplit(url).hostname != urlsplit(endpoint.url).hostname:
            # The administrator may allow plain HTTP for the registry alone.
            shown = evolve(shown, of_pod=True)
        session = Session(source, shown, self._bounds.reach, headers)
        with self._lock:
            self._session = session
            if self._ended:
                session.close()
        return session

    def read(self, session: Session, response: httpx.Response) -> bytes:
        """A body, or a byte more than the most that it may have, `LARGEST`.

        Raises:
            FailedPrecondition: it comes too slowly.
        """
        data = b""
        chunks = response.iter_raw()
        for chunk in paced(self._source.name, session.server, chunks, self._bounds.least_rate):
            data += chunk[: LARGEST + 1 - len(data)]
            if len(data) > LARGEST:
                break
        return data

    def _speaks(self, session: Session, response: httpx.Response) -> bool:
        """Whether an error is a registry's."""
        if "docker-distribution-api-version" in response.headers:
            return True
        return isinstance(parse_json(self.read(session, response)).get("errors"), list)

    def refusal(
        self, session: Session, response: httpx.Response, what: str, *, of_registry: bool = False
    ) -> VirtletError:
        """The error of an answer.

        Args:
            session: that brought it.
            response: with a status that is an error.
            what: was asked for.
            of_registry: False where it may be no registry at all.
        """
        status = response.status_code
        about = f"{self._about}: {session.server}"
        if status in _PASSING:
            return Unavailable(f"{about} cannot serve it now (HTTP {status})")
        of_registry = of_registry or not session.own or self._speaks(session, response)
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


def show_to(
    endpoint: Endpoint, source: ImageSource, repository: Repository, credentials: Credentials
) -> Authorization:
    """The pod's secret, or the address's own, where it is meant for an endpoint.

    Raises:
        InvalidArgument: the credentials are malformed.
    """
    if not endpoint.is_registry:
        return Authorization(refusal="pull secrets are not sent to mirrors")
    registry, named = repository.registry, credentials.server_address
    if registry in _DOCKER and _host(named) in _DOCKER:
        named = registry
    user = f"{repository.user}@" if repository.user else ""
    address = f"{urlsplit(endpoint.url).scheme}://{user}{registry}"
    shown = authorization(evolve(source, url=address), evolve(credentials, server_address=named))
    return evolve(shown, of_pod=shown.of_pod and not endpoint.plain)


def parse_json(data: bytes) -> Mapping[str, Any]:
    """A document that is a JSON object; {} for any other."""
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
