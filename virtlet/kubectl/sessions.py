"""The commands that speak with a guest: console and ssh."""

import contextlib
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import click
from attrs import frozen

from virtlet.cli.ending import CommandFailed, ended_by_signals
from virtlet.kubectl.cluster import NO_KUBECTL, Kubectl, with_cluster

_FORWARDING = re.compile(r"Forwarding from 127\.0\.0\.1:(\d+)")
_LOST = "error: lost connection to pod"
_ENDING = 5.0
"""Seconds that a kubectl has to end when it is asked."""


@click.command()
@click.argument("pod")
@with_cluster
def console(kubectl: Kubectl, pod: str) -> None:
    """Attach to the serial console of a VM.

    What the guest prints from now on is shown, and what is typed goes to it; `kubectl logs` has
    what it printed before. Ctrl-] leaves the console, and the guest goes on.
    """
    found = kubectl.pod(pod)
    name, container = found["metadata"]["name"], running(kubectl, found)
    spec = found["spec"]["containers"][0]
    if not spec.get("stdin"):
        raise CommandFailed(
            f"pod {kubectl.namespace}/{name} takes nothing on its console: write `stdin: true` and "
            "`tty: true` at its container; `kubectl logs -f` shows what it prints"
        )
    words = ["attach", name, f"--container={container}", "--stdin", "--quiet"]
    if spec.get("tty") and sys.stdin.isatty():
        words.append("--tty")
        click.echo(f"console of {kubectl.namespace}/{name}; Ctrl-] leaves it\r", err=True)
    sys.exit(run(kubectl.argv(*words), NO_KUBECTL))


@click.command(context_settings={"allow_interspersed_args": False})
@click.option("-i", "--identity", "key", default="", help="File of the private key.")
@click.option("-l", "--login", "user", default="", help="The user in the guest.")
@click.option("-p", "--port", type=click.IntRange(1, 65535), default=22, show_default=True)
@click.option("-o", "options", multiple=True, metavar="OPTION", help="As ssh's; may be repeated.")
@click.argument("pod", metavar="[USER@]POD")
@click.argument("command", nargs=-1, type=click.UNPROCESSED)
@with_cluster
def ssh(
    kubectl: Kubectl,
    key: str,
    user: str,
    port: int,
    options: tuple[str, ...],
    pod: str,
    command: tuple[str, ...],
) -> None:
    """Log in to a VM by SSH, through the API server.

    A port of this machine's loopback address leads to the guest's for as long as it lasts. Options
    come before the pod, a command after it. The guest's host key is kept under the pod's name and
    UID, so that another pod of the name is another host.
    """
    if not shutil.which("ssh"):
        raise CommandFailed("ssh is not there: install an SSH client (package openssh-client)")
    login, _, name = pod.rpartition("@")
    user = user or login
    found = kubectl.pod(name)
    running(kubectl, found)
    meta = found["metadata"]
    if not found["status"].get("podIP"):
        raise CommandFailed(
            f"pod {kubectl.namespace}/{meta['name']} has no address: its VM has no network; "
            "`kubectl virtlet console` needs none"
        )
    with ended_by_signals(), forwarded(kubectl, meta["name"], port) as forwarding:
        argv = ["ssh", "-p", str(forwarding.port)]
        argv += ["-o", f"HostKeyAlias={meta['name']}.{kubectl.namespace}.{meta['uid']}"]
        argv += ["-o", "StrictHostKeyChecking=accept-new"]
        for option in options:
            argv += ["-o", option]
        if key:
            argv += ["-i", key]
        argv += [f"{user}@127.0.0.1" if user else "127.0.0.1", *command]
        code = run(argv, "ssh is not there")
        if code == 255 and forwarding.said:
            click.echo(f"kubectl port-forward: {forwarding.said}", err=True)
    sys.exit(code)


@frozen
class Forwarding:
    """A port of a pod, at the loopback address."""

    port: int
    """The local one."""
    _process: "subprocess.Popen[str]"
    _problems: Path

    @property
    def said(self) -> str:
        """The last line of what kubectl said on standard error, or "".

        That the connection is lost comes after what it was lost for.
        """
        lines = self._problems.read_text(errors="replace").strip().splitlines()
        telling = [line for line in lines if line != _LOST] or lines
        return telling[-1].removeprefix("error: ") if telling else ""

    def wait(self) -> None:
        """Wait until kubectl has ended."""
        assert self._process.stdout is not None
        for _ in self._process.stdout:
            pass  # a line for each connection, which would fill the pipe
        self._process.wait()


@contextlib.contextmanager
def forwarded(kubectl: Kubectl, pod: str, port: int, local: int = 0) -> Iterator[Forwarding]:
    """Have a port of the loopback address lead to one of a pod, until the end of the block.

    Args:
        kubectl: of the cluster.
        pod: its name.
        port: the pod's.
        local: this machine's; 0 for a free one.

    Raises:
        CommandFailed: kubectl ended instead; says why.
    """
    ports = f"{local or ''}:{port}"
    argv = kubectl.argv("port-forward", "--address=127.0.0.1", f"pod/{pod}", ports)
    with tempfile.TemporaryDirectory(prefix="virtlet-") as directory:
        problems = Path(directory) / "problems"
        with problems.open("wb") as errors:
            try:
                process = subprocess.Popen(
                    argv, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=errors, text=True
                )
            except FileNotFoundError:
                raise CommandFailed(NO_KUBECTL) from None
        with process:
            try:
                assert process.stdout is not None
                line = process.stdout.readline()
                match = _FORWARDING.match(line)
                if match is None:
                    process.kill()
                    process.wait()
                    said = problems.read_text(errors="replace").strip() or line.strip()
                    raise CommandFailed(f"port {port} of pod {pod} cannot be reached: {said}")
                yield Forwarding(int(match[1]), process, problems)
            finally:
                process.terminate()
                try:
                    process.wait(_ENDING)
                except subprocess.TimeoutExpired:
                    process.kill()


def running(kubectl: Kubectl, pod: Mapping[str, Any]) -> str:
    """The name of a pod's container, whose VM runs.

    Raises:
        CommandFailed: it does not; says what is known of it.
    """
    status = pod.get("status") or {}
    told = ""
    for one in status.get("containerStatuses") or ():
        state = one.get("state") or {}
        if "running" in state:
            name: str = one["name"]
            return name
        told = "; ".join(s["reason"] for s in state.values() if s and s.get("reason"))
    why = told or status.get("reason") or "its container was not started yet"
    meta = pod["metadata"]
    raise CommandFailed(
        f"the VM of pod {kubectl.namespace}/{meta['name']} does not run: phase "
        f"{status.get('phase', 'unknown')}, {why}: `kubectl describe pod {meta['name']}` has its "
        "events"
    )


def run(argv: list[str], missing: str) -> int:
    """Run a program on this terminal, whose keys are its own; returns its exit code."""
    try:
        return subprocess.run(argv).returncode
    except FileNotFoundError:
        raise CommandFailed(missing) from None
