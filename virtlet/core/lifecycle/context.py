"""What the steps of the lifecycle work with."""

import threading
import time
from collections.abc import Callable, Hashable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

from attrs import define, field

from virtlet.core.disk_reserve import DiskReserve
from virtlet.core.hooks.facade import Hooks
from virtlet.core.hooks.profiles import Profiles
from virtlet.core.lifecycle.backend_watch import BackendWatch
from virtlet.core.lifecycle.hypervisors import Hypervisors
from virtlet.core.lifecycle.journal import Journal
from virtlet.core.lifecycle.template_store import Templates
from virtlet.core.paths import Paths
from virtlet.core.store.records import PodRecord
from virtlet.core.store.store import Store
from virtlet.core.vm_consoles import VmConsoles
from virtlet.errors import Unavailable
from virtlet.images.pull import Images
from virtlet.launch.server import LaunchDoor
from virtlet.model.event import Event
from virtlet.model.launch import LaunchPart
from virtlet.model.node import Node

_LOOK = 0.5
"""Seconds between two looks at what the holder of a lock does."""


@define(eq=False)
class _Lock:
    """The lock of one key."""

    lock: threading.RLock = field(factory=threading.RLock)
    users: int = 0
    """Threads that hold it or wait for it."""
    holder: int = 0
    """The thread that holds it, or held it last."""


class KeyedLocks:
    """Serialises work on one pod while work on others goes on.

    Args:
        hanging: says what a thread hangs in, for messages; "" while it does not.
        waited: called with the seconds that somebody waited for others.
    """

    def __init__(
        self,
        hanging: Callable[[int], str] = lambda thread: "",
        waited: Callable[[float], None] = lambda seconds: None,
    ) -> None:
        self._hanging = hanging
        self._waited = waited
        self._guard = threading.Lock()
        self._locks: dict[Hashable, _Lock] = {}

    @contextmanager
    def __call__(self, key: Hashable) -> Iterator[None]:
        """Hold the lock of a key; the same thread may take it again.

        Raises:
            Unavailable: the thread that holds it hangs in a plugin.
        """
        with self._guard:
            entry = self._locks.setdefault(key, _Lock())
            entry.users += 1
        try:
            self._acquire(entry)
            try:
                yield
            finally:
                entry.lock.release()
        finally:
            with self._guard:
                entry.users -= 1
                if not entry.users:
                    del self._locks[key]

    def _acquire(self, entry: _Lock) -> None:
        began = time.perf_counter()
        try:
            while not entry.lock.acquire(timeout=_LOOK):
                if why := self._hanging(entry.holder):
                    raise Unavailable(f"earlier work on this pod is not done: {why}")
        finally:
            self._waited(time.perf_counter() - began)
        entry.holder = threading.get_ident()


class Launches(Protocol):
    """The launch server, as the lifecycle needs it."""

    @property
    def path(self) -> Path:
        """Where vmwrapper finds it."""

    @property
    def cgroup_required(self) -> bool:
        """Whether a VM whose emulator cannot join a cgroup does not start."""

    def arm(
        self,
        vm_id: str,
        token: str,
        parts: list[tuple[str, LaunchPart]],
        door: LaunchDoor | None = None,
    ) -> None:
        """Hold a launch ready for the wrapper that shows the token, at a socket of the VM's own or
        the one of all; takes the descriptors."""

    def disarm(self, vm_id: str) -> bool:
        """Drop a launch, and close its descriptors; idempotent. Whether nobody had fetched it."""


Listener = Callable[[Event, PodRecord | None], None]
"""A part of the core that hears of changes; with a pod's removal comes its last record."""


class Events(Protocol):
    """Where committed changes are told."""

    def listen(self, listener: Listener) -> None:
        """Have a part of the core called at every event, in order; it must be quick."""

    def tell(self, event: Event, handler: str, removed: PodRecord | None = None) -> None:
        """Tell the observers of a handler; returns at once."""


@define
class Context:
    """The manager's parts."""

    node: Node
    store: Store
    hooks: Hooks
    profiles: Profiles
    hypervisors: Hypervisors
    images: Images
    launches: Launches
    consoles: VmConsoles
    events: Events
    reserve: DiskReserve
    journal: Journal = field(init=False)
    templates: Templates = field(factory=Templates)
    backends: BackendWatch = field(factory=BackendWatch)
    locks: KeyedLocks = field(factory=KeyedLocks)
    new_user: Callable[[], int | None] = lambda: None
    """A user and group for a new VM; None for the node's."""
    order: threading.RLock = field(factory=threading.RLock)
    """Held while a change is committed and told of, so that events keep the order of changes."""
    changed: threading.Condition = field(factory=threading.Condition)
    """Notified whenever a VM has exited."""
    opened_shares: dict[str, Mapping[str, bool]] = field(factory=dict)
    """Of VMs: tag to whether the guest has opened it, as far as the node can tell."""
    share_watches: dict[str, object] = field(factory=dict)
    """Of VMs: the mark of who looks at the shares; after a reboot of the guest it is another."""
    checkpointed: set[str] = field(factory=set)
    """VMs of which a checkpoint is being taken."""
    rebooted: set[str] = field(factory=set)
    """VMs whose guests have reset themselves, until somebody looks after their files."""
    resets: dict[str, tuple[int, ...]] = field(factory=dict)
    """Of VMs whose guests have reset themselves: when, in nanoseconds since the epoch."""
    answered: dict[str, None] = field(factory=dict)
    """VMs whose guests have answered since this manager is there."""
    since: int = field(factory=time.time_ns)
    """Nanoseconds since the epoch: when this manager began."""
    needs_restart: Callable[[], Mapping[str, str]] = dict
    """Settings that a VirtletConfigMapping has changed since the start, and by what."""
    closing: threading.Event = field(factory=threading.Event)
    """Set when the manager ends: nothing is tried again."""

    @property
    def paths(self) -> Paths:
        """Where everything is on disk."""
        return Paths(self.node.data_dir)
