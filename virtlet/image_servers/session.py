"""Talking to an image's server: redirects, credentials, proxies, and errors in our own words.

Source: RFC 9110, 15.4, for redirects.
"""

import logging
import re
import socket
import ssl
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, closing, contextmanager
from typing import TypeVar
from urllib.request import getproxies, proxy_bypass

import httpx

from virtlet import __version__
from virtlet.errors import FailedPrecondition, InvalidArgument, Unavailable
from virtlet.image_servers.authorization import Authorization, may_follow, origin
from virtlet.image_servers.connection import Connection, tls_context
from virtlet.image_servers.reach import EVERYWHERE, DirectTransport, Reach
from virtlet.model.image import ImageSource

_CONNECT_TIMEOUT = 15.0
_TIMEOUT = 60.0
_LONGEST_HEAD = 3
"""Timeouts, which are for a silence, that connections, redirects and headers may take in all: a
server that sends a byte now and then is never silent."""
_MAX_REDIRECTS = 10
_LONGEST_WAIT = 30.0
"""Seconds that a server may ask for by Retry-After. Where it wants more, the pull fails, as other
pulls of the node wait for this one."""
_MOST_WAITS = 3
_REDIRECTS = (301, 302, 303, 307, 308)
_LOOK = "check the image's name, and that the server is up and the node may reach it"
_BROKEN = "the connection broke or its answer is malformed"
_HEADERS = {
    "Accept": "*/*",
    # An image is to arrive as it is: its bytes are counted and hashed.
    "Accept-Encoding": "identity",
    "User-Agent": f"virtlet/{__version__}",
}

log = logging.getLogger(__name__)

E = TypeVar("E", bound=BaseException)


class Session:
    """The way to one image.

    Args:
        source: where it is.
        authorization: what its server is shown, and no other.
        reach: where servers may be that the administrator does not name.
        headers: for its server, and for no other.

    Attributes:
        name: the image's.
        host: its server's.
        pinned: whether a digest says what has to arrive.
        own: whether the server that was asked last is the image's, not one of a redirect.
        kept_back: why the server that was asked last was not shown the pod's credentials, or "".

    Raises:
        InvalidArgument: the address is malformed.
        FailedPrecondition: the proxy is malformed.
    """

    def __init__(
        self,
        source: ImageSource,
        authorization: Authorization,
        reach: Reach,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        for library in ("httpx", "httpcore"):
            # Their records hold whole addresses and headers.
            logging.getLogger(library).setLevel(logging.WARNING)
        self.name = source.name
        self._transport = source.transport
        self._trusted = source.trusted
        self._reach = reach
        self._timeout = source.transport.timeout or _TIMEOUT
        self._headers = headers or {}
        self._connection = Connection()
        self.pinned = bool(source.digest)
        self.own = True
        self.kept_back = ""
        try:
            self.host = origin(source.url)[1]
            self._start = httpx.URL(source.url).copy_with(userinfo=b"", fragment=None)
        except (ValueError, httpx.InvalidURL):
            raise InvalidArgument(f"image {self.name}: its address is malformed") from None
        if not self.host:
            raise InvalidArgument(f"image {self.name}: its address names no host")
        self._asked = self._start
        self._authorization = authorization
        if self._transport.proxy and not _is_server(self._transport.proxy):
            raise self._bad_proxy()

    def close(self) -> None:
        """End the connection, from any thread; what is asked for later fails at once."""
        self._connection.end()

    @contextmanager
    def get(self, headers: Mapping[str, str]) -> Iterator[httpx.Response]:
        """The answer after all redirects, its body not read yet.

        Raises:
            FailedPrecondition: it leads where it must not, or cannot be trusted.
            Unavailable: the server cannot be reached, it does not begin to send in time, or the
                connection breaks.
        """
        limit = self._transport.max_redirects
        limit = _MAX_REDIRECTS if limit < 0 else limit
        self._asked = url = self._start
        with self._errors(), self._in_time() as has_begun:
            redirects = waits = 0
            while redirects <= limit:
                with ExitStack() as stack:
                    response = stack.enter_context(self._request(url, headers))
                    location = response.headers.get("Location")
                    wait = _asked_to_wait(response) if waits < _MOST_WAITS else None
                    if wait is None and (
                        response.status_code not in _REDIRECTS or location is None
                    ):
                        has_begun()
                        yield response
                        return
                if wait is None:
                    redirects += 1
                    self._asked = url = self._redirect(url, location)
                    continue
                waits += 1
                log.info("image server asks to wait", extra={"image": self.name, "seconds": wait})
                self._connection.pause(wait)
        raise FailedPrecondition(
            f"image {self.name}: {self.server} redirects more than {limit} times; "
            "see maxRedirects of its transport"
        )

    @contextmanager
    def _request(self, url: httpx.URL, headers: Mapping[str, str]) -> Iterator[httpx.Response]:
        self.own = own = may_follow(str(self._start), str(url))
        sent = {**_HEADERS, **headers, **(self._headers if own else {})}
        self.kept_back = self._authorization.kept_back(url.scheme, own=own)
        if self._authorization.header and not self.kept_back:
            sent["Authorization"] = self._authorization.header
        traced = {"trace": self._connection.trace}
        with (
            # Last: only then is the connection's last descriptor closed.
            closing(self._connection),
            self._client(own, url) as client,
            client.stream("GET", url, headers=sent, extensions=traced) as response,
        ):
            yield response

    @contextmanager
    def _in_time(self) -> Iterator[Callable[[], None]]:
        """Give up what takes too long until the function that it gives is called."""
        seconds = _LONGEST_HEAD * self._timeout
        late = threading.Event()

        def give_up() -> None:
            late.set()
            self._connection.end()

        timer = threading.Timer(seconds, give_up)
        timer.daemon = True
        timer.start()
        try:
            yield timer.cancel
        except httpx.TransportError:
            if late.is_set():
                raise Unavailable(
                    f"image {self.name}: {self._peer()} has not begun to send it in "
                    f"{seconds:g} seconds, redirects included; {_LOOK}"
                ) from None
            raise
        finally:
            timer.cancel()

    def _client(self, own: bool, url: httpx.URL) -> httpx.Client:
        timeout = self._timeout
        context = None
        if url.scheme == "https":
            context = tls_context(self.name, self._transport, own=own)
        reach = EVERYWHERE if own and self._trusted else self._reach
        proxy = self._transport.proxy or _environment_proxy(url)
        transport: httpx.BaseTransport
        try:
            if proxy:
                reach.check_behind_proxy(self.name, url.host)
                # Without TLS there is nothing to verify, and no authorities need to be read.
                transport = httpx.HTTPTransport(verify=context or False, proxy=proxy)
            else:
                transport = DirectTransport(self.name, reach, context)
        except (ValueError, ImportError, httpx.InvalidURL):
            raise self._bad_proxy() from None
        return httpx.Client(
            transport=transport,
            timeout=httpx.Timeout(timeout, connect=min(timeout, _CONNECT_TIMEOUT)),
        )

    def _bad_proxy(self) -> FailedPrecondition:
        return FailedPrecondition(
            f"image {self.name}: the proxy of its transport, or of the manager's environment, "
            "is no http:// or https:// address"
        )

    def _redirect(self, url: httpx.URL, location: str) -> httpx.URL:
        try:
            target = url.join(location).copy_with(userinfo=b"", fragment=None)
            origin(str(target))
        except (ValueError, httpx.InvalidURL):
            raise FailedPrecondition(
                f"image {self.name}: {self.host} redirects to a malformed address"
            ) from None
        if target.scheme not in ("http", "https") or not target.host:
            raise FailedPrecondition(
                f"image {self.name}: {self.host} redirects to something else than http or https"
            )
        if url.scheme == "https" and target.scheme == "http":
            raise FailedPrecondition(
                f"image {self.name}: {self.host} redirects from https to plain http, where "
                "anybody may read and change it; use another address"
            )
        return target

    @contextmanager
    def _errors(self) -> Iterator[None]:
        """Say what the library's errors mean; its own words may hold the address."""
        about = f"image {self.name}"
        try:
            yield
        except httpx.ConnectTimeout:
            raise Unavailable(
                f"{about}: {self._peer()} does not take a connection in time; {_LOOK}"
            ) from None
        except httpx.TimeoutException:
            raise Unavailable(f"{about}: no answer from {self._peer()} in time") from None
        except httpx.ProxyError:
            proxy = self._peer() if self._transport.proxy else "the proxy of the environment"
            raise Unavailable(f"{about}: {proxy} does not let it through") from None
        except (httpx.InvalidURL, httpx.UnsupportedProtocol):
            # Its own address was looked at before.
            raise FailedPrecondition(
                f"{about}: {self.host} redirects to a malformed address"
            ) from None
        except httpx.TransportError as error:
            untrusted = _cause(error, ssl.SSLCertVerificationError)
            if untrusted is not None:
                raise FailedPrecondition(
                    f"{about}: the certificate of {self._peer()} is not trusted "
                    f"({untrusted.verify_message}); give its authority in the transport's tls"
                ) from None
            nameless = _cause(error, socket.gaierror)
            if nameless is not None:
                raise Unavailable(f"{about}: {self._unresolved(nameless)}") from None
            reason = _cause(error, OSError)
            text = (reason.strerror if reason else None) or _BROKEN
            look = f"; {_LOOK}" if isinstance(error, httpx.ConnectError) else ""
            raise Unavailable(f"{about}: {self._peer()}: {text}{look}") from None

    @property
    def server(self) -> str:
        """Who was asked last, for messages: HOST:PORT, never a whole address."""
        return _host_port(str(self._asked))

    def _peer(self) -> str:
        """Who is connected to, for messages."""
        proxy = self._transport.proxy
        return f"the proxy {_host_port(proxy)}" if proxy else self.server

    def _unresolved(self, error: socket.gaierror) -> str:
        text = (
            f"the name of {self._peer()} does not resolve ({error.strerror}); check the image's "
            "name, the image translation files and the node's DNS"
        )
        host = self._asked.host
        if "." in host or ":" in host or self._transport.proxy:
            return text
        # Most often the first word of a name that another plugin was meant to know.
        return (
            f"{text}; if {host}/… are names of an image plugin, the handler of the pod's "
            "RuntimeClass must name that plugin under `handlers:` in the manager's configuration"
        )


def _asked_to_wait(response: httpx.Response) -> float | None:
    """Seconds after which a busy server wants to be asked again (RFC 9110, 10.2.3)."""
    told = response.headers.get("Retry-After", "")
    if response.status_code not in (429, 503) or not re.fullmatch(r"[0-9]{1,9}", told):
        return None
    return float(told) if float(told) <= _LONGEST_WAIT else None


def _host_port(url: str) -> str:
    _, host, port = origin(url)
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _environment_proxy(url: httpx.URL) -> str:
    """The proxy that the manager's environment names for an address, or ""."""
    proxies = getproxies()
    proxy = proxies.get(url.scheme) or proxies.get("all") or ""
    if not proxy or proxy_bypass(url.host):
        return ""
    return proxy if "://" in proxy else f"http://{proxy}"


def _is_server(url: str) -> bool:
    try:
        scheme, host, _ = origin(url)
    except ValueError:
        return False
    return scheme in ("http", "https") and bool(host)


def _cause(error: BaseException, kind: type[E]) -> E | None:
    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, kind):
            return seen
        seen = seen.__cause__ or seen.__context__
    return None
