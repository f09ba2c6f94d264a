"""Connections: their TLS settings, and ending one from another thread, before the library has an
answer to close.
"""

import contextlib
import os
import socket
import ssl
import threading
from typing import Any

from virtlet.errors import FailedPrecondition
from virtlet.model.image import Transport

_CONNECTED = "connection.connect_tcp.complete"
"""See "Trace" in httpx's documentation of request extensions."""


class _Context(ssl.SSLContext):
    """Expects the server to have a given name, whatever the address says, also behind a proxy."""

    expected = ""

    def wrap_socket(
        self,
        sock: socket.socket,
        server_side: bool = False,
        do_handshake_on_connect: bool = True,
        suppress_ragged_eofs: bool = True,
        server_hostname: str | bytes | None = None,
        session: ssl.SSLSession | None = None,
    ) -> ssl.SSLSocket:
        return super().wrap_socket(
            sock,
            server_side,
            do_handshake_on_connect,
            suppress_ragged_eofs,
            self.expected or server_hostname,
            session,
        )

    def wrap_bio(
        self,
        incoming: ssl.MemoryBIO,
        outgoing: ssl.MemoryBIO,
        server_side: bool = False,
        server_hostname: str | bytes | None = None,
        session: ssl.SSLSession | None = None,
    ) -> ssl.SSLObject:
        return super().wrap_bio(
            incoming, outgoing, server_side, self.expected or server_hostname, session
        )


def tls_context(name: str, transport: Transport, *, own: bool) -> ssl.SSLContext:
    """Settings for a connection.

    Args:
        name: the image's name, for messages.
        transport: the transport; its authorities replace the node's, unless it says otherwise.
        own: False for a server that a redirect led to: that one is not shown the client's
            certificate, has a name of its own, and may be known to the node's authorities.

    Raises:
        FailedPrecondition: a certificate or key of the transport is no good.
    """
    context = _Context(ssl.PROTOCOL_TLS_CLIENT)
    authorities = "\n".join(c.cert for c in transport.certificates if c.key is None)
    try:
        if transport.trust_node or not (authorities and own):
            _trust_as_the_node(context)
        if authorities:
            context.load_verify_locations(cadata=authorities)
            # A server's own certificate will do.
            context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
        if own:
            context.expected = transport.server_name
            for certificate in transport.certificates:
                if certificate.key is not None:
                    _load_chain(context, certificate.cert, certificate.key)
    except (ssl.SSLError, ValueError):
        raise FailedPrecondition(
            f"image {name}: a certificate or key of its transport cannot be used; "
            "check them in the image translation file"
        ) from None
    if transport.insecure:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    return context


def _trust_as_the_node(context: ssl.SSLContext) -> None:
    paths = ssl.get_default_verify_paths()
    if paths.cafile or (paths.capath and os.listdir(paths.capath)):
        context.load_default_certs()
        return
    import certifi  # A node without ca-certificates: httpx brings this list along.

    context.load_verify_locations(certifi.where())


def _load_chain(context: ssl.SSLContext, cert: str, key: str) -> None:
    # OpenSSL reads these from files only; this one exists in memory alone.
    descriptor = os.memfd_create("client-certificate", os.MFD_CLOEXEC)
    with open(descriptor, "wb") as file:
        file.write(f"{cert}\n{key}\n".encode())
        file.flush()
        context.load_cert_chain(f"/proc/self/fd/{descriptor}", password=lambda: "")


class Connection:
    """The connection of the moment of one download.

    A read that waits for a server wakes when the socket is shut down. What is kept is a duplicate
    of the socket: the library wraps its own for TLS, and closes it when it likes.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._socket: socket.socket | None = None
        self._ended = threading.Event()

    def trace(self, name: str, details: dict[str, Any]) -> None:
        """Take over the socket of a connection that was just made; an httpx trace function."""
        if name != _CONNECTED:
            return
        duplicate: socket.socket = details["return_value"].get_extra_info("socket").dup()
        with self._lock:
            if self._socket is not None:
                self._socket.close()
            self._socket = duplicate
            if self._ended.is_set():
                _shut(duplicate)

    def end(self) -> None:
        """End this connection, and each that is made later, at once."""
        with self._lock:
            self._ended.set()
            if self._socket is not None:
                _shut(self._socket)

    def pause(self, seconds: float) -> None:
        """Wait, unless nothing is to be asked any more."""
        self._ended.wait(seconds)

    def close(self) -> None:
        """Let go of the socket, whose request is over; the next one gets another."""
        with self._lock:
            if self._socket is not None:
                self._socket.close()
                self._socket = None


def _shut(connection: socket.socket) -> None:
    with contextlib.suppress(OSError):  # The server was quicker.
        connection.shutdown(socket.SHUT_RDWR)
