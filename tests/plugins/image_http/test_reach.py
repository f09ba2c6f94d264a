"""What a name that no translation file knows must not reach."""

import socket
from collections.abc import Iterator
from typing import Any

import pytest

from tests.fakes.image_server import ImageServer, Resource
from virtlet.errors import FailedPrecondition, PermissionDenied
from virtlet.image_servers.pace import WINDOW, Pace
from virtlet.image_servers.reach import EVERYWHERE, Reach
from virtlet.image_servers.settings import parse_networks
from virtlet.images.staging import StagingFile
from virtlet.model.image import Transport

from .conftest import CONTENT, fetch, written

PUBLIC = "93.184.215.14"


@pytest.mark.parametrize(
    ("address", "kind"),
    [
        ("127.0.0.1", "a loopback"),
        ("127.9.9.9", "a loopback"),
        ("0.0.0.0", "a loopback"),
        ("::1", "a loopback"),
        ("::", "a loopback"),
        ("::ffff:127.0.0.1", "a loopback"),
        ("64:ff9b::7f00:1", "a loopback"),
        ("2002:7f00:1::1", "a loopback"),
        ("169.254.169.254", "a link-local"),
        ("::ffff:169.254.169.254", "a link-local"),
        ("fe80::1", "a link-local"),
        ("fe80::1%lo", "a link-local"),
        ("10.96.0.1", "a private"),
        ("172.16.0.1", "a private"),
        ("192.168.1.1", "a private"),
        ("100.64.0.1", "a private"),
        ("64:ff9b::a60:1", "a private"),
        ("fd00::1", "a private"),
        ("224.0.0.1", "a private"),
        ("ff0e::1", "a private"),
        ("255.255.255.255", "a private"),
    ],
)
def test_an_address_out_of_reach_is_refused(address: str, kind: str) -> None:
    with pytest.raises(PermissionDenied, match=f"image x: host is {kind} .*imageAllowedNetworks"):
        Reach().check("x", "host", [PUBLIC, address])
    EVERYWHERE.check("x", "host", [PUBLIC, address])


def test_public_addresses_and_allowed_networks_are_within_reach() -> None:
    Reach().check("x", "host", [PUBLIC, "2606:2800:21f:cb07:6820:80da:af6b:8b2c"])
    reach = Reach(parse_networks("10.96.0.0/12, fd00::/8"))
    reach.check("x", "host", ["10.96.0.1", "::ffff:10.96.0.1", "fd00::1"])
    with pytest.raises(PermissionDenied):
        reach.check("x", "host", ["10.32.0.1"])


def test_an_image_of_a_pods_own_address_does_not_come_from_the_node(
    server: ImageServer, staging: StagingFile
) -> None:
    server.resources["/x"] = Resource(CONTENT)
    port = server.url.rpartition(":")[2]
    for host in ("127.0.0.1", "localhost", "2130706433", "127.1", "[::ffff:127.0.0.1]"):
        with pytest.raises(PermissionDenied, match="translation file .*imageAllowedNetworks"):
            fetch(f"http://{host}:{port}/x", staging, trusted=False, allowed="")
    assert server.requests == []
    fetch(f"{server.url}/x", staging, trusted=True, allowed="")
    fetch(f"{server.url}/x", staging, trusted=False, allowed="127.0.0.1/32")
    assert written(staging) == CONTENT


def test_the_address_that_was_looked_at_is_the_one_that_is_dialled(
    server: ImageServer, staging: StagingFile, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A name server that answers otherwise the second time is not asked a second time."""
    answers = iter([PUBLIC, "127.0.0.1", "127.0.0.1"])
    real = socket.getaddrinfo
    dialled = []

    def resolve(host: str, *arguments: Any, **more: Any) -> Any:
        if host == "rebound.example.com":
            host = next(answers)
        else:
            dialled.append(host)
        return real(host, *arguments, **more)

    def connect(address: tuple[str, int], *_: object, **__: object) -> socket.socket:
        resolve(*address)
        raise ConnectionRefusedError(111, "Connection refused")

    monkeypatch.setattr(socket, "getaddrinfo", resolve)
    monkeypatch.setattr(socket, "create_connection", connect)
    port = server.url.rpartition(":")[2]
    with pytest.raises(Exception, match="rebound"):
        fetch(f"http://rebound.example.com:{port}/x", staging, trusted=False, allowed="")
    assert dialled == [PUBLIC]
    assert server.requests == []


def test_a_redirect_is_looked_at_again(server: ImageServer, staging: StagingFile) -> None:
    port = server.url.rpartition(":")[2]
    server.resources["/y"] = Resource(CONTENT)
    server.resources["/same"] = Resource(status=302, location="/y")
    server.resources["/x"] = Resource(status=302, location=f"http://127.0.0.2:{port}/y")
    with pytest.raises(PermissionDenied, match=r"127\.0\.0\.2 is a loopback address"):
        fetch(f"{server.url}/x", staging, allowed="")
    assert [request.path for request in server.requests] == ["/x"]
    fetch(f"{server.url}/same", staging, allowed="")
    assert written(staging) == CONTENT


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "a.localhost", "0x7f.1", "[::1]"])
def test_a_proxy_is_not_asked_for_what_is_out_of_reach(
    server: ImageServer, staging: StagingFile, host: str
) -> None:
    transport = Transport(proxy=server.url)
    with pytest.raises(PermissionDenied, match="is a loopback address"):
        fetch(f"http://{host}/x", staging, transport=transport, trusted=False, allowed="")
    assert server.requests == []
    server.resources["http://images.example.com/x"] = Resource(CONTENT)
    fetch("http://images.example.com/x", staging, transport=transport, trusted=False, allowed="")


def test_the_environments_proxy_is_asked(
    server: ImageServer, staging: StagingFile, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.resources["http://images.example.com/x"] = Resource(CONTENT)
    monkeypatch.setenv("http_proxy", server.url.removeprefix("http://"))
    fetch("http://images.example.com/x", staging)
    assert written(staging) == CONTENT
    server.resources["/x"] = Resource(CONTENT)
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    fetch(f"{server.url}/x", staging)
    assert [request.path for request in server.requests][1:] == ["/x"]


class _Clock:
    """A server's chunks, each a byte, and what the client's clock shows meanwhile."""

    def __init__(self) -> None:
        self.now = 0.0

    def drips(self, seconds: float, number: int) -> Iterator[bytes]:
        for _ in range(number):
            self.now += seconds
            yield b"a"


def test_a_server_that_drips_is_cut_off_after_a_window() -> None:
    clock = _Clock()
    seen = []
    with pytest.raises(TimeoutError):
        for chunk in Pace(1, lambda: clock.now).chunks(clock.drips(2.0, 1000)):
            seen.append(chunk)
    assert clock.now == WINDOW
    assert len(seen) == WINDOW / 2 - 1


def test_a_server_that_is_just_quick_enough_is_not() -> None:
    clock = _Clock()
    assert sum(1 for _ in Pace(1, lambda: clock.now).chunks(clock.drips(1.0, 1000))) == 1000
    assert sum(1 for _ in Pace(0, lambda: clock.now).chunks(clock.drips(99.0, 1000))) == 1000


def test_the_time_that_the_disk_takes_does_not_count() -> None:
    clock = _Clock()
    for _ in Pace(1, lambda: clock.now).chunks(clock.drips(0.5, 200)):
        clock.now += 100
    assert clock.now > WINDOW


def test_the_message_names_rate_and_setting(
    server: ImageServer, staging: StagingFile, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.resources["/x"] = Resource(CONTENT)
    monkeypatch.setattr("virtlet.image_servers.pace.WINDOW", 1e-9)
    with pytest.raises(FailedPrecondition, match="less than .* bytes a second.*imageLeastRate"):
        fetch(f"{server.url}/x", staging, least_rate="1Pi")
