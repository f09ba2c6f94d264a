"""The plain script as the opponent: the same node's CNI, image and domain document."""

import json
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from attrs import frozen

from bench.guest import wait_for_greeting
from bench.node import Node
from virtlet.cli.playground import CNI_BIN_DIR

ERRORS = "errors"
"""File that the script's stderr goes to."""
_KVM = Path("/dev/kvm")


class ScriptFailed(Exception):
    """The plain script ended; the text has its last words."""


@frozen
class PlainScript:
    """A running plain script."""

    process: "subprocess.Popen[str]"
    directory: Path

    def up(self, names: Sequence[str]) -> list[float]:
        """Start pods, all at a time; returns each one's seconds."""
        seconds: list[float] = self._ask({"do": "up", "names": names})
        return seconds

    def down(self, names: Sequence[str]) -> list[float]:
        """Take pods away, all at a time; returns each one's seconds."""
        seconds: list[float] = self._ask({"do": "down", "names": names})
        return seconds

    def wait_for_greeting(self, name: str) -> None:
        """Wait until a pod's guest has spoken."""
        wait_for_greeting(self.directory / name / "console")

    def wait_until_ready(self) -> None:
        """Wait until it takes commands."""
        self._answer()

    def _ask(self, command: dict[str, Any]) -> Any:
        _pipe(self.process.stdin).write(json.dumps(command) + "\n")
        _pipe(self.process.stdin).flush()
        return self._answer()

    def _answer(self) -> Any:
        line = _pipe(self.process.stdout).readline()
        if not line:
            raise ScriptFailed(f"the plain script ended: {_end(self.directory / ERRORS)}")
        return json.loads(line)


@contextmanager
def plain_script(node: Node) -> Iterator[PlainScript]:
    """Start the plain script beside a node's manager; it ends with the context."""
    playground = node.playground
    directory = playground.directory / "plain"
    directory.mkdir(mode=0o711)
    pod, _ = node.up("pattern")
    defined = playground.data_dir / "libvirt/etc/qemu"
    document = directory / "domain.xml"
    document.write_text(next(defined.glob("*.xml")).read_text())
    disk = next((playground.data_dir / "volumes").glob("*/root.qcow2"))
    owner, image = disk.stat(), _backing(disk)
    node.down(pod)
    place = {
        "directory": str(directory),
        "conflist": str(next((playground.directory / "cni").glob("*.conflist"))),
        "cni_bin": CNI_BIN_DIR,
        "image": image,
        "domain": str(document),
        "uid": owner.st_uid,
        "gid": owner.st_gid,
        "qemu_conf": str(playground.data_dir / "libvirt/etc/qemu.conf"),
    }
    script = [sys.executable, "-m", "bench.plain", json.dumps(place)]
    kvm = "type='kvm'" in document.read_text()
    with (directory / ERRORS).open("w") as file:
        process = subprocess.Popen(
            ["nsenter", f"--net={playground.netns}", *_shielded(directory, kvm), *script],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=file,
            text=True,
        )
    try:
        opponent = PlainScript(process, directory)
        opponent.wait_until_ready()
        yield opponent
    finally:
        _pipe(process.stdin).close()
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        _pipe(process.stdout).close()


def _shielded(directory: Path, kvm: bool) -> list[str]:
    """A command in front of the script that hides a /dev/kvm which does not work.

    Where the emulator's user may not open /dev/kvm and root may, libvirt forgets what it learned
    of QEMU and asks again for every domain, which takes half a second. The manager's wrapper
    prevents that; without this the script would pay for it.
    """
    if kvm or not _KVM.exists():
        return []
    nothing = directory / "no-kvm"
    nothing.touch(mode=0o600)
    hide = f'mount --bind {nothing} {_KVM} && exec "$@"'
    return ["unshare", "--mount", "sh", "-c", hide, "sh"]


def _backing(disk: Path) -> str:
    argv = ["qemu-img", "info", "--force-share", "--output=json", str(disk)]
    info = json.loads(subprocess.run(argv, check=True, capture_output=True).stdout)
    name: str = info["backing-filename"]
    return name


def _end(file: Path) -> str:
    return file.read_text(errors="replace")[-2000:]


def _pipe(stream: "IO[str] | None") -> "IO[str]":
    assert stream is not None  # made with the process
    return stream
