"""The errors a plugin or the core may raise; each maps to one gRPC status.

A message says what failed, on what, and what to do about it. It never holds a secret,
user-data or a whole document, because it reaches logs and the kubelet's events.
"""

from typing import ClassVar


class VirtletError(Exception):
    """Base of all our errors: something inside went wrong (INTERNAL)."""

    status: ClassVar[str] = "INTERNAL"
    """Name of the gRPC status code the error becomes."""
    repeated: bool = False
    """The log has it already; the caller repeats its call."""


class InvalidArgument(VirtletError):
    """The request itself is wrong, whatever the state of the node: do not retry it as it is."""

    status = "INVALID_ARGUMENT"


class NotFound(VirtletError):
    """The pod, VM or image that the request names is not there."""

    status = "NOT_FOUND"


class AlreadyExists(VirtletError):
    """What the request would make is there already, and differs."""

    status = "ALREADY_EXISTS"


class FailedPrecondition(VirtletError):
    """The state of the node or the object forbids the request; change that state first."""

    status = "FAILED_PRECONDITION"


class PodBroken(FailedPrecondition):
    """The pod cannot serve a VM any more, whatever is tried again.

    The core answers it, at a VM's start, by stopping the pod; the kubelet then runs it again.
    """


class ResourceExhausted(VirtletError):
    """A limit (disk space, quota, number of sessions, size) is reached."""

    status = "RESOURCE_EXHAUSTED"


class Unavailable(VirtletError):
    """Something the call needs (hypervisor, registry, network plugin) is away; retrying helps."""

    status = "UNAVAILABLE"


class GuestNotReady(Unavailable):
    """The guest has not booted so far that it can serve the call.

    The message is for the pod's owner too, so it quotes nothing that the guest says.
    """


class DeadlineExceeded(VirtletError):
    """The work took longer than the caller allows."""

    status = "DEADLINE_EXCEEDED"


class PermissionDenied(VirtletError):
    """The other side refused our credentials, or the node's policy refuses the request."""

    status = "PERMISSION_DENIED"


class Unimplemented(VirtletError):
    """Nobody here serves this call or feature."""

    status = "UNIMPLEMENTED"


class PluginError(VirtletError):
    """A plugin broke its contract: it raised, returned a wrong type or clashed with another.

    Args:
        plugin: name of the plugin at fault, or both names for a clash.
        hook: the hook that was being called.
        problem: what happened.
        remedy: what the node's operator can do about it.
    """

    def __init__(self, plugin: str, hook: str, problem: str, remedy: str) -> None:
        self.plugin = plugin
        self.hook = hook
        self.problem = problem
        self.remedy = remedy
        super().__init__(f"plugin {plugin!r}, hook {hook}: {problem}; {remedy}")


class UndoIncomplete(VirtletError):
    """Some effects of a pod or VM could not be undone yet; they are kept and retried."""

    status = "UNAVAILABLE"
