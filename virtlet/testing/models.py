"""What hooks take, as small as a test needs it; `attrs.evolve` changes any of it."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from virtlet.core.config.load import load
from virtlet.model.disk import Disk
from virtlet.model.flavor import Flavor
from virtlet.model.image import Image
from virtlet.model.network import Network
from virtlet.model.node import Node
from virtlet.model.option import Option, Settings
from virtlet.model.pod import Pod, PodConfig, PodMetadata, Profile
from virtlet.model.resources import Resources
from virtlet.model.vm import Console, Machine, Vm, VmConfig, VmMetadata

POD_UID = "6c4b4fd3-6d3b-4a0f-8d5a-0d2f2f0e2c11"
NO_NETWORK = Network(netns=None)


def make_node(root: Path, uid: int | None = None, gid: int | None = None) -> Node:
    """A node below a directory; the emulator's user is the test's unless said."""
    return Node(
        data_dir=root,
        run_dir=root / "run",
        instance="test",
        vmwrapper=root / "vmwrapper",
        emulator_uid=os.getuid() if uid is None else uid,
        emulator_gid=os.getgid() if gid is None else gid,
    )


def make_settings(options: Sequence[Option[Any]], root: Path, **texts: str) -> Settings:
    """Settings of a manager: the options' defaults, and texts by the options' field.

    Args:
        options: all that can be asked for.
        root: the data directory.
        texts: as they would stand in the configuration file.

    Raises:
        InvalidArgument: an option does not take its text.
    """
    flags = {"dataDir": str(root), **texts}
    return load(options, file=None, environment={}, flags=flags)


def make_pod(
    annotations: Mapping[str, str] | None = None,
    *,
    labels: Mapping[str, str] | None = None,
    name: str = "web-1",
    hostname: str = "",
    flavor: Mapping[str, Any] | None = None,
    handler: str = "",
    id: str = "a" * 32,
    directory: Path = Path("/nonexistent"),
) -> Pod:
    """A pod in namespace `shop`."""
    return Pod(
        id=id,
        config=PodConfig(
            metadata=PodMetadata(name=name, uid=POD_UID, namespace="shop"),
            hostname=hostname,
            labels=labels or {},
            annotations=annotations or {},
        ),
        profile=Profile(handler=handler, flavor=flavor or {}),
        directory=directory,
        created_at=1,
    )


def make_vm_config(memory_limit: int = 0, envs: Sequence[tuple[str, str]] = ()) -> VmConfig:
    """A container named `vm`."""
    return VmConfig(
        metadata=VmMetadata(name="vm"),
        image="virtlet.cloud/tiny",
        envs=tuple(envs),
        resources=Resources(memory_limit=memory_limit),
    )


def make_image(path: Path, virtual_size: int = 1 << 20, image_format: str = "qcow2") -> Image:
    """An image in the store; the file need not be there."""
    return Image(
        id="sha256:" + "0" * 64,
        path=path,
        format=image_format,
        size=1,
        virtual_size=virtual_size,
    )


def make_vm(
    directory: Path,
    pod: Pod | None = None,
    *,
    image: Image | None = None,
    network: Network = NO_NETWORK,
    config: VmConfig | None = None,
) -> Vm:
    """A VM whose disks go into a directory."""
    return Vm(
        id="b" * 32,
        pod=pod or make_pod(),
        config=config or make_vm_config(),
        image=image or make_image(directory / "image.qcow2"),
        network=network,
        directory=directory,
        created_at=1,
    )


def make_machine(
    directory: Path,
    pod: Pod | None = None,
    *,
    flavor: Flavor | None = None,
    network: Network = NO_NETWORK,
) -> Machine:
    """The machine that `make_vm` becomes."""
    return Machine(
        vm=make_vm(directory, pod, network=network),
        flavor=flavor or Flavor(),
        root=Disk(path=directory / "root.qcow2"),
        volumes=(),
        seed=None,
        console=Console(output=directory / "console.out", input=directory / "console.in"),
        accelerator="qemu",
        vmwrapper=directory / "vmwrapper",
    )
