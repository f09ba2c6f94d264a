"""The plugin, a store that it fills, and registries on the loopback interface."""

from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path

import pytest

from tests.fakes.image_server import ImageServer, image_server
from tests.images.disks import recognize as recognize_disk
from virtlet.cluster.api import KUBECONFIG
from virtlet.image_servers.settings import ALLOWED_NETWORKS, LEAST_RATE
from virtlet.images.image_store import ImageStore
from virtlet.images.layout import Layout
from virtlet.images.pull import ImageRoute, Images, Retry
from virtlet.images.staging import ImageLimits
from virtlet.model.image import (
    Credentials,
    FetchedImage,
    Image,
    ImageSource,
    RecognizedImage,
    Staging,
)
from virtlet.model.reference import Reference, parse_reference
from virtlet.plugins.image_formats.plugin import Plugin as ImageFormats
from virtlet.plugins.image_names.plugin import Plugin as ImageNames
from virtlet.plugins.image_oci.plugin import REGISTRY_CONFIGS_DIR, Plugin
from virtlet.testing import make_node, make_settings

LIMIT = 8 << 20


@pytest.fixture(autouse=True)
def _no_proxies(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tests talk to the loopback interface, whatever the machine's proxies are."""
    for name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)


def recognize(name: str, file: Path) -> tuple[str, RecognizedImage]:
    """As a handler with both plugins does."""
    found = Plugin().virtlet_recognize_image(name, file)
    return ("image_oci", found) if found else recognize_disk(name, file)


class Node:
    """What of a node counts for pulls: settings, the administrator's files, the store.

    Attributes:
        allowed: imageAllowedNetworks.
        least_rate: imageLeastRate.
        protocol: downloadProtocol.
        otherwise: what the plugin for plain downloads brings, by the address it is asked for.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.allowed = "127.0.0.0/8"
        self.least_rate = "16Ki"
        self.protocol = "https"
        self.otherwise: dict[str, bytes] = {}
        self.certs = self.directory / "certs.d"
        layout = Layout(self.directory / "images", 0)
        limits = ImageLimits(size=LIMIT, virtual_size=LIMIT, spare=0)
        self.store = ImageStore(layout, in_use=set, recognize=recognize, limits=limits)
        self.images = Images(self.store, Retry(attempts=3, delay=0.001))

    @property
    def files(self) -> list[str]:
        """Everything in the store."""
        root = self.directory / "images"
        return sorted(str(path.relative_to(root)) for path in root.rglob("*") if path.is_file())

    def hosts(self, registry: str, text: str) -> None:
        """Write a hosts.toml."""
        directory = self.certs / registry
        directory.mkdir(parents=True, exist_ok=True)
        (directory / "hosts.toml").write_text(text)

    def plain(self, server: ImageServer) -> str:
        """Have a server speak plain HTTP as a registry; returns `HOST:PORT`."""
        registry = server.url.partition("://")[2]
        self.hosts(registry, f'server = "{server.url}"\n')
        return registry

    def translate(self, name: str, url: str) -> None:
        """Write a translation file."""
        directory = self.directory / "translations"
        directory.mkdir(exist_ok=True)
        text = f"translations:\n- name: {name}\n  url: {url}\n"
        (directory / f"{name}.yaml").write_text(text)

    def pull(self, name: str, credentials: Credentials = Credentials()) -> Image:  # noqa: B008
        """Pull an image as the core does."""
        names = ImageNames()
        settings = make_settings(
            [*names.virtlet_options(), KUBECONFIG],
            self.directory,
            imageTranslationConfigsDir=str(self.directory / "translations"),
            downloadProtocol=self.protocol,
        )
        names.virtlet_configure(settings, make_node(self.directory))

        def resolve(reference: Reference) -> ImageSource:
            source = names.virtlet_resolve_image(reference)
            assert source is not None
            return source

        unpack = ImageFormats().virtlet_unpack_image
        route = ImageRoute("", resolve, partial(self._fetch, self.plugin()), recognize, unpack)
        return self.images.pull(parse_reference(name), route, credentials)

    def plugin(self) -> Plugin:
        """The plugin with the node's settings."""
        texts = {
            "imageAllowedNetworks": self.allowed,
            "imageLeastRate": self.least_rate,
            "imageRegistryConfigsDir": str(self.certs),
        }
        options = (ALLOWED_NETWORKS, LEAST_RATE, REGISTRY_CONFIGS_DIR)
        plugin = Plugin()
        plugin.virtlet_configure(
            make_settings(options, self.directory, **texts), make_node(self.directory)
        )
        return plugin

    def _fetch(
        self, plugin: Plugin, source: ImageSource, credentials: Credentials, staging: Staging
    ) -> FetchedImage:
        fetched = plugin.virtlet_fetch_image(source, credentials, staging)
        if fetched is None:
            content = self.otherwise[source.url]
            staging.begin("", 0, len(content))
            staging.write(content)
            return FetchedImage(size=len(content))
        return fetched


@pytest.fixture
def node(tmp_path: Path) -> Node:
    """A node that reaches the loopback interface."""
    return Node(tmp_path)


@pytest.fixture
def server() -> Iterator[ImageServer]:
    """A server that can be filled with an image, and misbehaves on demand."""
    with image_server() as running:
        yield running


def paths(server: ImageServer) -> list[str]:
    """What was asked for."""
    return [request.path for request in server.requests]


def authorizations(server: ImageServer) -> Mapping[str, str]:
    """What each path was asked for with last."""
    return {r.path: r.headers.get("authorization", "") for r in server.requests}
