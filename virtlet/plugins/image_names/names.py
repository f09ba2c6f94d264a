"""Image names as pods write them."""

import re

from attrs import frozen

from virtlet.errors import InvalidArgument
from virtlet.model.image import IMAGE_PREFIX

_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")
_SCHEME = re.compile(r"([a-z][a-z0-9+.-]*)://")
# Grammar of tags in the distribution project's reference package.
_TAG = re.compile(r":[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}$")
_COMPONENT = re.compile(r"[A-Za-z0-9_.~:+,=-]+")


@frozen
class ImageName:
    """A name taken apart."""

    name: str
    """Without prefix, tag and digest; with a scheme where the pod wrote one."""
    digest: str = ""
    """`sha256:<64 hex>` or ""."""

    @property
    def scheme(self) -> str:
        """The scheme the name starts with, or ""."""
        return scheme_of(self.name)


def scheme_of(address: str) -> str:
    """The scheme of an address, or ""."""
    match = _SCHEME.match(address)
    return match[1] if match else ""


def parse_name(text: str) -> ImageName:
    """Take an image name apart: `[virtlet.cloud/]NAME[:TAG][@sha256:…]`.

    The tag is dropped, because the kubelet appends `:latest` to what has none. A name that
    starts with a scheme keeps all of it, since the kubelet never writes one.

    Raises:
        InvalidArgument: it is malformed, or holds what must not be shown in lists.
    """
    name, at, digest = text.removeprefix(IMAGE_PREFIX).rpartition("@")
    if not at:
        name, digest = digest, ""
    elif not _DIGEST.fullmatch(digest):
        # What stands there may be the end of a password: do not show it.
        raise InvalidArgument(
            "an image name has an @ that is not followed by sha256: and 64 lower-case hex digits; "
            "addresses with credentials belong in an image translation file"
        )
    scheme = scheme_of(name)
    if not scheme:
        slash = name.rfind("/") + 1
        name = name[:slash] + _TAG.sub("", name[slash:])
    _check(name, scheme)
    return ImageName(name, digest)


def _check(name: str, scheme: str) -> None:
    if not name:
        raise InvalidArgument("an image name is empty")
    if "@" in name or "?" in name or "#" in name:
        raise InvalidArgument(
            "an image name has @, ? or # in it; addresses with credentials or parameters belong "
            "in an image translation file"
        )
    path = name.removeprefix(f"{scheme}://") if scheme else name
    if scheme == "file":
        path = path.removeprefix("/")
    for component in path.split("/"):
        if component in ("", ".", "..") or not _COMPONENT.fullmatch(component):
            raise InvalidArgument(
                f"image name {name!r}: {component!r} cannot be a part of it; write "
                "[HOST[:PORT]/]PATH of letters, digits and ._~:+,=- with single slashes"
            )
