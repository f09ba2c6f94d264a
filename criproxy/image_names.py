"""Image names of a runtime that is not the primary: `NAME/IMAGE` outside, `IMAGE` inside.

Every function changes a message in place and says whether it changed anything, so that a message
without such a name passes byte for byte.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any

#: An image id, the hash of its configuration: the same inside and outside, in any runtime.
_IMAGE_ID = re.compile(r"(sha256:)?[0-9a-f]{64}")
_BEGINNING = re.compile(r"(sha256:)?[0-9a-f]{1,64}")
_DIGEST_AT_END = re.compile(r"@sha(?:256|384|512):[0-9a-f]{64,128}\Z")
_TO_SCHEME = re.compile(r"[^?#@]*?://")
_AUTHORITY = re.compile(r"([^/?#]*)(.*)", re.DOTALL)
_PARAMETERS = re.compile(r"[?#].*", re.DOTALL)

Change = Callable[[str], str]


def is_image_id(name: str) -> bool:
    """Whether this names an image by its id, in any runtime."""
    return _IMAGE_ID.fullmatch(name) is not None


def begins_image_id(name: str) -> bool:
    """Whether this may be an image id or the beginning of one; it may also be a name."""
    return _BEGINNING.fullmatch(name) is not None


def digest_of(name: str) -> str:
    """The digest that a name ends with, as in NAME@sha256:…; empty without one."""
    return name.partition("@")[2]


def shown_name(name: str) -> str:
    """An image name for logs and messages: without userinfo, query and fragment.

    A client may write a whole address in the place of a name, with a password or a token in it.
    """
    digest = _DIGEST_AT_END.search(name)
    end = digest[0] if digest else ""
    start = name.removesuffix(end)
    scheme = _TO_SCHEME.match(start)
    before = scheme[0] if scheme else ""
    authority, rest = _AUTHORITY.fullmatch(start, len(before)).groups()  # type: ignore[union-attr]
    if "@" in rest:
        # A password may contain a character that ends the authority.
        return f"{before}…{end}"
    return before + authority.rpartition("@")[2] + _PARAMETERS.sub("", rest) + end


def inside(prefix: str) -> Change:
    """Return a function that removes the prefix."""
    return lambda name: name.removeprefix(prefix)


def outside(prefix: str) -> Change:
    """Return a function that adds the prefix, except to ids, empty names and names that have it."""

    def change(name: str) -> str:
        if not name or is_image_id(name) or name.startswith(prefix):
            return name
        return prefix + name

    return change


def in_request(message: Any, change: Change) -> bool:
    """Change the names in a request."""
    name = type(message).__name__
    if name in ("PullImageRequest", "ImageStatusRequest", "RemoveImageRequest"):
        return _spec(message, "image", change)
    if name == "ListImagesRequest" or name == "StreamImagesRequest":
        return message.HasField("filter") and _spec(message.filter, "image", change)
    if name == "CreateContainerRequest":
        return _config(message.config, change)
    if name == "RestorePodRequest":
        return _any([_config(config, change) for config in message.container_configs])
    return False


def in_response(message: Any, change: Change) -> bool:
    """Change the names in an answer's message."""
    handler = _RESPONSES.get(type(message).__name__)
    return handler is not None and handler(message, change)


def has_names(response_name: str) -> bool:
    """Whether answers of this type can have image names at all."""
    return response_name in _RESPONSES


def _any(changes: Iterable[bool]) -> bool:
    # A list, not any() over a generator: every part must be changed.
    return any(list(changes))


def _text(message: Any, field: str, change: Change) -> bool:
    old = getattr(message, field)
    new = change(old)
    if new == old:
        return False
    setattr(message, field, new)
    return True


def _texts(names: Any, change: Change) -> bool:
    new = [change(name) for name in names]
    if new == list(names):
        return False
    names[:] = new
    return True


def _spec(message: Any, field: str, change: Change) -> bool:
    if not message.HasField(field):
        return False
    spec = getattr(message, field)
    return _any(
        _text(spec, name, change) for name in ("image", "user_specified_image", "image_ref")
    )


def _mounts(mounts: Any, change: Change) -> bool:
    return _any(_spec(mount, "image", change) for mount in mounts)


def _config(config: Any, change: Change) -> bool:
    return _any([_spec(config, "image", change), _mounts(config.mounts, change)])


def _container(container: Any, change: Change) -> bool:
    return _any([_spec(container, "image", change), _text(container, "image_ref", change)])


def _status(status: Any, change: Change) -> bool:
    return _any([_container(status, change), _mounts(status.mounts, change)])


def _image(image: Any, change: Change) -> bool:
    return _any(
        [
            _texts(image.repo_tags, change),
            _texts(image.repo_digests, change),
            _spec(image, "spec", change),
        ]
    )


def _each(field: str, handler: Callable[[Any, Change], bool]) -> Callable[[Any, Change], bool]:
    return lambda message, change: _any(handler(m, change) for m in getattr(message, field))


_RESPONSES: Mapping[str, Callable[[Any, Change], bool]] = {
    "ListContainersResponse": _each("containers", _container),
    "StreamContainersResponse": _each("containers", _container),
    "ContainerStatusResponse": lambda m, change: m.HasField("status") and _status(m.status, change),
    "PodSandboxStatusResponse": _each("containers_statuses", _status),
    "ContainerEventResponse": _each("containers_statuses", _status),
    "ListImagesResponse": _each("images", _image),
    "StreamImagesResponse": _each("images", _image),
    "ImageStatusResponse": lambda m, change: m.HasField("image") and _image(m.image, change),
    "PullImageResponse": lambda m, change: _text(m, "image_ref", change),
}
