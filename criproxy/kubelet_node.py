"""What a node's kubelet and containerd are set up with; read from files, nothing is run.

Sources: systemd.unit(5) for drop-ins and their order, systemd.service(5) for ExecStart=; the
kubelet's flags and KubeletConfiguration; kubeadm's 10-kubeadm.conf.
"""

from __future__ import annotations

import re
import shlex
import tomllib
from collections.abc import Iterator
from itertools import zip_longest
from pathlib import Path

import yaml
from attrs import frozen

UNIT_DIRECTORIES = ("/etc/systemd/system", "/run/systemd/system", "/usr/lib/systemd/system")
"""Where units are, the one that wins first."""
CONTAINERD, CRIO = "/run/containerd/containerd.sock", "/run/crio/crio.sock"
ENDPOINT = "--container-runtime-endpoint"


@frozen(kw_only=True)
class Kubelet:
    """How a kubelet is started."""

    unit: Path | None
    """Its unit; None where there is none."""
    command: str
    """ExecStart= as it stands in unit and drop-ins, without ours; "" where there is none."""
    words: tuple[str, ...]
    """The same with variables replaced."""
    endpoint: str
    """Socket of the runtime that it speaks to without us; "" where it takes its default."""
    source: str
    """What says so: a flag's file, the configuration's, or ""."""
    cgroup_driver: str
    """Of its configuration; "" where it asks the runtime."""


@frozen
class Node:
    """Files of a node.

    Args:
        root: where its file system is.
    """

    root: Path = Path("/")

    def path(self, path: str | Path) -> Path:
        """Where a file is."""
        return self.root / str(path).lstrip("/")

    def text(self, path: str | Path) -> str:
        """Text of a file; "" where there is none."""
        try:
            return self.path(path).read_text(errors="replace")
        except OSError:
            return ""

    def unit(self, name: str) -> Path | None:
        """The file of a unit, as seen on the node."""
        for directory in UNIT_DIRECTORIES:
            if self.path(f"{directory}/{name}").is_file():
                return Path(directory) / name
        return None

    def unit_files(self, name: str) -> list[Path]:
        """A unit's file and its drop-ins, in the order in which systemd reads them."""
        unit = self.unit(name)
        drop_ins: dict[str, Path] = {}
        for directory in reversed(UNIT_DIRECTORIES):
            for path in self.path(f"{directory}/{name}.d").glob("*.conf"):
                drop_ins[path.name] = Path(directory) / f"{name}.d" / path.name
        return [*([unit] if unit else []), *(drop_ins[key] for key in sorted(drop_ins))]

    def kubelet(self, ours: str = "") -> Kubelet:
        """How the kubelet is started.

        Args:
            ours: name of a drop-in that is left out.
        """
        command, variables, origins = "", dict[str, str](), dict[str, str]()
        for path in self.unit_files("kubelet.service"):
            if path.name == ours:
                continue
            for key, value in _service(self.text(path)):
                if key == "ExecStart":
                    command = value
                elif key == "Environment":
                    for word in _split(value):
                        name, _, text = word.partition("=")
                        variables[name], origins[text] = text, str(path)
                elif key == "EnvironmentFile":
                    file = value.removeprefix("-")
                    for name, text in _environment(self.text(file)):
                        variables[name], origins[text] = text, file
        words = tuple(_expand(command, variables))
        endpoint, source = _flag(words, ENDPOINT), "its command line"
        for text, file in origins.items():
            if endpoint and endpoint in text:
                source = file
        config = self._configuration(_flag(words, "--config"))
        if not endpoint:
            endpoint = str(config.get("containerRuntimeEndpoint") or "")
            source = _flag(words, "--config") if endpoint else ""
        driver = _flag(words, "--cgroup-driver") or str(config.get("cgroupDriver") or "")
        return Kubelet(
            unit=self.unit("kubelet.service"),
            command=command,
            words=words,
            # One directory has two names.
            endpoint=re.sub("^/var/run/", "/run/", endpoint.removeprefix("unix://")),
            source=source,
            cgroup_driver=driver,
        )

    def _configuration(self, file: str) -> dict[str, object]:
        try:
            document = yaml.safe_load(self.text(file)) if file else None
        except yaml.YAMLError:
            return {}
        return document if isinstance(document, dict) else {}

    def primary(self, kubelet: Kubelet) -> str:
        """Socket of the runtime for ordinary pods: the kubelet's, else containerd's or CRI-O's."""
        if kubelet.endpoint and "criproxy" not in kubelet.endpoint:
            return kubelet.endpoint
        if not self.path(CONTAINERD).exists() and self.path(CRIO).exists():
            return CRIO
        return CONTAINERD

    def containerd_driver(self) -> str:
        """The cgroup driver that containerd's configuration names: "", `systemd` or `cgroupfs`."""
        try:
            document = tomllib.loads(self.text("/etc/containerd/config.toml"))
        except tomllib.TOMLDecodeError:
            return ""
        for plugin in ("io.containerd.cri.v1.runtime", "io.containerd.grpc.v1.cri"):
            section = document.get("plugins", {}).get(plugin, {})
            runtimes = section.get("containerd", {}).get("runtimes", {})
            options = runtimes.get("runc", {}).get("options", {})
            if "SystemdCgroup" in options:
                return "systemd" if options["SystemdCgroup"] else "cgroupfs"
        return ""


def _service(text: str) -> Iterator[tuple[str, str]]:
    """Keys and values of [Service], continued lines joined."""
    section = ""
    for line in re.sub(r"\\\n", " ", text).splitlines():
        stripped = line.strip()
        if stripped.startswith("["):
            section = stripped
        elif section == "[Service]" and "=" in stripped and stripped[0] not in "#;":
            key, _, value = stripped.partition("=")
            yield key.strip(), value.strip()


def _environment(text: str) -> Iterator[tuple[str, str]]:
    for line in text.splitlines():
        name, equals, value = line.strip().partition("=")
        if equals and not name.startswith("#"):
            yield name, "".join(_split(value)) if value[:1] in "'\"" else value


def _split(text: str) -> list[str]:
    try:
        return shlex.split(text)
    except ValueError:
        return text.split()


def _expand(command: str, variables: dict[str, str]) -> Iterator[str]:
    """Words of a command: `$NAME` becomes several, `${NAME}` part of one."""
    for word in _split(command):
        if match := re.fullmatch(r"\$(\w+)", word):
            yield from _split(variables.get(match[1], ""))
        else:
            yield re.sub(r"\$\{(\w+)\}", lambda m: variables.get(m[1], ""), word)


def _flag(words: tuple[str, ...], name: str) -> str:
    """The value of a flag; the last one wins."""
    value = ""
    for word, following in zip_longest(words, words[1:], fillvalue=""):
        if word.startswith(f"{name}="):
            value = word.partition("=")[2]
        elif word == name:
            value = following
    return value
