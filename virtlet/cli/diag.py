"""`virtlet diag dump`: what a report of trouble needs of a node, without secrets."""

import os
import platform
import re
import shutil
import socket as sockets
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import click
from attrs import asdict

import virtlet
from virtlet.cli import archive, doctor
from virtlet.cli.archive import Archive, kept_annotations
from virtlet.cli.client import Client
from virtlet.cli.ending import CommandFailed
from virtlet.cli.output import plain, unfolded
from virtlet.cli.plugins import CONFIG
from virtlet.cli.targets import socket_option
from virtlet.core.config import options
from virtlet.core.daemon import settings
from virtlet.core.hooks.plugin_package import quiet
from virtlet.core.hooks.registry import Registry, discover
from virtlet.cri import api_pb2 as cri

UNITS = ("virtlet", "criproxy")
_LINES = 5000
_LARGEST_ANSWER = 16 << 20
_EMULATORS_OWN = re.compile(r"\d{4}-\d\d-\d\dT[\d:.]+Z? qemu-system-\w+: .*|.*: terminating on .*")
"""What QEMU itself says. The rest is its command line and environment."""


@click.group()
def diag() -> None:
    """Collect what a report of trouble needs."""


@diag.command()
@click.argument("file", default="")
@click.option(
    "--config",
    type=click.Path(path_type=Path, dir_okay=False),
    help=f"The manager's configuration file.  [default: {CONFIG} where it exists]",
)
@socket_option
def dump(file: str, config: Path | None, socket: str) -> None:
    """Write an archive (tar.gz) of this node's states, figures and logs; - is standard output.

    There is no user-data, environment, key or token in it, and no console of a guest: annotations
    of pods by their names, what looks like a secret not at all. Read it all the same before you
    give it away: names of pods, images, addresses and nodes are in it.
    """
    host = sockets.gethostname()
    name = file or archive.default_name(host)
    with archive.create(name, sys.stdout.buffer) as output:
        made = Archive(output, f"virtlet-diag-{host}")
        collect(made, config or (CONFIG if CONFIG.exists() else None), socket)
        made.close()
    for problem in made.problems:
        click.echo(f"not in it: {problem}", err=True)
    if name != "-":
        click.echo(name)


def collect(made: Archive, config: Path | None, socket: str) -> None:
    """Add all that is known of this node."""
    made.add("versions.json", _versions)
    made.add("info.json", lambda: _info(socket))
    made.add("images.json", lambda: _images(socket))
    made.add("stats.json", lambda: _stats(socket))
    made.add("pods.json", lambda: list(_pods(socket)))
    with quiet():
        registry = discover()
    made.add("doctor.json", lambda: [asdict(one) for one in doctor.check_node(registry, config)])
    for path in ("/metrics", "/metrics/pods", "/readyz"):
        name = f"http{path.replace('/', '-')}.txt"
        made.add(name, partial(_served, registry, config, path))
    for unit in UNITS:
        made.add(f"{unit}.log", partial(_journal, unit))
    made.add("qemu.log", lambda: _emulators(registry, config))


def _versions() -> dict[str, str]:
    return {
        "virtlet": virtlet.__version__,
        "python": platform.python_version(),
        "kernel": platform.release(),
        "machine": platform.machine(),
    }


def _info(socket: str) -> dict[str, Any]:
    with Client(socket) as client:
        status = client.call("Status", cri.StatusRequest(verbose=True))
        version = client.call("Version", cri.VersionRequest())
    return {"version": plain(version), **plain(status), "info": unfolded(status.info)}


def _images(socket: str) -> dict[str, Any]:
    with Client(socket) as client:
        listed = client.call("ListImages", cri.ListImagesRequest())
        return {**plain(listed), **plain(client.call("ImageFsInfo", cri.ImageFsInfoRequest()))}


def _stats(socket: str) -> dict[str, Any]:
    with Client(socket) as client:
        return plain(client.call("ListContainerStats", cri.ListContainerStatsRequest()))


def _pods(socket: str) -> Iterator[dict[str, Any]]:
    """As `virtlet inspect` has them, with annotations that may be shown."""
    with Client(socket) as client:
        for pod in client.pods():
            asked = cri.PodSandboxStatusRequest(pod_sandbox_id=pod.id, verbose=True)
            status = client.call("PodSandboxStatus", asked)
            yield {
                "status": _shown(plain(status.status)),
                "info": unfolded(status.info),
                "containers": [_vm(client, vm.id) for vm in client.containers(pod.id)],
            }


def _vm(client: Client, vm_id: str) -> dict[str, Any]:
    asked = cri.ContainerStatusRequest(container_id=vm_id, verbose=True)
    status = client.call("ContainerStatus", asked)
    return {"status": _shown(plain(status.status)), "info": unfolded(status.info)}


def _shown(status: dict[str, Any]) -> dict[str, Any]:
    return {**status, "annotations": kept_annotations(status.get("annotations") or {})}


def _served(registry: Registry, config: Path | None, path: str) -> str | None:
    """What the manager serves over HTTP; None where it serves none."""
    address = settings(registry, config, os.environ, {})[options.METRICS_ADDRESS]
    if not address:
        return None
    host, port = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(address[0], address[0]), address[1]
    place = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    try:
        with urllib.request.urlopen(f"http://{place}{path}", timeout=20) as answer:
            return str(answer.read(_LARGEST_ANSWER).decode(errors="replace"))
    except urllib.error.HTTPError as error:
        return f"{error.code}\n{error.read(1 << 20).decode(errors='replace')}"


def _journal(unit: str) -> str | None:
    """The last of a unit's log; None where there is no journal."""
    if not shutil.which("journalctl"):
        return None
    argv = ["journalctl", f"--unit={unit}", "--no-pager", f"--lines={_LINES}", "--output=cat"]
    ended = subprocess.run(argv, capture_output=True, text=True, errors="replace", timeout=60)
    if ended.returncode != 0:
        raise CommandFailed(f"journalctl: {ended.stderr.strip()[:300]}")
    return ended.stdout


def _emulators(registry: Registry, config: Path | None) -> str:
    """What QEMU has said of each VM in its last 64 KiB, without command lines."""
    data = Path(settings(registry, config, os.environ, {})[options.DATA_DIR])
    lines = []
    for directory in (data / "libvirt/log/qemu", Path("/var/log/libvirt/qemu")):
        for file in sorted(directory.glob("*.log")):
            with file.open("rb") as opened:
                opened.seek(max(0, file.stat().st_size - (64 << 10)))
                text = opened.read().decode(errors="replace")
            said = [line for line in text.splitlines() if _EMULATORS_OWN.fullmatch(line)]
            lines += [f"{file.stem}: {line}" for line in said[-50:]]
    return "\n".join(lines)
