"""Images as a kubelet asks for them, and what they boot to."""

import json
import subprocess
import tempfile
import threading
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path

import pytest
import yaml

from tests.e2e.conftest import TINY, PodFactory
from tests.fakes.image_server import ImageServer, Resource, image_server
from tests.polling import until
from virtlet.cli.client import CallFailed, Client
from virtlet.cli.playground import Playground
from virtlet.cli.pull_progress import how_far
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


def _qemu_img(*arguments: str | Path) -> None:
    subprocess.run(["qemu-img", "convert", *map(str, arguments)], check=True)


def _packed(program: str, path: Path) -> Path:
    subprocess.run([program, "-q", "-k", "-1", str(path)], check=True)
    return next(path.parent.glob(f"{path.name}.*"))


@pytest.fixture
def formats(node: Playground) -> Iterator[Mapping[str, str]]:
    """Images of the tiny guest in every format: name to what it becomes, from what."""
    with tempfile.TemporaryDirectory(dir=node.directory) as name:
        directory = Path(name)
        for kind in ("raw", "vhdx"):
            _qemu_img("-O", kind, TINY, directory / kind)
        _qemu_img("-O", "vmdk", "-o", "subformat=streamOptimized", TINY, directory / "vmdk")
        files = {
            "raw": directory / "raw",
            "raw-gz": _packed("gzip", directory / "raw"),
            "vhdx-xz": _packed("xz", directory / "vhdx"),
            "vmdk-zst": _packed("zstd", directory / "vmdk"),
        }
        for name, file in files.items():
            _offer(node, name, f"file://{file}")
        try:
            yield {
                "raw": "raw",
                "raw-gz": "raw gzip",
                "vhdx-xz": "qcow2 xz vhdx",
                "vmdk-zst": "qcow2 zstd vmdk",
            }
        finally:
            with node.client() as client:
                for name in files:
                    _remove(client, name)


def test_a_machine_boots_from_every_format(formats: Mapping[str, str], new_pod: PodFactory) -> None:
    """All other tests boot qcow2."""
    pods = []
    for name, format in formats.items():
        pod = new_pod()
        pod.manifest.container.image.image = name
        pods.append(pod.up())
        request = cri.ImageStatusRequest(image=cri.ImageSpec(image=name), verbose=True)
        info = json.loads(pod.client.call("ImageStatus", request).info["info"])
        assert f"{info['format']} {info['sourceFormat']}".strip() == format
    for pod in pods:
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


def test_a_pull_tells_how_far_it_is(node: Playground, server: ImageServer) -> None:
    """`virtlet pull` draws its bar from that."""
    content = TINY.read_bytes()
    more = threading.Event()
    server.resources["/x"] = Resource(content, '"v1"', breaks=[1 << 20])

    def wait() -> None:
        if len(server.requests) == 2:
            more.wait(300)

    server.resources["/x"].on_request = wait
    _offer(node, "far", f"{server.url}/x")
    with node.client() as client:
        assert how_far(client, "virtlet.cloud/far") is None
        request = cri.PullImageRequest(image=cri.ImageSpec(image="far:latest"))
        call = client.images.PullImage.future(request)
        try:
            told = (1 << 20, len(content))
            until(lambda: how_far(client, "virtlet.cloud/far") == told, "the progress", 30)
        finally:
            more.set()
        assert call.result().image_ref == _status(client, "far").id
        assert how_far(client, "virtlet.cloud/far") is None
        _remove(client, "far")
