"""The plugin, servers on the loopback interface, and a staging file of the core."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.fakes.image_server import ImageServer, image_server
from virtlet.images.staging import ImageLimits, KnownImage, StagingFile
from virtlet.model.image import Credentials, FetchedImage, ImageSource, Transport
from virtlet.plugins.image_http.plugin import Plugin

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
) -> FetchedImage:
    """Fetch an address through the plugin's hook."""
    source = ImageSource(name="x", url=url, digest=digest, transport=transport)
    fetched = Plugin().virtlet_fetch_image(source, credentials, staging)
    assert fetched is not None
    staging.finish(fetched.size)
    return fetched


def written(staging: StagingFile) -> bytes:
    """What is in the staging file."""
    return staging.path.read_bytes()
