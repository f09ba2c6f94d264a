"""The `criproxy-setup` command: put the proxy between a node's kubelet and its runtime, and back.

Every step looks first whether it is done, so that a set-up that was broken off is finished by the
next run. The kubelet is pointed at the proxy last, once that serves, by a drop-in of our own: its
command as it stands, with the endpoint added, where the last flag wins over all other places.
"""

from __future__ import annotations

import re
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import click
import yaml
from attrs import frozen

from criproxy.config import Config, ConfigError, check
from criproxy.config_file import build, read_file
from criproxy.kubelet_node import ENDPOINT, Kubelet, Node

CONFIG = Path("/etc/criproxy/criproxy.yaml")
DROP_IN = "90-criproxy.conf"
DIRECTORY = Path("/etc/systemd/system/kubelet.service.d")
UNIT = "criproxy.service"
WAIT = 15.0
"""Seconds until a started proxy serves."""
DEFAULTS = """\
# Written by criproxy-setup. docs/criproxy.md explains every key.
listen: /run/criproxy/criproxy.sock
http: 127.0.0.1:10009
runtimes:
  - name: {name}
    socket: {socket}
  - name: virtlet.cloud
    socket: /run/virtlet.sock
    handlers: [virtlet, virtlet-large]
"""


class SetupError(Exception):
    """A step cannot be done; says why, and what helps."""


@frozen(kw_only=True)
class Step:
    """One thing to do, or what keeps us from doing anything."""

    what: str
    done: bool = True
    fault: bool = False
    act: Callable[[], None] = lambda: None


class Setup:
    """The steps for one node.

    Args:
        node: its files.
        systemctl: runs systemctl(1); returns whether it succeeded.
        wait: seconds that a started proxy has until it serves.
    """

    def __init__(self, node: Node, systemctl: Callable[..., bool], *, wait: float = WAIT) -> None:
        self.node = node
        self._systemctl = systemctl
        self._wait = wait
        self.kubelet: Kubelet = node.kubelet(ours=DROP_IN)

    # There

    def forth(self) -> Iterator[Step]:
        """The steps that put the proxy in front of the kubelet's runtime."""
        if self.kubelet.unit is None or not self.kubelet.command:
            yield _fault("this node has no kubelet.service with a command: install it first")
            return
        primary = self.node.primary(self.kubelet)
        if self.node.path(primary).exists():
            yield Step(what=f"ordinary pods go to {primary}")
        else:
            yield _fault(f"{primary} is not there: start the runtime of ordinary pods first")
        yield from self._agreement()
        if self.node.unit(UNIT) is None:
            yield _fault(
                f"{UNIT} is missing: install the package, or copy it to {DIRECTORY.parent}"
            )
        yield from self._configuration(primary)
        config = self._config()
        listen = config.listen if config else "/run/criproxy/criproxy.sock"
        served = self.node.path(listen).exists()
        enabled = self.node.path(f"/etc/systemd/system/multi-user.target.wants/{UNIT}")
        yield Step(
            what=f"start {UNIT}, now and at every boot, and wait for {listen}",
            done=served and enabled.is_symlink(),
            act=lambda: self._start(listen),
        )
        if self.kubelet.endpoint == listen:
            yield Step(what=f"{self.kubelet.source} names the proxy already")
            return
        path = self.node.path(DIRECTORY / DROP_IN)
        text = self._drop_in(listen)
        yield Step(
            what=f"write {DIRECTORY / DROP_IN}: the kubelet with {ENDPOINT}=unix://{listen}",
            done=self.node.text(DIRECTORY / DROP_IN) == text,
            act=lambda: _write(path, text),
        )
        yield Step(
            what="restart the kubelet, which touches no running pod",
            done=self._speaks_to(listen),
            act=lambda: self._restart(undo=path),
        )

    def _agreement(self) -> Iterator[Step]:
        """Whether the parts of the node agree on the driver of cgroups, and pods get a network."""
        drivers = {
            "kubelet": self.kubelet.cgroup_driver,
            "containerd": self.node.containerd_driver(),
            "virtlet": _driver(self.node.text("/etc/virtlet/virtlet.yaml")),
        }
        said = {who: driver for who, driver in drivers.items() if driver}
        if len(set(said.values())) > 1:
            each = ", ".join(f"{who} has {driver}" for who, driver in said.items())
            yield _fault(f"cgroup drivers differ: {each}; set all to the kubelet's")
        else:
            yield Step(what=f"cgroup driver: {next(iter(said.values()), 'nobody names one')}")
        networks = [*self.node.path("/etc/cni/net.d").glob("*.conf*")]
        where = "there is one" if networks else "none yet: install a network add-on"
        yield Step(what=f"CNI configuration in /etc/cni/net.d: {where}")

    def _configuration(self, primary: str) -> Iterator[Step]:
        path = self.node.path(CONFIG)
        if not path.exists():
            name = "crio" if "crio" in primary else "containerd"
            text = DEFAULTS.format(name=name, socket=primary)
            yield Step(
                what=f"write {CONFIG}, for {primary} and Virtlet",
                done=False,
                act=lambda: _write(path, text),
            )
            return
        try:
            config = build(read_file(str(path)))
            check(config)
        except ConfigError as error:
            yield _fault(f"{CONFIG} cannot work: {error}")
            return
        first = config.runtimes[0].socket
        if first != primary:
            yield _fault(
                f"{CONFIG}: the first runtime is {first}, but the kubelet speaks to {primary}: "
                "name that one first, or the kubelet loses its pods"
            )
        else:
            yield Step(what=f"{CONFIG} is there, and can work")

    def _config(self) -> Config | None:
        try:
            return build(read_file(str(self.node.path(CONFIG))))
        except ConfigError:
            return None

    def _drop_in(self, listen: str) -> str:
        return (
            "# Written by criproxy-setup; `criproxy-setup --undo` removes it.\n"
            f"[Unit]\nWants={UNIT}\nAfter={UNIT}\n\n"
            f"[Service]\nExecStart=\nExecStart={self.kubelet.command} {ENDPOINT}=unix://{listen}\n"
        )

    def _speaks_to(self, listen: str) -> bool:
        """Whether a kubelet runs with the proxy's socket on its command line."""
        for file in self.node.path("/proc").glob("[0-9]*/cmdline"):
            try:
                words = file.read_bytes().decode(errors="replace").split("\0")
            except OSError:
                continue
            if Path(words[0]).name == "kubelet" and f"{ENDPOINT}=unix://{listen}" in words:
                return True
        return False

    def _start(self, listen: str) -> None:
        self._systemctl("daemon-reload")
        if not self._systemctl("enable", "--now", UNIT):
            raise SetupError(f"{UNIT} does not start: `journalctl -u criproxy` says why")
        deadline = time.monotonic() + self._wait
        while not self.node.path(listen).exists():
            if time.monotonic() > deadline:
                raise SetupError(
                    f"{UNIT} does not serve on {listen}: `journalctl -u criproxy` says why; the "
                    "kubelet is as it was"
                )
            time.sleep(0.1)

    def _restart(self, undo: Path | None = None) -> None:
        """Restart the kubelet; one that does not start gets its old command back.

        Args:
            undo: the drop-in that is removed then.
        """
        self._systemctl("daemon-reload")
        if self._systemctl("restart", "kubelet.service"):
            return
        if undo is None:
            raise SetupError("the kubelet does not start: `journalctl -u kubelet` says why")
        undo.unlink(missing_ok=True)
        self._systemctl("daemon-reload")
        self._systemctl("restart", "kubelet.service")
        raise SetupError(
            "the kubelet does not start with the proxy, and was started as before: `journalctl -u "
            "kubelet` says why"
        )

    # And back

    def back(self, *, force: bool) -> Iterator[Step]:
        """The steps that have the kubelet speak to its runtime again.

        Args:
            force: also with pods that only the proxy's other runtimes know.
        """
        config = self._config()
        listen = config.listen if config else "/run/criproxy/criproxy.sock"
        if config is not None and not force:
            for name, number in _pods(config).items():
                yield _fault(
                    f"{number} pods are {name}'s, which the kubelet would not reach any more: "
                    "drain the node (kubectl drain) or delete them first, or say --force"
                )
        path = self.node.path(DIRECTORY / DROP_IN)
        yield Step(
            what=f"remove {DIRECTORY / DROP_IN}",
            done=not path.exists(),
            act=lambda: path.unlink(missing_ok=True),
        )
        if self.kubelet.endpoint == listen:
            yield _fault(
                f"{self.kubelet.source} names the proxy, too: take {ENDPOINT} out of it by hand"
            )
            return
        yield Step(
            what="restart the kubelet, which touches no running pod",
            done=not self._speaks_to(listen),
            act=self._restart,
        )
        enabled = self.node.path(f"/etc/systemd/system/multi-user.target.wants/{UNIT}")
        yield Step(
            what=f"stop {UNIT}, now and at every boot",
            done=not enabled.is_symlink() and not self.node.path(listen).exists(),
            act=self._stop,
        )

    def _stop(self) -> None:
        if not self._systemctl("disable", "--now", UNIT):
            raise SetupError(f"{UNIT} cannot be stopped: `journalctl -u criproxy` says why")


def _fault(what: str) -> Step:
    return Step(what=what, done=False, fault=True)


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    new = path.with_name(f".{path.name}.new")
    new.write_text(text)
    new.chmod(0o644)
    new.replace(path)


def _driver(text: str) -> str:
    """The driver in Virtlet's configuration; "" where it is left to the default."""
    try:
        document = yaml.safe_load(text)
    except yaml.YAMLError:
        return ""
    return str(document.get("cgroupDriver") or "") if isinstance(document, dict) else ""


def _pods(config: Config) -> dict[str, int]:
    """How many pods runtimes have that are not the primary, by the proxy's metrics."""
    if config.http is None:
        return {}
    host, port = config.http
    try:
        with urllib.request.urlopen(f"http://{host}:{port}/metrics", timeout=5) as answer:
            text = answer.read(1 << 20).decode(errors="replace")
    except OSError:
        return {}
    counts = dict(re.findall(r'^criproxy_runtime_sandboxes\{runtime="([^"]+)"\} (\d+)', text, re.M))
    others = (runtime.name for runtime in config.runtimes[1:])
    return {name: int(counts[name]) for name in others if int(counts.get(name, 0))}


def carry_out(steps: list[Step], *, dry_run: bool) -> bool:
    """Do what is not done, unless something keeps us from it; print each.

    Returns:
        Whether all is done now; for a dry run, whether all was done before.

    Raises:
        SetupError: a step fails; those before it stay.
    """
    faults = any(step.fault for step in steps)
    for step in steps:
        state = "fault" if step.fault else "ok" if step.done else "todo"
        if state == "todo" and not dry_run and not faults:
            step.act()
            state = "did"
        click.echo(f"{state:5} {step.what}")
    if faults and not dry_run:
        click.echo("nothing was changed", err=True)
    return not faults and (not dry_run or all(step.done for step in steps))


def systemctl(*words: str) -> bool:
    """Run systemctl(1); what it says goes to stderr."""
    try:
        return subprocess.run(["systemctl", *words], stdout=sys.stderr, check=False).returncode == 0
    except FileNotFoundError:
        raise SetupError("there is no systemctl on this node: set the kubelet up by hand") from None


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--dry-run", is_flag=True, help="Only say what would be done.")
@click.option(
    "--check", "only_check", is_flag=True, help="Only look; exit code 1 unless all is done."
)
@click.option("--undo", is_flag=True, help="Have the kubelet speak to its runtime again.")
@click.option("--force", is_flag=True, help="Undo it also on a node that has VM pods.")
def main(dry_run: bool, only_check: bool, undo: bool, force: bool) -> None:
    """Put the CRI proxy between this node's kubelet and its runtime.

    It looks at the kubelet's unit, drop-ins and configuration, containerd's socket, cgroup
    drivers and CNI; writes /etc/criproxy/criproxy.yaml if there is none; starts criproxy.service;
    and points the kubelet at it by a drop-in. What is done already is left alone. Pods run on.

    Exit codes: 0 when all is done (or would be, with --dry-run), 1 when something is in its way.
    """
    setup = Setup(Node(), systemctl)
    steps = list(setup.back(force=force) if undo else setup.forth())
    try:
        complete = carry_out(steps, dry_run=dry_run or only_check)
    except (SetupError, OSError) as error:
        click.echo(f"criproxy-setup: {error}", err=True)
        sys.exit(1)
    faults = any(step.fault for step in steps)
    sys.exit(0 if complete or (dry_run and not only_check and not faults) else 1)


if __name__ == "__main__":
    main()
