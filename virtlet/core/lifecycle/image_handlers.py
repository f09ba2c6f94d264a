"""Images by the names that pods use, through the plugins of a handler."""

import time
from collections.abc import Callable

from virtlet.core.hooks.facade import Hooks
from virtlet.core.hooks.profiles import Profiles
from virtlet.core.lifecycle.context import Context
from virtlet.images.image_store import Recognize
from virtlet.images.pull import TELL_AFTER, ImageRoute, always
from virtlet.model.event import Event, EventKind
from virtlet.model.image import Credentials, Image
from virtlet.model.pod import PodMetadata, Profile
from virtlet.model.reference import Reference, parse_reference


def pull(
    context: Context,
    reference: Reference,
    credentials: Credentials,
    handler: str = "",
    wanted: Callable[[], bool] = always,
    pod: PodMetadata | None = None,
    tell_after: float = TELL_AFTER,
) -> Image:
    """Bring an image into the store; see `Images.pull`.

    Args:
        context: the manager.
        reference: what a pod calls it.
        credentials: for the image's server.
        handler: whom the request says it is for; a kubelet says so behind a feature gate alone.
        wanted: whether the caller still waits.
        pod: the pod it is for, where the request names one.
        tell_after: seconds between two events of how far it is.
    """
    profile = _profile(context, reference, handler, pod)
    if pod is not None:
        wanted = _telling(context, reference, profile.handler, wanted, pod, tell_after)
    image = context.images.pull(reference, route(context, profile), credentials, wanted)
    _tell(context, EventKind.IMAGE_PULLED, image, profile.handler, pod)
    return image


def _telling(
    context: Context,
    reference: Reference,
    handler: str,
    wanted: Callable[[], bool],
    pod: PodMetadata,
    tell_after: float,
) -> Callable[[], bool]:
    """As `wanted`, which is asked while the caller waits; tells now and then how far the pull is.

    A pull of two pods is one, of which each of them hears.
    """
    told = time.monotonic()

    def asked() -> bool:
        nonlocal told
        if time.monotonic() - told >= tell_after:
            told = time.monotonic()
            for pull in context.images.progress():
                if pull.reference == reference:
                    event = Event(
                        kind=EventKind.IMAGE_PROGRESS,
                        subject=str(reference),
                        at=time.time_ns(),
                        pod=pod,
                        message=f"{pull.size >> 20} MiB"
                        + (f" of {pull.total >> 20} MiB" if pull.total else ""),
                    )
                    context.events.tell(event, handler)
        return wanted()

    return asked


def remove(context: Context, reference: Reference) -> None:
    """Take an image out of the store, by its id, the beginning of its id or a name it was pulled
    by; its file stays while a VM uses it.

    Raises:
        FailedPrecondition: it is the beginning of several images' ids.
    """
    store = context.images.store
    image = store.find(reference)
    if image is None:
        return
    if store.get(reference) is None:
        reference = parse_reference(image.id)
    handler = store.handler(reference)
    if store.remove(reference):
        _tell(context, EventKind.IMAGE_REMOVED, image, handler or "")


def _tell(
    context: Context, kind: EventKind, image: Image, handler: str, pod: PodMetadata | None = None
) -> None:
    event = Event(kind=kind, subject=image.id, pod_id="", at=time.time_ns(), pod=pod)
    context.events.tell(event, handler)


def _profile(
    context: Context, reference: Reference, handler: str, pod: PodMetadata | None
) -> Profile:
    """Whose plugins find and fetch an image; docs/images.md has the order."""
    if handler:
        return context.profiles.get(handler)
    if pod is not None:
        ours = [
            record.pod
            for record in context.store.pods.values()
            if (known := record.pod.config.metadata).uid == pod.uid
            and (known.namespace, known.name) == (pod.namespace, pod.name)
        ]
        if ours:
            return max(ours, key=lambda known: known.created_at).profile
    before = context.images.store.handler(reference)
    usable = {profile.handler: profile for profile in context.profiles.all}
    if before is not None and before in usable:
        return usable[before]
    return _by_name(context, reference)


def _by_name(context: Context, reference: Reference) -> Profile:
    """The first handler with a plugin of its own that knows a name, else the default one."""
    profiles = context.profiles.all
    everyones = {plugin for p in profiles if not p.handler for plugin in p.plugins}
    for profile in profiles:
        for plugin in context.hooks.order("virtlet_resolve_image", profile):
            if plugin not in everyones and context.hooks.knows_image(plugin, profile, reference):
                return profile
    return context.profiles.get("")


def route(context: Context, profile: Profile) -> ImageRoute:
    """How a profile's plugins find, fetch and recognise images."""
    hooks = context.hooks
    return ImageRoute(
        scope=",".join(profile.plugins),
        resolve=lambda reference: hooks.resolve_image(profile, reference),
        fetch=lambda source, credentials, staging: hooks.fetch_image(
            profile, source, credentials, staging
        ),
        recognize=lambda name, file: hooks.recognize_image(profile, name, file),
        unpack=lambda name, head: hooks.unpack_image(profile, name, head),
        handler=profile.handler,
    )


def recognize_by_anyone(hooks: Hooks, profiles: Profiles) -> Recognize:
    """How the plugins of all handlers recognise what nobody knows any more for whom it was."""
    active = dict.fromkeys(plugin for profile in profiles.all for plugin in profile.plugins)
    everyone = Profile(handler="", plugins=tuple(active))
    return lambda name, file: hooks.recognize_image(everyone, name, file)
