"""The hooks of the fetcher."""

import ipaddress
from collections.abc import Sequence
from typing import Any

from virtlet import hookimpl
from virtlet.model.image import Credentials, FetchedImage, ImageSource, Staging
from virtlet.model.node import Node
from virtlet.model.option import BYTES, Kind, Option, Settings

Network = ipaddress.IPv4Network | ipaddress.IPv6Network


def parse_networks(text: str) -> tuple[Network, ...]:
    """Networks in CIDR notation, with commas between them.

    Raises:
        ValueError: one is none; says which.
    """
    return tuple(ipaddress.ip_network(word.strip()) for word in text.split(",") if word.strip())


ALLOWED_NETWORKS: Option[tuple[Network, ...]] = Option(
    field="imageAllowedNetworks",
    flag="--image-allowed-networks",
    env="VIRTLET_IMAGE_ALLOWED_NETWORKS",
    kind=Kind(name="comma-separated networks", parse=parse_networks),
    default="",
    help="networks that images may come from, such as 10.1.0.0/16, beside public ones and the "
    "addresses in image translation files",
)
LEAST_RATE: Option[int] = Option(
    field="imageLeastRate",
    flag="--image-least-rate",
    env="VIRTLET_IMAGE_LEAST_RATE",
    kind=BYTES,
    default="16Ki",
    help="bytes a second that an image server must send over each minute; 0 is any",
)


class Plugin:
    """Fetches file://, http:// and https:// addresses."""

    VIRTLET_HOOK_API = 1

    _allowed: tuple[Network, ...] = ()
    _least_rate = 0

    @hookimpl
    def virtlet_options(self) -> Sequence[Option[Any]]:
        """Declare the settings."""
        return (ALLOWED_NETWORKS, LEAST_RATE)

    @hookimpl
    def virtlet_configure(self, settings: Settings, node: Node) -> None:
        """Take the settings."""
        self._allowed = settings[ALLOWED_NETWORKS]
        self._least_rate = settings[LEAST_RATE]

    @hookimpl
    def virtlet_fetch_image(
        self, source: ImageSource, credentials: Credentials, staging: Staging
    ) -> FetchedImage | None:
        """Fetch what is at an address of these schemes."""
        scheme = source.url.partition("://")[0]
        # Imported when needed: a manager that pulls nothing starts quicker and stays smaller.
        if scheme == "file":
            from virtlet.plugins.image_http.local import fetch_file

            return fetch_file(source, staging)
        if scheme in ("http", "https"):
            from virtlet.plugins.image_http.download import Bounds, download
            from virtlet.plugins.image_http.reach import Reach

            bounds = Bounds(Reach(self._allowed), self._least_rate)
            return download(source, credentials, staging, bounds)
        return None
