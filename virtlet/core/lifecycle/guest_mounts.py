"""Whether a guest has mounted the directories that it shares with the node.

Nothing fails on the node where it has not: what the guest writes stays in the guest, and is lost
with it. The node sees whether a guest has opened a share: virtiofsd opens its root for the guest,
and the queue of a 9p device moves. A guest with an agent is asked what it has mounted once it has
come up, and tells why not. The pod's owner is told of what is missing, and when it comes after all.
"""

import itertools
import logging
import threading
import time
from collections.abc import Iterator, Mapping

from attrs import frozen

from virtlet.core.guest_sessions.exec_streams import CollectedStreams
from virtlet.core.lifecycle import backends
from virtlet.core.lifecycle.context import Context
from virtlet.core.lifecycle.notices import tell_answered, tell_owner
from virtlet.core.store.records import VmPhase, VmRecord
from virtlet.errors import VirtletError
from virtlet.model.disk import Share
from virtlet.model.execution import GuestCommand
from virtlet.model.vm import Machine

log = logging.getLogger(__name__)


@frozen
class Pace:
    """When a guest is asked; seconds."""

    pauses: tuple[float, ...] = (5.0, 5.0, 10.0, 10.0, 20.0, 30.0)
    """Before each look; the last counts from then on."""
    unheard: float = 180.0
    """From the VM's start until its owner is told of what a guest that says nothing has not
    mounted. Most guests are up by then, and one that is not is told of again when it is."""
    patience: float = 600.0
    """From the VM's start until it is told of one that answers, and never says that it is up."""


ANSWER_TIME = 60.0
"""Seconds for an answer; a guest that boots is waited for."""
ANSWER_LIMIT = 256 << 10
"""Bytes of an answer; a guest may have many mounts."""
_UP = "up"
_LOOK = f"""\
for mark in /run/cloud-init/result.json /var/lib/cloud/instance/boot-finished; do
	[ ! -e $mark ] || echo {_UP}
done
cat /proc/filesystems
echo
cat /proc/1/mounts
"""


@frozen
class _Seen:
    """What a guest says of itself."""

    up: bool
    """Whether cloud-init is through with it."""
    filesystems: frozenset[str]
    """Kinds that its kernel knows; a module that is not loaded is not among them."""
    mounted: frozenset[tuple[str, str]]
    """Source and kind of everything mounted."""


@frozen(eq=False)
class _Watch:
    """Who looks at the shares of a VM, from one boot of its guest to the next."""

    context: Context
    record: VmRecord
    shares: list[Share]
    pace: Pace
    started: float
    """When the guest booted, by the clock that never goes back."""
    unsure: set[str]
    """Tags of shares that the guest had open when it reset itself. virtiofsd keeps them open where
    they were not unmounted, so what the node sees says nothing until they are closed."""

    @property
    def counts(self) -> bool:
        """Whether the VM runs, and its guest has not booted again."""
        vm_id = self.record.vm.id
        return runs(self.context, vm_id) and self.context.share_watches.get(vm_id) is self


def watch(
    context: Context, vm_id: str, pace: Pace | None = None, *, rebooted: bool = False
) -> threading.Thread | None:
    """Look at a running guest in the background; None where there is nothing to look at.

    Where it has `rebooted`, what was known of its shares counts no more, and its time begins anew.

    Once the patience is over, as for a VM that was started long before the manager, the guest is
    not asked any more, and nothing told; what the node sees of its shares is still noted.
    """
    record = context.store.vms.get(vm_id)
    for about in (context.opened_shares, context.share_watches):
        for gone in [known for known in tuple(about) if known not in context.store.vms]:
            about.pop(gone, None)
    if record is None or record.machine is None:
        return None
    shares = [volume for volume in record.machine.volumes if isinstance(volume, Share)]
    age = (time.time_ns() - record.started_at) / 1e9
    if not shares:
        return None
    unsure: set[str] = set()
    if rebooted:
        age = 0.0
        unsure = {
            tag for tag, is_open in backends.mounted_shares(context, vm_id).items() if is_open
        }
    watching = _Watch(context, record, shares, pace or Pace(), time.monotonic() - age, unsure)
    context.share_watches[vm_id] = watching
    context.opened_shares.pop(vm_id, None)
    thread = threading.Thread(target=_watch, args=(watching,), name="guest-mounts", daemon=True)
    thread.start()
    return thread


def _watch(watching: _Watch) -> None:
    context, record, pace = watching.context, watching.record, watching.pace
    try:
        told: list[Share] = []
        if time.monotonic() < watching.started + pace.patience:
            told, words = _missing(watching)
            if told and watching.counts:
                tell_owner(context, record.vm, words, "ShareNotMounted")
        # A status tells when it is mounted after all, and so does the log.
        while watching.counts:
            opened = _opened(watching)
            if told and all(opened.get(share.tag) for share in told):
                words = f"the guest has mounted {_points(told)} now"
                tell_owner(context, record.vm, words, "ShareMounted")
                return
            if False not in opened.values() or context.closing.wait(pace.pauses[-1]):
                return
    except Exception:
        log.exception("guest's mounts not looked at", extra={"vm": record.vm.id})


def _missing(watching: _Watch) -> tuple[list[Share], str]:
    """Shares that the guest has not mounted, and what to tell of them; none where nothing is to be
    told."""
    context, record, pace = watching.context, watching.record, watching.pace
    assert record.machine is not None
    found: tuple[list[Share], str] = [], ""
    seen_up = False
    for pause in _pauses(pace):
        if context.closing.wait(pause) or not watching.counts:
            return [], ""
        opened = _opened(watching)
        left = [share for share in watching.shares if not opened.get(share.tag)]
        seen = _look(watching, record.machine) if left and record.machine.agent_socket else None
        if not watching.counts:
            return [], ""
        passed = time.monotonic() - watching.started
        if seen is None:
            # Nobody in the guest says that it is up.
            lost = [share for share in left if share.tag in opened]
            if not left:
                break
            if lost and passed >= pace.unheard:
                return lost, _words(lost, None, passed)
        else:
            tell_answered(context, record.vm.id)
            lost = [share for share in left if (share.tag, share.driver) not in seen.mounted]
            mounted = {share.tag: True for share in left if share not in lost}
            context.opened_shares[record.vm.id] = {**opened, **mounted}
            if not lost:
                break
            found = lost, _words(lost, seen, passed)
            # The mark may be older than this boot, so it counts when it is there a second time.
            if seen.up and seen_up:
                return found
            seen_up = seen.up
        if passed >= pace.patience:
            return found
    return [], ""


def _opened(watching: _Watch) -> Mapping[str, bool]:
    """Tag to whether the guest has opened the share since it booted, as far as is known."""
    context, record = watching.context, watching.record
    vm_id = record.vm.id
    before = context.opened_shares.get(vm_id, {})
    now = dict(backends.mounted_shares(context, vm_id))
    watching.unsure.intersection_update({tag for tag, is_open in now.items() if is_open})
    for tag in watching.unsure:
        del now[tag]
    try:
        now.update(context.hypervisors.named(record.hypervisor).opened_shares(vm_id))
    except VirtletError as error:
        log.debug("shares not looked at", extra={"vm": vm_id, "problem": str(error)})
    opened = {
        tag: before.get(tag, False) or now.get(tag, False) for tag in before.keys() | now.keys()
    }
    if watching.counts:
        context.opened_shares[vm_id] = opened
    return opened


def _pauses(pace: Pace) -> Iterator[float]:
    return itertools.chain(pace.pauses, itertools.repeat(pace.pauses[-1]))


def runs(context: Context, vm_id: str) -> bool:
    """Whether a VM runs, and nobody has asked it to end."""
    record = context.store.vms.get(vm_id)
    return record is not None and record.phase is VmPhase.RUNNING and not record.stopping


def _look(watching: _Watch, machine: Machine) -> _Seen | None:
    """What the guest says; None when nobody in it answers."""
    context, vm_id = watching.context, machine.vm.id
    streams = CollectedStreams(
        ANSWER_LIMIT, lambda: context.closing.is_set() or not watching.counts
    )
    command = GuestCommand(argv=("/bin/sh", "-c", _LOOK), captured=True)
    try:
        code = context.hooks.guest_exec(machine, command).run(streams, ANSWER_TIME)
    except VirtletError as error:
        log.debug("guest not asked", extra={"vm": vm_id, "problem": str(error)})
        return None
    if code != 0:
        return None
    head, _, mounts = bytes(streams.output).decode(errors="replace").partition("\n\n")
    lines = head.splitlines()
    sources = (line.split() for line in mounts.splitlines())
    return _Seen(
        up=_UP in lines,
        filesystems=frozenset(line.split()[-1] for line in lines if line.split()),
        mounted=frozenset((words[0], words[2]) for words in sources if len(words) > 2),
    )


def _points(shares: list[Share]) -> str:
    return ", ".join(f"{share.guest_path} ({share.driver}, tag {share.tag})" for share in shares)


def _other_way(lost: list[Share]) -> str:
    """The annotation by which the guest gets the other kind of share, where it lacks one kind."""
    drivers = {share.driver for share in lost}
    if drivers not in ({"9p"}, {"virtiofs"}):
        return ""
    other = "virtiofs" if "9p" in drivers else "9p"
    return f", or set the pod's annotation VirtletShareDriver: {other}"


def _words(lost: list[Share], seen: _Seen | None, passed: float) -> str:
    when = ""
    unknown = sorted({share.driver for share in lost} - seen.filesystems) if seen else []
    if seen is None:
        when = f" {passed / 60:.0f} minutes after its start"
        remedy = (
            "no agent in the guest says why: unless it still boots, its kernel does not know the "
            f"file system{_other_way(lost)}, or its cloud-init has not mounted it"
        )
    elif unknown:
        kinds = " and ".join(unknown)
        modules = " (modules 9p and 9pnet_virtio)" if "9p" in unknown else ""
        remedy = (
            f"its kernel knows no {kinds} file system: use an image whose kernel has it{modules}"
            f"{_other_way(lost)}; Debian's cloud kernel has no 9p, linux-image-amd64 has"
        )
    else:
        remedy = "run /etc/cloud/mount-volumes.sh in the guest to see why"
    return (
        f"the guest has not mounted {_points(lost)}{when}: what it writes there stays in the guest "
        f"and is lost with it; {remedy}"
    )
