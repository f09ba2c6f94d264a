import logging
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from attrs import evolve

from tests.fakes.image_source import FakeImageSource
from tests.polling import until
from virtlet.errors import (
    FailedPrecondition,
    InvalidArgument,
    NotFound,
    PermissionDenied,
    ResourceExhausted,
    Unavailable,
)
from virtlet.images.image_store import ImageStore
from virtlet.images.pull import Images, Progress, Retry
from virtlet.model.image import (
    Credentials,
    FetchedImage,
    ImageSource,
    RecognizedImage,
    Staging,
)
from virtlet.model.reference import parse_reference

from .disks import program_that, raw_disk, recognize
from .test_store import files

QUICK = Retry(attempts=4, delay=0.001)
DIGEST = "sha256:" + "a1" * 32


@pytest.fixture
def server() -> FakeImageSource:
    server = FakeImageSource()
    server.contents["x"] = raw_disk("x")
    server.validators["x"] = '"v1"'
    return server


@pytest.fixture
def images(store: ImageStore) -> Images:
    return Images(store, QUICK)


def test_a_pulled_image_is_found_by_the_name_a_pod_has(
    images: Images, server: FakeImageSource
) -> None:
    image = images.pull(parse_reference("x:latest"), server.route())
    assert image.names == ("x:latest",)
    for name in ("x:latest", "x", f"x@{image.id}", image.id):
        assert images.store.get(parse_reference(name)) == image
    assert images.store.get(parse_reference("y")) is None


def test_a_digest_is_verified(images: Images, server: FakeImageSource) -> None:
    with pytest.raises(FailedPrecondition, match="as asked for"):
        images.pull(parse_reference(f"x@{DIGEST}"), server.route())
    assert files(images.store) == []
    image = images.pull(parse_reference("x"), server.route())
    assert images.pull(parse_reference(f"x@{image.id}"), server.route()).id == image.id


def test_a_digest_that_a_plugin_makes_up_is_refused(
    images: Images, server: FakeImageSource
) -> None:
    source = server.resolve(parse_reference("x"))
    with pytest.raises(InvalidArgument, match="not sha256"):
        images.pull(
            parse_reference("x"),
            evolve(server.route(), resolve=lambda _: evolve(source, digest="md5:1")),
        )
    assert server.fetches == []


def test_a_break_is_gone_on_from(images: Images, server: FakeImageSource) -> None:
    server.breaks = [3000, 20_000, 1000]
    image = images.pull(parse_reference("x"), server.route())
    assert image.path.read_bytes() == server.contents["x"]
    assert len(server.fetches) == 4
    assert server.sent == image.size


def test_what_cannot_be_resumed_is_fetched_from_the_start(
    images: Images, server: FakeImageSource
) -> None:
    server.validators.clear()
    server.breaks = [3000]
    image = images.pull(parse_reference("x"), server.route())
    assert image.path.read_bytes() == server.contents["x"]
    assert server.sent == image.size + 3000


def test_a_change_on_the_server_in_between_starts_it_over(
    images: Images, server: FakeImageSource
) -> None:
    server.breaks = [3000]

    def change() -> None:
        if len(server.fetches) == 1 and server.sent == 3000:
            server.contents["x"] = raw_disk("new")
            server.validators["x"] = '"v2"'

    server.before_write = change
    assert images.pull(parse_reference("x"), server.route()).path.read_bytes() == raw_disk("new")


def test_a_try_that_brings_no_byte_is_the_last(images: Images, server: FakeImageSource) -> None:
    server.breaks = [3000, 0, 0, 0]
    with pytest.raises(Unavailable, match="broke"):
        images.pull(parse_reference("x"), server.route())
    assert len(server.fetches) == 2


def test_what_does_not_begin_fails_at_once(images: Images, server: FakeImageSource) -> None:
    server.error = Unavailable("image x: the name of its server does not resolve")
    with pytest.raises(Unavailable, match="resolve"):
        images.pull(parse_reference("x"), server.route())
    assert len(server.fetches) == 1
    assert files(images.store) == []


def test_breaks_without_end_are_given_up(images: Images, server: FakeImageSource) -> None:
    server.breaks = [1000] * 20
    with pytest.raises(Unavailable, match="broke"):
        images.pull(parse_reference("x"), server.route())
    assert len(server.fetches) == 4


def test_the_next_pull_goes_on_where_a_failed_one_ended(
    images: Images, server: FakeImageSource
) -> None:
    server.breaks = [3000, 0]
    with pytest.raises(Unavailable):
        images.pull(parse_reference("x"), server.route())
    image = images.pull(parse_reference("x"), server.route())
    assert server.sent == image.size


def test_an_image_that_could_not_be_checked_is_not_fetched_again(
    images: Images, server: FakeImageSource, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch, tempfile.TemporaryDirectory() as directory:
        Path(directory).chmod(0o755)
        program_that("kill -ABRT $$", Path(directory) / "bin", patch)
        with pytest.raises(Unavailable, match="cannot be checked now"):
            images.pull(parse_reference("x"), server.route())
    image = images.pull(parse_reference("x"), server.route())
    assert server.sent == image.size


def test_a_failed_download_that_nobody_takes_up_goes(
    store: ImageStore, server: FakeImageSource
) -> None:
    images = Images(store, Retry(attempts=1, keep_parts=0.0))
    server.breaks = [3000]
    with pytest.raises(Unavailable):
        images.pull(parse_reference("x"), server.route())
    assert [name[:5] for name in files(store)] == ["part_"]
    with pytest.raises(NotFound):
        images.pull(parse_reference("y"), server.route())
    assert files(store) == []


def test_closing_leaves_no_parts(images: Images, server: FakeImageSource) -> None:
    server.breaks = [3000, 0]
    with pytest.raises(Unavailable):
        images.pull(parse_reference("x"), server.route())
    images.close()
    assert files(images.store) == []


@pytest.mark.parametrize(
    "error", [NotFound("n"), PermissionDenied("p"), InvalidArgument("i"), ResourceExhausted("r")]
)
def test_what_a_retry_cannot_mend_is_not_retried(
    images: Images, server: FakeImageSource, error: Exception
) -> None:
    server.error = error
    with pytest.raises(type(error)):
        images.pull(parse_reference("x"), server.route())
    assert len(server.fetches) == 1
    assert files(images.store) == []


def test_what_is_no_image_leaves_nothing(images: Images, server: FakeImageSource) -> None:
    server.contents["x"] = b"<html>"
    with pytest.raises(InvalidArgument, match="image x: it is a web page"):
        images.pull(parse_reference("x"), server.route())
    assert files(images.store) == []


def test_an_image_over_the_limit_leaves_nothing(images: Images, server: FakeImageSource) -> None:
    server.contents["x"] = raw_disk("x", (1 << 20) + 512)
    with pytest.raises(ResourceExhausted, match="larger than the limit"):
        images.pull(parse_reference("x"), server.route())
    assert server.sent == 0
    assert files(images.store) == []


def test_an_unchanged_image_is_not_fetched_again(images: Images, server: FakeImageSource) -> None:
    first = images.pull(parse_reference("x"), server.route())
    second = images.pull(parse_reference("x"), server.route())
    assert second.id == first.id
    assert server.sent == first.size


def test_a_changed_image_takes_the_name_over(images: Images, server: FakeImageSource) -> None:
    first = images.pull(parse_reference("x"), server.route())
    server.contents["x"], server.validators["x"] = raw_disk("new"), '"v2"'
    second = images.pull(parse_reference("x"), server.route())
    assert images.store.list() == (second,)
    assert not first.path.exists()


def test_pulls_of_one_image_at_a_time_download_once(
    images: Images, server: FakeImageSource
) -> None:
    gate = threading.Barrier(8)

    def pull() -> str:
        gate.wait()
        return images.pull(parse_reference("x"), server.route()).id

    server.before_write = lambda: time.sleep(0.002)
    with ThreadPoolExecutor(8) as pool:
        ids = {future.result() for future in [pool.submit(pull) for _ in range(8)]}
    assert len(ids) == 1
    assert server.sent == len(server.contents["x"])


def test_other_credentials_or_handlers_do_not_share_a_download(
    images: Images, server: FakeImageSource
) -> None:
    server.validators.clear()
    gate = threading.Barrier(3)

    def pull(scope: str, user: str) -> str:
        gate.wait()
        return images.pull(parse_reference("x"), server.route(scope), Credentials(username=user)).id

    server.before_write = lambda: time.sleep(0.002)
    with ThreadPoolExecutor(3) as pool:
        pulls = [pool.submit(pull, *who) for who in (("a", "u"), ("b", "u"), ("a", "v"))]
        assert len({pull.result() for pull in pulls}) == 1
    assert len(server.fetches) == 3
    assert {c.username for c in server.credentials} == {"u", "v"}


def test_a_failed_pull_fails_those_who_joined_it(images: Images, server: FakeImageSource) -> None:
    started, go = threading.Event(), threading.Event()

    def hold() -> None:
        started.set()
        go.wait()
        server.error = PermissionDenied("no")

    server.before_write = hold
    server.breaks = [1000]
    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(images.pull, parse_reference("x"), server.route())
        started.wait()
        second = pool.submit(images.pull, parse_reference("x"), server.route())
        threading.Timer(0.3, go.set).start()
        for pull in (first, second):
            with pytest.raises(PermissionDenied):
                pull.result()
    assert len(server.fetches) == 2


def test_a_cancelled_pull_ends_soon_and_can_be_taken_up(
    images: Images, server: FakeImageSource
) -> None:
    wanted = True

    def cancel() -> None:
        nonlocal wanted
        wanted = server.sent < 5000

    server.before_write = cancel
    with pytest.raises(Unavailable, match="cancelled"):
        images.pull(parse_reference("x"), server.route(), wanted=lambda: wanted)
    assert server.sent == 5000
    server.before_write = lambda: None
    images.pull(parse_reference("x"), server.route())
    assert server.sent == len(server.contents["x"])


def test_a_cancelled_pull_goes_on_for_those_who_joined_it(
    images: Images, server: FakeImageSource
) -> None:
    first_waits = True
    joined = threading.Event()

    def leave_once_joined() -> None:
        nonlocal first_waits
        joined.wait()
        first_waits = False

    def second_waits() -> bool:
        joined.set()
        return True

    server.before_write = leave_once_joined
    with ThreadPoolExecutor(2) as pool:
        pool.submit(images.pull, parse_reference("x"), server.route(), wanted=lambda: first_waits)
        until(lambda: server.fetches)
        image = pool.submit(
            images.pull, parse_reference("x"), server.route(), wanted=second_waits
        ).result()
    assert images.store.get(parse_reference("x")) == image
    assert server.sent == image.size
    assert len(server.fetches) == 1


def test_reads_do_not_wait_for_a_pull(images: Images, server: FakeImageSource) -> None:
    server.contents["y"] = raw_disk("y")
    images.pull(parse_reference("y"), server.route())
    go = threading.Event()

    def hold() -> None:
        go.wait(30)

    server.before_write = hold
    with ThreadPoolExecutor(1) as pool:
        pull = pool.submit(images.pull, parse_reference("x"), server.route())
        until(images.progress)
        started = time.perf_counter()
        for _ in range(100):
            assert len(images.store.list()) == 1
            assert images.store.get(parse_reference("y"))
            assert images.store.get(parse_reference("x")) is None
        elapsed = time.perf_counter() - started
        go.set()
        pull.result()
    assert elapsed < 10


def test_progress_tells_how_far_pulls_are(images: Images, server: FakeImageSource) -> None:
    seen: list[tuple[Progress, ...]] = []
    server.before_write = lambda: seen.append(images.progress())
    name = parse_reference("x")
    size = images.pull(name, server.route()).size
    assert seen[0] == (Progress("x", 0, size, name),)
    assert seen[2] == (Progress("x", 2000, size, name),)
    assert images.progress() == ()


def test_each_tag_that_was_pulled_is_a_name_of_the_image(
    images: Images, server: FakeImageSource
) -> None:
    server.contents["x:v2"] = server.contents["x"]
    server.contents["x:v3"] = raw_disk("v3")
    for tag in ("x", "x:v2"):
        image = images.pull(parse_reference(tag), server.route())
    other = images.pull(parse_reference("x:v3"), server.route())
    assert image.names == ("x:latest", "x:v2")
    assert image.digests == (f"x@{image.id}",)
    assert other.names == ("x:v3",)
    assert images.store.get(parse_reference("x:zzz")) is None


def test_another_name_of_a_source_is_not_fetched_again(
    images: Images, server: FakeImageSource
) -> None:
    first = images.pull(parse_reference("x"), server.route())
    route = evolve(server.route(), resolve=lambda name: server.resolve(parse_reference("x")))
    assert images.pull(parse_reference("x:v2"), route).id == first.id
    assert server.sent == first.size


def test_a_digest_that_a_plugin_knows_of_a_name_is_verified(
    images: Images, server: FakeImageSource
) -> None:
    route = evolve(
        server.route(), resolve=lambda name: server.resolve(parse_reference(f"x@{DIGEST}"))
    )
    with pytest.raises(FailedPrecondition, match="as asked for"):
        images.pull(parse_reference("x"), route)
    assert files(images.store) == []


def test_the_digest_that_a_plugin_has_verified_goes_before_the_files(
    images: Images, server: FakeImageSource
) -> None:
    def fetch(source: ImageSource, credentials: Credentials, staging: Staging) -> FetchedImage:
        return evolve(server.fetch(source, credentials, staging), digest=DIGEST)

    route = evolve(server.route(), fetch=fetch)
    image = images.pull(parse_reference(f"x@{DIGEST}"), route)
    assert image.digests == (f"x@{DIGEST}",)
    with pytest.raises(FailedPrecondition, match="as asked for"):
        images.pull(parse_reference(f"x@{image.id}"), route)


def test_a_name_that_a_plugin_refuses_is_an_error(images: Images, server: FakeImageSource) -> None:
    with pytest.raises(InvalidArgument, match="'malformed' is malformed"):
        images.pull(parse_reference("malformed"), server.route())


def test_an_id_can_be_pulled_only_while_it_is_there(
    images: Images, server: FakeImageSource
) -> None:
    image = images.pull(parse_reference("x"), server.route())
    assert images.pull(parse_reference(image.id), server.route()) == image
    with pytest.raises(NotFound, match="by its name"):
        images.pull(parse_reference(DIGEST), server.route())


def test_secrets_stay_out_of_logs(
    images: Images, server: FakeImageSource, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    server.breaks = [3000]
    images.pull(
        parse_reference("x"),
        server.route(),
        Credentials(username="user", password="hunter2", registry_token="hunter3"),
    )
    told = "\n".join(f"{record.getMessage()} {vars(record)}" for record in caplog.records)
    assert "image pulled" in told
    assert "hunter" not in told
    assert "fake://" not in told


def test_downloads_that_do_not_end_when_they_are_cancelled_are_bounded(
    store: ImageStore, server: FakeImageSource
) -> None:
    images = Images(store, QUICK, most_left=2)
    go_on = threading.Event()

    def pull(name: str) -> None:
        stuck = threading.Event()
        server.contents[name] = raw_disk(name)

        def hang() -> None:
            stuck.set()
            go_on.wait(60)

        server.before_write = hang
        images.pull(parse_reference(name), server.route(), wanted=lambda: not stuck.is_set())

    for name in ("a", "b"):
        with pytest.raises(Unavailable, match="cancelled by its caller"):
            pull(name)
    with pytest.raises(ResourceExhausted, match="image c: 2 downloads that were cancelled"):
        pull("c")
    assert server.fetches == ["a", "b"]
    go_on.set()
    for thread in threading.enumerate():
        if thread.name == "image-fetch":
            thread.join(20)
    assert images.pull(parse_reference("x"), server.route()).names == ("x:latest",)


def test_a_plugin_that_hangs_while_it_recognises_an_image_is_left_behind(
    images: Images, server: FakeImageSource
) -> None:
    stuck, go_on = threading.Event(), threading.Event()

    def hang(name: str, file: Path) -> tuple[str, RecognizedImage]:
        stuck.set()
        go_on.wait(60)
        return recognize(name, file)

    route = evolve(server.route(), recognize=hang)
    with pytest.raises(Unavailable, match="cancelled by its caller"):
        images.pull(parse_reference("x"), route, wanted=lambda: not stuck.is_set())
    assert images.pull(parse_reference("x"), server.route()).format == "raw"
    assert server.sent == len(server.contents["x"])
    go_on.set()
