"""What is stored of a pod, a VM and an effect."""

import enum
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

import cattrs
from attrs import Factory, evolve, frozen
from cattrs.gen import make_dict_structure_fn, make_dict_unstructure_fn, override
from cattrs.strategies import configure_tagged_union

from virtlet.model.disk import Volume
from virtlet.model.network import Network
from virtlet.model.pod import Pod
from virtlet.model.resources import Resources
from virtlet.model.vm import Device, Machine, Mount, Vm, VmExit

T = TypeVar("T")


class PodPhase(enum.Enum):
    """Where a pod is in its life."""

    CREATING = "creating"
    READY = "ready"
    NOT_READY = "not-ready"
    REMOVING = "removing"


class VmPhase(enum.Enum):
    """Where a VM is in its life."""

    CREATING = "creating"
    CREATED = "created"
    STARTING = "starting"
    RUNNING = "running"
    HIBERNATED = "hibernated"
    """It goes on later: its memory is on disk, and it has no emulator."""
    EXITED = "exited"
    REMOVING = "removing"


@frozen
class PodRecord:
    """A stored pod."""

    pod: Pod
    phase: PodPhase
    network: Network | None = None

    @property
    def visible(self) -> bool:
        """Whether the kubelet may know of it."""
        return self.phase is not PodPhase.CREATING

    @property
    def was_up(self) -> bool:
        """Whether it ever was ready; else only what a failed start left is here."""
        return self.network is not None


@frozen
class VmRecord:
    """A stored VM."""

    vm: Vm
    phase: VmPhase
    hypervisor: str = ""
    """The plugin whose hypervisor runs it."""
    machine: Machine | None = None
    """Known once all its disks are made. Its VM is `vm`, with the resources it is defined with."""
    resources: Resources = Factory(lambda self: self.vm.config.resources, takes_self=True)
    """What is in force: what was asked for at first, until a resize."""
    resizing: Resources | None = None
    """What a resize has asked for, from before its first step until it is committed or undone. Of
    the fields that are set, this may be in force or what is in `resources`."""
    started_at: int = 0
    """Nanoseconds since the epoch."""
    exit: VmExit | None = None
    stopping: bool = False
    """True once its end was requested."""
    paused: bool = False
    resumes: int = 0
    """How often it went on after it was hibernated: so many ends of emulators were not its own."""

    @property
    def state(self) -> str:
        """Its phase in words, and what brings it back if it is hibernated."""
        if self.phase is VmPhase.HIBERNATED:
            return f"hibernated (`virtlet resume {self.vm.pod.id[:12]}` brings it back)"
        return str(self.phase.value)

    @property
    def image_ids(self) -> tuple[str, ...]:
        """Ids of the images that it uses."""
        return tuple(image.id for image in (self.vm.image, *self.vm.volume_images))

    @property
    def visible(self) -> bool:
        """Whether the kubelet may know of it."""
        return self.phase is not VmPhase.CREATING


@frozen
class EffectRow:
    """One effect on the node: intended, and with its record once it is done."""

    seq: int
    owner: str
    """Id of the pod or VM."""
    kind: str
    plugin: str
    """The plugin that does and undoes it; "core" for our own."""
    role: str
    record: str | None
    """JSON of what undoes it; None while it is only intended, unless that is known before."""


# Model types to JSON and back, for the database.


def _make() -> cattrs.Converter:
    converter = cattrs.Converter(unstruct_collection_overrides={frozenset: sorted})
    converter.register_unstructure_hook(Path, str)
    converter.register_structure_hook(Path, lambda value, _: Path(value))
    converter.register_structure_hook_func(
        lambda kind: getattr(kind, "__origin__", None) is Mapping, lambda value, _: dict(value)
    )
    converter.register_unstructure_hook_func(
        lambda kind: getattr(kind, "__origin__", None) is Mapping, dict
    )
    configure_tagged_union(Volume, converter)
    configure_tagged_union(Mount | Device, converter)
    # A VM's document refers to its pod, and its machine's to the VM; `decode_vm` fills them in.
    omit = override(omit=True)
    converter.register_unstructure_hook(
        Vm, make_dict_unstructure_fn(Vm, converter, pod=omit, network=omit)
    )
    converter.register_unstructure_hook(
        Machine, make_dict_unstructure_fn(Machine, converter, vm=omit)
    )
    for kind in (Pod, Network, Vm):
        _pass_instances(converter, kind)
    return converter


def _pass_instances(converter: cattrs.Converter, kind: type[T]) -> None:
    make = make_dict_structure_fn(kind, converter)
    converter.register_structure_hook(
        kind, lambda value, _: value if isinstance(value, kind) else make(value, kind)
    )


_converter = _make()


def encode(value: Any, kind: Any) -> str:
    """A value of `kind` as JSON."""
    return json.dumps(_converter.unstructure(value, kind), separators=(",", ":"))


def decode(text: str, kind: type[T]) -> T:
    """The value that `encode` wrote."""
    return _converter.structure(json.loads(text), kind)


def encode_vm(record: VmRecord) -> str:
    """A VM's record as JSON, without its pod and network."""
    document = _converter.unstructure(record, VmRecord)
    if record.machine is not None:
        resources = record.machine.vm.config.resources
        document["machine"]["resources"] = _converter.unstructure(resources, Resources)
    return json.dumps(document, separators=(",", ":"))


def decode_vm(text: str, pod: PodRecord) -> VmRecord:
    """The record of a pod's VM that `encode_vm` wrote."""
    document = json.loads(text)
    document["vm"] |= {"pod": pod.pod, "network": pod.network}
    vm = document["vm"] = _converter.structure(document["vm"], Vm)
    if (machine := document["machine"]) is not None:
        resources = _converter.structure(machine.pop("resources"), Resources)
        same = resources == vm.config.resources
        machine["vm"] = vm if same else evolve(vm, config=evolve(vm.config, resources=resources))
    return _converter.structure(document, VmRecord)
