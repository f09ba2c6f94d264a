"""Committing a change and telling of it, as one step: events come in the order of the changes."""

import time
from collections.abc import Callable
from typing import Any

from attrs import evolve

from virtlet.core.lifecycle.context import Context
from virtlet.core.store.records import PodPhase, PodRecord
from virtlet.model.event import Event, EventKind
from virtlet.model.pod import Pod
from virtlet.model.vm import Vm


def commit_pod(
    context: Context, what: str, write: Callable[[], Any], kind: EventKind, pod: Pod
) -> None:
    """Write a pod's change of state and tell of it."""
    with context.order:
        context.journal.commit(what, write)
        context.events.tell(
            Event(kind=kind, subject=pod.id, pod_id=pod.id, at=time.time_ns()), pod.profile.handler
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
        event = Event(kind=EventKind.POD_REMOVED, subject=pod.id, pod_id=pod.id, at=time.time_ns())
        context.events.tell(event, pod.profile.handler, removed=record)


def commit_vm(
    context: Context, what: str, write: Callable[[], Any], kind: EventKind, vm: Vm, reason: str = ""
) -> None:
    """Write a VM's change of state and tell of it."""
    with context.order:
        context.journal.commit(what, write)
        event = Event(kind=kind, subject=vm.id, pod_id=vm.pod.id, at=time.time_ns(), reason=reason)
        context.events.tell(event, vm.pod.profile.handler)
