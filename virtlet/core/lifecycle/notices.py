"""What is told of pods and VMs: events to observers, and notices to the pod's owner.

A change is committed and told of as one step, so that events come in the order of the changes.

The CRI has no call for what no call's answer can say: a kubelet shows the errors of calls, and the
pod's log. So a notice is a line of the pod's log on stderr, an event for observers, and a line of
the manager's log. No guest writes to stderr, but `kubectl logs` merges both: what a guest prints
can look like a notice. The line of the manager's log is the one to trust.
"""

import logging
import time
from collections.abc import Callable
from typing import Any

from attrs import evolve

from virtlet.core.lifecycle.context import Context
from virtlet.core.store.records import PodPhase, PodRecord
from virtlet.errors import VirtletError
from virtlet.model.event import Event, EventKind
from virtlet.model.pod import Pod
from virtlet.model.vm import Vm

log = logging.getLogger(__name__)

RESETS = 3
"""Of a guest, within `RESETS_WITHIN`, of which its owner is told."""
RESETS_WITHIN = 600
"""Seconds; an installer takes longer from one to the next."""
WAITING = (
    "the pod has resources beyond this container's. If it has other containers: the VMs of a pod "
    "run one after the other, and the next one is not started until this guest powers off"
)


def commit_pod(
    context: Context, what: str, write: Callable[[], Any], kind: EventKind, pod: Pod
) -> None:
    """Write a pod's change of state and tell of it."""
    with context.order:
        context.journal.commit(what, write)
        context.events.tell(
            Event(
                kind=kind,
                subject=pod.id,
                pod_id=pod.id,
                at=time.time_ns(),
                pod=pod.config.metadata,
            ),
            pod.profile.handler,
        )


def commit_pod_stopped(context: Context, record: PodRecord) -> None:
    """Write and tell that a pod is not ready any more; what it has is still to be undone."""
    down = evolve(record, phase=PodPhase.NOT_READY)
    commit_pod(
        context,
        "pod-stopping",
        lambda: context.store.put_pod(down),
        EventKind.POD_STOPPED,
        record.pod,
    )


def commit_pod_removed(context: Context, record: PodRecord) -> None:
    """Forget a pod of which nothing is left, and tell so."""
    pod = record.pod
    with context.order:
        context.journal.commit("pod-removed", lambda: context.store.delete_pod(pod.id))
        event = Event(
            kind=EventKind.POD_REMOVED,
            subject=pod.id,
            pod_id=pod.id,
            at=time.time_ns(),
            pod=pod.config.metadata,
        )
        context.events.tell(event, pod.profile.handler, removed=record)


def commit_vm(
    context: Context, what: str, write: Callable[[], Any], kind: EventKind, vm: Vm, reason: str = ""
) -> None:
    """Write a VM's change of state and tell of it."""
    with context.order:
        context.journal.commit(what, write)
        context.events.tell(event_of(vm, kind, reason=reason), vm.pod.profile.handler)


def event_of(vm: Vm, kind: EventKind, **more: str) -> Event:
    """An event about a VM, of now.

    Args:
        vm: whom it is about.
        kind: of event.
        more: its other fields.
    """
    return Event(
        kind=kind,
        subject=vm.id,
        pod_id=vm.pod.id,
        at=time.time_ns(),
        pod=vm.pod.config.metadata,
        **more,
    )


def tell_owner(context: Context, vm: Vm, text: str, topic: str = "Notice") -> None:
    """Tell the owner of a started VM something; never raises.

    Args:
        context: the manager.
        vm: whom it is about; its console is being followed.
        text: one sentence: what it is, and what to do. No secret, and nothing a guest chose freely.
        topic: what it is about, in CamelCase.
    """
    log.warning("told the pod's owner", extra={"vm": vm.id, "notice": text})
    try:
        context.consoles.tell(vm, text)
    except VirtletError as error:
        log.warning("notice not in the pod's log", extra={"vm": vm.id, "problem": str(error)})
    event = event_of(vm, EventKind.VM_NOTICE, reason=text, topic=topic)
    context.events.tell(event, vm.pod.profile.handler)


def tell_answered(context: Context, vm_id: str) -> None:
    """Tell observers, once, that the guest of a VM that this manager has started has answered."""
    record = context.store.vms.get(vm_id)
    if record is None or record.started_at < context.since or vm_id in context.answered:
        return
    context.answered[vm_id] = None
    for gone in [known for known in tuple(context.answered) if known not in context.store.vms]:
        context.answered.pop(gone, None)
    seconds = (time.time_ns() - record.started_at) // 1_000_000_000
    event = event_of(record.vm, EventKind.GUEST_READY, message=f"{seconds} s after its start")
    context.events.tell(event, record.vm.pod.profile.handler)


def tell_of_resets(context: Context, vm_id: str) -> None:
    """Take note that a guest has reset itself, and tell its owner, once, if it does so repeatedly.

    As where a kernel panics before its driver for pvpanic is loaded: nothing else tells of that.
    """
    record = context.store.vms.get(vm_id)
    before = context.resets.get(vm_id, ())
    if record is None or len(before) >= RESETS:
        return
    now = time.time_ns()
    recent = tuple(at for at in before if now - at < RESETS_WITHIN * 1_000_000_000)
    context.resets[vm_id] = (*recent, now)
    for gone in [known for known in tuple(context.resets) if known not in context.store.vms]:
        context.resets.pop(gone, None)
    if len(recent) + 1 == RESETS:
        tell_owner(
            context,
            record.vm,
            f"the guest has restarted {RESETS} times within {RESETS_WITHIN // 60} minutes: what "
            "stands before each start says why; a kernel that lacks memory or finds no root disk "
            "panics too early to be told of otherwise",
            "GuestRestarts",
        )


def tell_ineffective(context: Context, vm: Vm) -> None:
    """Tell the owner of a started VM which fields of its container mean nothing to a VM."""
    config = vm.config
    given = {"command": config.command, "args": config.args, "workingDir": config.working_dir}
    fields = [name for name, value in given.items() if value]
    if fields:
        names = " and ".join(part for part in (", ".join(fields[:-1]), fields[-1]) if part)
        tell_owner(
            context,
            vm,
            f"{names} of container {config.metadata.name} {'have' if fields[1:] else 'has'} no "
            "effect: a VM boots its image, which starts what it is made for; give it commands "
            "with the annotation VirtletCloudInitUserData (runcmd) or "
            "VirtletCloudInitUserDataScript",
            "FieldsWithoutEffect",
        )


def tell_of_waiting(context: Context, vm: Vm) -> None:
    """Tell the owner of a pod's first VM that its other containers, if it has any, wait for it.

    A kubelet sends the same for an init container, a sidecar and an ordinary container, so which of
    them a VM is cannot be known. What can be: that the kubelet gave the pod more than its first
    container has, as it does for a pod of several. See docs/decisions/0040.
    """
    mine = vm.config.metadata
    others = {record.vm.config.metadata.name for record in context.store.vms_of(vm.pod.id)}
    if mine.attempt == 0 and others == {mine.name} and _pod_has_more(vm):
        tell_owner(context, vm, WAITING, "OthersWait")


def _pod_has_more(vm: Vm) -> bool:
    """Whether the kubelet counted more for the pod, at its start, than for this container."""
    pod, own = vm.pod.config.resources, vm.config.resources
    return pod.cpu_shares > own.cpu_shares or pod.memory_limit > own.memory_limit
