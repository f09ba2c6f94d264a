"""The tiny guest's image, built first where it is missing or old."""

import subprocess
from pathlib import Path

import pytest

from tests.tiny.tiny_guest import BUILD, ROOT


@pytest.fixture(scope="session")
def tiny_image() -> Path:
    image = ROOT / "build" / "tiny.qcow2"
    subprocess.run([BUILD, image], check=True)
    return image
