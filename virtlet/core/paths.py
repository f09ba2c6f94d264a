"""Where the manager keeps everything on disk."""

import fcntl
import os
from pathlib import Path
from typing import TextIO

from attrs import frozen

from virtlet.errors import FailedPrecondition
from virtlet.host.files import make_private_directory
from virtlet.model.vm import Vm

LOCK = "lock"
LONGEST_SOCKET = 107
"""Bytes of a unix socket's path (sun_path of unix(7), less the final NUL)."""


@frozen
class Paths:
    """Every path of the core's below the data directory.

    What plugins have there is their own (`Node.state_dir`, `Node.run_dir`), and what is in the
    image directory is the image store's. docs/architecture.md says the same as a table.
    """

    data_dir: Path

    @property
    def lock(self) -> Path:
        """Held by the one manager that works here."""
        return self.data_dir / LOCK

    @property
    def instance(self) -> Path:
        """Names the database that the directory belongs to."""
        return self.data_dir / "instance"

    @property
    def reserve(self) -> Path:
        """[Space for removing pods](node.md#a-full-disk)."""
        return self.data_dir / "reserve"

    @property
    def plugins(self) -> Path:
        """What is known of third-party plugins that were installed."""
        return self.data_dir / "plugins.json"

    @property
    def vmwrapper(self) -> Path:
        """What hypervisors start as the emulator, whose user can read it."""
        return self.data_dir / "bin" / "vmwrapper"

    @property
    def pods(self) -> Path:
        """A directory for each pod."""
        return self.data_dir / "pods"

    def pod(self, pod: str) -> Path:
        """Private to the pod (`Pod.directory`)."""
        return self.pods / pod

    @property
    def vms(self) -> Path:
        """A directory for each VM."""
        return self.data_dir / "volumes"

    def vm(self, vm: str) -> Path:
        """Its emulator's alone (`Vm.directory`): disks, the image, and shares until its end."""
        return self.vms / vm

    @property
    def templates(self) -> Path:
        """Root's; a directory for each template: frozen memory, state and disk of a VM."""
        return self.data_dir / "templates"

    @property
    def run_dir(self) -> Path:
        """Sockets and namespaces, by short paths, because those of sockets have to be."""
        return self.data_dir / "run"

    @property
    def vm_runtimes(self) -> Path:
        """A directory for each VM."""
        return self.run_dir / "vm"

    def vm_runtime(self, vm: str) -> Path:
        """Root's (`Machine.runtime_directory`); named by the first 12 digits of the VM's id."""
        return self.vm_runtimes / vm[:12]

    def console(self, vm: str) -> Path:
        """The console: `console.out`, `console.in`, and in `console.state` how far it is logged."""
        return self.vm_runtime(vm) / "console"

    def launch_socket(self, vm: str) -> Path:
        """Where vmwrapper fetches the launch of a VM that has a user of its own."""
        return self.vm_runtime(vm) / "launch"

    def backends(self, vm: str) -> Path:
        """A directory for each program that serves a device of the VM."""
        return self.vm_runtime(vm) / "backends"

    def agent_socket(self, vm: str) -> Path:
        """The guest agent's channel."""
        return self.vm_runtime(vm) / "agent.sock"

    def make(self) -> None:
        """Make the directories.

        Raises:
            FailedPrecondition: they cannot be made, or their path is too long for our sockets.
        """
        refuse_long(self)
        try:
            # The emulator's user passes through to its VM's directory and reads none of these.
            for path in (self.data_dir, self.run_dir, self.vm_runtimes, self.vms):
                make_private_directory(path, mode=0o711)
            for path in (self.pods, self.templates):
                make_private_directory(path)
        except OSError as error:
            raise FailedPrecondition(f"--data-dir {self.data_dir}: {error}") from None


def refuse_long(paths: Paths) -> None:
    """Refuse a data directory below which sockets cannot have their paths.

    Raises:
        FailedPrecondition: its path is too long.
    """
    longest = os.fsencode(paths.agent_socket("0" * 32))
    room = LONGEST_SOCKET - (len(longest) - len(os.fsencode(paths.data_dir)))
    if len(longest) > LONGEST_SOCKET:
        raise FailedPrecondition(
            f"--data-dir {paths.data_dir} is too long for the unix sockets below it: use a path "
            f"of at most {room} bytes"
        )


def pod_log(vm: Vm) -> Path | None:
    """Where the kubelet wants a VM's console; None where it does not want it."""
    directory, path = vm.pod.config.log_directory, vm.config.log_path
    return Path(directory) / path if directory and path else None


def lock(directory: Path, flag: str) -> TextIO:
    """Make sure that no other manager works on a directory.

    Args:
        directory: it exists.
        flag: the setting that names the directory.

    Returns:
        The lock's file; the lock is held as long as it is open.

    Raises:
        FailedPrecondition: another manager holds it.
    """
    file = (directory / LOCK).open("a")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.close()
        raise FailedPrecondition(
            f"another manager works on {directory}: stop it, or use another {flag}"
        ) from None
    return file
