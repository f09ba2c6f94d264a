"""A plugin that is a module."""

from virtlet import hookimpl

VIRTLET_HOOK_API = 1


@hookimpl
def virtlet_event(event: object) -> None:
    """Hear of everything and do nothing."""
