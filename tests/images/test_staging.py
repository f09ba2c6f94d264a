import hashlib
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from virtlet.errors import FailedPrecondition, ResourceExhausted, Unavailable, VirtletError
from virtlet.images.lease import Lease
from virtlet.images.staging import ImageLimits, KnownImage, StagingFile

LIMITS = ImageLimits(size=1000, spare=0)


@pytest.fixture
def staging(tmp_path: Path) -> StagingFile:
    return StagingFile(tmp_path / "part_x", "busybox", LIMITS)


def digest(content: bytes) -> str:
    return f"sha256:{hashlib.sha256(content).hexdigest()}"


def test_nothing_is_on_the_disk_before_begin(staging: StagingFile) -> None:
    assert (staging.size, staging.validator, staging.complete) == (0, "", False)
    assert not staging.path.exists()


def test_it_hashes_what_is_written(staging: StagingFile) -> None:
    staging.begin("", 0, None)
    for chunk in (b"abc", b"", b"defg"):
        staging.write(chunk)
    staging.finish(7)
    assert staging.digest == digest(b"abcdefg")
    assert staging.path.read_bytes() == b"abcdefg"
    assert staging.path.stat().st_mode & 0o777 == 0o600


def test_a_broken_download_goes_on_where_it_broke(staging: StagingFile) -> None:
    staging.begin('"v1"', 0, 6)
    staging.write(b"abc")
    with pytest.raises(Unavailable, match="3 of 6"):
        staging.finish(6)
    assert (staging.size, staging.validator) == (3, '"v1"')
    staging.begin('"v1"', 3, 6)
    staging.write(b"def")
    staging.finish(6)
    assert staging.digest == digest(b"abcdef")


def test_starting_over_forgets_what_was_there(staging: StagingFile) -> None:
    staging.begin('"v1"', 0, 6)
    staging.write(b"abcdef")
    staging.begin('"v2"', 0, 2)
    staging.write(b"xy")
    staging.finish(2)
    assert staging.digest == digest(b"xy")
    assert staging.path.read_bytes() == b"xy"
    assert staging.validator == '"v2"'


def test_going_on_elsewhere_than_at_the_end_is_an_error(staging: StagingFile) -> None:
    staging.begin("", 0, None)
    staging.write(b"abc")
    with pytest.raises(VirtletError, match="byte 2"):
        staging.begin("", 2, None)


def test_writing_before_begin_is_an_error(staging: StagingFile) -> None:
    with pytest.raises(VirtletError, match="before begin"):
        staging.write(b"abc")


def test_an_announced_size_over_the_limit_is_refused_at_once(staging: StagingFile) -> None:
    with pytest.raises(ResourceExhausted, match="limit of 1000 bytes"):
        staging.begin("", 0, 1001)


def test_an_unannounced_size_is_refused_when_it_passes_the_limit(staging: StagingFile) -> None:
    staging.begin("", 0, None)
    staging.write(b"x" * 1000)
    with pytest.raises(ResourceExhausted, match="limit of 1000 bytes"):
        staging.write(b"x")


def test_more_than_was_announced_is_no_whole_image(staging: StagingFile) -> None:
    staging.begin("", 0, 2)
    staging.write(b"abc")
    with pytest.raises(Unavailable, match="3 of 2"):
        staging.finish(2)


def test_the_spare_space_of_the_disk_is_left_alone(tmp_path: Path) -> None:
    stat = os.statvfs(tmp_path)
    free = stat.f_bavail * stat.f_frsize
    staging = StagingFile(tmp_path / "part_x", "busybox", ImageLimits(spare=free))
    with pytest.raises(ResourceExhausted, match="no space"):
        staging.begin("", 0, 1 << 20)


FULL_DISK = """
import pathlib, sys
from virtlet.images.staging import ImageLimits
from virtlet.images.staging import StagingFile
from virtlet.errors import ResourceExhausted

staging = StagingFile(pathlib.Path(sys.argv[1], "part_x"), "busybox", ImageLimits(spare=0))
staging.begin("", 0, None)
try:
    staging.write(b"x" * (1 << 20))
except ResourceExhausted as error:
    print(error, staging.size)
"""


def test_a_full_disk_is_reported_as_such(tmp_path: Path) -> None:
    # A tiny file system in a mount namespace of its own: it goes with the process.
    mount = 'mount -t tmpfs -o size=256k none "$0" && exec "$@"'
    python = [sys.executable, "-c", FULL_DISK, str(tmp_path)]
    done = subprocess.run(
        ["unshare", "--mount", "sh", "-c", mount, str(tmp_path), *python],
        check=True,
        capture_output=True,
        text=True,
    )
    assert "no space for it" in done.stdout
    assert done.stdout.split()[-1] == str(256 << 10)


def test_an_empty_source_is_no_image(staging: StagingFile) -> None:
    staging.begin("", 0, 0)
    with pytest.raises(FailedPrecondition, match="empty"):
        staging.finish(0)


def test_nobody_waiting_ends_the_download(staging: StagingFile) -> None:
    waiting = True
    staging.attend(lambda: waiting)
    staging.begin("", 0, None)
    staging.write(b"abc")
    waiting = False
    with pytest.raises(Unavailable, match="cancelled"):
        staging.write(b"def")


def test_discarding_leaves_nothing_and_may_be_repeated(staging: StagingFile) -> None:
    staging.begin("", 0, None)
    staging.discard()
    staging.discard()
    assert not staging.path.exists()


def test_a_validator_of_absurd_length_is_not_kept(staging: StagingFile) -> None:
    staging.begin('"' + "x" * 2000 + '"', 0, None)
    assert staging.validator == ""


class TestKnown:
    """An image of the store, fetched again."""

    @pytest.fixture
    def staging(self, tmp_path: Path) -> StagingFile:
        known = KnownImage(digest(b"abc"), 3, '"v1"')
        return StagingFile(tmp_path / "part_x", "busybox", LIMITS, known)

    def test_it_starts_as_a_whole_copy(self, staging: StagingFile) -> None:
        assert (staging.size, staging.validator, staging.complete) == (3, '"v1"', True)

    def test_unchanged_it_costs_nothing(self, staging: StagingFile) -> None:
        staging.finish(3)
        assert staging.digest == digest(b"abc")
        assert not staging.path.exists()

    def test_changed_it_is_written_again(self, staging: StagingFile) -> None:
        staging.begin('"v2"', 0, 2)
        assert not staging.complete
        staging.write(b"xy")
        staging.finish(2)
        assert staging.digest == digest(b"xy")

    def test_it_cannot_grow(self, staging: StagingFile) -> None:
        with pytest.raises(VirtletError, match="begin at byte 0"):
            staging.begin('"v1"', 3, 5)
        with pytest.raises(VirtletError, match="before begin"):
            staging.write(b"de")


def test_the_end_of_a_lease_closes_what_it_was_given_whatever_fails(staging: StagingFile) -> None:
    lease = Lease(staging)
    closed: list[str] = []
    lease.at_end(lambda: closed.append("a"))
    lease.at_end(lambda: closed.remove("missing"))
    lease.at_end(lambda: closed.append("b"))
    lease.end()
    lease.end()
    assert closed == ["a", "b"]
    with pytest.raises(Unavailable, match="cancelled"):
        lease.at_end(lambda: closed.append("c"))


def test_a_lease_that_has_ended_neither_tells_nor_takes_anything(staging: StagingFile) -> None:
    lease = Lease(staging)
    lease.begin('"v1"', 0, 6)
    lease.write(b"abc")
    assert (lease.size, lease.validator, lease.complete) == (3, '"v1"', False)
    lease.end()
    lease.end()
    uses: list[Callable[[], object]] = [
        lambda: lease.size,
        lambda: lease.validator,
        lambda: lease.complete,
        lambda: lease.begin('"v1"', 0, 6),
        lambda: lease.write(b"def"),
    ]
    for use in uses:
        with pytest.raises(Unavailable, match="cancelled"):
            use()
    assert staging.path.read_bytes() == b"abc"


def test_the_disk_begins_to_write_before_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun: list[int] = []
    monkeypatch.setattr(
        "virtlet.images.staging.start_writeback", lambda file: begun.append(os.fstat(file).st_size)
    )
    staging = StagingFile(tmp_path / "part_x", "large", ImageLimits(spare=0))
    staging.begin("", 0, None)
    for _ in range(40):
        staging.write(bytes(1 << 20))
    assert begun == [16 << 20, 32 << 20]
    staging.discard()
