"""The fixtures: a node in a network namespace with the author's plugin, and a guest on it."""

import itertools
import json
import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Protocol

import pytest
import yaml
from attrs import evolve

import virtlet
from virtlet.cli.manifest import pod_manifest
from virtlet.cli.playground import Playground
from virtlet.core.hooks.plugin_package import SourcePackage, pretend_installed, read_package
from virtlet.errors import InvalidArgument
from virtlet.host import netns
from virtlet.host.links import Links
from virtlet.testing.guest import Guest
from virtlet.testing.host import missing
from virtlet.testing.namespaces import enter_namespace

IMAGE = "VIRTLET_TEST_IMAGE"
HANDLER = "test"
"""The handler that the plugins under test serve."""

_HOW_TO_NAME_ONE = (
    f"no guest image: name a disk image, as a path or URL, in the environment variable {IMAGE}, "
    "with --virtlet-image, or as `virtlet_image` in pytest's configuration; a checkout of Virtlet "
    "makes one with `images/tiny/build.sh tiny.qcow2`"
)

_numbers = itertools.count(1)


def pytest_addoption(parser: pytest.Parser) -> None:
    """Where the guest's image is."""
    text = "disk image of the tests' guests, as a path or URL"
    parser.addoption("--virtlet-image", metavar="IMAGE", help=f"{text} [env: {IMAGE}]")
    parser.addini("virtlet_image", text)


@pytest.fixture(scope="session")
def virtlet_image(pytestconfig: pytest.Config) -> str:
    """The guest's image, as a path or URL; tests that need one are skipped where none is named."""
    checkout = Path(virtlet.__file__).parents[1] / "build" / "tiny.qcow2"
    named = (
        pytestconfig.getoption("--virtlet-image"),
        os.environ.get(IMAGE),
        pytestconfig.getini("virtlet_image") or None,
        # Made by `make setup`, where Virtlet is installed from a checkout.
        str(checkout) if checkout.is_file() else None,
    )
    image: str = next((name for name in named if name is not None), "")
    if not image:
        pytest.skip(_HOW_TO_NAME_ONE)
    if "://" in image:
        return image
    if not Path(image).is_file():
        pytest.fail(f"the guest image {image} is not there; {_HOW_TO_NAME_ONE}", pytrace=False)
    return str(Path(image).absolute())


class MakeNode(Protocol):
    """Makes a node, or returns the one that was made with the same arguments."""

    def __call__(
        self,
        *packages: Path,
        handlers: Mapping[str, Any] | None = None,
        settings: Mapping[str, Any] | None = None,
    ) -> Playground:
        """Start a manager in a network namespace of its own.

        Args:
            packages: directories of the plugins' packages, which need not be installed; the one
                that the test is in, unless said.
            handlers: the configuration's section; unless said, the handler `test` has all
                plugins of the packages.
            settings: further settings of the configuration file, by field.
        """


@pytest.fixture(scope="module")
def virtlet_node(
    request: pytest.FixtureRequest,
    virtlet_image: str,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[MakeNode]:
    """Makes nodes, which are removed after the tests of the module."""
    lacking = missing()
    if lacking:
        pytest.fail(f"a node takes {', '.join(lacking)}", pytrace=False)
    with ExitStack() as nodes:
        made: dict[str, Playground] = {}

        def make(
            *packages: Path,
            handlers: Mapping[str, Any] | None = None,
            settings: Mapping[str, Any] | None = None,
        ) -> Playground:
            found = [read_package(path) for path in packages] or [_package_of(request.path)]
            names = [name for package in found for name in package.plugins]
            chosen = {HANDLER: {"plugins": names}} if handlers is None else handlers
            key = json.dumps([[str(p.directory) for p in found], chosen, settings], default=str)
            if key not in made:
                paths = pretend_installed(found, tmp_path_factory.mktemp("installed"))
                before = os.environ.get("PYTHONPATH", "").split(os.pathsep)
                path = os.pathsep.join([*map(str, paths), *filter(None, before)])
                node = Playground(
                    {"guest": virtlet_image},
                    # The log is the author's own here.
                    settings={"showPluginErrors": True, "handlers": chosen, **(settings or {})},
                    environment={"PYTHONPATH": path},
                )
                made[key] = nodes.enter_context(node)
            return made[key]

        yield make


class BootGuest(Protocol):
    """Boots guests."""

    def __call__(
        self,
        node: Playground | None = None,
        *,
        handler: str = HANDLER,
        image: str = "virtlet.cloud/guest",
        annotations: Mapping[str, str] | None = None,
        labels: Mapping[str, str] | None = None,
        mounts: Mapping[str, Path] | None = None,
        manifest: Path | Mapping[str, Any] | None = None,
        start: bool = True,
    ) -> Guest:
        """Boot a guest, up to where its emulator runs.

        Args:
            node: where; a node with the plugin that the test is of, unless said.
            handler: the pod's runtime handler.
            image: name of its image.
            annotations: further annotations of the pod.
            labels: further labels of the pod.
            mounts: path in the guest to a file or directory of the node; not with `manifest`.
            manifest: the pod's manifest, as a file or its content, instead of a pod that asks for
                one CPU and 320Mi.
            start: False returns a guest whose steps the test takes itself, by `up()` say.
        """


@pytest.fixture
def virtlet_guest(virtlet_node: MakeNode) -> Iterator[BootGuest]:
    """Boots guests; they are removed after the test, and must leave nothing on the node."""
    guests: list[Guest] = []

    def boot(
        node: Playground | None = None,
        *,
        handler: str = HANDLER,
        image: str = "virtlet.cloud/guest",
        annotations: Mapping[str, str] | None = None,
        labels: Mapping[str, str] | None = None,
        mounts: Mapping[str, Path] | None = None,
        manifest: Path | Mapping[str, Any] | None = None,
        start: bool = True,
    ) -> Guest:
        where = node or virtlet_node()
        if isinstance(manifest, Path):
            manifest = yaml.safe_load(manifest.read_text())
        asked = pod_manifest(manifest or _document(image, mounts or {}), where.log_root)
        asked.pod.annotations.update(annotations or {})
        asked.pod.labels.update(labels or {})
        guest = Guest(where, where.client(), evolve(asked, handler=handler))
        guests.append(guest)
        return guest.up() if start else guest

    yield boot
    for where in {guest.node.log_file: guest.node for guest in guests}.values():
        sys.stdout.write(_complaints(where))
    left = [item for guest in guests for item in _removed(guest)]
    if left:
        pytest.fail("left on the node: " + "; ".join(dict.fromkeys(left)), pytrace=False)


def _complaints(node: Playground) -> str:
    """What the node's manager warned of, which pytest shows where a test failed."""
    records = [
        json.loads(line) for line in node.log_file.read_text().splitlines() if line[:1] == "{"
    ]
    serious = [record for record in records if record["level"] in ("warning", "error", "critical")]
    return "".join(
        f"manager: {record.pop('message')}\n"
        + "".join(f"  {name}: {value}\n" for name, value in record.items())
        for record in serious
    )


def _removed(guest: Guest) -> list[str]:
    """Remove a guest's pod; returns what the pods of its node left, once it has none."""
    with guest.client as client:
        uid = guest.pod.metadata.uid
        for pod in client.pods():
            if pod.metadata.uid == uid:
                client.remove_pod(pod.id)
        return [] if client.pods() else guest.node.settled_leftovers()


@pytest.fixture
def own_network(tmp_path: Path) -> Iterator[Path]:
    """A network namespace, with loopback alone, in which the test and what it starts run."""
    if os.geteuid() != 0:
        pytest.skip("a network namespace takes root")
    path = tmp_path / "own.netns"
    netns.create(path)
    try:
        with enter_namespace(path):
            with Links() as links:
                links.set("lo", up=True)
            yield path
    finally:
        netns.delete(path)


def _document(image: str, mounts: Mapping[str, Path]) -> dict[str, Any]:
    """A pod's manifest, with a name of its own."""
    name = f"guest-{next(_numbers)}"
    volumes = [
        {"name": f"v{number}", "hostPath": {"path": str(path)}}
        for number, path in enumerate(mounts.values())
    ]
    container = {
        "name": "guest",
        "image": image,
        "tty": True,
        "stdin": True,
        "resources": {"limits": {"cpu": "1", "memory": "320Mi"}},
        "volumeMounts": [
            {"name": f"v{number}", "mountPath": path} for number, path in enumerate(mounts)
        ],
    }
    return {
        "kind": "Pod",
        "metadata": {"name": name},
        "spec": {
            "terminationGracePeriodSeconds": 20,
            "volumes": volumes,
            "containers": [container],
        },
    }


def _package_of(test: Path) -> SourcePackage:
    """The package that a test file belongs to."""
    for directory in test.absolute().parents:
        try:
            return read_package(directory)
        except InvalidArgument:
            if (directory / "pyproject.toml").exists():
                raise
    raise InvalidArgument(f"no directory above {test} has a pyproject.toml")
