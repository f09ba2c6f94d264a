from pathlib import Path

import pytest

from tests.fakes.model import make_image
from virtlet.host.commands import run
from virtlet.model.image import Image


@pytest.fixture
def image(tmp_path: Path) -> Image:
    """A qcow2 image of 3 MiB whose first bytes are known."""
    raw, path = tmp_path / "image.raw", tmp_path / "image.qcow2"
    raw.write_bytes(b"boot" + bytes((3 << 20) - 4))
    run(["qemu-img", "convert", "-f", "raw", "-O", "qcow2", str(raw), str(path)])
    path.chmod(0o444)
    return make_image(path, 3 << 20)
