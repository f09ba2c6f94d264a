"""The hooks of the fetcher."""

from collections.abc import Sequence
from typing import Any

from virtlet import hookimpl
from virtlet.image_servers.settings import ALLOWED_NETWORKS, LEAST_RATE, Network
from virtlet.model.image import Credentials, FetchedImage, ImageSource, Staging
from virtlet.model.node import Node
from virtlet.model.option import Option, Settings


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
            from virtlet.image_servers.pace import Bounds
            from virtlet.image_servers.reach import Reach
            from virtlet.plugins.image_http.download import download

            bounds = Bounds(Reach(self._allowed), self._least_rate)
            return download(source, credentials, staging, bounds)
        return None
