"""Image references: a name with its tag, a name with a digest, or an image's id."""

import re

from attrs import frozen

from virtlet.errors import InvalidArgument
from virtlet.model.image import IMAGE_PREFIX, shown_name

_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")
_BARE_ID = re.compile(r"[0-9a-f]{64}")
_BEGINNING = re.compile(r"(?:sha256:)?([0-9a-f]{1,63})")
_UNSAFE = re.compile(r"[\s%\x00-\x1f\x7f]")
_SCHEME = re.compile(r"[a-z][a-z0-9+.-]*://")
# Grammar of tags in the distribution project's reference package.
_TAG = re.compile(r":[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}$")
DEFAULT_TAG = ":latest"
"""What a kubelet appends to a name without a tag."""

LONGEST = 255
"""Bytes of the longest reference: the longest file name, since its link is named after it."""


@frozen
class Reference:
    """A reference in its parts, without the prefix that a CRI proxy routes on.

    As a text it is what its link in the store is named after, and leaves out the tag `latest`.
    """

    name: str
    """With its tag unless there is a digest or a scheme; "" for a reference by id."""
    digest: str = ""
    """`sha256:<64 hex>`, or "" for a reference by name alone."""

    def __str__(self) -> str:
        if self.digest:
            return "@".join(part for part in (self.name, self.digest) if part)
        if _SCHEME.match(self.name):
            # Nothing was appended to an address: what it ends with is its own.
            return self.name
        short = self.name.removesuffix(DEFAULT_TAG)
        ambiguous = not short or is_id(short) or _tag(short)
        return self.name if ambiguous else short

    @property
    def repository(self) -> str:
        """The name without its tag."""
        return _repository(self.name)


def is_digest(text: str) -> bool:
    """Whether a text is `sha256:<64 lower-case hex digits>`."""
    return _DIGEST.fullmatch(text) is not None


def is_id(text: str) -> bool:
    """Whether a reference is an image's id, with or without `sha256:`."""
    return is_digest(text) or _BARE_ID.fullmatch(text) is not None


def beginning_of_id(text: str) -> str:
    """The digest's beginning that a text can stand for, `sha256:` included; else ""."""
    match = _BEGINNING.fullmatch(text)
    return f"sha256:{match[1]}" if match else ""


def parse_reference(text: str) -> Reference:
    """Take a reference apart; a name without tag and digest has the tag `latest`.

    Raises:
        InvalidArgument: it is empty, too long, or could not be a link's name in the store.
    """
    while text.startswith(IMAGE_PREFIX):
        text = text.removeprefix(IMAGE_PREFIX)
    if is_id(text):
        return Reference("", text if text.startswith("sha256:") else f"sha256:{text}")
    name, at, digest = text.partition("@")
    if at and not is_digest(digest):
        # What stands there may be the end of a password: do not show it.
        raise InvalidArgument(
            "an image name has an @ that is not followed by sha256: and 64 lower-case hex digits"
        )
    tag = _tag(name)
    repository = _repository(name)
    if not repository or (tag and repository.endswith("/")):
        raise InvalidArgument("an image name is empty: give a name, a name@sha256:… or an id")
    if _UNSAFE.search(name) or name.startswith("."):
        raise InvalidArgument(
            f"image name {shown_name(name)!r}: no blanks, control characters, % or leading dot; "
            "name such a file in an image translation instead"
        )
    if digest:
        reference = Reference(repository, digest)
    else:
        whole = tag or _SCHEME.match(name)
        reference = Reference(name if whole else f"{name}{DEFAULT_TAG}")
    if len(str(reference).encode(errors="surrogatepass")) > LONGEST:
        raise InvalidArgument(f"image name {shown_name(name)[:60]!r}…: longer than {LONGEST} bytes")
    return reference


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


def _repository(name: str) -> str:
    """A name without its tag, or all that look like one."""
    while tag := _tag(name):
        name = name.removesuffix(tag)
    return name


def _tag(name: str) -> str:
    """The tag that a name ends with, and its colon; "" for none, and for a whole address."""
    if _SCHEME.match(name):
        return ""
    match = _TAG.search(name, name.rfind("/") + 1)
    return match[0] if match else ""
