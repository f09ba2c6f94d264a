"""From a name to an image in the store, with all parts real."""

import hashlib
import subprocess
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pluggy
import pytest
from attrs import evolve

from tests.fakes.image_server import ImageServer, Resource, trickling_server
from tests.images.disks import recognize
from virtlet import PROJECT, hookimpl, hookspecs
from virtlet.errors import FailedPrecondition, InvalidArgument, Unavailable
from virtlet.images.image_store import ImageStore
from virtlet.images.layout import Layout
from virtlet.images.pull import ImageRoute, Images, Retry
from virtlet.model.image import Credentials, FetchedImage, ImageSource, Staging, Transport
from virtlet.model.reference import Reference, parse_reference
from virtlet.plugins.image_http.plugin import Plugin


@pytest.fixture
def disk(tmp_path: Path) -> bytes:
    """A qcow2 image of some size."""
    raw, qcow2 = tmp_path / "raw", tmp_path / "qcow2"
    raw.write_bytes(bytes(range(256)) * 8192)
    convert = ["qemu-img", "convert", "-f", "raw", "-O", "qcow2", str(raw), str(qcow2)]
    subprocess.run(convert, check=True)
    return qcow2.read_bytes()


@pytest.fixture
def images(tmp_path: Path) -> Images:
    store = ImageStore(Layout(tmp_path / "images", 0), in_use=set, recognize=recognize)
    return Images(store, Retry(attempts=4, delay=0.01))


@pytest.fixture
def route(server: ImageServer) -> ImageRoute:
    def resolve(reference: Reference) -> ImageSource:
        name = reference.name
        url = f"{server.url}/{name}"
        return ImageSource(name=name, url=url, digest=reference.digest, trusted=True)

    def fetch(*arguments: object) -> object:
        return Plugin().virtlet_fetch_image(*arguments)  # type: ignore[arg-type]

    return ImageRoute("", resolve, fetch, recognize)  # type: ignore[arg-type]


def test_a_download_that_breaks_again_and_again_arrives_with_each_byte_sent_once(
    server: ImageServer, images: Images, route: ImageRoute, disk: bytes
) -> None:
    server.resources["/x"] = Resource(disk, '"v1"', breaks=[300_000, 1_000_000, 70_000])
    image = images.pull(parse_reference("x"), route)
    assert image.path.read_bytes() == disk
    assert (image.format, image.virtual_size) == ("qcow2", 2 << 20)
    assert server.sent == len(disk)
    assert images.pull(parse_reference(f"x@{image.id}"), route).id == image.id


def test_many_pulls_at_a_time_download_once_and_a_later_one_nothing(
    server: ImageServer, images: Images, route: ImageRoute, disk: bytes
) -> None:
    server.resources["/x"] = Resource(disk, '"v1"', on_request=lambda: time.sleep(0.2))
    with ThreadPoolExecutor(8) as pool:
        pulls = [pool.submit(images.pull, parse_reference("x"), route) for _ in range(8)]
        assert len({pull.result().id for pull in pulls}) == 1
    images.pull(parse_reference("x"), route)
    assert server.sent == len(disk)


def test_a_digest_decides(
    server: ImageServer, images: Images, route: ImageRoute, disk: bytes
) -> None:
    server.resources["/x"] = Resource(disk, '"v1"')
    with pytest.raises(FailedPrecondition, match="as asked for") as caught:
        images.pull(parse_reference("x@sha256:" + "a1" * 32), route)
    # Nobody learns of an answer that was not asked for.
    assert hashlib.sha256(disk).hexdigest() not in str(caught.value)
    assert images.store.list() == ()


def test_a_server_that_brings_nothing_is_given_up_at_once(
    server: ImageServer, images: Images, route: ImageRoute, disk: bytes
) -> None:
    server.resources["/x"] = Resource(disk, '"v1"', breaks=[0] * 10)
    with pytest.raises(Unavailable):
        images.pull(parse_reference("x"), route)
    assert len(server.requests) == 1


def test_a_server_that_always_breaks_is_given_up(
    server: ImageServer, images: Images, route: ImageRoute, disk: bytes
) -> None:
    server.resources["/x"] = Resource(disk, '"v1"', breaks=[1000] * 10)
    with pytest.raises(Unavailable):
        images.pull(parse_reference("x"), route)
    assert len(server.requests) == 4


@pytest.mark.parametrize("status", [500, 502, 503, 504])
def test_a_server_that_fails_halfway_is_taken_up_by_the_next_pull(
    server: ImageServer, images: Images, route: ImageRoute, disk: bytes, status: int
) -> None:
    """The one that is told of the failure may come back: what was sent before is not sent again."""
    resource = Resource(disk, '"v1"', breaks=[300_000])

    def fail_the_second_time() -> None:
        resource.status = status if len(server.requests) == 2 else 0

    resource.on_request = fail_the_second_time
    server.resources["/x"] = resource
    with pytest.raises(Unavailable, match=rf"cannot serve it now \(HTTP {status}\)"):
        images.pull(parse_reference("x"), route)
    assert images.store.list() == ()
    assert images.pull(parse_reference("x"), route).path.read_bytes() == disk
    assert [request.headers.get("range") for request in server.requests] == [
        None,
        "bytes=300000-",
        "bytes=300000-",
    ]
    assert server.sent == len(disk)


def test_a_pull_that_is_cancelled_does_not_wait_for_a_silent_server(
    server: ImageServer, images: Images, route: ImageRoute, disk: bytes
) -> None:
    asked, go_on = threading.Event(), threading.Event()

    def stall() -> None:
        asked.set()
        go_on.wait(60)

    server.resources["/x"] = Resource(disk, '"v1"', breaks=[300_000, 0])
    with pytest.raises(Unavailable):
        images.pull(parse_reference("x"), route)
    server.resources["/x"] = Resource(disk, '"v1"', on_request=stall)
    with ThreadPoolExecutor(1) as pool:
        cancelled = pool.submit(
            images.pull, parse_reference("x"), route, wanted=lambda: not asked.is_set()
        )
        with pytest.raises(Unavailable, match="cancelled by its caller"):
            cancelled.result(30)
    go_on.set()
    # What was there is there still, and what the silent server sends after all goes nowhere.
    server.resources["/x"] = Resource(disk, '"v1"')
    assert images.pull(parse_reference("x"), route).path.read_bytes() == disk
    assert server.requests[-1].headers["range"] == "bytes=300000-"


@pytest.mark.parametrize(("answers", "scheme"), [(True, "http"), (False, "http"), (False, "https")])
def test_a_pull_that_is_cancelled_closes_the_connection(
    images: Images, route: ImageRoute, *, answers: bool, scheme: str
) -> None:
    with trickling_server(answers=answers, scheme=scheme) as server:
        source = ImageSource(name="x", url=f"{server.url}/x", trusted=True)
        route = evolve(route, resolve=lambda _: source)
        with pytest.raises(Unavailable, match="cancelled by its caller"):
            images.pull(parse_reference("x"), route, wanted=lambda: not server.asked.is_set())
        assert server.gone.wait(10)


def test_a_pull_that_is_cancelled_closes_the_connection_behind_a_proxy(
    server: ImageServer, images: Images, route: ImageRoute
) -> None:
    with trickling_server(answers=False, scheme="https") as behind:
        port = int(behind.url.rpartition(":")[2])
        server.tunnels[f"127.0.0.1:{port}"] = port
        transport = Transport(proxy=server.url)
        source = ImageSource(name="x", url=f"{behind.url}/x", transport=transport, trusted=True)
        route = evolve(route, resolve=lambda name: source)
        with pytest.raises(Unavailable, match="cancelled by its caller"):
            images.pull(parse_reference("x"), route, wanted=lambda: not behind.asked.is_set())
        assert behind.gone.wait(10)


def test_a_login_page_is_no_image(server: ImageServer, images: Images, route: ImageRoute) -> None:
    server.resources["/x"] = Resource(b"<!DOCTYPE html><title>Sign in</title>")
    with pytest.raises(InvalidArgument, match="web page"):
        images.pull(parse_reference("x"), route)
    assert not list(images.store.usage().mountpoint.glob("part_*"))


def test_hook_fetch_image_is_for_the_first_plugin_that_knows_the_address(
    server: ImageServer, images: Images, disk: bytes
) -> None:
    class Other:
        @hookimpl
        def virtlet_fetch_image(
            self, source: ImageSource, credentials: Credentials, staging: Staging
        ) -> FetchedImage | None:
            if source.url != "mine:x":
                return None
            staging.begin("", 0, len(disk))
            staging.write(disk)
            return FetchedImage(size=len(disk))

    manager = pluggy.PluginManager(PROJECT)
    manager.add_hookspecs(hookspecs)
    manager.register(Other())
    manager.register(Plugin())
    manager.check_pending()
    server.resources["/x"] = Resource(disk, '"v1"')

    def fetch(source: ImageSource, credentials: Credentials, staging: Staging) -> FetchedImage:
        fetched = manager.hook.virtlet_fetch_image(
            source=source, credentials=credentials, staging=staging
        )
        assert isinstance(fetched, FetchedImage)
        return fetched

    for name, url in (("mine", "mine:x"), ("theirs", f"{server.url}/x")):
        source = ImageSource(name=name, url=url, trusted=True)
        route = ImageRoute("", lambda _, source=source: source, fetch, recognize)  # type: ignore[misc]
        assert images.pull(parse_reference(name), route).path.read_bytes() == disk
    assert len(server.requests) == 1
