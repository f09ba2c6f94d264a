"""A node with a manager, and pods on it: all of it real."""

import fcntl
import itertools
import os
import subprocess
import sys
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Self

import pytest
from attrs import evolve, frozen

from tests import confined
from tests.fakes import kubelet
from tests.polling import until
from virtlet.cli.manifest import PodManifest, pod_manifest
from virtlet.cli.playground import Playground
from virtlet.core.hooks.plugin_package import pretend_installed, read_package
from virtlet.cri import api_pb2 as cri
from virtlet.host import netns
from virtlet.testing import guest

ROOT = Path(__file__).parents[2]
TINY = ROOT / "build" / "tiny.qcow2"
METRICS = "127.0.0.1:10011"
"""Where the shared node shows its metrics, in its own network namespace."""
MANIFEST = ROOT / "examples" / "pods" / "tiny.yaml"
BOOT_TIMEOUT = guest.BOOT_TIMEOUT
AS_THE_UNIT = (sys.executable, confined.__file__, str(ROOT / "deploy" / "virtlet.service"))
"""What executes a manager with the restrictions of its systemd unit."""

_numbers = itertools.count(1)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Everything here boots VMs; the two large guests, first, beside tests that do not."""
    items.sort(key=lambda item: item.path.name != "test_debian.py")
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.e2e)


@frozen
class Pod(guest.Guest):
    """A pod on its way; every step is one CRI call, with no field that a kubelet does not send."""

    def run(self) -> Self:
        """RunPodSandbox."""
        handler = self.manifest.handler
        kubelet.check(cri.RunPodSandboxRequest(config=self.pod, runtime_handler=handler))
        return super().run()

    def create(self, attempt: int = 0, name: str = "guest") -> Self:
        """ImageStatus, PullImage and CreateContainer."""
        kubelet.check(
            cri.ImageStatusRequest(image=self.image),
            cri.PullImageRequest(image=self.image, sandbox_config=self.pod),
        )
        self.client.image_id(self.image)
        self.client.pull(self.image, self.pod)
        config = self.config(attempt, name)
        for mount in config.mounts:
            if mount.HasField("image"):
                mount.image.image = self.pull_volume(mount.image.user_specified_image)
        kubelet.check(
            cri.CreateContainerRequest(
                pod_sandbox_id=self.id, config=config, sandbox_config=self.pod
            )
        )
        return evolve(self, vm=self.client.create(self.id, config, self.pod))

    def pull_volume(self, name: str) -> str:
        """ImageStatus and PullImage of an image that is mounted; returns its id."""
        spec = cri.ImageSpec(image=name, annotations=self.pod.annotations)
        request = cri.PullImageRequest(image=spec, sandbox_config=self.pod)
        kubelet.check(cri.ImageStatusRequest(image=spec), request)
        return self.client.image_id(spec) or self.client.pull(spec, self.pod)

    @property
    def image(self) -> cri.ImageSpec:
        """The image as the kubelet asks for it."""
        return self.manifest.image()

    def config(self, attempt: int = 0, name: str = "guest") -> cri.ContainerConfig:
        """The container's configuration for an attempt; its image was pulled before."""
        config = self.manifest.attempt(attempt, self.client.image_id(self.image))
        config.metadata.name = config.labels["io.kubernetes.container.name"] = name
        config.log_path = f"{name}/{attempt}.log"
        return config

    def leave(self, script: str) -> None:
        """Have the guest run a script that ends the guest, and with it the command's own agent."""
        output = self.exec("sh", "-c", f"{{ sleep 1; {script}; }} >/dev/null 2>&1 &")
        assert output.exit_code == 0

    def reboot(self) -> None:
        """Have the guest boot again, and wait until it has."""
        logins = self.console().count("login:")
        self.leave("reboot")
        self.wait_for_console("login:", times=logins + 1)

    def get(self) -> str:
        """What the guest's HTTP server says, asked from the node."""

        def fetch() -> str:
            with urllib.request.urlopen(f"http://{self.address}/", timeout=3) as reply:
                content: bytes = reply.read()
                return content.decode()

        return netns.inside(self.node.netns, fetch)

    def wait_for_answer(self) -> str:
        """Wait until the guest answers on its pod address."""
        answers: list[str] = []

        def answered() -> bool:
            try:
                answers.append(self.get())
            except OSError:
                return False
            return True

        until(answered, f"answer of the guest at {self.address}", BOOT_TIMEOUT)
        return answers[0]


def make_manifest(node: Playground, name: str = "", handler: str = "") -> PodManifest:
    """The tiny guest's manifest under a name of its own, as a kubelet of a cluster has it."""
    document = kubelet.document(MANIFEST, name or f"pod{next(_numbers)}")
    manifest = evolve(pod_manifest(document, node.log_root), handler=handler)
    kubelet.complete(manifest, node.kubelet_dir)
    return manifest


PodFactory = Callable[..., Pod]


@pytest.fixture(scope="session")
def example_plugins(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The packages of examples/plugin-*, for PYTHONPATH."""
    packages = map(read_package, sorted((ROOT / "examples").glob("plugin-*")))
    paths = pretend_installed(packages, tmp_path_factory.mktemp("plugins"))
    return os.pathsep.join(map(str, paths))


@pytest.fixture(scope="session")
def debian_image() -> Path:
    """The Debian guest's image, built once by whichever process of the tests needs it first."""
    image = ROOT / "build" / "debian.qcow2"
    image.parent.mkdir(exist_ok=True)
    with (image.parent / "debian.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        subprocess.run([ROOT / "images" / "debian" / "build.sh", image], check=True)
    return image


@pytest.fixture(scope="session")
def node() -> Iterator[Playground]:
    """A node that many tests share; they clean up their own pods."""
    settings = {"metricsAddress": METRICS}
    with Playground({"tiny": TINY}, wrapper=AS_THE_UNIT, settings=settings) as playground:
        yield playground


@pytest.fixture
def new_pod(node: Playground) -> Iterator[PodFactory]:
    """Makes pods on the shared node; they are removed after the test."""
    with node.client() as client:
        made: list[str] = []

        def make(name: str = "", handler: str = "") -> Pod:
            pod = Pod(node, client, make_manifest(node, name, handler))
            made.append(pod.manifest.pod.metadata.name)
            return pod

        yield make
        for pod in client.pods():
            if pod.metadata.name in made:
                client.remove_pod(pod.id)
