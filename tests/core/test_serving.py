"""The streaming server as its settings make it: its address, its name in URLs, its certificate."""

import asyncio
import json
import ssl
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import closing
from pathlib import Path

import pytest
import trustme
import uvloop

from tests.console.support import Emulator
from tests.core.cri.serving import Serving
from tests.fakes.manager import Manager, Node
from tests.streaming.fakes.spdy_client import SpdyClient
from virtlet.cli.client import Client
from virtlet.console.hub import ConsoleHub
from virtlet.core.config import options
from virtlet.core.config.load import load
from virtlet.core.cri.calls import Call
from virtlet.core.events import EventTeller
from virtlet.core.metrics.manager import ManagerMetrics
from virtlet.core.metrics.sampler import Sampler
from virtlet.core.serving import Parts, assemble
from virtlet.cri import api_pb2 as cri
from virtlet.errors import FailedPrecondition, InvalidArgument, VirtletError


class Manned:
    """A manager of real parts with a VM that runs, served as settings say."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.manager = Manager(Node(root))
        context = self.manager.context
        context.events = EventTeller(context.hooks, context.profiles)
        self.hub = ConsoleHub()
        self.hub.start()
        self.vm = self.manager.create(self.manager.run())
        self.manager.start(self.vm)
        self.guest = Emulator(context.consoles.files(self.manager.vm(self.vm).vm))

    def assemble(self, loop: asyncio.AbstractEventLoop, settings: dict[str, str]) -> Parts:
        """Put the parts together for some settings."""
        flags = {"dataDir": str(self.root), "streamPort": "0", **settings}
        config = load(options.CORE_OPTIONS, file=None, environment={}, flags=flags)
        context = self.manager.context
        return assemble(context, config, Sampler(context), self.hub, loop, ManagerMetrics())

    def refuse(self, settings: dict[str, str]) -> VirtletError:
        """The error that such settings are answered with."""
        with closing(uvloop.new_event_loop()) as loop, pytest.raises(VirtletError) as caught:
            self.assemble(loop, settings)
        return caught.value

    def attached(self, trust: ssl.SSLContext | None, settings: dict[str, str]) -> str:
        """The URL that Attach gives out, once it was followed to the console and its end."""
        parts: list[Parts] = []

        def calls(loop: asyncio.AbstractEventLoop) -> Sequence[Call]:
            parts.append(self.assemble(loop, settings))
            return parts[0].calls

        serving = Serving(self.root / "s.sock", calls)
        try:
            serving.run(parts[0].streaming.start())
            with Client(self.root / "s.sock") as client:
                request = cri.AttachRequest(container_id=self.vm, stdin=True, stdout=True)
                url = str(client.call("Attach", request).url)
            uvloop.run(self._follow(url, trust))
        finally:
            serving.run(parts[0].streaming.stop())
            serving.stop()
            parts[0].executions.close(1)
        return url

    async def _follow(self, url: str, trust: ssl.SSLContext | None) -> None:
        async with (
            asyncio.timeout(20),
            await SpdyClient.connect(url, "v4.channel.k8s.io", tls=trust) as client,
        ):
            error, stdin, stdout = [await client.open(k) for k in ("error", "stdin", "stdout")]
            await stdin.send(b"hello")
            assert await asyncio.to_thread(self.guest.typed, 5) == b"hello"
            self.guest.print(b"login:")
            await stdout.read_until(b"login:")
            await stdin.send(b"\x1d")
            assert json.loads(await error.read_all())["status"] == "Success"

    def close(self) -> None:
        """Let go of everything."""
        self.guest.exit()
        self.hub.stop()
        self.manager.close()


@pytest.fixture
def manned(tmp_path: Path) -> Iterator[Manned]:
    manned = Manned(tmp_path)
    yield manned
    manned.close()


class Tls:
    """An authority, and files with a certificate of its for one name."""

    def __init__(self, place: Path, name: str) -> None:
        authority = trustme.CA()
        issued = authority.issue_cert(name)
        self.certificate, self.key = place / "cert.pem", place / "key.pem"
        for blob in issued.cert_chain_pems:
            blob.write_to_path(str(self.certificate), append=True)
        issued.private_key_pem.write_to_path(str(self.key))
        self.trust = ssl.create_default_context()
        authority.configure_trust(self.trust)

    @property
    def settings(self) -> dict[str, str]:
        return {"streamTLSCert": str(self.certificate), "streamTLSKey": str(self.key)}


def test_a_session_is_served_at_the_address_of_the_settings(manned: Manned) -> None:
    url = manned.attached(None, {"streamAddress": "127.0.0.2"})
    assert url.startswith("http://127.0.0.2:")


def test_a_session_is_served_with_the_certificate_of_the_settings(
    manned: Manned, tmp_path: Path
) -> None:
    tls = Tls(tmp_path, "127.0.0.2")
    url = manned.attached(tls.trust, {"streamAddress": "127.0.0.2", **tls.settings})
    assert url.startswith("https://127.0.0.2:")


def test_urls_have_the_name_that_the_certificate_is_for(manned: Manned, tmp_path: Path) -> None:
    """A client that checks it, as the kubelet does, refuses an address in its place."""
    tls = Tls(tmp_path, "localhost")
    url = manned.attached(tls.trust, {"streamHost": "localhost", **tls.settings})
    assert url.startswith("https://localhost:")
    with pytest.raises(ssl.SSLCertVerificationError, match=r"127\.0\.0\.1"):
        manned.attached(tls.trust, tls.settings)


def test_certificate_and_key_may_be_one_file(manned: Manned, tmp_path: Path) -> None:
    tls = Tls(tmp_path, "127.0.0.1")
    both = tmp_path / "both.pem"
    both.write_bytes(tls.key.read_bytes() + tls.certificate.read_bytes())
    assert manned.attached(tls.trust, {"streamTLSCert": str(both)}).startswith("https:")


def test_a_certificate_that_is_not_there_is_named(manned: Manned, tmp_path: Path) -> None:
    tls = Tls(tmp_path, "127.0.0.1")
    for lost in (tls.key, tls.certificate):
        lost.unlink()
        error = manned.refuse(tls.settings)
        assert isinstance(error, FailedPrecondition)
        assert str(error).startswith("--stream-tls-cert")
        assert f"No such file or directory: '{lost}'" in str(error)


@pytest.mark.parametrize("wrong", ["nonsense", "another", "encrypted"])
def test_files_that_are_no_certificate_and_its_key_are_refused(
    manned: Manned, tmp_path: Path, wrong: str
) -> None:
    """A key with a password is not asked for at the terminal, where nobody may be."""
    tls = Tls(tmp_path, "127.0.0.1")
    match wrong:
        case "nonsense":
            tls.certificate.write_text("nonsense")
        case "another":
            trustme.CA().issue_cert("x").private_key_pem.write_to_path(str(tls.key))
        case "encrypted":
            subprocess.run(
                ("openssl", "ec", "-in", tls.key, "-out", tls.key, "-aes256", "-passout", "pass:x"),
                check=True,
                capture_output=True,
            )
    error = manned.refuse(tls.settings)
    assert isinstance(error, FailedPrecondition)
    assert "PEM files" in str(error)
    assert "BEGIN" not in str(error)


def test_a_key_without_a_certificate_does_not_serve_plain_http(
    manned: Manned, tmp_path: Path
) -> None:
    tls = Tls(tmp_path, "127.0.0.1")
    error = manned.refuse({"streamTLSKey": str(tls.key)})
    assert "--stream-tls-key without --stream-tls-cert" in str(error)


@pytest.mark.parametrize("host", ["https://node", "node:10010", "a b", "[::1]", "-", "ä"])
def test_what_is_no_host_name_or_address_is_refused(manned: Manned, host: str) -> None:
    error = manned.refuse({"streamHost": host})
    assert isinstance(error, InvalidArgument)
    assert "--stream-host" in str(error)


def test_an_address_that_is_none_is_refused(manned: Manned) -> None:
    assert "no IP address" in str(manned.refuse({"streamAddress": "localhost"}))
