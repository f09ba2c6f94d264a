"""Templates: VMs that were frozen when they had booted, by what others must have in common.

A template's VM is of no pod: it has no network, nothing of a pod's seed, and the store does not
know it. So what a crash leaves of it is what recovery removes anyway: a domain of ours and
directories that the store does not know.
"""

import hashlib
import json
import logging
import os
import re
import shutil
import time
import uuid
from contextlib import ExitStack
from pathlib import Path
from typing import Any
from xml.etree import ElementTree
from xml.etree.ElementTree import Element

import attrs
from attrs import evolve

from virtlet.core.guest_sessions.exec_streams import CollectedStreams
from virtlet.core.lifecycle import effects, guest_hold
from virtlet.core.lifecycle.context import Context
from virtlet.core.lifecycle.machines import domain_document, machine_of
from virtlet.errors import FailedPrecondition
from virtlet.host.files import appear_at, copy_data, new_disk_file, remove_tree
from virtlet.model.disk import Disk, Share
from virtlet.model.event import Event, EventKind
from virtlet.model.execution import GuestCommand
from virtlet.model.image import shown_name
from virtlet.model.launch import ENV_TOKEN, LaunchPart
from virtlet.model.network import Network
from virtlet.model.vm import Machine, Template, Vm

log = logging.getLogger(__name__)

DISK = "disk.qcow2"
"""Beside the hypervisor's files: the root disk, as it was when the memory was frozen."""
MEMORY_INFO = Path("/proc/meminfo")
READY_TIME = 600.0
"""Seconds that a guest may take until it can be frozen."""
_MEDIUM = 64 << 20
"""Bytes of the empty medium that a template has in the place of a seed; no seed is larger."""
_OWN = ("name", "uuid", "title", "description", "metadata", "genid", "seclabel")
"""Elements of a document that are a VM's own."""


def unfit(context: Context, plugin: str, machine: Machine) -> str:
    """Why a machine can have no part in a template, as a clause; "" if it can."""
    root, seed, vm = machine.root, machine.seed, machine.vm
    reasons = {
        "it has a volume that is a disk": any(isinstance(v, Disk) for v in machine.volumes),
        "it has a shared directory": any(isinstance(v, Share) for v in machine.volumes),
        "there is no channel for an agent": machine.agent_socket is None,
        "it has no seed": seed is None or seed.kind != "cdrom",
        "its root disk is no overlay of its image": root.format != "qcow2"
        or root.backing != vm.image.path
        or root.path.parent != vm.directory,
    }
    found = next((reason for reason, holds in reasons.items() if holds), "")
    return found or context.hypervisors.named(plugin).unfit_for_template(machine)


def key_of(context: Context, plugin: str, machine: Machine) -> str:
    """What a VM has in common with its template, in 32 digits."""
    text = json.dumps(parts_of(context, plugin, machine), sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def parts_of(context: Context, plugin: str, machine: Machine) -> dict[str, Any]:
    """What VMs have in common whose memory and state fit each other, by name."""
    hypervisor = context.hypervisors.named(plugin)
    document = domain_document(context.hooks, hypervisor, machine)
    vm = machine.vm
    return {
        "hypervisor": plugin,
        "basis": dict(hypervisor.template_basis()),
        "namespace": vm.pod.config.metadata.namespace,
        "image": vm.image.id,
        "flavor": attrs.asdict(machine.flavor),
        "withheld": machine.withheld,
        "hold": guest_hold.VERSION,
        "document": "" if document is None else shape(document, machine),
    }


def about(machine: Machine) -> dict[str, object]:
    """What the template of a machine is of, for people; its memory is in bytes."""
    vm, flavor = machine.vm, machine.flavor
    return {
        "image": shown_name(vm.config.user_image or vm.config.image),
        "imageId": vm.image.id,
        "namespace": vm.pod.config.metadata.namespace,
        "handler": vm.pod.profile.handler,
        "vcpus": flavor.vcpus,
        "memory": flavor.memory,
    }


def shape(document: Element, machine: Machine) -> str:
    """A document without what is the VM's own, or its manager's: names, paths, its variables."""
    vm = machine.vm
    root = ElementTree.fromstring(ElementTree.tostring(document))
    for parent in list(root.iter()):
        for child in list(parent):
            name = child.tag.rpartition("}")[2]
            own = parent is root and name in _OWN
            file = parent.tag == "disk" and name in ("source", "backingStore")
            if own or file or name == "env":
                parent.remove(child)
    text = ElementTree.tostring(root, encoding="unicode")
    paths = (vm.directory, machine.runtime_directory, machine.vmwrapper)
    for value in (*map(str, paths), vm.id, vm.id[:12]):
        text = text.replace(value, "OWN")
    return text.replace(str(uuid.UUID(vm.id)), "OWN")


def copy(source: Path, descriptor: int) -> None:
    """Write a disk as it was when its template was frozen to a new file; holes stay holes.

    Raises:
        FailedPrecondition: it is gone, or there is no space.
    """
    try:
        with source.open("rb") as file:
            copy_data(file.fileno(), 0, os.fstat(file.fileno()).st_size, descriptor)
    except EOFError:
        raise FailedPrecondition(f"{source} became shorter as it was copied") from None
    except OSError as error:
        raise FailedPrecondition(f"{source}, a VM's disk: {error.strerror}") from None


def make(context: Context, key: str, plugin: str, like: Machine, place: Path) -> None:
    """Boot a VM like another one, but of nobody, and freeze it.

    Args:
        context: the manager.
        key: that the template is to have.
        plugin: whose hypervisor runs it.
        like: the machine of a VM that could use it.
        place: a directory for it, root's alone.

    Raises:
        VirtletError: it could not be made; nothing is left of it but files in its directory.
    """
    size = like.flavor.memory
    free = shutil.disk_usage(place).free
    if free < 3 * size:
        raise FailedPrecondition(
            f"one takes up to {3 * size >> 20}Mi of the disk, of which {free >> 20}Mi are free"
        )
    if (left := available_memory()) < 2 * size:
        raise FailedPrecondition(
            f"a VM of {size >> 20}Mi beside this one takes more of the node's memory than can be "
            f"spared of {left >> 20}Mi"
        )
    hypervisor = context.hypervisors.named(plugin)
    vm = _vm_of(context, like, new_user=hypervisor.runs_as_vm())
    with ExitStack() as undo:
        for path in (vm.directory, context.paths.vm_runtime(vm.id)):
            undo.callback(remove_tree, path)
        undo.callback(_tell_removed, context, vm)
        undo.callback(context.consoles.remove, vm)
        root = _root_disk(context, vm, like, undo)
        undo.callback(hypervisor.remove, vm.id)
        machine = _machine(context, plugin, vm, like, root, place)
        if key_of(context, plugin, evolve(machine, template=None)) != key:
            raise FailedPrecondition("its machine is another one for each pod")
        hypervisor.define(machine, domain_document(context.hooks, hypervisor, machine))
        context.consoles.prepare(vm)
        _start(context, plugin, machine)
        run(context, machine, "be frozen", guest_hold.FREEZE, READY_TIME)
        hypervisor.freeze(machine)
        machine.root.path.rename(place / DISK)
        os.chown(place / DISK, 0, 0)
        (place / DISK).chmod(0o400)


def available_memory() -> int:
    """Bytes that new programs can have without swapping (MemAvailable of proc_meminfo(5))."""
    found = re.search(r"^MemAvailable:\s*(\d+) kB", MEMORY_INFO.read_text(), re.MULTILINE)
    return int(found[1]) << 10 if found else 0


def _tell_removed(context: Context, vm: Vm) -> None:
    gone = Event(kind=EventKind.VM_REMOVED, subject=vm.id, pod_id="", at=time.time_ns())
    context.hooks.event(vm.pod.profile, gone)


def _vm_of(context: Context, like: Machine, *, new_user: bool) -> Vm:
    """A VM without network and log."""
    vm_id, source = uuid.uuid4().hex, like.vm
    directory = context.paths.vm(vm_id)
    user = context.new_user() if new_user else None
    return evolve(
        source,
        id=vm_id,
        directory=directory,
        image=evolve(source.image, path=directory / effects.IMAGE),
        config=evolve(source.config, log_path="", envs=(), mounts=(), devices=()),
        network=Network(netns=None),
        created_at=time.time_ns(),
        uid=user,
        gid=user,
    )


def _root_disk(context: Context, vm: Vm, like: Machine, undo: ExitStack) -> Disk:
    effects.give_directories(context, vm)
    appear_at(like.vm.image.path, vm.image.path)
    made: list[Disk] = []

    def release(name: str) -> None:
        context.hooks.release_root_disk(name, vm, made[0] if made else None)

    def make_by(name: str) -> Disk | None:
        undo.callback(release, name)
        return context.hooks.root_disk(name, vm, like.flavor)

    found = context.hooks.first("virtlet_root_disk", vm.pod.profile, make_by)
    if found is None:
        raise FailedPrecondition("no plugin makes a root disk for it")
    made.append(found[1])
    return found[1]


def _machine(
    context: Context, plugin: str, vm: Vm, like: Machine, root: Disk, place: Path
) -> Machine:
    assert like.seed is not None
    user = context.node.user_of(vm)
    seed = evolve(like.seed, path=vm.directory / like.seed.path.name)
    with new_disk_file(seed.path, *user) as descriptor:
        os.truncate(descriptor, _MEDIUM)
    effects.give_disks(context, vm, (root,))
    machine = machine_of(context, vm, plugin, like.flavor, root, (), seed)
    template = Template(directory=place, credentials=guest_hold.CREDENTIALS)
    return evolve(machine, withheld=like.withheld, template=template)


def _start(context: Context, plugin: str, machine: Machine) -> None:
    hypervisor, vm = context.hypervisors.named(plugin), machine.vm
    own = hypervisor.launch(machine)
    parts = [("core", LaunchPart(oom_score_adj=1000)), (plugin, own)]
    door = effects.door_of(context, vm)
    context.launches.arm(vm.id, machine.environment[ENV_TOKEN], parts, door)
    try:
        hypervisor.start(vm.id)
    finally:
        left = context.launches.disarm(vm.id)
    if left and own.required:
        raise FailedPrecondition("its emulator runs without its launch")


def run(
    context: Context, machine: Machine, aim: str, argv: tuple[str, ...], patience: float
) -> None:
    """Run a program of the guest's that says by its exit code whether it succeeded.

    Args:
        context: the manager.
        machine: the guest's.
        aim: what the guest is to do, for messages.
        argv: the program and its arguments.
        patience: seconds that it may take, the boot included.

    Raises:
        VirtletError: it did not, there is none, or the guest does not answer in time.
    """
    streams = CollectedStreams(4096, context.closing.is_set)
    command = GuestCommand(argv=argv, captured=True, early=True)
    code = context.hooks.guest_exec(machine, command).run(streams, patience)
    if code != 0:
        said = bytes(streams.errors).decode(errors="replace").strip()[:200]
        said = "".join(letter if letter.isprintable() else "?" for letter in said)
        raise FailedPrecondition(f"its guest cannot {aim} (exit code {code}): {said}")
