"""Settings of the image names."""

from pathlib import Path
from typing import Any

from virtlet.model.option import BOOLEAN, PATH, Option, choice

TRANSLATIONS_DIR: Option[Path] = Option(
    "imageTranslationConfigsDir",
    "--image-translation-configs-dir",
    "VIRTLET_IMAGE_TRANSLATIONS_DIR",
    PATH,
    "/etc/virtlet/images",
    "directory of image translation files (*.yaml); read again when they change",
)
REGEXP_TRANSLATION: Option[bool] = Option(
    "enableRegexpImageTranslation",
    "--enable-regexp-image-translation",
    "IMAGE_REGEXP_TRANSLATION",
    BOOLEAN,
    "true",
    "translate image names by regular expressions too",
)
DOWNLOAD_PROTOCOL: Option[str] = Option(
    "downloadProtocol",
    "--image-download-protocol",
    "VIRTLET_DOWNLOAD_PROTOCOL",
    choice("https", "http"),
    "https",
    "scheme for addresses that have none",
)

OPTIONS: tuple[Option[Any], ...] = (TRANSLATIONS_DIR, REGEXP_TRANSLATION, DOWNLOAD_PROTOCOL)
