"""Settings of the image names."""

from pathlib import Path
from typing import Any

from virtlet.model.option import BOOLEAN, PATH, Option, choice

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
