"""Image references: a name, a name with a digest, or an image's id."""

import re

from attrs import frozen

from virtlet.errors import InvalidArgument

_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")
_BARE_ID = re.compile(r"[0-9a-f]{64}")
_UNSAFE = re.compile(r"[\s%\x00-\x1f\x7f]")

LONGEST = 255
"""Bytes of the longest reference: the longest file name, since its link is named after it."""


@frozen
class Reference:
    """A reference in its parts."""

    name: str
    """"" for a reference by id."""
    digest: str = ""
    """`sha256:<64 hex>`, or "" for a reference by name alone."""

    def __str__(self) -> str:
        return "@".join(part for part in (self.name, self.digest) if part)


def is_digest(text: str) -> bool:
    """Whether a text is `sha256:<64 lower-case hex digits>`."""
    return _DIGEST.fullmatch(text) is not None


def is_id(text: str) -> bool:
    """Whether a reference is an image's id, with or without `sha256:`."""
    return is_digest(text) or _BARE_ID.fullmatch(text) is not None


def parse_reference(text: str) -> Reference:
    """Take a reference apart.

    Raises:
        InvalidArgument: it is empty, too long, or could not be a link's name in the store.
    """
    if is_id(text):
        return Reference("", text if text.startswith("sha256:") else f"sha256:{text}")
    name, at, digest = text.partition("@")
    if at and not is_digest(digest):
        raise InvalidArgument(
            f"image {text!r}: what follows @ must be sha256: and 64 lower-case hex digits"
        )
    if not name:
        raise InvalidArgument("an image name is empty: give a name, a name@sha256:… or an id")
    if _UNSAFE.search(name) or name.startswith("."):
        raise InvalidArgument(
            f"image name {name!r}: no blanks, control characters, % or leading dot; "
            "name such a file in an image translation instead"
        )
    if len(text.encode(errors="surrogatepass")) > LONGEST:
        raise InvalidArgument(f"image name {name[:60]!r}…: longer than {LONGEST} bytes")
    return Reference(name, digest)


def link_name(reference: Reference) -> str:
    """File name of a reference's link in the store."""
    return str(reference).replace("/", "%")


def parse_link(link: str) -> Reference:
    """The reference that a link is named after.

    Raises:
        InvalidArgument: no reference has such a link.
    """
    reference = parse_reference(link.replace("%", "/"))
    if not reference.name:
        raise InvalidArgument(f"link {link!r} is named after no image")
    return reference
