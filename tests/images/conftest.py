"""A store in a directory of the test's own, and images that VMs are said to use."""

from collections.abc import Callable
from pathlib import Path

import pytest

from virtlet.images.image_store import ImageStore
from virtlet.images.layout import Layout
from virtlet.images.staging import ImageLimits, StagingFile
from virtlet.model.reference import parse_reference

from .disks import raw_disk, recognize

EMULATOR_GID = 12345
SMALL = ImageLimits(size=1 << 20, virtual_size=16 << 20, spare=0)


@pytest.fixture
def used() -> set[str]:
    """Ids of the images that VMs use."""
    return set()


@pytest.fixture
def open_store(tmp_path: Path, used: set[str]) -> Callable[[], ImageStore]:
    """Opens the store, as a start of the manager does."""

    def open_it() -> ImageStore:
        layout = Layout(tmp_path / "images", EMULATOR_GID)
        return ImageStore(layout, in_use=lambda: used, recognize=recognize, limits=SMALL)

    return open_it


@pytest.fixture
def store(open_store: Callable[[], ImageStore]) -> ImageStore:
    """A store with nothing in it."""
    return open_store()


def stage(store: ImageStore, content: bytes, validator: str = "") -> StagingFile:
    """A finished download."""
    staging = store.new_staging("test")
    staging.begin(validator, 0, len(content))
    staging.write(content)
    staging.finish(len(content))
    return staging


def put(store: ImageStore, reference: str, label: str = "") -> str:
    """Publish a raw disk; returns its id."""
    return store.publish(stage(store, raw_disk(label)), parse_reference(reference)).id
