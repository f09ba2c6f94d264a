"""The hooks of the image names, with their settings."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from virtlet import hookimpl
from virtlet.errors import NotFound
from virtlet.model.image import Credentials, FetchedImage, ImageSource, Staging
from virtlet.model.node import Node
from virtlet.model.option import BOOLEAN, PATH, Option, Settings, choice
from virtlet.model.reference import Reference
from virtlet.plugins.image_names.translator import UNKNOWN, Translator

TRANSLATIONS_DIR: Option[Path] = Option(
    field="imageTranslationConfigsDir",
    flag="--image-translation-configs-dir",
    env="VIRTLET_IMAGE_TRANSLATIONS_DIR",
    kind=PATH,
    default="/etc/virtlet/images",
    help="directory of image translation files (*.yaml); read again when they change",
)
REGEXP_TRANSLATION: Option[bool] = Option(
    field="enableRegexpImageTranslation",
    flag="--enable-regexp-image-translation",
    env="IMAGE_REGEXP_TRANSLATION",
    kind=BOOLEAN,
    default="true",
    help="translate image names by regular expressions too",
)
DOWNLOAD_PROTOCOL: Option[str] = Option(
    field="downloadProtocol",
    flag="--image-download-protocol",
    env="VIRTLET_DOWNLOAD_PROTOCOL",
    kind=choice("https", "http"),
    default="https",
    help="scheme for addresses that have none",
)

OPTIONS: tuple[Option[Any], ...] = (TRANSLATIONS_DIR, REGEXP_TRANSLATION, DOWNLOAD_PROTOCOL)


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

    @hookimpl
    def virtlet_resolve_image(self, reference: Reference) -> ImageSource | None:
        """Translate a name, or take it as an address."""
        return self._translator.resolve(reference)

    @hookimpl
    def virtlet_fetch_image(
        self, source: ImageSource, credentials: Credentials, staging: Staging
    ) -> FetchedImage | None:
        """Say why a name leads nowhere."""
        if source.url.startswith(f"{UNKNOWN}:"):
            raise NotFound(self._translator.explain(source.name))
        return None
