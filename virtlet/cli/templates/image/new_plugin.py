"""Images new-plugin/NAME are the files NAME.qcow2 of a directory of the node."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from virtlet.api import (
    PATH,
    Credentials,
    FetchedImage,
    ImageSource,
    Node,
    NotFound,
    Option,
    Reference,
    Settings,
    Staging,
    hookimpl,
)

DIRECTORY = Option(
    field="newPluginDir",
    flag="--new-plugin-dir",
    env="NEW_PLUGIN_DIR",
    kind=PATH,
    default="{data_dir}/new-plugin",
    help="where the images new-plugin/NAME are",
)
NAME = re.compile(r"new-plugin/(?P<name>[a-z0-9][a-z0-9._-]*)")
SCHEME = "new-plugin:"


class Plugin:
    """Says where images are, and fetches them."""

    VIRTLET_HOOK_API = 1

    @hookimpl
    def virtlet_options(self) -> Sequence[Option[Any]]:
        """Declare where the images are."""
        return [DIRECTORY]

    @hookimpl
    def virtlet_configure(self, settings: Settings, node: Node) -> None:
        """Remember where the images are."""
        self._directory: Path = settings[DIRECTORY]

    @hookimpl
    def virtlet_resolve_image(self, reference: Reference) -> ImageSource | None:
        """Give our names an address that is ours; None leaves a name to other plugins."""
        match = NAME.fullmatch(reference.name)
        if match is None:
            return None
        return ImageSource(name=reference.name, url=f"{SCHEME}{match['name']}")

    @hookimpl
    def virtlet_fetch_image(
        self, source: ImageSource, credentials: Credentials, staging: Staging
    ) -> FetchedImage | None:
        """Write the content into the staging file; the core recognises and verifies it."""
        if not source.url.startswith(SCHEME):
            return None
        path = self._directory / f"{source.url.removeprefix(SCHEME)}.qcow2"
        try:
            with path.open("rb") as file:
                staging.begin("", 0, path.stat().st_size)
                while chunk := file.read(1 << 20):
                    staging.write(chunk)
        except FileNotFoundError:
            raise NotFound(f"image {source.name}: there is no {path} on the node") from None
        return FetchedImage(size=staging.size)
