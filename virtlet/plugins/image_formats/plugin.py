"""Hook implementation: qcow2 and raw disks."""

from pathlib import Path

from virtlet import hookimpl
from virtlet.model.image import RecognizedImage
from virtlet.plugins.image_formats.recognise import recognise


class Plugin:
    """Takes disks that a VM can start from, and says what everything else is."""

    VIRTLET_HOOK_API = 1

    @hookimpl
    def virtlet_recognize_image(self, name: str, file: Path) -> RecognizedImage:
        """Never None: asked last, it tells why a file that nobody else takes is no disk."""
        return recognise(file, name)
