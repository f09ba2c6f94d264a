"""Which addresses an image may come from, looked at where a connection is made.

A pod's author chooses the host of an image's name. Without bounds, the manager would ask the
node's own services, or those of its network, in the author's place.
"""

import errno
import ipaddress
import socket
import ssl
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import httpcore
import httpx
from attrs import frozen

from virtlet.errors import PermissionDenied
from virtlet.image_servers.body import HeadFirst, read_body
from virtlet.image_servers.settings import Network

Address = ipaddress.IPv4Address | ipaddress.IPv6Address

_NAT64 = ipaddress.ip_network("64:ff9b::/96")
_RTN_LOCAL = 2
"""Type of a route to an address of this node (linux/rtnetlink.h)."""


@frozen
class Reach:
    """The addresses that an image may come from."""

    allowed: tuple[Network, ...] = ()
    """Networks beside the public ones."""

    def check(self, image: str, host: str, addresses: Iterable[str]) -> None:
        """Refuse a host that has an address out of reach.

        Args:
            image: the image's name, for messages.
            host: as the address or redirect names it.
            addresses: all that it resolves to.

        Raises:
            PermissionDenied: one of them is out of reach.
        """
        if self == EVERYWHERE:
            return
        for text in addresses:
            kind = self._forbidden(ipaddress.ip_address(text))
            if kind:
                # The author of the pod is not told how names resolve here.
                raise PermissionDenied(
                    f"image {image}: {host} is {kind}, which only an address of an image "
                    "translation file may lead to; name the image in one, or allow the network "
                    "with imageAllowedNetworks"
                )

    def check_behind_proxy(self, image: str, host: str) -> None:
        """Refuse what is out of reach already as it is written; the proxy resolves names.

        Raises:
            PermissionDenied: it is.
        """
        if host == "localhost" or host.endswith(".localhost"):
            host_addresses = ["127.0.0.1"]
        else:
            try:
                # It also reads 127.1 and 0x7f000001, as a proxy may.
                found = _look_up(host, None, flags=socket.AI_NUMERICHOST)
            except OSError:
                return
            host_addresses = [str(item[4][0]) for item in found]
        self.check(image, host, host_addresses)

    def _forbidden(self, address: Address) -> str:
        """What kind of address it is if it is out of reach, else ""."""
        for each in _meanings(address):
            if any(each in network for network in self.allowed):
                continue
            if each.is_loopback or each.is_unspecified:
                return "a loopback address"
            if each.is_link_local:
                return "a link-local address"
            if not each.is_global or each.is_multicast:
                return "a private or special address"
            if _is_of_this_node(each):
                return "an address of this node"
        return ""


EVERYWHERE = Reach(tuple(ipaddress.ip_network(every) for every in ("0.0.0.0/0", "::/0")))
"""For the addresses of the administrator."""


def _meanings(address: Address) -> Iterator[Address]:
    """The address, or the IPv4 addresses that an IPv6 one stands for."""
    if isinstance(address, ipaddress.IPv6Address):
        if address.ipv4_mapped is not None:
            yield address.ipv4_mapped
            return
        if address.sixtofour is not None:
            yield address.sixtofour
        if address in _NAT64:
            yield ipaddress.IPv4Address(int(address) & 0xFFFF_FFFF)
    yield address


def _is_of_this_node(address: Address) -> bool:
    # With the first pull of such a name; most managers have it in memory by then.
    from pyroute2 import IPRoute, NetlinkError

    family = socket.AF_INET if address.version == 4 else socket.AF_INET6
    with IPRoute() as netlink:
        try:
            routes = netlink.route("get", dst=str(address), family=family)
        except NetlinkError as error:
            if error.code in (errno.ENETUNREACH, errno.EHOSTUNREACH):
                return False
            raise
        return any(route["type"] == _RTN_LOCAL for route in routes)


class _Dialler(httpcore.NetworkBackend):
    """Looks at the addresses of a host, and connects to just these."""

    def __init__(self, image: str, reach: Reach) -> None:
        self._image = image
        self._reach = reach
        self._inner = httpcore.SyncBackend()

    def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[Any] | None = None,
    ) -> httpcore.NetworkStream:
        try:
            found = _look_up(host, port, type=socket.SOCK_STREAM)
        except OSError as error:
            raise httpcore.ConnectError(str(error)) from error
        addresses = [str(item[4][0]) for item in found]
        self._reach.check(self._image, host, addresses)
        *others, last = addresses
        for address in others:
            try:
                return HeadFirst(
                    self._inner.connect_tcp(address, port, timeout, local_address, socket_options)
                )
            except (httpcore.ConnectError, httpcore.ConnectTimeout):
                continue
        return HeadFirst(
            self._inner.connect_tcp(last, port, timeout, local_address, socket_options)
        )


def _look_up(host: str, port: int | None, **how: Any) -> list[Any]:
    """Addresses of a host.

    Raises:
        OSError: there are none.
    """
    try:
        return socket.getaddrinfo(host, port, **how)
    except UnicodeError:  # a label is empty or too long
        raise socket.gaierror(socket.EAI_NONAME, "it is no host name") from None


class DirectTransport(httpx.BaseTransport):
    """Connections without a proxy, to hosts within reach alone.

    It stands in for httpx.HTTPTransport, which takes no network backend.

    Args:
        image: the image's name, for messages.
        reach: where connections may lead.
        context: the TLS settings; None for plain http.
    """

    def __init__(self, image: str, reach: Reach, context: ssl.SSLContext | None) -> None:
        self._pool = httpcore.ConnectionPool(
            ssl_context=context, network_backend=_Dialler(image, reach)
        )

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        """Send a request; its body is not read yet."""
        url = request.url
        with _errors_of_httpx():
            response = self._pool.handle_request(
                httpcore.Request(
                    request.method,
                    httpcore.URL(
                        scheme=url.raw_scheme,
                        host=url.raw_host,
                        port=url.port,
                        target=url.raw_path,
                    ),
                    headers=request.headers.raw,
                    extensions=request.extensions,
                )
            )
        return httpx.Response(
            response.status,
            headers=response.headers,
            stream=_Body(response, request.extensions.get("timeout", {}).get("read")),
            extensions=response.extensions,
        )

    def close(self) -> None:
        """Close the connections."""
        self._pool.close()


class _Body(httpx.SyncByteStream):
    def __init__(self, response: httpcore.Response, timeout: float | None) -> None:
        self._response = response
        self._timeout = timeout

    def __iter__(self) -> Iterator[bytes]:
        with _errors_of_httpx():
            yield from read_body(self._response, self._timeout)

    def close(self) -> None:
        self._response.close()


@contextmanager
def _errors_of_httpx() -> Iterator[None]:
    """The one library's errors have the names of the other's."""
    try:
        yield
    except (
        httpcore.NetworkError,
        httpcore.ProtocolError,
        httpcore.TimeoutException,
        httpcore.UnsupportedProtocol,
    ) as error:
        raise getattr(httpx, type(error).__name__)(str(error)) from error
