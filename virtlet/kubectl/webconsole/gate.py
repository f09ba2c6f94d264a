"""What of a browser's requests is served: the console's own page, and a few paths of the API.

Every page that a browser shows can send requests to the console. Only its own may do so here: by
the address that it was opened with, from no other origin, with the secret of this run on the user's
own machine, and with a token of the user's in a cluster.
"""

import hmac
import re
from abc import ABC, abstractmethod
from http.cookies import CookieError, SimpleCookie
from urllib.parse import parse_qs, urlsplit

import h11
from attrs import frozen

_NAME = r"[a-z0-9]([a-z0-9.-]{0,251}[a-z0-9])?"
_LISTS = re.compile(rf"/api/v1/(namespaces/{_NAME}/)?(pods|events)")
_FIGURES = re.compile(rf"/apis/metrics\.k8s\.io/v1beta1/(namespaces/{_NAME}/)?pods")
_POD = re.compile(rf"/api/v1/namespaces/{_NAME}/pods/{_NAME}(?P<part>/log|/attach|/portforward)?")
_SESSIONS = ("/attach", "/portforward")
_BEARER = re.compile(r"[Bb]earer [A-Za-z0-9._~+/-]{1,16384}={0,2}")
SCREEN = "ports=5900"
"""The one port that the console has forwarded."""
START = "/start"
"""Where a manifest is sent to be started, the one request that changes something."""


class Refused(Exception):
    """A request that is not served.

    Args:
        status: as "403 Forbidden".
        why: a line for the person at the browser.
    """

    def __init__(self, status: str, why: str) -> None:
        super().__init__(why)
        self.status = status
        self.why = why


@frozen
class Asked:
    """A request that may be served."""

    path: str
    query: str
    headers: dict[str, str]
    """By lower-case names."""

    @property
    def upgrade(self) -> bool:
        """Whether a WebSocket is wanted."""
        return self.headers.get("upgrade", "").lower() == "websocket"

    @property
    def is_api(self) -> bool:
        """Whether it is for the API server."""
        return self.path.startswith(("/api/", "/apis/"))


class Gate(ABC):
    """Lets in what the console's own page asks for."""

    @abstractmethod
    def origin(self, host: str) -> str | None:
        """The origin of the console's page at a name and port; None if it has no such name."""

    @abstractmethod
    def check_person(self, asked: Asked) -> None:
        """Whether the user's page asks.

        Raises:
            Refused: it does not.
        """

    def login(self, asked: Asked) -> str:
        """The cookie for a request that begins a visit; "" for others."""
        return ""

    def read(self, head: bytes) -> Asked:
        """A request by its head.

        Raises:
            Refused: it is not served.
        """
        connection = h11.Connection(h11.SERVER)
        try:
            connection.receive_data(head)
            request = connection.next_event()
        except h11.RemoteProtocolError:
            raise Refused("400 Bad Request", "no HTTP request") from None
        if not isinstance(request, h11.Request):
            raise Refused("400 Bad Request", "no HTTP request")
        headers = {name.decode(): value.decode("latin-1") for name, value in request.headers}
        parts = urlsplit(request.target.decode("latin-1"))
        asked = Asked(parts.path, parts.query, headers)
        if request.method != (b"POST" if asked.path == START else b"GET"):
            raise Refused("405 Method Not Allowed", "the console asks for this in another way")
        self._check_origin(asked)
        if not self.login(asked):
            self.check_person(asked)
        if asked.is_api:
            _check_api(asked)
        elif asked.upgrade:
            raise Refused("400 Bad Request", "no session of that name")
        return asked

    def _check_origin(self, asked: Asked) -> None:
        own = self.origin(asked.headers.get("host", ""))
        if own is None:
            raise Refused("421 Misdirected Request", "the console is served by no such name")
        origin = asked.headers.get("origin")
        strange = origin is not None and origin != own
        if strange or asked.headers.get("sec-fetch-site", "none") not in ("none", "same-origin"):
            raise Refused("403 Forbidden", "another page asks for this: open the console itself")
        if (asked.upgrade or asked.path == START) and origin is None:
            raise Refused("403 Forbidden", "a request without an origin is not the console's")


@frozen
class OwnGate(Gate):
    """That of a console on its user's machine.

    Args:
        port: that is listened on.
        secret: of this run, in the address that the user opens, and in a cookie from then on.
    """

    port: int
    secret: str

    @property
    def address(self) -> str:
        """What the user opens."""
        return f"http://127.0.0.1:{self.port}/?token={self.secret}"

    def origin(self, host: str) -> str | None:
        """Loopback's."""
        ours = host in (f"127.0.0.1:{self.port}", f"localhost:{self.port}")
        return f"http://{host}" if ours else None

    def login(self, asked: Asked) -> str:
        """For a request that brings the secret by the address."""
        given = parse_qs(asked.query).get("token", [""])[0]
        if asked.path != "/" or not self._is_secret(given):
            return ""
        return f"{self._cookie}={self.secret}; HttpOnly; SameSite=Strict; Path=/"

    def check_person(self, asked: Asked) -> None:
        """By the secret in the cookie."""
        try:
            cookies = SimpleCookie(asked.headers.get("cookie", ""))
        except CookieError:
            cookies = SimpleCookie()
        given = cookies.get(self._cookie)
        if given is None or not self._is_secret(given.value):
            raise Refused(
                "403 Forbidden", "open the address that the console printed when it was started"
            )

    @property
    def _cookie(self) -> str:
        """Its name; cookies do not tell ports apart."""
        return f"virtlet-{self.port}"

    def _is_secret(self, given: str) -> bool:
        return hmac.compare_digest(given.encode(), self.secret.encode())


@frozen
class ProxiedGate(Gate):
    """That of a console behind a proxy that has found out who the user is.

    Args:
        address: at which browsers see the console, as https://console.example.org.
    """

    address: str

    def origin(self, host: str) -> str | None:
        """The address itself."""
        return self.address if host == urlsplit(self.address).netloc else None

    def check_person(self, asked: Asked) -> None:
        """By the token that the proxy gives to each request; whether it is good says the API."""
        if not _BEARER.fullmatch(asked.headers.get("authorization", "")):
            raise Refused(
                "401 Unauthorized",
                "this request has no bearer token: the proxy before the console has to pass on "
                "that of the user whom it knows",
            )


def _check_api(asked: Asked) -> None:
    pod = _POD.fullmatch(asked.path)
    part = (pod["part"] if pod else None) or ""
    if not (pod or _LISTS.fullmatch(asked.path) or _FIGURES.fullmatch(asked.path)):
        raise Refused("404 Not Found", "the console does not ask the API server for that")
    if asked.upgrade != (part in _SESSIONS):
        raise Refused("400 Bad Request", "sessions are WebSockets, and nothing else is")
    if part == "/portforward" and asked.query != SCREEN:
        raise Refused("403 Forbidden", "the console forwards the screen alone")
