"""A console in a cluster: each request is made with the token that the proxy before it gives."""

import asyncio
import os
import signal
import ssl
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trustme
from attrs import define, field

from tests.kubectl.webconsole.conftest import served
from virtlet.cli.ending import CommandFailed
from virtlet.kubectl.webconsole.api import OwnCluster
from virtlet.kubectl.webconsole.assets import Assets
from virtlet.kubectl.webconsole.gate import START, ProxiedGate
from virtlet.kubectl.webconsole.server import Shown, WebConsole

ADDRESS = "https://console.example.org"
ADA, EVE = "eyJhbGciOiJSUzI1NiJ9.ada.c2ln", "eyJhbGciOiJSUzI1NiJ9.eve.c2ln"
POD = "/api/v1/namespaces/default/pods/vm"
UPGRADE = ("Connection: Upgrade", "Upgrade: websocket", f"Origin: {ADDRESS}")
KEY = ("Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==", "Sec-WebSocket-Version: 13")
STREAMS = "stdin=true&stdout=true&tty=true"
PROTOCOL = "Sec-WebSocket-Protocol: v5.channel.k8s.io"


@define
class Cluster:
    """An API server behind TLS, which knows one user."""

    port: int
    authority: Path
    console: int = 0
    heard: list[str] = field(factory=list)
    """The heads of the requests that came to it."""

    async def ask(
        self, path: str, *lines: str, host: str = "console.example.org", method: str = "GET"
    ) -> bytes:
        """What the console answers, with its head."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self.console)
        head = [f"{method} {path} HTTP/1.1", f"Host: {host}", *lines, "", ""]
        writer.write("\r\n".join(head).encode())
        try:
            async with asyncio.timeout(20):
                return await (
                    reader.readuntil(b"console of") if UPGRADE[0] in lines else reader.read()
                )
        except asyncio.IncompleteReadError as error:
            return error.partial
        finally:
            writer.close()


async def _copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    try:
        while piece := await reader.read(1 << 16):
            writer.write(piece)
    finally:
        writer.close()


@asynccontextmanager
async def cluster(directory: Path) -> AsyncIterator[Cluster]:
    """The stand-in API server behind TLS, where Ada's token is good, and a console before it."""
    authority = trustme.CA()
    trust = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1").configure_cert(trust)
    file = directory / "ca.crt"
    authority.cert_pem.write_to_path(str(file))
    async with served(directory) as behind:
        there = int(behind.api.url.rpartition(":")[2])

        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            head = await reader.readuntil(b"\r\n\r\n")
            made.heard.append(head.decode())
            if f"\r\nAuthorization: Bearer {ADA}\r\n".encode() not in head:
                writer.write(b"HTTP/1.1 401 Unauthorized\r\nContent-Length: 0\r\n\r\n")
                writer.close()
                return
            onward, back = await asyncio.open_connection("127.0.0.1", there)
            back.write(head)
            await asyncio.gather(_copy(reader, back), _copy(onward, writer), return_exceptions=True)

        server = await asyncio.start_server(serve, "127.0.0.1", 0, ssl=trust)
        made = Cluster(server.sockets[0].getsockname()[1], file)
        api = OwnCluster("127.0.0.1", made.port, ssl.create_default_context(cafile=str(file)))
        shown = Shown("default", ())
        console = WebConsole(api, shown, lambda _: ProxiedGate(ADDRESS), Assets.find())
        assert await console.start() == ADDRESS
        made.console = console.listens[1]
        try:
            yield made
        finally:
            await console.stop()
            server.close()


def token(of: str) -> str:
    return f"Authorization: Bearer {of}"


def test_the_api_server_hears_the_token_of_each_request_and_decides(tmp_path: Path) -> None:
    async def work() -> None:
        async with cluster(tmp_path) as there:
            log = await there.ask(
                f"{POD}/log", token(ADA), "Cookie: proxy=secret", "X-Forwarded: a"
            )
            assert b"<b>booting</b>" in log
            (head,) = there.heard
            assert f"\r\nHost: 127.0.0.1:{there.port}\r\n" in head
            assert "Cookie" not in head
            assert "X-Forwarded" not in head
            assert b"401 Unauthorized" in await there.ask(f"{POD}/log", token(EVE))
            session = await there.ask(
                f"{POD}/attach?{STREAMS}", token(ADA), *UPGRADE, *KEY, PROTOCOL
            )
            assert session.startswith(b"HTTP/1.1 101 ")
            assert session.endswith(b"console of")
            refused = await there.ask(f"{POD}/attach", token(EVE), *UPGRADE, *KEY, PROTOCOL)
            assert b"console of" not in refused
            page = await there.ask("/", token(ADA))
            assert b"frame-ancestors 'none'" in page
            assert b"Set-Cookie" not in page

    asyncio.run(work())


@pytest.mark.parametrize(
    ("path", "lines", "host", "why"),
    [
        (f"{POD}/log", (), "console.example.org", b"401 Unauthorized"),
        ("/", (), "console.example.org", b"has no bearer token"),
        ("/?token=any", (), "console.example.org", b"has no bearer token"),
        ("/", ("Authorization: Basic YWRhOng=",), "console.example.org", b"no bearer token"),
        ("/", ("Authorization: Bearer",), "console.example.org", b"no bearer token"),
        (f"{POD}/log", (token(ADA),), "evil.example", b"no such name"),
        (f"{POD}/log", (token(ADA),), "127.0.0.1", b"no such name"),
        (f"{POD}/log", (token(ADA), "Origin: https://evil.example"), "", b"another page"),
        (f"{POD}/log", (token(ADA), "Origin: http://console.example.org"), "", b"another page"),
        (f"{POD}/log", (token(ADA), "Sec-Fetch-Site: cross-site"), "", b"another page"),
        (START, (token(ADA),), "", b"in another way"),
        ("/api/v1/namespaces/default/secrets", (token(ADA),), "", b"does not ask"),
        (f"{POD}/attach", (token(ADA), *UPGRADE[:2], *KEY), "", b"without an origin"),
    ],
)
def test_nothing_else_reaches_it(
    tmp_path: Path, path: str, lines: tuple[str, ...], host: str, why: bytes
) -> None:
    async def work() -> None:
        async with cluster(tmp_path) as there:
            assert why in await there.ask(path, *lines, host=host or "console.example.org")
            assert there.heard == []

    asyncio.run(work())


def test_an_api_server_of_another_authority_hears_no_token(tmp_path: Path) -> None:
    async def work() -> None:
        async with cluster(tmp_path) as there:
            other = tmp_path / "other.crt"
            trustme.CA().cert_pem.write_to_path(str(other))
            api = OwnCluster("127.0.0.1", there.port, ssl.create_default_context(cafile=str(other)))
            console = WebConsole(api, Shown("", ()), lambda _: ProxiedGate(ADDRESS), Assets.find())
            await console.start()
            there.console = console.listens[1]
            try:
                answer = await there.ask(f"{POD}/log", token(ADA))
            finally:
                await console.stop()
            assert b"502 Bad Gateway" in answer
            assert b"is not reached: " in answer
            assert there.heard == []

    asyncio.run(work())


def test_it_needs_a_pods_environment_and_authority(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)
    with pytest.raises(CommandFailed, match="--behind is for a console in a cluster"):
        OwnCluster.find()
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "10.96.0.1")
    monkeypatch.setenv("KUBERNETES_SERVICE_PORT", "443")
    with pytest.raises(CommandFailed, match="kube-root-ca.crt"):
        OwnCluster.find(tmp_path / "none")


IN_A_POD = """\
mount -t tmpfs tmpfs /run
mkdir -p /run/secrets/kubernetes.io/serviceaccount
cp "$1" /run/secrets/kubernetes.io/serviceaccount/ca.crt
shift
exec "$@"
"""


def test_the_command_serves_as_the_manifest_starts_it(tmp_path: Path) -> None:
    """With the authority's certificate where pods have it, and no token beside it."""

    async def work() -> None:
        async with cluster(tmp_path) as there:
            words = ["-m", "virtlet.kubectl.main", "ui", f"--behind={ADDRESS}", "-n", "default"]
            where = {
                "KUBERNETES_SERVICE_HOST": "127.0.0.1",
                "KUBERNETES_SERVICE_PORT": str(there.port),
            }
            process = await asyncio.create_subprocess_exec(
                *("unshare", "--mount", "sh", "-c", IN_A_POD, "sh", str(there.authority)),
                *(sys.executable, *words),
                env=os.environ | where | {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin"},
                stdout=asyncio.subprocess.PIPE,
            )
            assert process.stdout
            address, _, at = (
                (await process.stdout.readline()).decode().partition(", by a proxy to ")
            )
            assert address == ADDRESS
            there.console = int(at.removeprefix("127.0.0.1:"))
            assert b"<b>booting</b>" in await there.ask(f"{POD}/log", token(ADA))
            assert b"401 Unauthorized" in await there.ask(f"{POD}/log", token(EVE))
            process.send_signal(signal.SIGTERM)
            assert await process.wait() == 0

    asyncio.run(work())


@pytest.mark.parametrize(
    ("address", "why"),
    [("console.example.org", "no address such as"), ("https://a.example/vms", "without a path")],
)
def test_an_address_that_is_none_is_refused(address: str, why: str) -> None:
    async def work() -> bytes:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "virtlet.kubectl.main", "ui", f"--behind={address}"),
            stderr=asyncio.subprocess.PIPE,
        )
        _, said = await process.communicate()
        assert process.returncode == 2
        return said

    assert why in asyncio.run(work()).decode()
