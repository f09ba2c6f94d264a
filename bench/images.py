"""Images: how fast they come and go into disks, and what that takes of the manager."""

import os
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from statistics import median

from attrs import evolve

from bench.bench import Bench
from bench.figures import paired_interval, paired_ratio, spread
from bench.row import Row
from tests.fakes import models
from tests.images.disks import raw_disk, write_qcow2
from virtlet.cli.client import Client
from virtlet.cli.playground import Playground
from virtlet.cri import api_pb2 as cri
from virtlet.host import netns
from virtlet.model.cloudinit import CloudInit
from virtlet.model.image import Image
from virtlet.plugins.cloudinit.seed import write_seed
from virtlet.plugins.disk_qcow2.plugin import create_overlay

NAME = "virtlet.cloud/large"
PULL_BOUND, MEMORY_BOUND, OVERLAY_BOUND, SEED_BOUND = 0.9, 24.0, 1.3, 20.0


class _OneFile(BaseHTTPRequestHandler):
    """Sends a file as fast as the kernel can."""

    file: Path

    def do_GET(self) -> None:
        """Answer any path."""
        with self.file.open("rb") as content:
            self.send_response(200)
            self.send_header("Content-Length", str(os.fstat(content.fileno()).st_size))
            self.end_headers()
            self.wfile.flush()
            self.connection.sendfile(content)

    def log_message(self, format: str, *args: object) -> None:
        """Nothing."""


def measure(bench: Bench) -> list[Row]:
    """Pulls from loopback beside curl, the manager's memory meanwhile, overlays and seeds."""
    with tempfile.TemporaryDirectory(prefix="vlbench-", dir="/var/tmp") as name:
        directory = Path(name)
        directory.chmod(0o755)
        return [
            *_pulls(bench, directory),
            _overlays(bench, directory),
            _seeds(bench, directory),
        ]


def _pulls(bench: Bench, directory: Path) -> list[Row]:
    size = bench.times(1 << 30, 64 << 20)
    large = directory / "large"
    with large.open("wb") as file:
        file.write(raw_disk("large", 1 << 20))
        for _ in range(size // (1 << 20) - 1):
            file.write(os.urandom(1 << 20))
    # Its address is known only when the node's namespace is there, so the port is chosen here.
    port = 8099
    node = Playground({"large": f"http://127.0.0.1:{port}/large"}, directory=directory / "node")
    pairs, stored, growth = [], [], []
    with node, node.client() as client, _server(node, large, port):
        for number in range(bench.times(7, 2)):
            bench.step(f"pull {number + 1}")
            curl = _curl(node, port, "sha256sum")
            # What a new page of the page cache costs differs a lot between machines.
            kept = directory / "kept"
            stored.append(_curl(node, port, f"tee {kept} | sha256sum; sync {kept}"))
            kept.unlink()
            before = _memory(node, reset=True)
            pairs.append((_pull(client), curl))
            growth.append((_memory(node) - before) / 1e6)
            client.call("RemoveImage", cri.RemoveImageRequest(image=cri.ImageSpec(image=NAME)))
    low, high = paired_interval([(curl, pull) for pull, curl in pairs])
    pulls, curls = [pull for pull, _ in pairs], [curl for _, curl in pairs]
    equal = list(zip(stored, pulls, strict=True))
    equal_low, equal_high = paired_interval(equal)
    return [
        Row(
            name=f"rate of a pull of {size >> 20} MiB from loopback, to that of curl | sha256sum",
            value=paired_ratio([(curl, pull) for pull, curl in pairs]),
            bound=PULL_BOUND,
            at_least=True,
            unit="×",
            detail=f"pull {spread(pulls)}, curl {spread(curls)}; 95 %: {low:.2f} to {high:.2f}",
            samples={"pull": pulls, "curl": curls},
        ),
        Row(
            name="rate of that pull, to that of curl | tee FILE | sha256sum, and sync",
            value=paired_ratio(equal),
            bound=PULL_BOUND,
            at_least=True,
            unit="×",
            detail=f"curl to a file {spread(stored)}; 95 %: {equal_low:.2f} to {equal_high:.2f}",
            samples={"pull": pulls, "curl to a file": stored},
        ),
        Row(
            name="memory that the manager takes more at most during that pull",
            value=max(growth),
            bound=MEMORY_BOUND,
            unit="MB",
            detail=f"{len(growth)} pulls",
            samples={"MB": growth},
        ),
    ]


@contextmanager
def _server(node: Playground, file: Path, port: int) -> Iterator[None]:
    """Serve a file on the loopback interface of a node."""
    handler = type("Handler", (_OneFile,), {"file": file})
    server = netns.inside(node.netns, lambda: ThreadingHTTPServer(("127.0.0.1", port), handler))
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def _curl(node: Playground, port: int, taker: str) -> float:
    line = f"curl -sf http://127.0.0.1:{port}/large | {taker}"
    return _seconds(
        lambda: subprocess.run(
            ["nsenter", f"--net={node.netns}", "sh", "-c", line],
            check=True,
            stdout=subprocess.DEVNULL,
        )
    )


def _pull(client: Client) -> float:
    return _seconds(lambda: client.pull(f"{NAME}:latest"))


def _memory(node: Playground, *, reset: bool = False) -> int:
    """Bytes of memory that the manager had at most since the last reset."""
    assert node.process is not None
    process = Path("/proc") / str(node.process.pid)
    if reset:
        (process / "clear_refs").write_text("5")
    line = next(s for s in (process / "status").read_text().splitlines() if "VmHWM" in s)
    return int(line.split()[1]) * 1024


def _overlays(bench: Bench, directory: Path) -> Row:
    """Overlays of two images, whose files and disks differ in size a thousandfold."""
    vm = models.vm(directory)
    vm.directory.mkdir(parents=True, exist_ok=True)
    vms = []
    for megabytes in (1, 1024):
        options = "preallocation=metadata"
        path = write_qcow2(directory / f"{megabytes}.qcow2", f"{1024 * megabytes}M", options)
        image = Image(
            id=f"sha256:{megabytes:064x}",
            path=path,
            format="qcow2",
            size=path.stat().st_size,
            virtual_size=megabytes << 30,
        )
        vms.append(evolve(vm, image=image))
    small, large = vms
    pairs = []
    for number in range(bench.times(40, 5)):
        bench.step(f"overlay {number + 1}")
        one, other = (
            _seconds(lambda vm=vm: create_overlay(vm, 0, os.getuid(), os.getgid()))  # type: ignore[misc]
            for vm in (large, small)
        )
        pairs.append((one, other))
    of_large, of_small = [one for one, _ in pairs], [other for _, other in pairs]
    return Row(
        name="overlay on an image of 1 TiB, to one on 1 GiB",
        value=paired_ratio(pairs),
        bound=OVERLAY_BOUND,
        unit="×",
        detail=f"{spread(of_large)} and {spread(of_small)}",
        samples={"1 TiB": of_large, "1 GiB": of_small},
    )


def _seeds(bench: Bench, directory: Path) -> Row:
    vm = models.vm(directory)
    documents = CloudInit(
        meta_data={"instance-id": "x", "local-hostname": "x"},
        user_data={
            "write_files": [{"path": f"/etc/{n}", "content": "x" * 1000} for n in range(20)]
        },
        network_config={"version": 2, "ethernets": {"eth0": {"dhcp4": True}}},
    )
    write_seed(vm, documents, os.getuid(), os.getgid())  # The library is imported by the first.
    seconds = [
        1000 * _seconds(lambda: write_seed(vm, documents, os.getuid(), os.getgid()))
        for _ in range(bench.times(100, 10))
    ]
    return Row(
        name="seed disk",
        value=median(seconds),
        bound=SEED_BOUND,
        unit="ms",
        detail=f"{len(seconds)} seeds with 20 files",
        samples={"ms": seconds},
    )


def _seconds(work: Callable[[], object]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started
