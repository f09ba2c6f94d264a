"""The plugin, servers on the loopback interface, and a staging file of the core."""

import ssl
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
import trustme

from tests.fakes.image_server import ImageServer, Resource, image_server
from virtlet.images.staging import ImageLimits, KnownImage, StagingFile
from virtlet.model.image import (
    Credentials,
    FetchedImage,
    ImageSource,
    TlsCertificate,
    Transport,
)
from virtlet.plugins.image_http.plugin import Plugin
from virtlet.testing import configured

Start = Callable[[trustme.LeafCert], ImageServer]
CONTENT = bytes(range(256)) * 2000
"""Some 500 kB, more than one read of the client's."""


@pytest.fixture(autouse=True)
def _no_proxies(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tests talk to the loopback interface, whatever the machine's proxies are."""
    for name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)


@pytest.fixture
def server() -> Iterator[ImageServer]:
    """A plain server."""
    with image_server() as running:
        yield running


@pytest.fixture(scope="session")
def authority() -> trustme.CA:
    """An authority that the node does not know."""
    return trustme.CA()


@pytest.fixture
def trusting(authority: trustme.CA) -> Transport:
    """A transport that knows it."""
    return Transport(certificates=(TlsCertificate(cert=pem(authority.cert_pem)),))


@pytest.fixture
def start(authority: trustme.CA) -> Iterator[Start]:
    """Starts servers with a certificate."""
    with ExitStack() as stack:

        def start_it(certificate: trustme.LeafCert) -> ImageServer:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            certificate.configure_cert(context)
            server = stack.enter_context(image_server(context))
            server.resources["/x"] = Resource(CONTENT)
            return server

        yield start_it


@pytest.fixture
def secure(authority: trustme.CA, start: Start) -> ImageServer:
    """A server with TLS that `trusting` knows."""
    return start(authority.issue_cert("127.0.0.1", "localhost"))


def pem(*blobs: trustme.Blob) -> str:
    """Certificates as a text."""
    return "\n".join(blob.bytes().decode() for blob in blobs)


@pytest.fixture
def staging(tmp_path: Path) -> Iterator[StagingFile]:
    """An empty staging file."""
    file = StagingFile(tmp_path / "part_x", "x", ImageLimits(size=1 << 20, spare=0))
    yield file
    file.discard()


@pytest.fixture
def stagings(tmp_path: Path) -> "Stagings":
    """Makes staging files."""
    return Stagings(tmp_path)


class Stagings:
    """Makes staging files that know an image already."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    def known(self, size: int, validator: str) -> StagingFile:
        """As for an image that the store has from the same source."""
        known = KnownImage("sha256:" + "a1" * 32, size, validator)
        limits = ImageLimits(size=1 << 20, spare=0)
        return StagingFile(self._directory / "part_known", "x", limits, known)


def fetch(
    url: str,
    staging: StagingFile,
    credentials: Credentials = Credentials(),  # noqa: B008
    transport: Transport = Transport(),  # noqa: B008
    digest: str = "",
    *,
    name: str = "x",
    trusted: bool = True,
    allowed: str = "127.0.0.0/8",
    least_rate: str = "16Ki",
) -> FetchedImage:
    """Fetch an address through the plugin's hook, one of a translation file unless told."""
    source = ImageSource(name=name, url=url, digest=digest, transport=transport, trusted=trusted)
    plugin = configured(
        Plugin(), staging.path.parent, imageAllowedNetworks=allowed, imageLeastRate=least_rate
    )
    fetched = plugin.virtlet_fetch_image(source, credentials, staging)
    assert fetched is not None
    staging.finish(fetched.size)
    return fetched


def written(staging: StagingFile) -> bytes:
    """What is in the staging file."""
    return staging.path.read_bytes()
