"""VMs that start from a template instead of booting, where their flavor says `warm`.

The VM is made as every other: its machine and document are those of a VM that boots. Its start puts
a disk as the template's was, and a document that is to be the template's, in their place, and takes
both away again where anything fails; then it boots. A VM whose template is not there yet boots at
once, and the template is made beside it (`templates.py`).
"""

import json
import logging
import time
from pathlib import Path

from attrs import evolve

from virtlet.core.lifecycle import effects, guest_hold, templates
from virtlet.core.lifecycle.context import Context
from virtlet.core.lifecycle.effects import RUNNING, WARM
from virtlet.core.lifecycle.machines import domain_document
from virtlet.core.lifecycle.notices import tell_owner
from virtlet.core.lifecycle.template_store import NoTemplate
from virtlet.core.store.records import VmPhase, VmRecord
from virtlet.errors import VirtletError
from virtlet.host.files import new_disk_file
from virtlet.launch.merge import close_all
from virtlet.model.launch import LaunchPart
from virtlet.model.vm import Machine, Template

log = logging.getLogger(__name__)

THAW_TIME = 60.0
"""Seconds that a clone may take to become itself."""


def start(context: Context, record: VmRecord, machine: Machine) -> str:
    """Start the emulator, from a template if there is one.

    Returns:
        What to tell the pod's owner: why a VM that may start warm does not; "" for nothing.
    """
    if not machine.flavor.warm:
        effects.start_emulator(context, record, machine)
        return ""
    try:
        directory = _template(context, record, machine)
        _start_warm(context, record, machine, directory)
        return ""
    except VirtletError as error:
        context.journal.undo(record.vm.id, {RUNNING, WARM})
        why = error.kind if isinstance(error, NoTemplate) else "broken"
        context.templates.count("cold", why)
        words = f"it boots instead of starting from a template: {error}"
    effects.start_emulator(context, record, machine)
    return words


def _template(context: Context, record: VmRecord, machine: Machine) -> Path:
    """The template of a VM; where there is none, one is made.

    Raises:
        NoTemplate: there is none; says why.
    """
    if reason := templates.unfit(context, record.hypervisor, machine):
        raise NoTemplate("unfit", reason)
    asked = context.hooks.launch(machine)
    close_all(item for _, part in asked for item in part.fds)
    names = ", ".join(name for name, part in asked if part != LaunchPart())
    if names:
        raise NoTemplate("unfit", f"plugin {names} adds to its emulator's start")
    key = templates.key_of(context, record.hypervisor, machine)
    found = context.templates.find(
        context.paths.templates,
        key,
        lambda place: templates.make(context, key, record.hypervisor, machine, place),
        templates.about(machine),
    )
    if found is None:
        mine = context.templates.making in (key, "")
        later = "is being made, for VMs like it that start later"
        raise NoTemplate("none yet", f"one {later}" if mine else "another one is being made first")
    return found


def _start_warm(context: Context, record: VmRecord, machine: Machine, directory: Path) -> None:
    template = Template(directory=directory, frozen=True)
    disk = evolve(machine.root, path=machine.vm.directory / effects.WARM_DISK)
    warm = evolve(machine, root=disk, template=template)
    try:
        effects.make_warm(context, record, warm, lambda: _put_in_place(context, record, warm))
        effects.start_emulator(context, record, warm)
        thaw(context, warm)
    except VirtletError as error:
        # Another one is made after a while: better than failing each time.
        context.templates.discard(directory, str(error)[:1000])
        raise
    context.templates.worked(directory)


def _put_in_place(context: Context, record: VmRecord, warm: Machine) -> str:
    """Returns the name of the template's directory, for the journal."""
    assert warm.template is not None
    source = warm.template.directory / templates.DISK
    with new_disk_file(warm.root.path, *context.node.user_of(warm.vm)) as descriptor:
        templates.copy(source, descriptor)
    hypervisor = context.hypervisors.named(record.hypervisor)
    hypervisor.define(warm, domain_document(context.hooks, hypervisor, warm))
    return warm.template.directory.name


def thaw(context: Context, machine: Machine) -> None:
    """Have the guest of a clone take its own identity.

    Raises:
        VirtletError: it does not answer in time, or says that it cannot.
    """
    command = guest_hold.thaw(len(machine.network.nics), time.time())
    templates.run(context, machine, "become itself", command, THAW_TIME)


def tell(context: Context, record: VmRecord, words: str) -> None:
    """Tell the owner of a VM that runs why it booted."""
    if words:
        tell_owner(context, record.vm, words, "StartedCold")


def report(context: Context) -> list[dict[str, object]]:
    """The node's templates as plain values, with the ids of the VMs that run from each."""
    users: dict[str, list[str]] = {}
    for vm_id, record in context.store.vms.items():
        if record.phase is VmPhase.RUNNING and record.machine and record.machine.flavor.warm:
            for row in context.store.effects(vm_id):
                if row.kind == WARM and row.record:
                    users.setdefault(str(json.loads(row.record)), []).append(vm_id)
    return [
        {
            **known.about,
            "key": known.key,
            "state": known.state,
            "disk": known.disk,
            "vms": users.get(known.directory.name, []) if known.directory else [],
            "usedAt": int(known.used_at),
            "reason": known.reason,
            "retryAt": int(known.retry_at),
            "directory": str(known.directory or ""),
        }
        for known in context.templates.known(context.paths.templates)
    ]
