"""Restores: a pod whose VM goes on where that of a checkpoint stood.

The pod and its VM are made as all others. Then what the archive has of memory and disk is copied
beside the VM's disk (`effects.SAVED`): who may write to the archive changes nothing any more. See
`saved_start.py` for its start.

Until its VM is made, a row of the journal (`effects.RESTORING`) says that a pod is of no use.
"""

import json
import logging
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import attrs
from attrs import evolve

from virtlet.core.checkpoint_archive import DISK, MEMORY, START
from virtlet.core.checkpoint_encryption import read_key
from virtlet.core.lifecycle import effects, pods, templates, vms
from virtlet.core.lifecycle.context import Context
from virtlet.core.lifecycle.effects import RESTORING, with_macs
from virtlet.core.read_checkpoint import Key, ReadCheckpoint, disk_header, open_checkpoint
from virtlet.core.store.records import PodPhase, VmRecord
from virtlet.errors import (
    AlreadyExists,
    FailedPrecondition,
    InvalidArgument,
    NotFound,
    ResourceExhausted,
    VirtletError,
)
from virtlet.host.files import copy_data, make_private_directory, new_disk_file
from virtlet.host.qcow2 import HEADER_SIZE, parse_header
from virtlet.model.image import shown_name
from virtlet.model.pod import PodConfig
from virtlet.model.reference import parse_reference
from virtlet.model.vm import Machine, SavedMemory, VmConfig

log = logging.getLogger(__name__)

_MORE_MEMORY = 256 << 20
"""Bytes of a machine's memory beside its guest's RAM: firmware, screen, devices' state."""
_MORE_DISK = 64 << 20
"""Bytes of a qcow2 beside what the guest sees, for any size of it."""
_SHOWN, _MOST_SHOWN = 60, 5
"""Characters of a value, and differences, in an error."""


def restore_pod(
    context: Context,
    directory: Path,
    config: PodConfig,
    handler: str,
    vm_config: VmConfig,
    key_file: Path | None = None,
    *,
    new_identity: bool = False,
) -> tuple[str, str]:
    """Make a pod whose VM, once it is started, goes on from a checkpoint; all or nothing.

    Args:
        context: the manager.
        directory: with the checkpoint.
        config: of the pod.
        handler: of the pod.
        vm_config: of its VM.
        key_file: has the key of a checkpoint that is encrypted.
        new_identity: whether the guest becomes another one, as it starts.

    Returns:
        Ids of the pod and the VM.

    Raises:
        InvalidArgument: the archive or the configuration is not as it has to be.
        AlreadyExists: there is a pod with this metadata.
        FailedPrecondition: there is no checkpoint, it does not fit this node or the pod, or a pod
            with its MAC addresses is up.
        ResourceExhausted: there is no space.
        Unavailable: the hypervisor is away.
    """
    key = None if key_file is None else Key(read_key(key_file), context.paths.vms)
    with open_checkpoint(directory, key) as saved:
        _check(context, saved, config, handler, vm_config, new_identity=new_identity)
        # Whoever restores the same at once finds this pod.
        macs = None if new_identity else saved.macs
        with context.locks(("restore", saved.macs)), context.locks(config.metadata):
            _refuse_second(context, macs or (), config)
            pod_id = pods.run_pod(context, config, handler, macs, resuming=True)
            try:
                vm_id = vms.create_vm(
                    context,
                    pod_id,
                    vm_config,
                    lambda record, machine: _keep(
                        context, record, machine, saved, new_identity=new_identity
                    ),
                )
                context.journal.undo(pod_id, {RESTORING})
            except Exception as error:
                try:
                    pods.remove_pod(context, pod_id)
                except VirtletError as left:
                    error.add_note(str(left))
                raise
    log.info("pod restored", extra={"pod": pod_id, "vm": vm_id, "path": str(directory)})
    return pod_id, vm_id


def _check(
    context: Context,
    saved: ReadCheckpoint,
    config: PodConfig,
    handler: str,
    vm_config: VmConfig,
    *,
    new_identity: bool,
) -> None:
    """Refuse what cannot be, before anything is made."""
    if vm_config.metadata.name != saved.container:
        raise InvalidArgument(
            f"the checkpoint is of a container {_shown(saved.container)}, and container_configs "
            f"has {vm_config.metadata.name!r}"
        )
    profile = context.profiles.get(handler)
    plugin = context.hypervisors.plugin_of(profile)
    context.hypervisors.require(plugin)
    hypervisor = context.hypervisors.named(plugin)
    saved.disk_header()
    pod = pods.accepted_pod(context, config, profile)
    name = shown_name(vm_config.user_image or vm_config.image)
    try:
        with context.images.store.held(
            parse_reference(vm_config.image), vm_config.user_image
        ) as image:
            if image.id != saved.image_id:
                raise FailedPrecondition(
                    f"the checkpoint does not fit: its VM is of image {_shown(saved.image_id)} "
                    f"({_shown(saved.image_name)}), and image {name} is {image.id}: pull that one"
                )
            flavor = context.hooks.flavor(pod, vm_config, image)
    except NotFound as error:
        raise FailedPrecondition(
            f"the checkpoint's image {_shown(saved.image_id)} has to be in the store: {error}"
        ) from None
    here = {
        "hypervisor": plugin,
        "basis": dict(hypervisor.template_basis()),
        "namespace": config.metadata.namespace,
        # How much memory fits into the pod is known later.
        "flavor": attrs.asdict(evolve(flavor, memory=0)),
    }
    _refuse_others(saved, here, ("flavor.memory",))
    if saved.memory.size > flavor.memory + flavor.memory // 1024 + _MORE_MEMORY:
        raise InvalidArgument(
            f"{saved.path}: its memory takes {saved.memory.size} bytes, more than a machine of "
            f"{flavor.memory >> 20}Mi has"
        )
    if new_identity and saved.why_no_copy:
        raise FailedPrecondition(
            f"the guest of {saved.path} cannot become another one: {_clean(saved.why_no_copy)}; "
            "restore it with the same identity"
        )
    # The disk is copied once more at the start.
    need, free = saved.data + saved.disk.size, shutil.disk_usage(context.paths.vms.parent).free
    if need > free:
        raise ResourceExhausted(
            f"{saved.path} takes {need >> 20}Mi beside it, and {free >> 20}Mi are free: free some"
        )


def _refuse_second(context: Context, macs: Sequence[str], config: PodConfig) -> None:
    existing = context.store.pod_of(config.metadata)
    if existing is not None and existing.was_up:
        raise AlreadyExists(
            f"pod {existing.pod.name} attempt {config.metadata.attempt} exists: remove pod "
            f"{existing.pod.id} first, or ask for the next attempt"
        )
    for record in context.store.pods.values():
        nics = record.network.nics if record.network is not None else ()
        if record.phase is PodPhase.READY and {nic.mac for nic in nics} & set(macs):
            raise FailedPrecondition(
                f"pod {record.pod.name} is up and has a MAC address of the checkpoint's guest, "
                "which keeps its identity: stop that pod first, or restore a copy with a new one"
            )


def _refuse_others(
    saved: ReadCheckpoint, here: Mapping[str, Any], later: tuple[str, ...] = ()
) -> None:
    plain = json.loads(json.dumps(here, default=str))
    found = [text for name, text in _differences("", saved.machine, plain) if name not in later]
    if found:
        more = f" and {len(found) - _MOST_SHOWN} more" if found[_MOST_SHOWN:] else ""
        raise FailedPrecondition(
            f"the checkpoint does not fit: {'; '.join(found[:_MOST_SHOWN])}{more}"
        )


_OF_THE_NODE = ("basis.emulator",)
"""Which file the emulator is; a checkpoint fits any file of its version."""


def _differences(
    prefix: str, there: Mapping[str, Any], here: Mapping[str, Any]
) -> Iterator[tuple[str, str]]:
    """Name and words of each value of this node's that is another one in a checkpoint."""
    for key, mine in here.items():
        name, other = f"{prefix}{key}", there.get(key)
        if name in _OF_THE_NODE:
            continue
        if isinstance(mine, dict) and isinstance(other, dict):
            yield from _differences(f"{name}.", other, mine)
        elif mine != other:
            words = f"{name} is {_shown(other)} there and {_shown(mine)} here"
            long = len(f"{other}") > _SHOWN or len(f"{mine}") > _SHOWN
            yield name, f"{name} is another one" if long else words


def _shown(value: object) -> str:
    return repr(_clean(f"{value}"[:_SHOWN]))


def _clean(text: str) -> str:
    return "".join(letter if letter.isprintable() else "?" for letter in text)


def _keep(
    context: Context,
    record: VmRecord,
    machine: Machine,
    saved: ReadCheckpoint,
    *,
    new_identity: bool,
) -> Machine:
    """Copy what a VM goes on from to its directory, if all of the machine is alike."""
    vm, root = machine.vm, machine.root
    macs = [nic.mac for nic in machine.network.nics]
    network = with_macs(machine.network, saved.macs)
    alike = evolve(machine, vm=evolve(vm, network=network))
    parts = templates.parts_of(context, record.hypervisor, alike)
    _refuse_others(
        saved, {name: value for name, value in parts.items() if name not in ("image", "withheld")}
    )
    if root.format != "qcow2" or root.backing != vm.image.path or root.path.parent != vm.directory:
        raise FailedPrecondition(
            f"VM {vm.name} cannot be restored: its root disk is no overlay of its image"
        )
    with root.path.open("rb") as empty:
        size = parse_header(str(root.path), empty.read(HEADER_SIZE)).virtual_size
    if saved.disk.size > size + size // 1024 + _MORE_DISK:
        raise InvalidArgument(
            f"{saved.path}: its disk takes {saved.disk.size} bytes, more than one of "
            f"{size >> 20}Mi does"
        )

    def put(directory: Path) -> None:
        make_private_directory(directory)
        for name, part, at in ((MEMORY, saved.memory, START), (DISK, saved.disk, 0)):
            with new_disk_file(directory / name, -1, -1) as file:
                _copy(saved, part.offset, part.size, file, at)
                # From here on nobody changes it.
                if name == DISK and disk_header(file, 0, str(saved.path)).virtual_size != size:
                    raise InvalidArgument(
                        f"{saved.path}: its disk is not of the size of the VM's, {size} bytes"
                    )

    directory = effects.save_state(context, vm, put)
    renamed = dict(zip(saved.macs, macs, strict=True)) if new_identity else None
    memory = SavedMemory(path=directory / MEMORY, offset=START, renamed=renamed)
    return evolve(machine, saved=memory)


def _copy(saved: ReadCheckpoint, start: int, size: int, file: int, at: int) -> None:
    try:
        copy_data(saved.file, start, size, file, at)
    except EOFError:
        raise InvalidArgument(f"{saved.path} became shorter as it was read") from None
    except OSError as error:
        raise FailedPrecondition(f"{saved.path} cannot be copied: {error.strerror}") from None
