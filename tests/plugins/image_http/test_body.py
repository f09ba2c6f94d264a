"""Bodies that are read past the HTTP library, however their connection cuts them."""

import ssl
from collections.abc import Sequence
from typing import Any

import httpcore
import pytest

from virtlet.image_servers.body import HeadFirst, read_body

HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: x\r\nContent-Length: 12\r\n\r\n"
BODY = b"ab\n\ncd\r\n\r\nef"
"""With what looks like the end of a head."""


class _Stream(httpcore.MockStream):
    """Gives its pieces one by one, and TLS by the same pieces."""

    def start_tls(
        self,
        ssl_context: ssl.SSLContext,
        server_hostname: str | None = None,
        timeout: float | None = None,
    ) -> httpcore.NetworkStream:
        return self


class _Backend(httpcore.NetworkBackend):
    def __init__(self, pieces: Sequence[bytes]) -> None:
        self._pieces = pieces

    def connect_tcp(self, *arguments: Any, **more: Any) -> httpcore.NetworkStream:
        return HeadFirst(_Stream(list(self._pieces)))


def read(*pieces: bytes, url: str = "http://x/") -> list[bytes]:
    """The body of an answer that arrives in these pieces, as it is handed out."""
    with (
        httpcore.ConnectionPool(network_backend=_Backend(pieces)) as pool,
        pool.stream("GET", url) as response,
    ):
        return list(read_body(response, None))


@pytest.mark.parametrize("head", [HEAD, HEAD.replace(b"\r\n", b"\n")], ids=["crlf", "lf"])
def test_the_body_is_whole_wherever_the_answer_was_cut(head: bytes) -> None:
    """Also within the end of the head, and into single bytes."""
    answer = head + BODY
    for cut in range(1, len(answer)):
        assert b"".join(read(answer[:cut], answer[cut:])) == BODY, cut
    assert b"".join(read(*(bytes((each,)) for each in answer))) == BODY


def test_it_is_handed_out_as_it_came() -> None:
    """Nothing copies it: what was read from the connection is what the reader gets."""
    pieces = [BODY[:5], BODY[5:]]
    assert all(a is b for a, b in zip(read(HEAD, *pieces), pieces, strict=True))


def test_tls_is_read_alike() -> None:
    """What TLS unwraps goes past the library too."""
    assert read(HEAD, BODY, url="https://x/")[0] is BODY


def test_answers_before_the_answer_are_passed_over() -> None:
    """Hints have a head of their own."""
    hints = b"HTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\n"
    assert b"".join(read(hints + HEAD + BODY)) == BODY
    assert b"".join(read(hints, HEAD, BODY)) == BODY


def test_what_follows_the_body_is_dropped() -> None:
    """A server may say more than it announced; nobody asked for that."""
    assert b"".join(read(HEAD + BODY + b"HTTP/1.1 200 OK\r\n\r\n")) == BODY
    assert b"".join(read(HEAD, BODY[:3], BODY[3:] + b"more")) == BODY


@pytest.mark.parametrize("pieces", [(HEAD,), (HEAD + BODY[:4],), (HEAD, BODY[:4], BODY[4:-1])])
def test_a_body_that_breaks_off_is_an_error(pieces: tuple[bytes, ...]) -> None:
    """An end before the announced one is told, not taken for the end."""
    with pytest.raises(httpcore.RemoteProtocolError):
        read(*pieces)


@pytest.mark.parametrize(
    ("answer", "body"),
    [
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nab\r\n0\r\n\r\n", b"ab"),
        (b"HTTP/1.0 200 OK\r\n\r\nab", b"ab"),
        (b"HTTP/1.1 204 No Content\r\nContent-Length: 2\r\n\r\n", b""),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n", b""),
        (b"HTTP/1.1 206 Partial\r\nContent-Length: 2\r\nContent-Length: 2\r\n\r\nab", b"ab"),
    ],
    ids=["chunked", "to the end", "none", "empty", "told twice"],
)
def test_other_framings_are_the_librarys(answer: bytes, body: bytes) -> None:
    """What has no length, or says more than a length, is read as before."""
    assert b"".join(read(answer)) == body
    assert b"".join(read(*(bytes((each,)) for each in answer))) == body


def test_contradicting_framings_are_refused() -> None:
    """Two lengths that differ say nothing."""
    with pytest.raises(httpcore.RemoteProtocolError):
        read(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Length: 3\r\n\r\nabc")
