"""The containers of one pod: VMs that run one after the other.

A kubelet sends the same for an init container, a sidecar and an ordinary container, so which of
them a VM is cannot be known. What can be: that another one runs, and that the kubelet gave the pod
more than its first container has, as it does for a pod of several. See docs/decisions/0040.
"""

from virtlet.core.lifecycle.context import Context
from virtlet.core.lifecycle.notices import tell_owner
from virtlet.errors import FailedPrecondition
from virtlet.model.vm import Vm

WAITING = (
    "the pod has resources beyond this container's. If it has other containers: the VMs of a pod "
    "run one after the other, and the next one is not started until this guest powers off"
)


def beside(running: Vm) -> FailedPrecondition:
    """The refusal of a VM beside one that runs."""
    return FailedPrecondition(
        f"a VM pod runs one container at a time, and {running.name} runs in this pod: the next can "
        "start once that guest has powered off, as an init container's has to when it is done; put "
        "a sidecar (an init container with restartPolicy: Always) or a second container into a "
        "pod of its own"
    )


def tell_of_waiting(context: Context, vm: Vm) -> None:
    """Tell the owner of a pod's first VM that its other containers, if it has any, wait for it."""
    mine = vm.config.metadata
    others = {record.vm.config.metadata.name for record in context.store.vms_of(vm.pod.id)}
    if mine.attempt == 0 and others == {mine.name} and _pod_has_more(vm):
        tell_owner(context, vm, WAITING)


def _pod_has_more(vm: Vm) -> bool:
    """Whether the kubelet counted more for the pod, at its start, than for this container."""
    pod, own = vm.pod.config.resources, vm.config.resources
    return pod.cpu_shares > own.cpu_shares or pod.memory_limit > own.memory_limit
