"""`virtlet demo`: the main job from end to end, on a throwaway node."""

import shutil
import threading
import time
import urllib.request
from pathlib import Path

import click
from rich.console import Console as Terminal

from virtlet.cli import warm_demo
from virtlet.cli.client import Client, follow_log
from virtlet.cli.ending import Ended, ended_by_signals, unbroken
from virtlet.cli.manifest import PodManifest, read_manifest
from virtlet.cli.playground import Playground, PlaygroundError
from virtlet.cli.steps import RunningPod, TerminalReporter, bring_up, take_down, wait_until
from virtlet.cri import api_pb2 as cri
from virtlet.host import netns

BOOT_TIMEOUT = 90.0
"""Seconds from start to the guest's answer; a guest without KVM needs about eight."""


@click.command()
@click.option(
    "--image",
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    default="build/tiny.qcow2",
    show_default=True,
    help="Disk image of the guest.",
)
@click.option(
    "--pod",
    "manifest_path",
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    default="examples/pods/tiny.yaml",
    show_default=True,
    help="Pod manifest to run; its image is taken from --image.",
)
@click.option("--keep", is_flag=True, envvar="KEEP", help="Leave everything running. [env: KEEP]")
@click.option(
    "--warm",
    is_flag=True,
    envvar="WARM",
    help="Show pods that boot beside pods that start from a template. [env: WARM]",
)
@click.option("--pods", type=click.IntRange(1, 100), default=10, help="How many of each, warm.")
def demo(image: Path, manifest_path: Path, keep: bool, warm: bool, pods: int) -> None:
    """Run a VM pod on a throwaway node, from manifest to nothing left.

    The node is a network namespace with a manager, a libvirt of its own inside the manager, and
    CNI's bridge plugin. The machine's own network is not touched. Needs root.
    """
    report = TerminalReporter()
    manifest = read_manifest(manifest_path, Path("/nonexistent"))
    name = manifest.container.image.image.removeprefix("virtlet.cloud/").split("@")[0]
    node: Playground | None = None
    keeping = False
    try:
        with ended_by_signals():
            with unbroken():
                settings = {"handlers": warm_demo.HANDLERS} if warm else {}
                node = Playground({name.rsplit(":", 1)[0]: image}, settings=settings)
            manifest = read_manifest(manifest_path, node.log_root)
            with report.step("start the manager on a node of its own"):
                node.create()
            with node.client() as client:
                if warm:
                    _say_emulation(client, report)
                    warm_demo.compare(client, node, manifest, pods, report)
                else:
                    pod = _show(client, node, manifest, report)
                    if keep:
                        _say_what_next(node, pod, report)
                        keeping = True
                        return
                    take_down(client, pod.pod_id, manifest.grace, report)
            with report.step("nothing is left: domain, process, netns, link, mount, file"):
                left = node.settled_leftovers()
                if left:
                    raise PlaygroundError("left behind: " + "; ".join(left))
    except Ended as ended:
        report.note(f"{ended}: taking everything away")
        raise
    finally:
        if node and not keeping:
            node.destroy()


def _show(
    client: Client, node: Playground, manifest: PodManifest, report: TerminalReporter
) -> RunningPod:
    started = time.monotonic()
    _say_emulation(client, report)
    pod = bring_up(client, manifest, report)
    report.note(f"  pod address {pod.address}, console of the guest:")
    answer = _watch_boot(node, pod)
    report.note(f"  http://{pod.address}/ answers: {answer}")
    report.note(f"  from RunPodSandbox to that answer: {time.monotonic() - started:.1f} s")
    return pod


def _say_emulation(client: Client, report: TerminalReporter) -> None:
    info = client.call("Status", cri.StatusRequest(verbose=True)).info["info"]
    accelerator = "KVM" if '"kvm"' in info else "QEMU without KVM"
    report.note(f"  emulation: {accelerator}")


def _watch_boot(node: Playground, pod: RunningPod) -> str:
    """Show the console until the guest answers on its address; returns the answer's first line."""
    answers: list[str] = []
    console = threading.Thread(target=_show_console, args=(pod, answers), daemon=True)
    console.start()

    def answered() -> bool:
        try:
            text = netns.inside(node.netns, lambda: _get(pod.address))
        except OSError:
            return False
        answers.append(text)
        return True

    wait_until(answered, BOOT_TIMEOUT, f"answer of the guest at http://{pod.address}/")
    console.join(2.0)
    return answers[0]


def _get(address: str) -> str:
    with urllib.request.urlopen(f"http://{address}/", timeout=2.0) as reply:
        text: str = reply.read(2000).decode(errors="replace")
    return next((line.strip() for line in text.splitlines() if line.strip()), "")


def _show_console(pod: RunningPod, answers: list[str]) -> None:
    """Print what the guest prints: all of it in a pipe, the last line on a terminal."""
    terminal = Terminal(highlight=False)
    width = max(20, shutil.get_terminal_size().columns - 6)
    payloads = follow_log(Path(pod.log_path), follow=True, ended=lambda: bool(answers))
    if not terminal.is_terminal:
        for payload in payloads:
            for line in payload.decode(errors="replace").splitlines():
                click.echo(f"  | {line.strip()}")
        return
    with terminal.status("  | booting …") as status:
        for payload in payloads:
            line = payload.decode(errors="replace").strip()
            if line:
                status.update(f"  | {line[:width]}".replace("[", "\\["))


def _say_what_next(node: Playground, pod: RunningPod, report: TerminalReporter) -> None:
    assert node.process is not None
    manager = node.process.pid
    report.note(
        f"""
The node is left running. What to type next:
  export VIRTLET_CRI_SOCKET_PATH={node.socket}
  .venv/bin/virtlet ps
  .venv/bin/virtlet logs -f {pod.pod_id[:12]}
  nsenter --net={node.netns} curl http://{pod.address}/
And to end it:
  .venv/bin/virtlet rm {pod.pod_id[:12]}
  kill {manager}; while [ -e /proc/{manager}/exe ]; do sleep 0.1; done
  umount {node.netns}; rm -r {node.directory}"""
    )
