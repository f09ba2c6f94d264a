"""The hooks of the image names."""

from collections.abc import Sequence
from typing import Any

from virtlet import hookimpl
from virtlet.errors import NotFound
from virtlet.model.image import Credentials, FetchedImage, ImageSource, Staging
from virtlet.model.node import Node
from virtlet.model.option import Option, Settings
from virtlet.plugins.image_names.names import parse_name
from virtlet.plugins.image_names.options import (
    DOWNLOAD_PROTOCOL,
    OPTIONS,
    REGEXP_TRANSLATION,
    TRANSLATIONS_DIR,
)
from virtlet.plugins.image_names.translator import UNKNOWN, Translator


class Plugin:
    """Resolves image names by translation files."""

    VIRTLET_HOOK_API = 1

    _translator: Translator

    @hookimpl
    def virtlet_options(self) -> Sequence[Option[Any]]:
        """Declare the translation settings."""
        return OPTIONS

    @hookimpl
    def virtlet_configure(self, settings: Settings, node: Node) -> None:
        """Take the settings."""
        self._translator = Translator(
            settings[TRANSLATIONS_DIR],
            regexps=settings[REGEXP_TRANSLATION],
            protocol=settings[DOWNLOAD_PROTOCOL],
        )

    @hookimpl(trylast=True)
    def virtlet_resolve_image(self, name: str) -> ImageSource | None:
        """Translate a name, or take it as an address."""
        return self._translator.resolve(parse_name(name))

    @hookimpl(trylast=True)
    def virtlet_fetch_image(
        self, source: ImageSource, credentials: Credentials, staging: Staging
    ) -> FetchedImage | None:
        """Say why a name leads nowhere."""
        if source.url.startswith(f"{UNKNOWN}:"):
            raise NotFound(self._translator.explain(source.name))
        return None
