"""Files that change while a VM runs: ConfigMaps, Secrets, the downward API, renewed tokens.

A guest has a copy of them. A kubelet replaces all files of such a volume in one step, by the link
`..data`. A worker looks at these links; where one leads elsewhere than before, the guest runs a
script that makes the same change there: the files in a directory of their own, then the link. So
it does after a reboot of its own, which empties a tmpfs such as /run.
Volumes without that link are not followed: a part of a volume (`subPath`) and a single file do not
change for containers either.
"""

import base64
import logging
import os
import re
import threading
import time
from collections.abc import Iterable
from pathlib import PurePosixPath
from shlex import quote

from attrs import define, field, frozen

from virtlet.core.guest_sessions.exec_streams import CollectedStreams
from virtlet.core.lifecycle.context import Context
from virtlet.core.lifecycle.guest_mounts import runs
from virtlet.core.lifecycle.notices import tell_owner
from virtlet.core.store.records import VmPhase, VmRecord
from virtlet.errors import FailedPrecondition, GuestNotReady, VirtletError
from virtlet.host.guest_files import DATA, GuestFile, read_all
from virtlet.model.disk import GuestFiles
from virtlet.model.execution import GuestCommand
from virtlet.threads import BackOff, Worker

log = logging.getLogger(__name__)

INTERVAL = 10.0
"""Seconds between looks; a kubelet takes a minute or so to write a change."""
ANSWER_TIME = 120.0
"""Seconds for a guest to write the files of one volume."""
FIRST_PAUSE, LONGEST_PAUSE = 10.0, 600.0
"""Seconds until a guest that did not take a change is asked again."""
SILENCE = 3
"""Failures in a row after which the pod's owner is told."""
CLOCK_STEP = 20_000_000
"""Nanoseconds that a file's time may lag behind the clock."""
_VERSION = re.compile(r"\.\.[0-9A-Za-z][0-9A-Za-z._-]*")

_FUNCTIONS = """\
# new_file MODE OWNER NAME; standard input is its content in base64.
new_file() {
	(umask 022 && mkdir -p "$(dirname "$new/$3")") &&
		(umask 077 && base64 -d >"$new/$3") && chown "$2" "$new/$3" && chmod "$1" "$new/$3"
}
# follow NAME: what is there becomes a link to the file of the current version.
follow() {
	[ -L "$1" ] || [ ! -d "$1" ] || rm -rf "$1"
	ln -sfn "..data/$1" ..link && mv -fT ..link "$1"
}
"""
_FIRST = """\
# What cloud-init wrote becomes a version of its own, so that all files change in one step.
keep() {
	rm -rf ..first && mkdir -m 755 ..first || return
	for name in "$@"; do
		[ -L "$name" ] || [ ! -e "$name" ] || cp -pR "$name" ..first/ || return
	done
	ln -sfn ..first ..data_tmp && mv -fT ..data_tmp ..data || return
	for name in "$@"; do
		[ ! -e "..first/$name" ] || follow "$name" || return
	done
}
"""
_LAST = """\
# Links to files that are no more, and versions before this one.
for name in * .[!.]*; do
	[ -L "$name" ] && [ ! -e "$name" ] || continue
	case $(readlink "$name") in ..data/*) rm -f "$name" ;; esac
done
for old in ..[0-9A-Za-z]*; do
	[ "$old" = "$version" ] || [ "$old" = ..data ] || rm -rf "$old"
done
"""


def update_script(
    top: str, version: str, files: Iterable[GuestFile], names: Iterable[str]
) -> bytes:
    """A shell script that gives a directory of the guest another version of its files.

    It does nothing before all of it was read, and nothing where the version is there already. It
    needs a POSIX shell with `base64`, `cp`, `mv -T` and the like, as GNU's and busybox' are.

    Args:
        top: the directory.
        version: name of the version's directory, as on the node.
        files: all of them, with paths below `top`.
        names: of entries of `top` that were ours before.
    """
    written, current = [], set()
    for file in files:
        inside = PurePosixPath(file.path).relative_to(top)
        current.add(inside.parts[0])
        written.append(
            f"new_file {file.mode:04o} {file.uid}:{file.gid} {quote(str(inside))} <<'EOF' || exit\n"
            f"{base64.encodebytes(file.content).decode()}EOF\n"
        )
    ours = " ".join(map(quote, sorted(current.union(names))))
    linked = " ".join(map(quote, sorted(current)))
    lines = (
        "{\n",
        _FUNCTIONS,
        _FIRST,
        f"version={quote(version)} new={quote(version)}.new\n",
        f"mkdir -p {quote(top)} && cd {quote(top)} || exit\n",
        '[ "$(readlink ..data 2>/dev/null)" != "$version" ] || exit 0\n',
        'rm -rf "$new" && mkdir -m 755 "$new" || exit\n',
        *written,
        'rm -rf "$version" && mv -T "$new" "$version" || exit\n',
        f"[ -L ..data ] || keep {ours} || exit\n",
        'ln -sfn "$version" ..data_tmp && mv -fT ..data_tmp ..data || exit\n',
        f'for name in {linked}; do\n\t[ -L "$name" ] || follow "$name" || exit\ndone\n',
        _LAST,
        "exit 0\n}\n",
    )
    return "".join(lines).encode()


class _Typed(CollectedStreams):
    """A script as input; what the guest prints is not kept."""

    def __init__(self, script: bytes, context: Context, vm_id: str) -> None:
        super().__init__(0, lambda: context.closing.is_set() or not runs(context, vm_id))
        self._left = memoryview(script)

    def read_input(self, limit: int, timeout: float) -> bytes | None:
        """The next part of the script."""
        part, self._left = self._left[:limit], self._left[limit:]
        return bytes(part)


@frozen
class _Version:
    """What a guest has of a volume."""

    name: str
    """"" where that is not known."""
    entries: frozenset[str] = frozenset()


@define(eq=False)
class _Guest:
    """What is known of one VM; its thread's alone while that runs, else the worker's."""

    back_off: BackOff
    has: dict[str, _Version] = field(factory=dict)
    """By the mount's path."""
    thread: threading.Thread | None = None
    due: float = 0.0
    """When it may be asked again, by the monotonic clock."""
    failures: int = 0
    told: bool = False
    """Whether its pod's owner knows that it does not take changes."""


class FileUpdates:
    """Follows the volumes of all VMs that run.

    Each guest is given its changes by a thread of its own, so that one that does not answer holds
    up no other.

    Args:
        context: the manager.
        interval: seconds between looks.
        pause: seconds until a guest that did not take a change is asked again, the first time.
    """

    def __init__(
        self, context: Context, interval: float = INTERVAL, pause: float = FIRST_PAUSE
    ) -> None:
        self._context = context
        self._pause = pause
        self._interval = interval
        self._guests: dict[str, _Guest] = {}
        self._worker = Worker("file-updates", self.look)

    def start(self) -> None:
        """Begin to look."""
        self._worker.start(self._interval)

    def stop(self) -> None:
        """Look no more; sessions in guests end by themselves once the manager is closing."""
        self._worker.stop()

    def look(self) -> float:
        """Look at all volumes once, and start to tell guests of changes."""
        running = {
            vm_id: record
            for vm_id, record in self._context.store.vms.items()
            if record.phase is VmPhase.RUNNING and not record.stopping
        }
        for gone in self._guests.keys() - running.keys():
            del self._guests[gone]
        self._context.rebooted.intersection_update(running)
        for vm_id, record in running.items():
            guest = self._guests.get(vm_id)
            if guest is None:
                guest = self._guests[vm_id] = _Guest(BackOff(self._pause, LONGEST_PAUSE))
            self._look_at(guest, record)
        return self._interval

    def settle(self, patience: float) -> bool:
        """Whether all guests that are being told of changes have taken them within `patience`."""
        threads = [guest.thread for guest in tuple(self._guests.values()) if guest.thread]
        for thread in threads:
            thread.join(patience)
        return not any(thread.is_alive() for thread in threads)

    def _look_at(self, guest: _Guest, record: VmRecord) -> None:
        if guest.thread is not None and guest.thread.is_alive():
            return
        volumes = record.machine.volumes if record.machine else ()
        files = [volume for volume in volumes if isinstance(volume, GuestFiles)]
        if record.vm.id in self._context.rebooted:
            self._context.rebooted.discard(record.vm.id)
            # What was on a tmpfs is gone; the script finds out what is still there.
            for volume in files:
                known = guest.has.get(volume.guest_path)
                guest.has[volume.guest_path] = _Version(
                    "", known.entries if known else _entries(volume)
                )
            guest.due = 0.0
        changed = [volume for volume in files if _has_changed(guest, record, volume)]
        if changed and time.monotonic() >= guest.due:
            arguments = (guest, record, changed)
            guest.thread = threading.Thread(
                target=self._tell, args=arguments, name="guest-files", daemon=True
            )
            guest.thread.start()

    def _tell(self, guest: _Guest, record: VmRecord, changed: list[GuestFiles]) -> None:
        problem, volume = "", changed[0]
        try:
            for volume in changed:
                self._update(guest, record, volume)
            guest.failures, guest.due = 0, 0.0
            guest.back_off.reset()
            return
        except GuestNotReady as error:
            problem, final = str(error), False
        except VirtletError as error:
            guest.failures += 1
            problem, final = str(error), isinstance(error, FailedPrecondition)
        except Exception:
            log.exception("changed files not given to the guest", extra={"vm": record.vm.id})
            guest.failures += 1
            problem, final = "the manager's log says why", False
        guest.due = time.monotonic() + guest.back_off.pause()
        log.debug("guest not changed", extra={"vm": record.vm.id, "problem": problem})
        silent = final or guest.failures >= SILENCE
        if silent and not guest.told and runs(self._context, record.vm.id):
            guest.told = True
            tell_owner(
                self._context,
                record.vm,
                f"the files at {volume.guest_path} have changed, and the guest still has the old "
                f"ones: {problem}. It is asked again while it runs; a new pod has the new ones",
                "FilesNotUpdated",
            )

    def _update(self, guest: _Guest, record: VmRecord, volume: GuestFiles) -> None:
        """Give a guest the files of a volume as they are now.

        Raises:
            VirtletError: it did not take them.
        """
        version = _version_of(volume)
        if version is None:
            return
        assert record.machine is not None
        files = read_all([volume])
        top = str(PurePosixPath(volume.guest_path))
        script = update_script(top, version, files, guest.has[volume.guest_path].entries)
        command = GuestCommand(argv=("/bin/sh",), stdin=True)
        streams = _Typed(script, self._context, record.vm.id)
        code = self._context.hooks.guest_exec(record.machine, command).run(streams, ANSWER_TIME)
        if streams.gone:
            return
        if code != 0:
            raise VirtletError(f"it could not write them (exit code {code})")
        guest.has[volume.guest_path] = _Version(version, _entries(volume))
        extra = {"vm": record.vm.id, "mount": volume.guest_path, "files": len(files)}
        log.info("guest has the changed files", extra=extra)


def _has_changed(guest: _Guest, record: VmRecord, volume: GuestFiles) -> bool:
    """Whether the node has another version of a volume than the guest."""
    version = _version_of(volume)
    if version is None:
        return False
    known = guest.has.get(volume.guest_path)
    if known is None:
        # The seed has what was there when the VM was made. What came later the guest may have too,
        # from an earlier manager; its script finds out.
        old = os.lstat(volume.host_path / DATA).st_ctime_ns < record.vm.created_at - CLOCK_STEP
        known = _Version(version if old else "", _entries(volume))
        guest.has[volume.guest_path] = known
    return known.name != version


def _version_of(volume: GuestFiles) -> str | None:
    """Name of the directory that a volume's link leads to; None where there is no such link."""
    try:
        name = os.readlink(volume.host_path / DATA)
    except OSError:
        return None
    return name if _VERSION.fullmatch(name) else None


def _entries(volume: GuestFiles) -> frozenset[str]:
    try:
        return frozenset(os.listdir(volume.host_path / DATA))
    except OSError:
        return frozenset()
