"""Images as a kubelet asks for them, and what they boot to."""

import subprocess
import threading
from collections.abc import Iterator
from contextlib import ExitStack

import pytest
import yaml

from tests.e2e.conftest import TINY, PodFactory
from tests.fakes.image_server import ImageServer, Resource, image_server
from tests.polling import until
from virtlet.cli.client import CallFailed, Client
from virtlet.cli.playground import Playground
from virtlet.cri import api_pb2 as cri
from virtlet.host import netns

NAME = "virtlet.cloud/tiny"


def _offer(node: Playground, name: str, url: str) -> None:
    """Have an image name stand for an address."""
    translations = {"translations": [{"name": name, "url": url}]}
    (node.directory / "images" / f"{name}.yaml").write_text(yaml.safe_dump(translations))


def _status(client: Client, name: str) -> cri.Image:
    request = cri.ImageStatusRequest(image=cri.ImageSpec(image=name))
    image: cri.Image = client.call("ImageStatus", request).image
    return image


def _remove(client: Client, name: str) -> None:
    client.call("RemoveImage", cri.RemoveImageRequest(image=cri.ImageSpec(image=name)))


@pytest.fixture
def server(node: Playground) -> Iterator[ImageServer]:
    """An image server that the node's manager reaches."""
    with ExitStack() as stack:
        yield netns.inside(node.netns, lambda: stack.enter_context(image_server()))


def test_a_machine_boots_from_a_raw_image(node: Playground, new_pod: PodFactory) -> None:
    raw = node.directory / "tiny.raw"
    subprocess.run(["qemu-img", "convert", "-O", "raw", str(TINY), str(raw)], check=True)
    _offer(node, "raw", f"file://{raw}")
    pod = new_pod()
    pod.manifest.container.image.image = "raw"
    pod = pod.up()
    pod.wait_for_console("login:")
    assert pod.status.state == cri.CONTAINER_RUNNING
    pod.down()


def test_an_image_has_the_names_that_it_was_pulled_by(
    node: Playground, new_pod: PodFactory
) -> None:
    pod = new_pod().run()
    client = pod.client
    first = client.pull(f"{NAME}:latest", pod.pod)
    assert client.pull(f"{NAME}:v2", pod.pod) == first
    image = _status(client, NAME)
    assert {f"{NAME}:latest", f"{NAME}:v2"} <= set(image.repo_tags)
    assert f"{NAME}@{first}" in image.repo_digests
    for listed in client.call("ListImages", cri.ListImagesRequest()).images:
        # crictl and a scheduler that looks for nodes with an image take these apart at the colon.
        assert all(":" in tag for tag in listed.repo_tags)
        assert all("@sha256:" in digest for digest in listed.repo_digests)
    _remove(client, f"{NAME}:zzz")
    assert _status(client, f"{NAME}:zzz").id == ""
    assert _status(client, f"{NAME}:v2").id == first


def test_a_machines_image_is_shown_by_the_name_that_its_user_gave(
    node: Playground, new_pod: PodFactory
) -> None:
    # A kubelet creates by the id that the pull told.
    pod = new_pod().run().create()
    (listed,) = pod.client.containers(pod.id)
    for shown in (pod.status, listed):
        assert shown.image.image == shown.image.user_specified_image == NAME
        assert shown.image_id == pod.client.image_id(pod.image)
        assert shown.image_ref == f"{NAME}@{shown.image_id}"


def test_a_cancelled_pull_ends_while_its_server_is_silent(
    node: Playground, server: ImageServer
) -> None:
    silence = threading.Event()
    content = TINY.read_bytes()

    def be_silent() -> None:
        silence.wait(300)

    server.resources["/x"] = Resource(content, '"v1"', on_request=be_silent)
    _offer(node, "silent", f"{server.url}/x")
    try:
        with node.client() as client:
            request = cri.PullImageRequest(image=cri.ImageSpec(image="silent:latest"))
            call = client.images.PullImage.future(request)
            until(lambda: len(server.requests) == 1, "the manager's request", 30)
            call.cancel()
            ended = "call failed after its client went away"
            until(lambda: ended in node.log_file.read_text(), "the pull's end", 30)
            assert not list((node.data_dir / "images").glob("part_*"))
            server.resources["/x"] = Resource(content, '"v1"')
            image = client.pull("silent:latest")
            assert _status(client, "silent").id == image
    finally:
        silence.set()


def test_a_pull_that_fails_says_of_whom_and_is_left_to_the_kubelet(
    node: Playground, server: ImageServer
) -> None:
    server.resources["/x"] = Resource(status=503)
    _offer(node, "busy", f"{server.url}/x")
    _offer(node, "nowhere", "http://127.0.0.1:9/x")
    with node.client() as client:
        with pytest.raises(CallFailed, match=r"image busy: 127\.0\.0\.1:\d+ cannot serve it now"):
            client.pull("busy:latest")
        assert len(server.requests) == 1
        with pytest.raises(CallFailed, match=r"127\.0\.0\.1:9: Connection refused; check"):
            client.pull("nowhere:latest")
        with pytest.raises(
            CallFailed, match=r"oci:443 does not resolve .*names of an image plugin"
        ):
            client.pull("virtlet.cloud/oci/registry.example.com/x:latest")
