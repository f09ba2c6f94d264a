"""Telling a pod's owner what no call's answer can say.

The CRI has no call for it: a kubelet shows the errors of calls, and the pod's log. So a notice is a
line of the pod's log on stderr, an event for observers, and a line of the manager's log. No guest
writes to stderr, but `kubectl logs` merges both: what a guest prints can look like a notice.
The line of the manager's log is the one to trust.
"""

import logging
import time

from virtlet.core.lifecycle.context import Context
from virtlet.errors import VirtletError
from virtlet.model.event import Event, EventKind
from virtlet.model.vm import Vm

log = logging.getLogger(__name__)


def tell_owner(context: Context, vm: Vm, text: str) -> None:
    """Tell the owner of a started VM something; never raises.

    Args:
        context: the manager.
        vm: whom it is about; its console is being followed.
        text: one sentence: what it is, and what to do. No secret, and nothing a guest chose freely.
    """
    log.warning("told the pod's owner", extra={"vm": vm.id, "notice": text})
    try:
        context.consoles.tell(vm, text)
    except VirtletError as error:
        log.warning("notice not in the pod's log", extra={"vm": vm.id, "problem": str(error)})
    event = Event(
        kind=EventKind.VM_NOTICE, subject=vm.id, pod_id=vm.pod.id, at=time.time_ns(), reason=text
    )
    context.events.tell(event, vm.pod.profile.handler)


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
        )
