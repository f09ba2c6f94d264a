"""Attaching to consoles: one thread serves all of them, and only while someone is attached."""

import logging
import math
import select
import time
from collections.abc import Callable
from functools import partial
from operator import itemgetter

from attrs import define

from virtlet.console.console_files import ConsoleFiles, Watch
from virtlet.console.live_console import KEYS_LIMIT, Attachment, EndReason, LiveConsole, Reader
from virtlet.threads import Worker

DETACH_KEY = b"\x1d"
"""Ctrl-], as in telnet and virsh."""
TICK = 0.005
"""Seconds between two looks at a console that prints; short, as someone waits for an echo."""
RETRY = 1.0
"""Seconds between two looks where the system has no watch left."""
BACKLOGS_LIMIT = 64 * 1024 * 1024
"""Bytes of output that all readers of all consoles together may be behind."""
LINGER = 5.0
"""Seconds for a guest to take the last keys, and for readers to take the last output."""

logger = logging.getLogger(__name__)


@define(eq=False)
class _Session:
    """A console that someone is attached to, or was until just now."""

    console: LiveConsole
    wake_at: float = 0.0
    """When to look at the output next (monotonic seconds) if no watch fires before."""
    gone: bool = False
    """Whether the emulator has exited."""
    end: int = 0
    """Size of the output when it did; what comes later is not the guest's."""
    leave_at: float = math.inf
    """When to close it, whatever is still to be passed on."""

    @property
    def vm_id(self) -> str:
        return self.console.files.vm_id

    @property
    def over(self) -> bool:
        """Whether nothing is left to do."""
        return not self.console.readers and (self.gone or not self.console.typed)


class ConsoleHub:
    """Attaches people to the consoles of running VMs. Methods may be called on any thread.

    Every reader gets all output from the moment it attaches; one that is too slow is dropped,
    the others and the guest do not notice. Keys of all readers reach the guest in the order
    they came in. Logs are written independently of this.

    Args:
        behind: bytes of output that all readers of all consoles together may be behind.
    """

    def __init__(self, behind: int = BACKLOGS_LIMIT) -> None:
        self._behind = behind
        self._sessions: dict[str, _Session] = {}
        self._worker = Worker("the console hub", self._turn)
        self._keyboards: dict[int, _Session] = {}
        self._sockets: dict[int, tuple[_Session, Reader]] = {}
        self._watch: Watch | None = None

    def start(self) -> None:
        """Start the thread. Raises OSError when the system has no inotify instance left."""
        self._watch = Watch()
        self._worker.start()

    def stop(self) -> None:
        """End all attachments. Idempotent."""
        self._worker.stop()
        for session in list(self._sessions.values()):
            self._close(session, EndReason.STOPPED)
        if self._watch is not None:
            self._watch.close()
            self._watch = None

    def attach(self, files: ConsoleFiles, *, detach_key: bytes = DETACH_KEY) -> Attachment:
        """Attach to a console.

        Args:
            files: whose console.
            detach_key: byte that ends the attachment when typed, and does not reach the guest;
                empty for none.

        Raises:
            FailedPrecondition: the VM does not run.
            ResourceExhausted: too many clients are attached to it.
            Unavailable: the console's files cannot be opened, or the hub is not running.
        """
        return self._worker.call(lambda: self._attach(files, detach_key))

    def _attach(self, files: ConsoleFiles, detach_key: bytes) -> Attachment:
        session = self._sessions.get(files.vm_id)
        if session is None or session.gone:
            fresh = _Session(LiveConsole(files))
            if session is not None:
                self._close(session)
            session = self._sessions[files.vm_id] = fresh
        session.leave_at = math.inf
        return session.console.attach(detach_key)

    def _turn(self) -> float:
        """Pass on what has come in from readers and guests; returns when to look again."""
        assert self._watch is not None
        for descriptor, events in self._worker.ready:
            if descriptor in self._keyboards:
                session = self._keyboards[descriptor]
                self._guarded(session, partial(self._on_keyboard, session, events))
            elif descriptor in self._sockets:
                session, reader = self._sockets[descriptor]
                self._guarded(session, partial(self._on_reader, session, reader, events))
        now = time.monotonic()
        for vm_id in self._watch.fired():
            fired = self._sessions.get(vm_id)
            if fired is not None and not fired.gone:
                fired.wake_at = now
        for session in list(self._sessions.values()):
            self._guarded(session, partial(self._attend, session, now))
        return self._wait_for()

    def _guarded(self, session: _Session, action: Callable[[], None]) -> None:
        """Do something with one console, if it is still open; an error ends that one alone."""
        if self._sessions.get(session.vm_id) is not session:
            return
        try:
            action()
        except Exception:
            logger.exception("console of VM %s: attached readers are dropped", session.vm_id)
            self._close(session, EndReason.FAILED)

    def _attend(self, session: _Session, now: float) -> None:
        """Pass output on when it is time, and close what nobody needs any more."""
        if session.wake_at <= now:
            self._pump(session, now)
        if session.gone and session.wake_at == math.inf:
            session.console.release()
        if not session.console.readers:
            session.leave_at = min(session.leave_at, now + LINGER)
        if session.over or session.leave_at <= now:
            self._close(session)

    def _wait_for(self) -> float:
        """Say which files to wait for; returns the seconds to wait."""
        assert self._watch is not None
        files = {self._watch.fileno(): select.POLLIN}
        self._keyboards, self._sockets = {}, {}
        wake_at = math.inf
        for session in self._sessions.values():
            console = session.console
            wake_at = min(wake_at, session.wake_at, session.leave_at)
            if not session.gone:
                self._keyboards[console.keyboard] = session
                files[console.keyboard] = select.POLLOUT if console.typed else 0
            for reader in console.readers:
                wanted = self._wanted(session, reader)
                if wanted:
                    self._sockets[reader.socket.fileno()] = session, reader
                    files[reader.socket.fileno()] = wanted
        self._worker.files = files
        return wake_at - time.monotonic()

    @staticmethod
    def _wanted(session: _Session, reader: Reader) -> int:
        """What to wait for on a reader's socket; 0 is to leave it out, hang-ups included."""
        wanted = select.POLLOUT if reader.backlog else 0
        if reader.typing and len(session.console.typed) >= KEYS_LIMIT:
            return wanted
        if reader.typing and not session.gone:
            wanted |= select.POLLIN
        return wanted | select.POLLHUP

    def _on_keyboard(self, session: _Session, events: int) -> None:
        if not events & select.POLLERR:
            session.console.type()
            return
        session.gone = True
        session.end = session.console.raw.size()
        session.wake_at = 0.0
        session.leave_at = time.monotonic() + LINGER

    def _on_reader(self, session: _Session, reader: Reader, events: int) -> None:
        console = session.console
        if reader not in console.readers:
            return
        if events & select.POLLHUP:
            reader.backlog.clear()
        elif events & select.POLLOUT:
            reader.drain()
        if events & select.POLLIN:
            console.take_keys(reader)
        elif events & (select.POLLHUP | select.POLLERR):
            console.drop(reader, EndReason.DETACHED)

    def _pump(self, session: _Session, now: float) -> None:
        """Pass output on, and say when to look again."""
        console = session.console
        before = console.offset
        more = console.pump()
        self._shed()
        if session.gone:
            session.wake_at = 0.0 if more and console.offset < session.end else math.inf
        elif more:
            session.wake_at = 0.0
        elif console.offset > before:
            session.wake_at = now + TICK
        else:
            session.wake_at = self._arm(console)

    def _shed(self) -> None:
        """Drop those who are furthest behind while all of them together are too far."""
        kept = [
            (len(reader.backlog), session.console, reader)
            for session in self._sessions.values()
            for reader in session.console.readers
            if reader.backlog
        ]
        kept.sort(key=itemgetter(0))
        left = sum(size for size, *_ in kept)
        while left > self._behind:
            size, console, reader = kept.pop()
            console.drop(reader, EndReason.SLOW)
            left -= size

    def _arm(self, console: LiveConsole) -> float:
        """Have the watch tell of the next output; returns when to look anyway."""
        assert self._watch is not None
        try:
            self._watch.arm_file(console.files.vm_id, console.raw.descriptor)
        except OSError:
            return time.monotonic() + RETRY
        return math.inf if console.raw.size() == console.offset else 0.0

    def _close(self, session: _Session, reason: EndReason = EndReason.GONE) -> None:
        assert self._watch is not None
        self._watch.forget(session.vm_id)
        session.console.close(reason)
        del self._sessions[session.vm_id]
