"""A shared directory of a pod, beside one that a virtiofsd run by hand serves to the same guest.

Both guests run side by side, on a machine of the same kind, each with a directory of one file
system, and work by turns. A file in its directory is the sign for a guest to begin; it takes the
time of each part itself, from `/proc/uptime`.
"""

import json
import os
import signal
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from statistics import median

from attrs import frozen

from bench.bench import Bench
from bench.figures import paired_interval, paired_ratio, spread
from bench.row import Row
from virtlet.cli.client import Client
from virtlet.cli.manifest import read_manifest
from virtlet.cli.playground import Playground
from virtlet.cli.steps import wait_until
from virtlet.plugins.cloudinit.seed import write_iso

ROOT = Path(__file__).parents[1]
TINY = ROOT / "build" / "tiny.qcow2"
QEMU = "/usr/bin/qemu-system-x86_64"
ROUNDS = 10
BOUND = 0.9
MIB = 1 << 20
_PARTS = ("written", "read")
_MACHINE = ("-machine", "-accel", "-cpu", "-m", "-smp")
"""Of the emulator's arguments, which say what machine the guest has."""
_PATIENCE = 300.0
_SCRIPT = """\
at=/data
up() { cut -d ' ' -f 1 /proc/uptime; }
drop() { sync; echo 3 >/proc/sys/vm/drop_caches; }
while :; do
	until [ -e $at/go ]; do sleep 0.5; done
	drop
	began=$(up)
	dd if=/dev/zero of=$at/file bs=1M count=$(cat $at/go) conv=fsync 2>/dev/null
	wrote=$(up)
	drop
	again=$(up)
	dd if=$at/file of=/dev/null bs=1M 2>/dev/null
	echo $began $wrote $again $(up) >$at/times.new
	rm $at/go $at/file
	mv $at/times.new $at/times
done
"""


@frozen
class _Guest:
    """A guest that works on a directory when it is told to."""

    directory: Path

    def wait(self) -> None:
        """Wait until it has booted, and has the directory."""
        self.work(1)

    def work(self, mebibytes: int) -> tuple[float, float]:
        """Have a file written and flushed, and read; returns the seconds of both."""
        times = self.directory / "times"
        times.unlink(missing_ok=True)
        sign = self.directory / "go.new"
        sign.write_text(f"{mebibytes}\n")
        sign.rename(self.directory / "go")
        wait_until(times.exists, _PATIENCE, f"the guest's work in {self.directory}")
        began, wrote, again, done = map(float, times.read_text().split())
        return wrote - began, done - again


def measure(bench: Bench) -> list[Row]:
    """Rates of writing and reading, by turns."""
    size = bench.times(256, 16)
    pairs: dict[str, list[tuple[float, float]]] = {part: [] for part in _PARTS}
    with (
        Playground({"tiny": TINY}) as node,
        node.client() as client,
        _pod(node, client) as (ours, vm),
        _by_hand(node, vm) as plain,
    ):
        for guest in (ours, plain):
            guest.wait()
        for number in range(bench.times(ROUNDS, 2)):
            bench.step(f"round {number + 1}")
            order = (ours, plain) if number % 2 else (plain, ours)
            took = {guest.directory: guest.work(size) for guest in order}
            for part, pair in zip(
                _PARTS, zip(took[plain.directory], took[ours.directory], strict=True), strict=True
            ):
                pairs[part].append(pair)
    return [_row(part, size, pairs[part]) for part in _PARTS]


def _row(part: str, size: int, pairs: Sequence[tuple[float, float]]) -> Row:
    low, high = paired_interval(pairs)
    by_hand, ours = ([pair[side] for pair in pairs] for side in (0, 1))
    return Row(
        name=f"rate at which {size} MiB are {part} over virtiofs, to that of a virtiofsd by hand",
        value=paired_ratio(pairs),
        bound=BOUND,
        at_least=True,
        unit="×",
        detail=(
            f"{size / median(ours):.0f} MiB/s: {spread(ours)}, by hand {spread(by_hand)}; "
            f"95 %: {low:.2f} to {high:.2f}"
        ),
        samples={"ours": ours, "by hand": by_hand},
    )


@contextmanager
def _pod(node: Playground, client: Client) -> Iterator[tuple[_Guest, str]]:
    """A pod with an emptyDir, and no limits, which the other guest has none of."""
    manifest = read_manifest(ROOT / "examples" / "pods" / "tiny.yaml", node.log_root)
    script = f"#!/bin/sh\n@virtlet-mount-script@\n{_SCRIPT}"
    manifest.pod.annotations["VirtletCloudInitUserDataScript"] = script
    manifest.container.linux.ClearField("resources")
    manifest.pod.linux.ClearField("resources")
    directory = node.kubelet_dir / manifest.pod.metadata.uid / "volumes/kubernetes.io~empty-dir/d"
    directory.mkdir(parents=True)
    manifest.container.mounts.add(container_path="/data", host_path=str(directory))
    client.pull(manifest.container.image.image)
    pod = client.run_pod(manifest.pod)
    vm = client.create(pod, manifest.container, manifest.pod)
    client.start(vm)
    try:
        yield _Guest(directory), vm
    finally:
        client.stop(vm, 0)
        client.stop_pod(pod)
        client.remove_pod(pod)


@contextmanager
def _by_hand(node: Playground, vm: str) -> Iterator[_Guest]:
    """The same guest on the same machine, with a virtiofsd of the same options, by two commands."""
    (server,) = (node.data_dir / "run" / "vm" / vm[:12]).glob("backends/virtiofsd-*/pid")
    directory = node.directory / "by-hand"
    shared, socket, seed = directory / "shared", directory / "socket", directory / "seed.iso"
    shared.mkdir(parents=True)
    documents = {
        "meta-data": json.dumps({"instance-id": "by-hand", "local-hostname": "by-hand"}).encode(),
        "user-data": f"#!/bin/sh\nmkdir /data\nmount -t virtiofs share /data\n{_SCRIPT}".encode(),
    }
    with seed.open("wb") as file:
        write_iso(file.fileno(), "cidata", documents)
    serving = [
        f"--socket-path={socket}" if word.startswith("--fd=") else word
        for word in _command_line(int(server.read_text()))
    ]
    serving = [
        f"--shared-dir={shared}" if word.startswith("--shared-dir=") else word for word in serving
    ]
    running: list[subprocess.Popen[bytes]] = []
    try:
        running.append(subprocess.Popen(serving))
        wait_until(socket.exists, _PATIENCE, "the socket of virtiofsd")
        running.append(subprocess.Popen(_emulator(_command_line(_emulator_of(vm)), socket, seed)))
        yield _Guest(shared)
    finally:
        for process in reversed(running):
            process.send_signal(signal.SIGTERM)
            process.wait(30)


def _emulator(ours: Sequence[str], socket: Path, seed: Path) -> list[str]:
    """A command line with the machine of another one."""
    argv = [QEMU, "-nodefaults", "-display", "none", "-snapshot"]
    for option, value in pairwise(ours):
        if option in _MACHINE or (option == "-object" and '"qom-type":"memory-backend' in value):
            argv += [option, value]
    return [
        *argv,
        *("-drive", f"file={TINY},if=virtio"),
        *("-drive", f"file={seed},format=raw,media=cdrom"),
        *("-chardev", f"socket,id=share,path={socket}"),
        *("-device", "vhost-user-fs-pci,chardev=share,tag=share"),
    ]


def _command_line(pid: int) -> list[str]:
    return [os.fsdecode(w) for w in Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")[:-1]]


def _emulator_of(vm: str) -> int:
    """The emulator is named after its VM."""
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            words = _command_line(int(entry.name))
        except OSError:
            continue
        if words and "qemu-system" in words[0] and any(vm[:12] in word for word in words):
            return int(entry.name)
    raise LookupError(f"no emulator of VM {vm}")
