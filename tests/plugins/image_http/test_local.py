import os
from collections.abc import Callable
from pathlib import Path

import pytest

from virtlet.errors import (
    FailedPrecondition,
    InvalidArgument,
    NotFound,
    ResourceExhausted,
    Unavailable,
)
from virtlet.images.staging import StagingFile
from virtlet.model.image import Credentials, ImageSource
from virtlet.plugins.image_http.plugin import Plugin

from .conftest import CONTENT, Stagings, fetch, written


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "disk image.qcow2"
    path.write_bytes(CONTENT)
    return path


def test_a_file_is_copied(file: Path, staging: StagingFile) -> None:
    assert fetch(file.as_uri(), staging).size == len(CONTENT)
    assert written(staging) == CONTENT


def test_localhost_may_be_named(file: Path, staging: StagingFile) -> None:
    fetch(file.as_uri().replace("file://", "file://localhost"), staging)
    assert written(staging) == CONTENT


def test_a_link_to_a_file_is_followed(file: Path, staging: StagingFile) -> None:
    link = file.with_name("link")
    link.symlink_to(file)
    fetch(link.as_uri(), staging)
    assert written(staging) == CONTENT


def test_an_unchanged_file_is_not_copied_again(
    file: Path, staging: StagingFile, stagings: Stagings
) -> None:
    fetch(file.as_uri(), staging)
    again = stagings.known(len(CONTENT), staging.validator)
    fetch(file.as_uri(), again)
    assert again.complete


def test_a_replaced_file_is_copied_again(
    file: Path, staging: StagingFile, stagings: Stagings
) -> None:
    fetch(file.as_uri(), staging)
    stat = file.stat()
    new = file.with_name("new")
    new.write_bytes(CONTENT[::-1])
    os.utime(new, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    new.replace(file)
    again = stagings.known(len(CONTENT), staging.validator)
    fetch(file.as_uri(), again)
    assert written(again) == CONTENT[::-1]


def test_a_file_that_changes_while_it_is_read_is_not_taken(
    file: Path, staging: StagingFile
) -> None:
    class Meddling:
        """A staging file during whose writing the source grows."""

        size, validator, complete = 0, "", False

        def begin(self, validator: str, offset: int, total: int | None) -> None:
            staging.begin(validator, offset, total)

        def write(self, chunk: bytes) -> None:
            staging.write(chunk)
            with file.open("ab") as grown:
                grown.write(b"x" if file.stat().st_size < len(CONTENT) + 5 else b"")

        def at_end(self, close: Callable[[], None]) -> None:
            staging.at_end(close)

    with pytest.raises(Unavailable, match="changed while it was read"):
        Plugin().virtlet_fetch_image(
            ImageSource(name="x", url=file.as_uri()), Credentials(), Meddling()
        )


def test_a_missing_file_is_not_found(tmp_path: Path, staging: StagingFile) -> None:
    with pytest.raises(NotFound, match="missing"):
        fetch((tmp_path / "missing").as_uri(), staging)
    with pytest.raises(FailedPrecondition, match="Not a directory"):
        fetch("file:///etc/hostname/x", staging)


def test_too_large_a_file_is_refused(tmp_path: Path, staging: StagingFile) -> None:
    path = tmp_path / "large"
    path.touch()
    os.truncate(path, 2 << 20)
    with pytest.raises(ResourceExhausted, match="larger than the limit"):
        fetch(path.as_uri(), staging)


@pytest.mark.parametrize("kind", ["directory", "fifo", "device", "socket"])
def test_only_regular_files_are_read(tmp_path: Path, staging: StagingFile, kind: str) -> None:
    path = tmp_path / "thing"
    if kind == "directory":
        path.mkdir()
    elif kind == "fifo":
        os.mkfifo(path)
    elif kind == "socket":
        os.mknod(path, 0o140600)
    else:
        path = Path("/dev/zero")
    with pytest.raises(FailedPrecondition, match="no regular file"):
        fetch(path.as_uri(), staging)


@pytest.mark.parametrize(
    "url",
    [
        "file://example.com/x",
        "file://relative",
        "file://",
        "file:///a/../etc/shadow",
        "file:///a/%2e%2e/etc/shadow",
        "file:///a%00b",
    ],
)
def test_only_plain_absolute_paths_count(staging: StagingFile, url: str) -> None:
    with pytest.raises(InvalidArgument, match="file address"):
        fetch(url, staging)
