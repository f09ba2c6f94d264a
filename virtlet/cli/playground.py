"""A throwaway node: a network namespace of its own with a manager in it.

The demo, the benchmark and the end-to-end tests run on it, so that nothing of the machine's own
network is touched and nothing is left when it goes.
"""

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Collection, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType

import yaml
from pyroute2 import IPRoute

from virtlet.cli.client import CallFailed, Client, NoRuntime
from virtlet.cli.ending import CommandFailed, unbroken
from virtlet.cli.steps import wait_until
from virtlet.core.paths import Paths
from virtlet.cri import api_pb2 as cri
from virtlet.host import mounts, netns
from virtlet.host.files import remove_tree

CNI_BIN_DIR = "/usr/lib/cni"
BRIDGE = "vlnode0"
START_TIMEOUT = 60.0
"""Seconds; the first start probes KVM and the emulator's capabilities."""


class PlaygroundError(CommandFailed):
    """The node could not be set up or the manager did not start; the text has its last words."""


class Playground:
    """A node with a manager.

    Args:
        images: image name to the file it stands for, or its URL.
        subnet: the pods' network.
        settings: further settings of the manager's configuration file.
        environment: further environment variables of the manager.
        directory: where to keep everything; made, and removed by `destroy`. A short path.
        wrapper: a command that executes the manager's, whose words follow it.
    """

    def __init__(
        self,
        images: Mapping[str, Path | str],
        *,
        subnet: str = "10.123.0.0/16",
        settings: Mapping[str, object] | None = None,
        environment: Mapping[str, str] | None = None,
        directory: Path | None = None,
        wrapper: Sequence[str] = (),
    ) -> None:
        self.wrapper = wrapper
        self.directory = directory or Path(tempfile.mkdtemp(prefix="virtlet-", dir="/var/tmp"))
        self.directory.mkdir(parents=True, exist_ok=True)
        self.directory.chmod(0o711)
        self.data_dir = self.directory / "data"
        self.socket = self.directory / "virtlet.sock"
        self.log_file = self.directory / "manager.log"
        self.log_root = self.directory / "pod-logs"
        self.kubelet_dir = self.directory / "kubelet"
        self.netns = self.directory / "netns"
        self.temporary = self.directory / "tmp"
        self.temporary.mkdir(exist_ok=True)
        self.environment = dict(environment or {})
        self.process: subprocess.Popen[bytes] | None = None
        self._served = False
        self._write_configuration(images, subnet, settings or {})

    def __enter__(self) -> "Playground":
        try:
            self.create()
        except BaseException:
            self.destroy()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        tb: TracebackType | None,
    ) -> None:
        self.destroy()

    def _write_configuration(
        self, images: Mapping[str, Path | str], subnet: str, settings: Mapping[str, object]
    ) -> None:
        cni, translations = self.directory / "cni", self.directory / "images"
        cni.mkdir(exist_ok=True)
        translations.mkdir(exist_ok=True)
        network = {
            "cniVersion": "1.0.0",
            "name": "playground",
            "plugins": [
                {
                    "type": "bridge",
                    "bridge": BRIDGE,
                    "isGateway": True,
                    "ipMasq": False,
                    "hairpinMode": True,
                    "ipam": {
                        "type": "host-local",
                        "dataDir": str(self.directory / "ipam"),
                        "ranges": [[{"subnet": subnet}]],
                        "routes": [{"dst": "0.0.0.0/0"}],
                    },
                },
                {"type": "portmap", "capabilities": {"portMappings": True}},
            ],
        }
        (cni / "10-playground.conflist").write_text(json.dumps(network, indent=2))
        names = [{"name": name, "url": _url(image)} for name, image in images.items()]
        (translations / "playground.yaml").write_text(yaml.safe_dump({"translations": names}))
        configuration = {
            "dataDir": str(self.data_dir),
            "criSocketPath": str(self.socket),
            "libvirtURI": "qemu:///embed",
            "cniPluginDir": CNI_BIN_DIR,
            "cniConfigDir": str(cni),
            "imageTranslationConfigsDir": str(translations),
            "flavorsDir": str(self.directory / "flavors"),
            "imageRegistryConfigsDir": str(self.directory / "certs.d"),
            "kubeletRootDir": str(self.kubelet_dir),
            "streamPort": 0,
            **settings,
        }
        self.config_file = self.directory / "virtlet.yaml"
        self.config_file.write_text(yaml.safe_dump(configuration))

    # The node

    def create(self) -> None:
        """Make the network namespace and start the manager.

        Raises:
            PlaygroundError: the manager does not start.
        """
        with unbroken():
            netns.create(self.netns)
        netns.inside(self.netns, _loopback_up)
        self.start()

    def destroy(self) -> None:
        """Remove all pods, stop the manager and remove the node with all it has.

        What the manager cannot remove is told, and taken away by force.
        """
        with ExitStack() as always:
            always.callback(remove_tree, self.directory)
            always.callback(netns.delete, self.netns)
            always.callback(self._sweep)
            self._clear()
            # A pod whose making was broken off may come after the list of pods was asked for.
            if self._served and self.settled_leftovers():
                self._clear()

    def _clear(self) -> None:
        """Remove all pods and stop the manager; tells what cannot be removed.

        A manager that ended is started once more, because only it knows what is to be removed.
        """
        try:
            if self._served:
                if not self._lives:
                    self.environment.pop("VIRTLET_CRASH_POINT_FILE", None)
                    self.start()
                self._remove_pods()
        except CommandFailed as error:
            _tell(str(error))
        if self._lives:
            self.stop()

    def _remove_pods(self) -> None:
        with self.client() as client:
            for pod in client.pods():
                try:
                    client.remove_pod(pod.id)
                except CallFailed as error:
                    _tell(str(error))

    def _sweep(self) -> None:
        """Take away what the manager left."""
        if self._served:  # Otherwise there are no pods, just helpers of a start that was cut short.
            for item in self.settled_leftovers():
                _tell(f"not removed by the manager: {item}")
        for pid in self._processes():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        wait_until(lambda: not self._processes(), 10, "end of the processes that were left")
        mounts.unmount_below(self.data_dir)

    @property
    def _lives(self) -> bool:
        """Whether the manager's process is there."""
        return self.process is not None and self.process.poll() is None

    def start(self) -> float:
        """Start the manager and wait until it serves.

        Returns:
            Seconds it took.

        Raises:
            PlaygroundError: it does not start.
        """
        started = time.monotonic()
        argv = [*self.wrapper, sys.executable, "-m", "virtlet.cli.main", "serve", "--config"]
        with self.log_file.open("ab") as log, unbroken():
            self.process = subprocess.Popen(
                ["nsenter", f"--net={self.netns}", *argv, str(self.config_file)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env={**os.environ, "TMPDIR": str(self.temporary), **self.environment},
                start_new_session=True,
            )
        while not self.ready():
            status = self.process.poll()
            if status is not None or time.monotonic() - started > START_TIMEOUT:
                self.kill()
                how = f"did not answer within {START_TIMEOUT:g} s"
                if status is not None:
                    how = f"ended with status {status}"
                raise PlaygroundError(f"the manager {how}; its last words:\n{self.tail()}")
            time.sleep(0.02)
        self._served = True
        return time.monotonic() - started

    def ready(self) -> bool:
        """Whether the manager answers."""
        if not self.socket.exists():
            return False
        with self.client() as client:
            try:
                client.call("Version", cri.VersionRequest(), timeout=5.0)
            except (CallFailed, NoRuntime):
                return False  # A stale socket, or one that was just taken away.
        return True

    def stop(self) -> int:
        """Ask the manager to end; returns its exit status."""
        assert self.process is not None
        self.process.send_signal(signal.SIGTERM)
        try:
            return self.process.wait(30.0)
        except subprocess.TimeoutExpired:
            self.kill()
            raise PlaygroundError(
                f"the manager does not end; its last words:\n{self.tail()}"
            ) from None

    def kill(self) -> None:
        """End the manager as a crash does."""
        if self.process is not None and self.process.poll() is None:
            self.process.kill()
            self.process.wait()

    def client(self) -> Client:
        """A connection to the manager."""
        return Client(self.socket)

    def tail(self, lines: int = 15) -> str:
        """The end of the manager's log."""
        return "\n".join(self.log_file.read_text(errors="replace").splitlines()[-lines:])

    # What is left

    def leftovers(self) -> list[str]:
        """What pods have left on the node: nothing, when all of them are removed."""
        found = [f"process {pid} {command}" for pid, command in self._processes().items()]
        found += [f"mount {path}" for path in self._mounts()]
        paths = Paths(self.data_dir)
        for directory in (paths.pods, paths.vms, paths.vm_runtimes, paths.run_dir / "netns"):
            found += [f"file {path}" for path in directory.glob("*")] if directory.is_dir() else []
        domains = self.data_dir / "libvirt" / "etc" / "qemu"
        found += [f"domain {path.stem}" for path in domains.glob("*.xml")]
        names = netns.inside(self.netns, _link_names) - {"lo", BRIDGE}
        found += [f"interface {name}" for name in sorted(names)]
        leases = self.directory / "ipam" / "playground"
        found += [f"address {path.name}" for path in leases.glob("[0-9]*")]
        return found

    def settled_leftovers(self, before: Collection[str] = (), timeout: float = 5.0) -> list[str]:
        """What is left, and was not before, once what only passes has had time to end.

        libvirt's look at the emulator's capabilities is a process that comes and goes.
        """
        deadline = time.monotonic() + timeout
        while (found := [item for item in self.leftovers() if item not in before]) and (
            time.monotonic() < deadline
        ):
            time.sleep(0.1)
        return found

    def _processes(self) -> dict[int, str]:
        """Processes that name the manager's directories, but for itself."""
        mine = {os.getpid(), self.process.pid if self.process else 0}
        needles, found = [os.fsencode(path) for path in (self.data_dir, self.temporary)], {}
        for entry in Path("/proc").glob("[0-9]*"):
            try:
                command = (entry / "cmdline").read_bytes()
            except OSError:
                continue
            if any(needle in command for needle in needles) and int(entry.name) not in mine:
                found[int(entry.name)] = command[:60].replace(bytes(1), b" ").decode()
        return found

    def _mounts(self) -> list[str]:
        table = Path("/proc/self/mounts").read_text().splitlines()
        return [path for line in table if (path := line.split()[1]).startswith(str(self.data_dir))]


def _url(image: Path | str) -> str:
    text = str(image)
    return text if "://" in text else f"file://{Path(text).absolute()}"


def _tell(what: str) -> None:
    with contextlib.suppress(OSError):  # Where nobody reads, the clean-up goes on.
        print(what, file=sys.stderr)


def _loopback_up() -> None:
    with IPRoute() as route:
        (index,) = route.link_lookup(ifname="lo")
        route.link("set", index=index, state="up")


def _link_names() -> set[str]:
    with IPRoute() as route:
        return {link.get_attr("IFLA_IFNAME") for link in route.get_links()}
