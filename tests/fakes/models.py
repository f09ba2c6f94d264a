"""Model objects with every required field filled."""

from pathlib import Path
from typing import Any

from virtlet.model.disk import Disk
from virtlet.model.flavor import Flavor
from virtlet.model.image import Image
from virtlet.model.network import Network
from virtlet.model.pod import Pod, PodConfig, PodMetadata, Profile
from virtlet.model.vm import Console, Machine, Vm, VmConfig, VmMetadata

DIGEST = "ab" * 32


def pod(directory: Path, *, plugins: tuple[str, ...] = (), **config: object) -> Pod:
    """A pod named default/web."""
    metadata = PodMetadata(name="web", uid="uid-1", namespace="default")
    made = PodConfig(metadata=metadata, **config)  # type: ignore[arg-type]
    return Pod(
        id="a" * 32,
        config=made,
        profile=Profile(handler="", plugins=plugins),
        directory=directory / "pod",
        created_at=1,
    )


def vm(directory: Path, *, plugins: tuple[str, ...] = (), **config: object) -> Vm:
    """A VM of that pod."""
    made = VmConfig(metadata=VmMetadata(name="guest"), image="tiny", **config)  # type: ignore[arg-type]
    image = Image(
        id=f"sha256:{DIGEST}", path=directory / "image", format="qcow2", size=10, virtual_size=20
    )
    network = Network(netns=None)
    return Vm(
        id="b" * 32,
        pod=pod(directory, plugins=plugins),
        config=made,
        image=image,
        network=network,
        directory=directory / "vm",
        created_at=2,
    )


def machine(directory: Path, *, plugins: tuple[str, ...] = ()) -> Machine:
    """The machine that VM becomes."""
    made, console = (
        vm(directory, plugins=plugins),
        Console(output=directory / "console.out", input=directory / "console.in"),
    )
    return Machine(
        vm=made,
        flavor=Flavor(),
        root=Disk(path=directory),
        volumes=(),
        seed=None,
        console=console,
        accelerator="qemu",
        vmwrapper=directory,
    )


def untyped(value: Any) -> Any:
    """A value whose type nobody looks at beforehand."""
    return value
