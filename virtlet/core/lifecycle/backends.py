"""Programs that serve devices of VMs, as virtiofsd serves a shared directory.

Each is a child of the manager in a session of its own, and runs on when the manager ends. Its
directory below the VM's has its process id and what its loss means, so that the next manager
follows it, and ends it with the VM.
"""

import fcntl
import logging
import os
import signal
import socket
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path

from attrs import evolve

from virtlet.core.lifecycle.backend_watch import Running
from virtlet.core.lifecycle.context import Context
from virtlet.core.lifecycle.notices import tell_owner
from virtlet.core.store.records import VmPhase, VmRecord
from virtlet.errors import FailedPrecondition, VirtletError
from virtlet.host import cgroups
from virtlet.host.commands import bounded_file, sealed_file
from virtlet.host.confinement import NOBODY, Confinement
from virtlet.host.files import make_private_directory, remove_file, remove_tree
from virtlet.host.processes import (
    children,
    end_process,
    ended,
    holds_root_twice,
    open_started,
    sessions,
    set_oom_score_adj,
)
from virtlet.host.seccomp import emulator_filter
from virtlet.model.launch import Backend

log = logging.getLogger(__name__)

MARK = "VIRTLET_BACKEND"
"""Variable by which a program is known to be ours."""
GRACE = 2.0
"""Seconds that a program gets to end by itself, once its emulator is gone."""
_PATIENCE = 10.0
"""Seconds that a program gets to come up; it takes milliseconds."""
_WORDS = 64 << 10
"""Bytes kept of what a program prints, which its guest may have a hand in."""
_SOCKET = 3
"""Number of the descriptor that a program listens on; those of its documents follow."""
_FILTER = "seccomp"
"""Name of the document that is the filter of a program in the node's network."""
_RUN = """\
set -eu
file=$1 required=$2 score=$3 files=$4
shift 4
echo $$ >"$file"
while [ "$1" != -- ]; do
	echo $$ >"$1/cgroup.procs" || [ -z "$required" ]
	shift
done
shift
echo "$score" >/proc/self/oom_score_adj || :
[ "$files" = 0 ] || ulimit -n "$files" 2>/dev/null || ulimit -n "$(ulimit -H -n)"
exec "$@"
"""
"""Writes its process id, and becomes the program where it belongs. A file of the process id that
cannot be written, as the directory is gone, ends it: nobody would know of it."""


def start(context: Context, record: VmRecord, backends: Sequence[Backend]) -> None:
    """Start the programs of a VM that is about to start; what an earlier start left is ended.

    Raises:
        VirtletError: one of them cannot be started.
    """
    if not backends:
        return
    vm = record.vm
    end(context, vm.id)
    directory = context.paths.backends(vm.id)
    make_private_directory(directory)
    score = record.resources.oom_score_adj
    groups = cgroups.find(vm.pod.config.cgroup_parent, vm.id)
    required = "required" if context.launches.cgroup_required else ""
    for backend in backends:
        own = directory / backend.name
        own.mkdir()
        (own / "loss").write_text(backend.loss)
        (own / "share").write_text(backend.share)
        before = [str(own / "pid"), required, str(score), str(backend.files)]
        documents = dict(backend.documents)
        confined = _confined(context, backend, own, documents)
        argv = [*before, *map(str, groups), "--", *_filled(confined, documents)]
        with ExitStack() as opened:
            listener = opened.enter_context(_listener(backend.socket, *context.node.user_of(vm)))
            files = [opened.enter_context(sealed_file(text)) for text in documents.values()]
            output = bounded_file(_WORDS)
            given = [listener.fileno(), *(file.fileno() for file in files)]
            pid = _spawn(argv, _mark(vm.id, backend.name), given, output.fileno())
        # A child keeps its process id until it is waited for.
        running = Running(vm.id, backend.name, backend.loss, os.pidfd_open(pid), output)
        context.backends.add(running, lambda gone: _lost(context, gone))
        deadline = time.monotonic() + _PATIENCE
        while _pid(own) is None:
            words = context.backends.words(vm.id)
            if words or time.monotonic() > deadline:
                raise FailedPrecondition(words or f"{backend.name} does not start")
            time.sleep(0.001)


def follow(context: Context, vm_id: str) -> None:
    """Follow the programs that an earlier manager started for a VM that runs."""
    for own in _directories(context, vm_id):
        running = Running(vm_id, own.name, _read(own / "loss"), _find(vm_id, own))
        context.backends.add(running, lambda gone: _lost(context, gone))


def end(context: Context, vm_id: str) -> None:
    """End all programs of a VM; idempotent.

    Raises:
        VirtletError: one does not end.
    """
    known = context.backends.forget(vm_id)
    for own in _directories(context, vm_id):
        pidfd = known.pop(own.name, None) or _find(vm_id, own)
        if pidfd is not None:
            try:
                end_process(pidfd, grace=GRACE)
                if not ended(pidfd):
                    raise VirtletError(
                        f"{own.name} of VM {vm_id} does not end: what it serves may be on a disk "
                        "or server that does not answer"
                    )
            finally:
                os.close(pidfd)
        remove_tree(own)
    for pidfd in known.values():
        os.close(pidfd)


def mounted_shares(context: Context, vm_id: str) -> Mapping[str, bool]:
    """Of the shares that programs serve: tag to whether the guest has it mounted now."""
    found = {}
    for own in _directories(context, vm_id):
        tag, pid = _read(own / "share"), _pid(own)
        if tag and pid is not None:
            # It serves in a child, which is in a sandbox.
            found[tag] = any(map(holds_root_twice, (pid, *children(pid))))
    return found


def set_score(context: Context, vm_id: str, score: int) -> None:
    """Have the kernel's OOM killer see the programs of a VM as it sees the emulator."""
    leaders = [pid for own in _directories(context, vm_id) if (pid := _pid(own)) is not None]
    known = sessions() if leaders else {}
    for leader in leaders:
        for pid in known.get(leader, ()):
            set_oom_score_adj(pid, score)


def _confined(
    context: Context, backend: Backend, own: Path, documents: dict[str, bytes]
) -> Sequence[str]:
    """The command line that runs a program with no more than it needs.

    Args:
        context: the manager.
        backend: the program.
        own: its directory.
        documents: its documents, which get another one.
    """
    confinement = Confinement(
        uid=backend.uid,
        gid=backend.gid,
        capabilities=backend.capabilities,
        network=backend.network,
        oom_score_adj=None,
    )
    if not backend.network:
        return confinement.wrap(backend.argv)
    user = context.new_user()
    if user is None:
        user = NOBODY
    else:
        # So it is taken as long as the directory is there.
        os.chown(own, -1, user)
    documents[_FILTER] = emulator_filter(0, alone=True)
    path = Path(f"{{document:{_FILTER}}}")
    confinement = evolve(confinement, uid=user, gid=user, filter=path)
    return ("unshare", "--ipc", "--", *confinement.wrap(backend.argv))


def _filled(argv: Sequence[str], documents: Iterable[str]) -> Iterator[str]:
    """Arguments with the numbers of the descriptors that they name."""
    for word in argv:
        for number, name in enumerate(documents, _SOCKET + 1):
            word = word.replace(f"{{document:{name}}}", f"/proc/self/fd/{number}")
        yield word.replace("{socket}", str(_SOCKET))


def _lost(context: Context, gone: "Running") -> None:
    record = context.store.vms.get(gone.vm_id)
    if record is not None and record.phase is VmPhase.RUNNING and not record.stopping:
        text = f"{gone.name} has ended ({gone.how}): {gone.loss}"
        tell_owner(context, record.vm, text, "DeviceLost")


def _directories(context: Context, vm_id: str) -> list[Path]:
    try:
        return sorted(context.paths.backends(vm_id).iterdir())
    except FileNotFoundError:
        return []


def _mark(vm_id: str, name: str) -> str:
    return f"{MARK}={vm_id}/{name}"


def _find(vm_id: str, own: Path) -> int | None:
    """A pidfd of a program that runs, which the caller owns."""
    pid, mark = _pid(own), os.fsencode(_mark(vm_id, own.name))
    return None if pid is None else open_started(pid, lambda variables: mark in variables)


def _pid(own: Path) -> int | None:
    text = _read(own / "pid").strip()
    return int(text) if text.isdecimal() else None


def _read(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""


def _listener(path: Path, uid: int, gid: int) -> socket.socket:
    """A socket that listens, and that one user alone can connect to."""
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        remove_file(path)
        listener.bind(str(path))
        path.chmod(0o600)
        os.chown(path, uid, gid)
        listener.listen(1)
    except OSError as error:
        listener.close()
        raise FailedPrecondition(f"cannot make the socket {path}: {error}") from None
    return listener


def _spawn(argv: Sequence[str], mark: str, given: Sequence[int], words: int) -> int:
    """Start a program.

    Args:
        argv: of `_RUN`.
        mark: the variable it is known by.
        given: the descriptors it gets, from number _SOCKET on.
        words: what it prints goes there.
    """
    variable, _, value = mark.partition("=")
    # None may have a number that another one is to get.
    free = _SOCKET + len(given)
    moved = [fcntl.fcntl(each, fcntl.F_DUPFD_CLOEXEC, free) for each in given]
    try:
        return _posix_spawn(argv, {"PATH": os.defpath, variable: value}, moved, words)
    finally:
        for each in moved:
            os.close(each)


def _posix_spawn(
    argv: Sequence[str], env: Mapping[str, str], given: Sequence[int], words: int
) -> int:
    return os.posix_spawn(
        "/bin/sh",
        ["sh", "-c", _RUN, "sh", *argv],
        env,
        file_actions=[
            # In this order, as the number of one may be what another one gets.
            (os.POSIX_SPAWN_DUP2, words, 2),
            *((os.POSIX_SPAWN_DUP2, each, to) for to, each in enumerate(given, _SOCKET)),
            (os.POSIX_SPAWN_DUP2, 2, 1),
            (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0),
        ],
        setsid=True,
        setsigdef=[signal.SIGPIPE],  # Python ignores it
    )
