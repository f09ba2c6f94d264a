"""Go's gRPC client at the proxy: containerd's own `ctr`, whose services the proxy does not know."""

from __future__ import annotations

import hashlib
import io
import json
import os
import subprocess
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from attrs import frozen

from tests.criproxy.real.conftest import World

NAME = "registry.test/large:1"
#: Apart from what the runtimes' CRI sees.
NAMESPACE = "ctr-test"
_KIND = "application/vnd.oci.image"


def digest_of(data: bytes) -> str:
    return "sha256:" + hashlib.sha256(data).hexdigest()


def tar_of(files: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


def digests_in(archive: Path) -> dict[str, str]:
    """The files in an archive; pytest would compare their contents for hours if they differed."""
    with tarfile.open(archive) as opened:
        files = {member.name: opened.extractfile(member) for member in opened}
        return {name: digest_of(file.read()) for name, file in files.items() if file is not None}


def large_image(layer: bytes) -> bytes:
    """An OCI archive."""

    def described(kind: str, data: bytes, **more: Any) -> dict[str, Any]:
        return {"mediaType": _KIND + kind, "digest": digest_of(data), "size": len(data), **more}

    platform = {"architecture": "amd64", "os": "linux"}
    rootfs = {"type": "layers", "diff_ids": [digest_of(layer)]}
    config = json.dumps({**platform, "config": {}, "rootfs": rootfs}).encode()
    manifest = json.dumps(
        {
            "schemaVersion": 2,
            "mediaType": f"{_KIND}.manifest.v1+json",
            "config": described(".config.v1+json", config),
            "layers": [described(".layer.v1.tar", layer)],
        }
    ).encode()
    of_image = described(
        ".manifest.v1+json",
        manifest,
        annotations={"io.containerd.image.name": NAME},
        platform=platform,
    )
    blobs = {f"blobs/sha256/{digest_of(b)[7:]}": b for b in (layer, config, manifest)}
    return tar_of(
        {
            "oci-layout": b'{"imageLayoutVersion": "1.0.0"}',
            "index.json": json.dumps({"schemaVersion": 2, "manifests": [of_image]}).encode(),
            **blobs,
        }
    )


@frozen
class Ctr:
    """The command at one socket.

    Args:
        socket: the runtime's, or the proxy's.
    """

    socket: Path

    def run(self, *args: str) -> subprocess.CompletedProcess[bytes]:
        """Run it, and look at how it ends."""
        command = ["ctr", "-a", str(self.socket), "-n", NAMESPACE, *args]
        return subprocess.run(command, capture_output=True, check=False, timeout=60)

    def __call__(self, *args: str) -> bytes:
        """What it prints when all goes well."""
        done = self.run(*args)
        assert done.returncode == 0, done.stderr.decode()
        return done.stdout


@pytest.fixture(scope="module")
def direct(world: World) -> Ctr:
    """At containerd."""
    return Ctr(world.sides[0].socket)


@pytest.fixture(scope="module")
def proxied(world: World) -> Ctr:
    """At the proxy."""
    return Ctr(world.proxy.listen)


@pytest.fixture(scope="module")
def layer(proxied: Ctr, direct: Ctr, tmp_path_factory: pytest.TempPathFactory) -> Iterator[bytes]:
    """The only layer, of 20 MB, of an image that was imported through the proxy."""
    layer = tar_of({"large": os.urandom(20_000_000)})
    archive = tmp_path_factory.mktemp("ctr") / "large.tar"
    archive.write_bytes(large_image(layer))
    proxied("images", "import", str(archive))
    archive.unlink()
    yield layer
    proxied("images", "rm", "--sync", NAME)
    assert NAME.encode() not in direct("images", "ls")


def test_the_version_is_the_runtimes(direct: Ctr, proxied: Ctr) -> None:
    printed = direct("version")
    assert b"Server:" in printed
    assert proxied("version") == printed


def test_what_was_sent_through_the_proxy_has_arrived(
    direct: Ctr, proxied: Ctr, layer: bytes
) -> None:
    printed = direct("images", "ls")
    assert NAME.encode() in printed
    assert proxied("images", "ls") == printed
    assert digest_of(direct("content", "get", digest_of(layer))) == digest_of(layer)
    # Unpacked too, which the client orders step by step.
    snapshots = direct("snapshots", "ls")
    assert digest_of(layer).encode() in snapshots
    assert proxied("snapshots", "ls") == snapshots


def test_what_comes_back_through_the_proxy_is_the_same(
    direct: Ctr, proxied: Ctr, layer: bytes, tmp_path: Path
) -> None:
    assert digest_of(proxied("content", "get", digest_of(layer))) == digest_of(layer)
    found = []
    for ctr in (direct, proxied):
        archive = tmp_path / "out.tar"
        ctr("images", "export", str(archive), NAME)
        found.append(digests_in(archive))
        archive.unlink()
    assert found[0] == found[1]
    assert found[1][f"blobs/sha256/{digest_of(layer)[7:]}"] == digest_of(layer)


@pytest.mark.parametrize(
    "args",
    [
        ("content", "get", "sha256:" + 64 * "0"),
        ("images", "export", "/dev/null", "registry.test/none:1"),
        ("images", "tag", NAME, NAME),
        ("containers", "info", "none"),
        ("tasks", "kill", "none"),
        ("snapshots", "rm", "none"),
        ("leases", "delete", "none"),
        ("namespaces", "create", "no/name"),
    ],
    ids=" ".join,
)
@pytest.mark.usefixtures("layer")
def test_errors_are_worded_as_by_the_runtime(
    direct: Ctr, proxied: Ctr, args: tuple[str, ...]
) -> None:
    expected, done = direct.run(*args), proxied.run(*args)
    assert expected.returncode != 0
    assert expected.stderr
    assert (done.returncode, done.stdout, done.stderr) == (
        expected.returncode,
        expected.stdout,
        expected.stderr,
    )
