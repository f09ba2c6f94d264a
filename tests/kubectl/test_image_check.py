"""`kubectl virtlet image check`: what a node would say of an image, without downloading it."""

import base64
import gzip
import json
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from tests.fakes.image_server import ImageServer, Resource, image_server
from tests.fakes.oci_images import container_disk
from tests.fakes.registry import PASSWORD, USER, docker_registry
from tests.kubectl.conftest import ApiServer, Run
from virtlet.cli.ending import CommandFailed
from virtlet.kubectl.main import group
from virtlet.kubectl.pull_secrets import PullSecret
from virtlet.model.image import Credentials

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


SECRET = "/api/v1/namespaces/shop/secrets/registry"


def _config(registry: str) -> str:
    """As `kubectl create secret docker-registry` and `docker login` write it."""
    auth = base64.b64encode(f"{USER}:{PASSWORD}".encode()).decode()
    return json.dumps({"auths": {registry: {"auth": auth}}})


def _secret(config: str, kind: str = "kubernetes.io/dockerconfigjson") -> dict[str, object]:
    return {"type": kind, "data": {".dockerconfigjson": base64.b64encode(config.encode()).decode()}}


def test_a_registry_that_asks_for_a_pull_secret_is_shown_it(
    tmp_path: Path, qcow2: bytes, api: ApiServer, run: Run
) -> None:
    image = container_disk(qcow2, "disk/disk.qcow2")
    with docker_registry(tmp_path / "registry", secret=True) as registry:
        to = f"docker://{registry}/vms/disk:1"
        creds = f"--dest-creds={USER}:{PASSWORD}"
        image.push(tmp_path / "layout", to, "--dest-tls-verify=false", creds)
        hosts = tmp_path / "hosts" / registry
        hosts.mkdir(parents=True)
        (hosts / "hosts.toml").write_text(f'server = "http://{registry}"\n')
        words = (f"{registry}/vms/disk:1", "--hosts", str(hosts.parent))

        without = run("image check", *words)
        assert without.exit_code == 1
        assert "check the name and the image pull secret" in without.output

        api.documents[SECRET] = _secret(_config(registry))
        said = run("image check", *words, "--pull-secret", "registry")
        assert said.exit_code == 0, said.output
        assert f"pull secret: secret shop/registry has credentials of {registry}\n" in said.output
        assert "ok    format: qcow2\n" in said.output

        config = tmp_path / "config.json"
        config.write_text(_config(registry))
        assert run("image check", *words, "--docker-config", str(config)).exit_code == 0

        api.documents[SECRET] = _secret(_config("other.example"))
        other = run("image check", *words, "--pull-secret", "registry")
        assert other.exit_code == 1
        assert "none for this image; there are those of: other.example\n" in other.output
        for each in (without, said, other):
            assert PASSWORD not in each.output


@pytest.mark.parametrize(
    ("secret", "problem"),
    [
        (_secret("{}", "Opaque"), "shop/registry is no pull secret, its type is Opaque"),
        (_secret('{"auths": {"a.example": {"auth": "hunter2"}}}'), "malformed"),
        (_secret('{"auths": ["hunter2"]}'), "malformed"),
        (_secret("hunter2"), "malformed"),
        (_secret('{"auths": {"a.example": {}}, "credsStore": "pass"}'), "a program keeps them"),
    ],
)
def test_what_is_no_pull_secret_is_told_and_not_shown(
    api: ApiServer, run: Run, secret: dict[str, object], problem: str
) -> None:
    api.documents[SECRET] = secret
    said = run("image check", "a.example/vm:1", "--pull-secret", "registry")
    assert isinstance(said.exception, CommandFailed)
    assert problem in str(said.exception)
    assert "hunter2" not in str(said.exception)


def test_a_pull_secret_that_may_not_be_read_is_told(api: ApiServer, run: Run) -> None:
    api.refuse(SECRET, 403, "Forbidden", 'secrets "registry" is forbidden')
    said = run("image check", "a.example/vm:1", "--pull-secret", "registry")
    assert 'secrets "registry" is forbidden' in str(said.exception)


@pytest.mark.parametrize(
    ("name", "url", "meant"),
    [
        ("a.example", "oci://a.example/vms/x:1", True),
        ("https://a.example/v2/", "oci://a.example/vms/x:1", True),
        ("a.example/vms", "oci://a.example/vms/x:1", True),
        ("a.example/other", "oci://a.example/vms/x:1", False),
        ("*.example", "oci://a.example/x:1", True),
        ("*.example", "oci://a.b.example/x:1", False),
        ("a.example", "oci://a.example:5000/x:1", False),
        ("a.example:5000", "https://a.example:5000/x.qcow2", True),
        ("https://index.docker.io/v1/", "oci://docker.io/library/x:1", True),
        ("b.example", "oci://a.example/x:1", False),
    ],
)
def test_credentials_are_chosen_as_by_a_kubelet(name: str, url: str, meant: bool) -> None:
    secret = PullSecret("it", {name: Credentials(username="me")})
    assert (secret.of(url) is not None) == meant


def test_of_several_the_most_specific_credentials_are_chosen() -> None:
    names = ("a.example", "a.example/vms", "*.example")
    secret = PullSecret("it", {name: Credentials(username=name) for name in names})
    found = secret.of("oci://a.example/vms/x:1")
    assert found
    assert found[0] == "a.example/vms"
