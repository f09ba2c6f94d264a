"""How a call is declared: its name, how it is answered, by whom; and the calls not served."""

import enum
from collections.abc import Callable
from typing import Any

from attrs import frozen

_CHECKPOINT = "a VM's checkpoint is not supported"

UNSERVED: dict[str, str] = {
    "RuntimeService.CheckpointContainer": _CHECKPOINT,
    "RuntimeService.CheckpointPod": _CHECKPOINT,
    "RuntimeService.RestorePod": _CHECKPOINT,
}
"""`Service.Method` to why it is not served."""


class Kind(enum.Enum):
    """Where a call is answered, so that no reader ever waits for a worker."""

    READ = "read"
    """On the event loop, from memory: List*, *Status. Takes microseconds."""
    LOOK = "look"
    """On a thread kept for short looks at the node's file systems."""
    MEASURE = "measure"
    """On a thread kept for statistics, which a hypervisor that hangs holds up."""
    STATUS = "status"
    """On a thread kept for Status, which tells of what holds up the others."""
    STREAM = "stream"
    """On the event loop, as an asynchronous iterator of replies."""
    WORK = "work"
    """On a worker thread: whatever changes the node or waits for a guest."""


@frozen
class Caller:
    """Who waits for the reply to an attended call; may be asked on any thread."""

    waits: Callable[[], bool]
    """Whether it still does: to be asked now and then by work that is worth nothing without it."""
    time_left: Callable[[], float | None]
    """Seconds that it still will; None for no limit."""


@frozen
class Call:
    """One served RPC."""

    name: str
    """`Service.Method`, as in the definition."""
    kind: Kind
    serve: Callable[..., Any]
    """Request message to reply message, or for STREAM to an asynchronous iterator of them; raises
    VirtletError."""
    attended: bool = False
    """Whether `serve` takes a second argument, the `Caller`."""
    end: Callable[[], None] = lambda: None
    """For a STREAM without an end of its own: ends all of them, now and later, on the event loop;
    called when the server stops."""
