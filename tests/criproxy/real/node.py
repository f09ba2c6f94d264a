"""A small world of its own for real runtimes: namespaces that take everything with them.

Processes, mounts, network interfaces and network namespaces of pods live in mount, PID and network
namespaces whose first process is killed at the end; the kernel removes the rest.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Self

from tests.polling import until

#: The first process of the PID namespace: children that others leave to it are reaped by the
#: kernel, since it ignores SIGCHLD, which an exec keeps.
_INIT = (
    "import os, signal; signal.signal(signal.SIGCHLD, signal.SIG_IGN);"
    "os.execvp('sleep', ['sleep', 'infinity'])"
)


class Node:
    """The namespaces, a short directory, and a cgroup parent for pods; gone with the context."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.stop()

    def __init__(self) -> None:
        self.dir = Path(tempfile.mkdtemp(prefix="cpn-"))
        self.cgroup = f"/{self.dir.name}"
        self._spawned: list[subprocess.Popen[bytes]] = []
        self._unshare = subprocess.Popen(
            [
                "unshare",
                "--mount",
                "--net",
                "--pid",
                "--fork",
                "--kill-child",
                "--mount-proc",
                "--propagation",
                "private",
                sys.executable,
                "-c",
                _INIT,
            ]
        )
        children = Path(f"/proc/{self._unshare.pid}/task/{self._unshare.pid}/children")
        until(lambda: bool(children.read_text().split()))
        self.pid = int(children.read_text().split()[0])
        until(lambda: Path(f"/proc/{self.pid}/comm").read_text().strip() == "sleep")
        # Shims and runc keep sockets and state in /run: the machine's own stays as it is.
        self.run("mount", "-t", "tmpfs", "tmpfs", "/run")
        self.run("ip", "link", "set", "lo", "up")

    def command(self, *args: str) -> list[str]:
        """A command line that runs in the namespaces."""
        return ["nsenter", "-t", str(self.pid), "-m", "-n", "-p", *args]

    def run(self, *args: str) -> str:
        """Run a command in the namespaces; returns what it prints."""
        done = subprocess.run(
            self.command(*args), check=True, capture_output=True, text=True, timeout=60
        )
        return done.stdout

    def spawn(self, log: Path, *args: str) -> subprocess.Popen[bytes]:
        """Start a command in the namespaces; it is waited for when they end."""
        with log.open("ab") as output:
            process = subprocess.Popen(self.command(*args), stdout=output, stderr=output)
        self._spawned.append(process)
        return process

    def stop(self) -> None:
        """End everything and leave nothing."""
        os.kill(self.pid, 9)
        for process in (self._unshare, *self._spawned):
            process.wait(10)
        for root, directories, _ in os.walk("/sys/fs/cgroup", topdown=False):
            for name in directories:
                path = Path(root, name)
                if name == self.dir.name:
                    _remove_cgroup(path)
        shutil.rmtree(self.dir, ignore_errors=True)


def _remove_cgroup(path: Path) -> None:
    for child in path.iterdir():
        if child.is_dir():
            _remove_cgroup(child)

    def removed() -> bool:
        try:
            path.rmdir()
        except FileNotFoundError:
            return True
        except OSError:
            # The processes in it were just killed.
            return False
        return True

    until(removed)
