"""What the steps of the lifecycle work with."""

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

from attrs import define, field

from virtlet.core.disk_reserve import DiskReserve
from virtlet.core.hooks.facade import Hooks
from virtlet.core.hooks.profiles import Profiles
from virtlet.core.lifecycle.hypervisors import Hypervisors
from virtlet.core.lifecycle.journal import Journal
from virtlet.core.lifecycle.locks import KeyedLocks
from virtlet.core.store.records import PodRecord
from virtlet.core.store.store import Store
from virtlet.core.vm_consoles import VmConsoles
from virtlet.images.pull import Images
from virtlet.model.event import Event
from virtlet.model.launch import LaunchPart
from virtlet.model.node import Node


class Launches(Protocol):
    """The launch server, as the lifecycle needs it."""

    @property
    def path(self) -> Path:
        """Where vmwrapper finds it."""

    def arm(self, vm_id: str, token: str, parts: list[tuple[str, LaunchPart]]) -> None:
        """Hold a launch ready for the wrapper that shows the token; takes the descriptors."""

    def disarm(self, vm_id: str) -> None:
        """Drop a launch nobody fetched, and close its descriptors; idempotent."""


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
    room: DiskReserve
    journal: Journal = field(init=False)
    locks: KeyedLocks = field(factory=KeyedLocks)
    order: threading.RLock = field(factory=threading.RLock)
    """Held while a change is committed and told of, so that events keep the order of changes."""
    changed: threading.Condition = field(factory=threading.Condition)
    """Notified whenever a VM has exited."""
    closing: threading.Event = field(factory=threading.Event)
    """Set when the manager ends: nothing is tried again."""

    def vm_runtime_directory(self, vm_id: str) -> Path:
        """Where the VM's sockets are; the path is short because theirs have to be."""
        return self.node.run_dir / "vm" / vm_id[:12]
