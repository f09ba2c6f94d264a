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
    metadata = PodMetadata("web", "uid-1", "default")
    made = PodConfig(metadata=metadata, **config)  # type: ignore[arg-type]
    return Pod("a" * 32, made, Profile("", plugins), directory / "pod", 1)


def vm(directory: Path, *, plugins: tuple[str, ...] = (), **config: object) -> Vm:
    """A VM of that pod."""
    made = VmConfig(metadata=VmMetadata("guest"), image="tiny", **config)  # type: ignore[arg-type]
    image = Image(f"sha256:{DIGEST}", directory / "image", "qcow2", 10, 20)
    network = Network(None)
    return Vm("b" * 32, pod(directory, plugins=plugins), made, image, network, directory / "vm", 2)


def machine(directory: Path, *, plugins: tuple[str, ...] = ()) -> Machine:
    """The machine that VM becomes."""
    made, console = vm(directory, plugins=plugins), Console(directory / "console")
    return Machine(made, Flavor(), Disk(directory), (), None, console, "qemu", directory)


def untyped(value: Any) -> Any:
    """A value whose type nobody looks at beforehand."""
    return value
