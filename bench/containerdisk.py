"""A pull of a containerDisk from a registry, beside skopeo's copy of the same image."""

import gzip
import hashlib
import json
import os
import subprocess
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

from bench.bench import Bench
from bench.figures import paired_interval, paired_ratio, spread
from bench.row import Row
from tests.fakes.oci_images import CONFIG, MANIFEST, TAR, regular
from tests.fakes.registry import docker_registry
from tests.images.disks import raw_disk
from virtlet.cli.client import Client
from virtlet.cli.playground import Playground
from virtlet.cri import api_pb2 as cri
from virtlet.host import netns

BOUND = 0.8
MIB = 1 << 20


def measure(bench: Bench) -> list[Row]:
    """The rates of both, by turns."""
    size = bench.times(1024, 64) * MIB
    with (
        tempfile.TemporaryDirectory(prefix="vlbench-", dir="/var/tmp") as name,
        ExitStack() as stack,
    ):
        directory = Path(name)
        directory.chmod(0o755)
        bench.step("making the image")
        _write_layout(directory / "layout", size)
        node = stack.enter_context(Playground({}, directory=directory / "node"))
        registry = netns.inside(
            node.netns, lambda: stack.enter_context(docker_registry(directory / "registry"))
        )
        hosts = node.directory / "certs.d" / registry
        hosts.mkdir(parents=True)
        (hosts / "hosts.toml").write_text(f'server = "http://{registry}"\n')
        image = f"{registry}/vms/large:1"
        _skopeo(node, "--dest-tls-verify=false", f"oci:{directory}/layout", f"docker://{image}")
        client = stack.enter_context(node.client())
        pairs = []
        for number in range(bench.times(7, 2)):
            bench.step(f"pull {number + 1}")
            target = directory / f"copy{number}"
            copy = _seconds(
                lambda target=target: _skopeo(  # type: ignore[misc]
                    node, "--src-tls-verify=false", f"docker://{image}", f"oci:{target}"
                )
            )
            subprocess.run(["rm", "-r", str(target)], check=True)
            pairs.append((copy, _seconds(lambda: client.pull(image))))
            _remove(client, image)
    copies, pulls = [copy for copy, _ in pairs], [pull for _, pull in pairs]
    low, high = paired_interval(pairs)
    return [
        Row(
            name=f"rate of a pull of a containerDisk of {size // MIB} MiB, to that of skopeo copy",
            value=paired_ratio(pairs),
            bound=BOUND,
            at_least=True,
            unit="×",
            detail=f"pull {spread(pulls)}, skopeo {spread(copies)}; 95 %: {low:.2f} to {high:.2f}",
            samples={"pull": pulls, "skopeo": copies},
        )
    ]


def _write_layout(directory: Path, size: int) -> None:
    """An OCI layout with a disk of random bytes, as a compressed qcow2 looks, in a gzip layer."""
    blobs = directory / "blobs" / "sha256"
    blobs.mkdir(parents=True)
    unpacked = hashlib.sha256()
    layer = blobs / "layer"
    with gzip.open(layer, "wb", compresslevel=1) as file:

        def write(data: bytes) -> None:
            unpacked.update(data)
            file.write(data)

        write(regular("disk/disk.img", size).tobuf())
        write(raw_disk("large", MIB))
        for _ in range(size // MIB - 1):
            write(os.urandom(MIB))
        write(bytes(1024))
    rootfs = {"type": "layers", "diff_ids": [f"sha256:{unpacked.hexdigest()}"]}
    config = _put(blobs, {"architecture": "amd64", "os": "linux", "rootfs": rootfs}, CONFIG)
    with layer.open("rb") as packed:
        digest = hashlib.file_digest(packed, "sha256").hexdigest()
    part = {"mediaType": f"{TAR}+gzip", "digest": f"sha256:{digest}", "size": layer.stat().st_size}
    layer.rename(blobs / digest)
    document = {"schemaVersion": 2, "mediaType": MANIFEST, "config": config, "layers": [part]}
    entry = _put(blobs, document, MANIFEST)
    (directory / "oci-layout").write_text('{"imageLayoutVersion": "1.0.0"}')
    (directory / "index.json").write_text(json.dumps({"schemaVersion": 2, "manifests": [entry]}))


def _put(blobs: Path, document: object, media_type: str) -> dict[str, object]:
    """Write a document; returns its descriptor."""
    data = json.dumps(document).encode()
    digest = hashlib.sha256(data).hexdigest()
    (blobs / digest).write_bytes(data)
    return {"mediaType": media_type, "digest": f"sha256:{digest}", "size": len(data)}


def _skopeo(node: Playground, *arguments: str) -> None:
    argv = ["nsenter", f"--net={node.netns}", "skopeo", "--insecure-policy", "copy", *arguments]
    subprocess.run(argv, check=True, capture_output=True)


def _remove(client: Client, image: str) -> None:
    client.call("RemoveImage", cri.RemoveImageRequest(image=cri.ImageSpec(image=image)))


def _seconds(work: Callable[[], object]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started
