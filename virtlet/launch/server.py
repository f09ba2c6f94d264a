"""The launch server: hands arguments and open descriptors to vmwrapper.

The two speak in records that each end with a NUL byte, which no argument, variable or path can
hold. Reading them takes no module that would cost vmwrapper its start-up time; it has its half.

The wrapper sends the VM's id and the token. The server answers with records whose first letter
says what they are, in this order, and closes; all descriptors come with the first byte.

    f NAME          a descriptor's name; the first descriptors are these
    m PATH          where a mount goes in the jail; the other descriptors are these
    w PATH          likewise, one that can be written
    l PATH          a link of the node that is one in the jail
    s HEX           the jail's filter of system calls
    a ARGUMENT      an argument to append
    e NAME=VALUE    a variable to set
    x PATH          the emulator to start instead of the wrapper's own
    .               the end: an answer without it was cut off
    ! TEXT          refused, and why; nothing else comes
"""

import hmac
import logging
import math
import os
import select
import socket
import struct
import threading
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from attrs import define, frozen

from virtlet.errors import FailedPrecondition
from virtlet.host.files import remove_file
from virtlet.host.processes import set_oom_score_adj
from virtlet.launch.jail import JailMounts, make_jail
from virtlet.launch.merge import MOST_FDS, Launch, merge_launch
from virtlet.model.launch import LaunchPart
from virtlet.threads import BackOff, Worker

log = logging.getLogger(__name__)


LONGEST_REQUEST = 1024
_END = b"\0"
_TIMEOUT = 10.0
"""Seconds a peer may take to ask, and to take the answer."""
_MOST_PEERS = 64
"""Peers served at a time of those that share a user: none may tie up the manager."""
_MOST_PEERS_OF_ONE = 4
"""The same at a socket of one VM, whose wrapper connects once."""
_TURN = 16
"""Connections that are taken at one socket before the others have their turn."""
_PAUSES = (0.1, 1.0)
"""Seconds until the next try, where the node has no descriptor left: at first, and at most."""


def join_cgroups(pid: int, cgroups: Iterable[Path], vm_id: str) -> Mapping[Path, str]:
    """Move a process into each cgroup: one per hierarchy on v1, one in all on v2.

    Returns:
        Those it could not join, with the reason; each is logged.
    """
    failed = {}
    for directory in cgroups:
        try:
            (directory / "cgroup.procs").write_text(f"{pid}\n")
        except OSError as error:
            failed[directory] = error.strerror or "refused"
            log.warning(
                "emulator not in its cgroup",
                extra={"vm": vm_id, "path": str(directory), "problem": error.strerror},
            )
    return failed


def parse_request(text: bytes) -> tuple[str, str] | None:
    """VM id and token, or None when it is not whole yet.

    Raises:
        ValueError: it will never make sense.
    """
    if len(text) > LONGEST_REQUEST or text.count(_END) > 2:
        raise ValueError("no request")
    if text.count(_END) < 2 or not text.endswith(_END):
        return None
    vm_id, token, _ = text.split(_END)
    return vm_id.decode("ascii"), token.decode("ascii")


def refusal(reason: str) -> bytes:
    """The answer to a wrapper that gets nothing."""
    return b"!" + reason.encode() + _END


def answer(launch: Launch, jail: JailMounts) -> bytes:
    """The answer that hands a launch over, and the jail if it has mounts."""
    records = [
        *(b"f" + item.name.encode() for item in launch.fds),
        *((b"w" if path in jail.writable else b"m") + os.fsencode(path) for path in jail.mounts),
        *(b"l" + os.fsencode(path) for path in jail.links),
        *([b"s" + jail.syscalls.hex().encode()] if jail.syscalls else []),
        *(b"a" + os.fsencode(argument) for argument in launch.arguments),
        *(b"e" + os.fsencode(f"{name}={value}") for name, value in launch.environment.items()),
        *([b"x" + os.fsencode(launch.emulator)] if launch.emulator else []),
        b".",
    ]
    return _END.join(records) + _END


@frozen
class LaunchDoor:
    """A socket for the launch of one VM, which only its emulator's user may connect to."""

    path: Path
    uid: int
    gid: int


@define(eq=False)
class _Listener:
    """A socket that is listened on."""

    socket: socket.socket
    uid: int
    peers: threading.BoundedSemaphore


@define
class _Armed:
    """A launch that waits for its wrapper, at one socket."""

    token: str
    launch: Launch | None
    """None once it is handed over."""
    door: LaunchDoor


class LaunchServer:
    """Serves vmwrapper on unix sockets: one for VMs whose emulators share a user, and one for each
    other VM while it starts, so that no emulator is in another's way.

    Args:
        path: of the socket of those that share a user.
        uid: that user.
        gid: its group.
        cgroup_required: whether an emulator that cannot join its cgroups gets no launch.
    """

    def __init__(self, path: Path, uid: int, gid: int, *, cgroup_required: bool = True) -> None:
        self.path = path
        self.cgroup_required = cgroup_required
        self._shared = LaunchDoor(path, uid, gid)
        self._lock = threading.Lock()
        self._armed: dict[str, _Armed] = {}
        self._listeners: dict[LaunchDoor, _Listener] = {}
        self._closed: list[_Listener] = []
        """Those that the worker is to close: it may wait for them."""
        self._worker = Worker("launch-server", self._accept)
        self._back_off = BackOff(*_PAUSES)

    def start(self) -> None:
        """Listen.

        Raises:
            FailedPrecondition: the socket cannot be made.
        """
        self._listen(self._shared, _MOST_PEERS)
        self._worker.start()

    def stop(self) -> None:
        """Listen no more, and drop every launch nobody fetched; idempotent."""
        self._worker.stop()
        with self._lock:
            armed, self._armed = self._armed, {}
            doors = list(self._listeners)
        for door in doors:
            self._shut(door)
        self._close_listeners()
        for item in armed.values():
            if item.launch is not None:
                item.launch.close()

    def _listen(self, door: LaunchDoor, most: int) -> None:
        """Make a socket, for so many peers at a time."""
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            remove_file(door.path)
            listener.bind(str(door.path))
            door.path.chmod(0o600)
            os.chown(door.path, door.uid, door.gid)
            listener.listen(128)
            listener.setblocking(False)
        except OSError as error:
            listener.close()
            raise FailedPrecondition(
                f"cannot make the launch socket {door.path}: {error}; see fdServerSocketPath"
            ) from None
        with self._lock:
            peers = threading.BoundedSemaphore(most)
            self._listeners[door] = _Listener(listener, door.uid, peers)

    def _shut(self, door: LaunchDoor) -> None:
        with self._lock:
            listener = self._listeners.pop(door, None)
            if listener is not None:
                self._closed.append(listener)
        if listener is not None:
            remove_file(door.path)

    def _close_listeners(self) -> None:
        with self._lock:
            closed, self._closed = self._closed, []
        for listener in closed:
            listener.socket.close()

    def arm(
        self,
        vm_id: str,
        token: str,
        parts: Sequence[tuple[str, LaunchPart]],
        door: LaunchDoor | None = None,
    ) -> None:
        """Hold a launch ready for the one wrapper that shows the token.

        Args:
            vm_id: whose launch.
            token: the one-time proof; used up by the first wrapper that shows it.
            parts: plugin name and its part. Their descriptors are the server's from now on, also
                when this raises.
            door: a socket for this launch alone, as long as it is armed; None is that of all.

        Raises:
            PluginError: the parts do not fit together.
            FailedPrecondition: the socket cannot be made.
        """
        launch = merge_launch(parts)
        self.disarm(vm_id)
        with self._lock:
            self._armed[vm_id] = _Armed(token, launch, door or self._shared)
        if door is not None:
            try:
                self._listen(door, _MOST_PEERS_OF_ONE)
            except BaseException:
                self.disarm(vm_id)
                raise
            self._worker.wake()

    def disarm(self, vm_id: str) -> bool:
        """Drop a launch, and close its descriptors; idempotent. Whether nobody had fetched it."""
        with self._lock:
            armed = self._armed.pop(vm_id, None)
        if armed is not None:
            if armed.launch is not None:
                armed.launch.close()
            if armed.door != self._shared:
                self._shut(armed.door)
                self._worker.wake()
        return armed is not None and armed.launch is not None

    def _accept(self) -> float:
        """Take the connections that wait, each on a thread of its own."""
        with self._lock:
            listeners = dict(self._listeners)
        self._close_listeners()
        self._worker.files = {item.socket.fileno(): select.POLLIN for item in listeners.values()}
        for door, listener in listeners.items():
            try:
                self._accept_at(door, listener)
            except OSError as error:
                log.error("launches wait", extra={"problem": error.strerror})
                self._worker.files = {}
                return self._back_off.pause()
        self._back_off.reset()
        return math.inf

    def _accept_at(self, door: LaunchDoor, listener: _Listener) -> None:
        """Take some of the connections that wait at a socket: others have their turn."""
        for _ in range(_TURN):
            if self._worker.stopping:
                return
            try:
                peer, _ = listener.socket.accept()
            except BlockingIOError:
                return
            if not listener.peers.acquire(blocking=False):
                peer.close()
                continue
            serve = threading.Thread(
                target=self._serve, args=(peer, door, listener), name="launch-peer", daemon=True
            )
            try:
                serve.start()
            except RuntimeError as error:
                peer.close()
                listener.peers.release()
                log.error("launch not handed over", extra={"problem": str(error)})

    def _serve(self, peer: socket.socket, door: LaunchDoor, listener: _Listener) -> None:
        try:
            with peer:
                peer.settimeout(_TIMEOUT)
                self._answer(peer, door)
        except OSError as error:
            log.warning("launch not handed over", extra={"problem": str(error)})
        finally:
            listener.peers.release()

    def _answer(self, peer: socket.socket, door: LaunchDoor) -> None:
        credentials = peer.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
        pid, uid, _ = struct.unpack("3i", credentials)
        vm_id, token = _request(peer)
        if uid != door.uid:
            peer.sendall(refusal(f"user {uid} is not the emulator's"))
            return
        launch = self._take(vm_id, token, door)
        if launch is None:
            log.warning("launch refused", extra={"vm": vm_id, "peer": pid})
            peer.sendall(
                refusal("no launch waits for it, or the token is not (or no longer) valid")
            )
            return
        try:
            failed = join_cgroups(pid, launch.cgroups, vm_id)
            if failed and self.cgroup_required:
                problems = ", ".join(f"{path} ({why})" for path, why in failed.items())
                peer.sendall(
                    refusal(
                        f"it cannot join its cgroups: {problems}; let the manager write there, or "
                        "set vmCgroup to optional"
                    )
                )
                return
            score = launch.oom_score_adj
            if score is not None and not set_oom_score_adj(pid, score):
                log.info("oom_score_adj not set", extra={"vm": vm_id})
            try:
                jail = JailMounts()
                if launch.jail:
                    jail = make_jail(
                        launch.visible, pid, io_uring=launch.io_uring, alone=launch.alone
                    )
            except FailedPrecondition as error:
                peer.sendall(refusal(str(error)))
                return
            try:
                text = answer(launch, jail)
                fds = [*(item.fd for item in launch.fds), *jail.mounts.values()]
                if len(fds) > MOST_FDS:
                    peer.sendall(
                        refusal(
                            f"the emulator needs {len(fds)} descriptors and places of the node, "
                            f"more than {MOST_FDS}: give the VM fewer volumes and NICs"
                        )
                    )
                    return
                sent = socket.send_fds(peer, [text], fds) if fds else 0
                peer.sendall(text[sent:])
            finally:
                jail.close()
        finally:
            launch.close()

    def _take(self, vm_id: str, token: str, door: LaunchDoor) -> Launch | None:
        """Use up the token: nobody gets the launch a second time."""
        with self._lock:
            armed = self._armed.get(vm_id)
            if armed is None or armed.door != door:
                return None
            if not hmac.compare_digest(armed.token.encode(), token.encode()):
                return None
            launch, armed.launch = armed.launch, None
            return launch


def _request(peer: socket.socket) -> tuple[str, str]:
    """What a wrapper asks for.

    Raises:
        OSError: it asks nothing that makes sense.
    """
    text = b""
    while chunk := peer.recv(LONGEST_REQUEST):
        text += chunk
        try:
            request = parse_request(text)
        except ValueError:
            break
        if request is not None:
            return request
    raise OSError("the peer's request makes no sense")
