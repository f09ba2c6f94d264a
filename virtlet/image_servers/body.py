"""The body of an answer, read from its connection instead of through the HTTP library.

The library copies each byte of a body four times, which for an image costs more than its digest
does. Source: RFC 9112, 6.3, for how long a body is.
"""

import re
import ssl
from collections.abc import Iterator
from typing import Any

import httpcore

_READ = 1 << 20
"""Bytes of one read from a server."""
_RECORD = 64 << 10
"""The same where TLS is spoken, which gives a record of 16 KiB at a time."""
_END_OF_HEAD = re.compile(rb"\n\r?\n")
"""As h11 finds it, which is lenient."""
_TAIL = 2
"""Bytes of an end of a head that may have come with the read before."""
_LENGTH = re.compile(rb"[0-9]{1,18}")


class HeadFirst(httpcore.NetworkStream):
    """A connection that gives the library no more than the head of an answer.

    What comes after that head is kept for who reads the body; the library gets it where it asks
    once more.

    Args:
        inner: the connection.
        most: bytes of one read.
    """

    def __init__(self, inner: httpcore.NetworkStream, most: int = _READ) -> None:
        self._inner = inner
        self._most = most
        self._tail = b""
        self._kept = b""
        self._at_body = False

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        """Up to the end of a head at most, if there is one."""
        data, self._kept = self._kept or self._inner.read(self._most, timeout), b""
        start = len(self._tail)
        seen = self._tail + data
        self._tail = seen[-_TAIL:]
        end = _END_OF_HEAD.search(seen)
        self._at_body = end is not None
        if end is None:
            return data
        self._tail = b""
        self._kept = seen[end.end() :]
        return seen[start : end.end()]

    def body(self, length: int, timeout: float | None) -> Iterator[bytes] | None:
        """The body that follows the head that was read last; what comes after it is dropped.

        Args:
            length: its bytes.
            timeout: seconds of silence.

        Returns:
            None where the library has some of it already.

        Raises:
            httpcore.RemoteProtocolError: it breaks off.
            httpcore.ReadError, httpcore.ReadTimeout: as the connection's `read`.
        """
        return self._body(length, timeout) if self._at_body else None

    def _body(self, left: int, timeout: float | None) -> Iterator[bytes]:
        while left:
            data, self._kept = self._kept or self._inner.read(self._most, timeout), b""
            if not data:
                raise httpcore.RemoteProtocolError("the connection ended before the body did")
            if len(data) > left:
                data = data[:left]
            left -= len(data)
            yield data

    def write(self, buffer: bytes, timeout: float | None = None) -> None:
        """As the connection's."""
        self._inner.write(buffer, timeout)

    def close(self) -> None:
        """As the connection's."""
        self._inner.close()

    def start_tls(
        self,
        ssl_context: ssl.SSLContext,
        server_hostname: str | None = None,
        timeout: float | None = None,
    ) -> httpcore.NetworkStream:
        """As the connection's; what is read after it is treated alike."""
        inner = self._inner.start_tls(ssl_context, server_hostname, timeout)
        return HeadFirst(inner, _RECORD)

    def get_extra_info(self, info: str) -> Any:
        """As the connection's."""
        return self._inner.get_extra_info(info)


def read_body(response: httpcore.Response, timeout: float | None) -> Iterator[bytes]:
    """The body of an answer to GET; the connection cannot be used again.

    Args:
        response: whose body nobody has begun to read.
        timeout: seconds of silence.

    Raises:
        httpcore.RemoteProtocolError, httpcore.ReadError, httpcore.ReadTimeout: it breaks off.
    """
    stream = response.extensions.get("network_stream")
    length = _length(response)
    if length is not None and isinstance(stream, HeadFirst):
        body = stream.body(length, timeout)
        if body is not None:
            return body
    return response.iter_stream()


def _length(response: httpcore.Response) -> int | None:
    """Bytes of the body, where the answer has one and is framed by nothing else."""
    fields = [(name.lower(), value) for name, value in response.headers]
    lengths = [value for name, value in fields if name == b"content-length"]
    if response.status not in (200, 206) or any(n == b"transfer-encoding" for n, _ in fields):
        return None
    return int(lengths[0]) if len(lengths) == 1 and _LENGTH.fullmatch(lengths[0]) else None
