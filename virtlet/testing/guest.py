"""A VM pod on a test's node; every step is what a kubelet does."""

from pathlib import Path
from typing import Self
from uuid import UUID

from attrs import evolve, frozen

from virtlet.cli.client import Client
from virtlet.cli.manifest import PodManifest
from virtlet.cli.playground import Playground
from virtlet.cli.steps import wait_until
from virtlet.core.paths import Paths
from virtlet.cri import api_pb2 as cri
from virtlet.host.processes import arguments

BOOT_TIMEOUT = 90.0
"""Seconds; a loaded machine without KVM is slow."""
_LAST_LINES = 15


@frozen(kw_only=True)
class Output:
    """What a command in the guest printed, and how it ended."""

    stdout: str
    stderr: str
    exit_code: int


@frozen
class Guest:
    """A pod on its way."""

    node: Playground
    client: Client
    manifest: PodManifest
    id: str = ""
    """The pod's."""
    vm: str = ""
    """The VM's id, which is the container's."""

    def run(self) -> Self:
        """RunPodSandbox."""
        return evolve(self, id=self.client.run_pod(self.pod, self.manifest.handler))

    def create(self, attempt: int = 0) -> Self:
        """PullImage and CreateContainer."""
        image = self.client.pull(self.manifest.image(), self.pod)
        config = self.manifest.attempt(attempt, image)
        return evolve(self, vm=self.client.create(self.id, config, self.pod))

    def up(self, attempt: int = 0) -> Self:
        """The whole way, until the emulator runs."""
        guest = (self if self.id else self.run()).create(attempt)
        self.client.start(guest.vm)
        return guest

    def stop(self, grace: int = 30) -> None:
        """StopContainer: the guest has some seconds to power off."""
        self.client.stop(self.vm, grace)

    def down(self) -> None:
        """The whole way back."""
        self.client.stop_pod(self.id)
        self.client.remove_pod(self.id)

    @property
    def pod(self) -> cri.PodSandboxConfig:
        """The sandbox's configuration."""
        return self.manifest.pod

    @property
    def address(self) -> str:
        """The pod's address."""
        return self.client.pod_status(self.id).network.ip

    @property
    def status(self) -> cri.ContainerStatus:
        """The VM's status."""
        return self.client.status(self.vm)

    @property
    def directory(self) -> Path:
        """`vm.directory` of the hooks."""
        return Paths(self.node.data_dir).vm(self.vm)

    @property
    def emulator(self) -> int:
        """Process id of the VM's emulator: what has the VM's UUID among its arguments."""
        name = str(UUID(self.vm)).encode()
        numbers = (int(entry.name) for entry in Path("/proc").glob("[0-9]*"))
        (pid,) = (pid for pid in numbers if name in arguments(pid))
        return pid

    @property
    def command_line(self) -> list[str]:
        """The arguments of the VM's emulator."""
        return Path(f"/proc/{self.emulator}/cmdline").read_text().split("\0")[:-1]

    def console(self) -> str:
        """What the guest printed so far, out of the pod's log."""
        return payload(Path(self.status.log_path)).decode(errors="replace")

    def wait_for_console(self, text: str, timeout: float = BOOT_TIMEOUT, times: int = 1) -> None:
        """Wait until the guest has printed something so many times.

        Raises:
            TimeoutError: it did not; the message has the last lines of what it printed.
        """
        try:
            wait_until(
                lambda: self.console().count(text) >= times, timeout, f"{text!r} on the console"
            )
        except TimeoutError as error:
            lines = self.console().splitlines()[-_LAST_LINES:]
            raise TimeoutError("\n".join([f"{error}; its last lines:", *lines])) from None

    def wait_for_end(self, timeout: float = BOOT_TIMEOUT) -> cri.ContainerStatus:
        """Wait until the VM has ended; returns how it did.

        Raises:
            TimeoutError: it runs on.
        """
        ended = cri.CONTAINER_EXITED
        wait_until(lambda: self.status.state == ended, timeout, f"end of VM {self.vm[:12]}")
        return self.status

    def exec(self, *command: str, timeout: float = BOOT_TIMEOUT) -> Output:
        """Run a command in the guest, once it has booted.

        Args:
            command: the program and its arguments; there is no shell.
            timeout: seconds for boot and command.

        Raises:
            CallFailed: it could not be run, or did not end in time.
        """
        seconds = round(timeout)
        request = cri.ExecSyncRequest(container_id=self.vm, cmd=command, timeout=seconds)
        reply = self.client.call("ExecSync", request, timeout=seconds + 60)
        return Output(
            stdout=reply.stdout.decode(errors="replace"),
            stderr=reply.stderr.decode(errors="replace"),
            exit_code=reply.exit_code,
        )


def payload(log: Path) -> bytes:
    """What a CRI log holds, without its headers."""
    try:
        lines = log.read_bytes().split(b"\n")[:-1]
    except FileNotFoundError:
        return b""
    parts = (line.split(b" ", 3) for line in lines)
    return b"".join(text + (b"\n" if tag == b"F" else b"") for _, _, tag, text in parts)
