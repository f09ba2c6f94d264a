"""`kubectl virtlet image check`: what a node would say of an image, without downloading it."""

import gzip
import json
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from tests.fakes.image_server import ImageServer, Resource, image_server
from tests.fakes.oci_images import container_disk
from tests.fakes.registry import docker_registry
from virtlet.kubectl.main import group

SIZE = 64 << 20


def _check(*words: str) -> Result:
    return CliRunner().invoke(group, ["image", "check", *words])


@pytest.fixture
def server() -> Iterator[ImageServer]:
    """A server of images."""
    with image_server() as serving:
        yield serving


@pytest.fixture(scope="module")
def qcow2(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """A disk of 64 MiB, all of which is stored."""
    file = tmp_path_factory.mktemp("disk") / "disk.qcow2"
    options = ["-f", "qcow2", "-o", "preallocation=full"]
    subprocess.run(["qemu-img", "create", "-q", *options, file, str(SIZE)], check=True)
    return file.read_bytes()


def test_a_disk_is_told_by_its_beginning(server: ImageServer, qcow2: bytes) -> None:
    server.resources["/disk.qcow2"] = Resource(qcow2)
    said = _check(f"{server.url}/disk.qcow2")
    assert said.exit_code == 0, said.output
    assert "ok    format: qcow2\n" in said.output
    assert f"a disk of {SIZE} bytes; {len(qcow2)} bytes to download" in said.output
    assert "note  reach:" in said.output
    assert "127.0.0.1" in said.output


def test_a_packed_disk_is_looked_into(server: ImageServer, qcow2: bytes) -> None:
    server.resources["/disk.qcow2.gz"] = Resource(gzip.compress(qcow2, 1))
    said = _check(f"{server.url}/disk.qcow2.gz", "--json")
    assert said.exit_code == 0, said.output
    found = {one["check"]: one["found"] for one in json.loads(said.stdout)["findings"]}
    assert found["format"] == "qcow2, packed by gzip"


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"<!doctype html><title>Not here</title>", "a web page"),
        (b"QFI\xfb" + b"\0\0\0\x03" + b"\xff" * 96, "backing file"),
        (b"\0" * 4096, "neither qcow2 nor a raw disk"),
        (b"PK\x03\x04", "a zip archive"),
    ],
)
def test_what_a_node_refuses_is_refused(server: ImageServer, content: bytes, problem: str) -> None:
    server.resources["/disk"] = Resource(content)
    said = _check(f"{server.url}/disk")
    assert said.exit_code == 1, said.output
    assert problem in said.output


def test_what_is_not_there_is_told(server: ImageServer) -> None:
    said = _check(f"{server.url}/nothing.qcow2")
    assert said.exit_code == 1
    assert "does not have it (HTTP 404)" in said.output


def test_a_server_that_is_away_is_no_verdict() -> None:
    said = _check("http://127.0.0.1:9/disk.qcow2")
    assert said.exit_code == 3, said.output
    assert "127.0.0.1" in said.output


def test_a_name_of_the_nodes_own_is_told() -> None:
    said = _check("virtlet.cloud/tiny")
    assert said.exit_code == 1
    assert "its address in a registry is malformed" in said.output


def test_the_disk_in_a_registry_is_found(tmp_path: Path, qcow2: bytes) -> None:
    image = container_disk(qcow2, "disk/disk.qcow2")
    with docker_registry(tmp_path / "registry") as registry:
        image.push(
            tmp_path / "layout", f"docker://{registry}/vms/disk:1", "--dest-tls-verify=false"
        )
        hosts = tmp_path / "hosts" / registry
        hosts.mkdir(parents=True)
        (hosts / "hosts.toml").write_text(f'server = "http://{registry}"\n')
        said = _check(f"{registry}/vms/disk:1", "--hosts", str(hosts.parent))
        assert said.exit_code == 0, said.output
        assert "ok    digest: sha256:" in said.output
        assert "ok    format: qcow2\n" in said.output
        missing = _check(f"{registry}/vms/disk:2", "--hosts", str(hosts.parent))
        assert missing.exit_code == 1
        assert "does not have" in missing.output
