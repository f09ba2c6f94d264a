"""Images by the names that pods use, through the plugins of a handler."""

import time
from collections.abc import Callable

from virtlet.core.images.pull import always
from virtlet.core.images.route import Route
from virtlet.core.lifecycle.context import Context
from virtlet.model.event import Event, EventKind
from virtlet.model.image import Credentials, Image
from virtlet.model.pod import Profile


def find(context: Context, name: str, handler: str = "") -> Image | None:
    """The image of a name or id, or None.

    Raises:
        InvalidArgument: the name is malformed.
    """
    return context.images.find(name, route(context, context.profiles.get(handler)))


def pull(
    context: Context,
    name: str,
    credentials: Credentials,
    handler: str = "",
    wanted: Callable[[], bool] = always,
) -> Image:
    """Bring an image into the store; see `Images.pull`."""
    through = route(context, context.profiles.get(handler))
    image = context.images.pull(name, through, credentials, wanted)
    context.events.tell(
        Event(kind=EventKind.IMAGE_PULLED, subject=image.id, pod_id="", at=time.time_ns()), handler
    )
    return image


def remove(context: Context, name: str, handler: str = "") -> None:
    """Take an image out of the store; its file stays while a VM uses it."""
    image = find(context, name, handler)
    if image is None:
        return
    context.images.store.remove(image.id)
    context.events.tell(
        Event(kind=EventKind.IMAGE_REMOVED, subject=image.id, pod_id="", at=time.time_ns()), handler
    )


def route(context: Context, profile: Profile) -> Route:
    """How a profile's plugins find and fetch images."""
    hooks = context.hooks
    return Route(
        scope=",".join(profile.plugins),
        resolve=lambda name: hooks.resolve_image(profile, name),
        fetch=lambda source, credentials, staging: hooks.fetch_image(
            profile, source, credentials, staging
        ),
    )
