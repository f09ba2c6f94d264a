"""Pods: up and down."""

import time
import uuid
from collections.abc import Sequence
from difflib import get_close_matches

from attrs import evolve

from virtlet.core.hooks.facade import Hooks
from virtlet.core.lifecycle import exits, vms
from virtlet.core.lifecycle.context import Context
from virtlet.core.lifecycle.effects import (
    NETWORK,
    RESTORING,
    begin_restore,
    make_pod_directory,
    set_up_network,
)
from virtlet.core.lifecycle.notices import commit_pod, commit_pod_removed, commit_pod_stopped
from virtlet.core.store.records import PodPhase, PodRecord
from virtlet.errors import (
    AlreadyExists,
    InvalidArgument,
    Unavailable,
    UndoIncomplete,
)
from virtlet.model.event import EventKind
from virtlet.model.pod import Pod, PodConfig, Profile


def run_pod(
    context: Context,
    config: PodConfig,
    handler: str,
    macs: Sequence[str] | None = None,
    *,
    resuming: bool = False,
) -> str:
    """Bring a pod up, or find the one an earlier, equal call made.

    Args:
        context: the manager.
        config: of the pod.
        handler: of the pod.
        macs: what the NICs of its guest have already, if they keep that.
        resuming: the guest goes on from a checkpoint, and the pod counts only once the row
            `effects.RESTORING` is undone.

    Returns:
        The pod's id.

    Raises:
        FailedPrecondition: the handler has no hypervisor.
        InvalidArgument: the handler, an annotation or a plugin's admission refuses it.
        AlreadyExists: a pod with the same metadata exists and differs, or was stopped.
        Unavailable: the handler's hypervisor is away, or an earlier, failed try cannot be undone
            yet.
    """
    profile = context.profiles.get(handler)
    with context.locks(config.metadata):
        existing = context.store.pod_of(config.metadata)
        if existing and existing.was_up:
            return _same_pod(existing, config, handler)
        if existing:
            _abandon(context, existing)

        context.reserve.fill()
        context.hypervisors.require(context.hypervisors.plugin_of(profile))
        pod = accepted_pod(context, config, profile)
        pod_id = pod.id

        record = PodRecord(pod, PodPhase.CREATING)
        context.journal.commit("pod-creating", lambda: context.store.put_pod(record))
        with context.journal.undone_on_error(
            pod_id,
            then=lambda: context.store.delete_pod(pod_id),
            otherwise=lambda: show_leftover(context, record),
        ):
            if resuming:
                begin_restore(context, pod)
            make_pod_directory(context, pod)
            network = set_up_network(context, pod, macs)
            ready = evolve(record, phase=PodPhase.READY, network=network)
            commit_pod(
                context,
                "pod-ready",
                lambda: context.store.put_pod(ready),
                EventKind.POD_CREATED,
                pod,
            )
    return pod_id


def accepted_pod(context: Context, config: PodConfig, profile: Profile) -> Pod:
    """A new pod that its handler takes; nothing of it is made.

    Raises:
        InvalidArgument: an annotation or a plugin's admission refuses it.
    """
    pod_id = uuid.uuid4().hex
    pod = Pod(
        id=pod_id,
        config=config,
        profile=profile,
        directory=context.paths.pod(pod_id),
        created_at=time.time_ns(),
    )
    check_annotations(context.hooks, pod)
    # Stored with the pod, as its handler's is: what a flavor says later is for other pods.
    flavor = context.hooks.pod_flavor(pod)
    pod = evolve(pod, profile=evolve(profile, flavor=flavor))
    context.hooks.admit_pod(pod)
    return pod


def is_half_restored(context: Context, record: PodRecord) -> bool:
    """Whether a pod was made for a VM that is to go on from a checkpoint, and lacks it."""
    return any(row.kind == RESTORING for row in context.store.effects(record.pod.id))


def stop_pod(context: Context, pod_id: str) -> None:
    """Stop a pod's VMs and take its network away; nothing to do for an unknown or stopped pod.

    Raises:
        UndoIncomplete: something could not be undone yet; call again.
    """
    context.reserve.release()
    with context.locks(pod_id):
        record = context.store.pods.get(pod_id)
        if record is None:
            return
        if record.phase is PodPhase.READY:
            # First the promise, then the deed: after a crash in between it is clear what was asked.
            commit_pod_stopped(context, record)
        for vm in context.store.vms_of(pod_id):
            vms.halt_vm(context, vm.vm.id)
            # Also of one that never ran: no VM is started in a stopped pod.
            exits.let_go_of_volumes(context, vm.vm)
        context.journal.undo(pod_id, {NETWORK})


def remove_pod(context: Context, pod_id: str) -> None:
    """Remove a pod with its VMs and all they left; nothing to do for an unknown pod.

    Raises:
        UndoIncomplete: something could not be undone yet; the pod stays, call again.
    """
    stop_pod(context, pod_id)
    with context.locks(pod_id):
        record = context.store.pods.get(pod_id)
        if record is None:
            return
        removing = evolve(record, phase=PodPhase.REMOVING)
        context.journal.commit("pod-removing", lambda: context.store.put_pod(removing))
        for vm in context.store.vms_of(pod_id):
            vms.remove_vm(context, vm.vm.id)
        context.journal.undo(pod_id)
        commit_pod_removed(context, removing)


def _same_pod(existing: PodRecord, config: PodConfig, handler: str) -> str:
    pod = existing.pod
    if existing.phase is not PodPhase.READY:
        raise AlreadyExists(
            f"pod {pod.name} attempt {config.metadata.attempt} exists and was stopped: remove pod "
            f"{pod.id} first, or ask for the next attempt"
        )
    if pod.config != config or pod.profile.handler != handler:
        raise AlreadyExists(
            f"pod {pod.name} attempt {config.metadata.attempt} exists with another configuration: "
            f"remove pod {pod.id} first, or ask for the next attempt"
        )
    return pod.id


def show_leftover(context: Context, record: PodRecord) -> None:
    """Let the kubelet see, and remove, a pod that did not come up and could not be undone."""
    context.store.put_pod(evolve(record, phase=PodPhase.NOT_READY))


def _abandon(context: Context, record: PodRecord) -> None:
    """Undo what is left of a pod whose start failed and could not be undone then."""
    with context.locks(record.pod.id):
        try:
            context.journal.undo(record.pod.id)
        except UndoIncomplete as error:
            raise Unavailable(
                f"an earlier try to start pod {record.pod.name} is not cleaned up yet: {error}"
            ) from None
        context.store.delete_pod(record.pod.id)


PREFIX = "Virtlet"
"""Annotations that start like this are meant for us."""


def check_annotations(hooks: Hooks, pod: Pod) -> None:
    """Check every annotation that is meant for us against the plugins' declarations.

    Raises:
        InvalidArgument: one is unknown or has a wrong value; the message names it.
    """
    declared = {a.name: a for _, a in hooks.annotations(pod.profile)}
    for name in pod.config.annotations:
        if name in declared:
            declared[name].of(pod)
        elif name.startswith(PREFIX):
            near = get_close_matches(name, declared, 1)
            hint = f"; did you mean {near[0]}?" if near else ""
            raise InvalidArgument(
                f"annotation {name}: no plugin of handler {pod.profile.handler!r} knows it{hint}"
            )
