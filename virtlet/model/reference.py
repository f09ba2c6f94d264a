"""Image references: a name with its tag, a name with a digest, or an image's id."""

import re

from attrs import field, frozen

from virtlet.errors import InvalidArgument
from virtlet.model.image import IMAGE_PREFIX, shown_name
from virtlet.model.typed import typed

_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")
_BARE_ID = re.compile(r"[0-9a-f]{64}")
_UNSAFE = re.compile(r"[\s%\x00-\x1f\x7f]")
_SCHEME = re.compile(r"([a-z][a-z0-9+.-]*)://")
# Grammar of tags in the distribution project's reference package.
_TAG = re.compile(r":[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}\Z")
DEFAULT_TAG = "latest"
"""The tag that a kubelet gives a name without one."""

LONGEST = 255
"""Bytes of the longest reference: the longest file name, since its link is named after it."""
_LONGEST_TEXT = 4096
"""Characters that are looked at, with prefixes and tags that do not count."""


@frozen(kw_only=True, field_transformer=typed)
class Reference:
    """What a client calls an image, in its parts.

    As a text it is what its link in the store is named after, and leaves out the tag `latest`.
    """

    name: str
    """Without tag, digest and the prefix that a CRI proxy routes on; a whole address where the
    client wrote one; "" for an id."""
    tag: str = ""
    """`latest` where the client wrote none; "" beside a digest, and for an address or id."""
    digest: str = ""
    """`sha256:<64 hex>`, or "" for a reference by name alone."""
    text: str = field(default="", eq=False, repr=False)
    """As the client wrote it. It may hold a password: show `shown` in messages instead."""

    def __str__(self) -> str:
        if self.digest:
            return "@".join(part for part in (self.name, self.digest) if part)
        short = self.tagged.removesuffix(f":{DEFAULT_TAG}")
        ambiguous = not self.tag or not short or is_id(short) or _tag(short)
        return self.tagged if ambiguous else short

    @property
    def tagged(self) -> str:
        """`name:tag`."""
        return f"{self.name}:{self.tag}" if self.tag else self.name

    @property
    def scheme(self) -> str:
        """That of an address, or ""."""
        return scheme_of(self.name)

    @property
    def shown(self) -> str:
        """What the client wrote, for logs and messages: without passwords and tokens."""
        return shown_name(self.text or str(self))


def scheme_of(address: str) -> str:
    """The scheme of an address, or ""."""
    match = _SCHEME.match(address)
    return match[1] if match else ""


def is_digest(text: str) -> bool:
    """Whether a text is `sha256:<64 lower-case hex digits>`."""
    return _DIGEST.fullmatch(text) is not None


def is_id(text: str) -> bool:
    """Whether a reference is an image's id, with or without `sha256:`."""
    return is_digest(text) or _BARE_ID.fullmatch(text) is not None


def parse_reference(text: str) -> Reference:
    """Take a reference apart: `[virtlet.cloud/]NAME[:TAG][@sha256:…]`, or an id.

    A name without tag and digest has the tag `latest`. What starts with a scheme is kept whole, as
    a kubelet, which appends a tag, lets no such name through.

    Raises:
        InvalidArgument: it is empty, too long, or could not be a link's name in the store.
    """
    if len(text) > _LONGEST_TEXT:
        # Not shown: where a password in it ends may be further on.
        raise InvalidArgument(f"an image name of {len(text)} characters: longer than {LONGEST}")
    bare = text
    while bare.startswith(IMAGE_PREFIX):
        bare = bare.removeprefix(IMAGE_PREFIX)
    if is_id(bare):
        digest = bare if bare.startswith("sha256:") else f"sha256:{bare}"
        return Reference(name="", digest=digest, text=text)
    tagged, at, digest = bare.partition("@")
    if at and not is_digest(digest):
        # What stands there may be the end of a password: do not show it.
        raise InvalidArgument(
            "an image name has an @ that is not followed by sha256: and 64 lower-case hex digits; "
            "addresses with credentials belong in an image translation file"
        )
    name = tagged
    while tag := _tag(name):
        name = name.removesuffix(f":{tag}")
    if not name or (_tag(tagged) and name.endswith("/")):
        raise InvalidArgument("an image name is empty: give a name, a name@sha256:… or an id")
    if _UNSAFE.search(tagged) or tagged.startswith("."):
        raise InvalidArgument(
            f"image name {shown_name(tagged)[:60]!r}: no blanks, control characters, % or leading "
            "dot; name such a file in an image translation file instead"
        )
    tag = tagged.removeprefix(name).removeprefix(":")
    if digest:
        tag = ""
    elif not tag and not scheme_of(name):
        tag = DEFAULT_TAG
    reference = Reference(name=name, tag=tag, digest=digest, text=text)
    if len(str(reference).encode(errors="surrogatepass")) > LONGEST:
        raise InvalidArgument(
            f"image name {shown_name(tagged)[:60]!r}…: longer than {LONGEST} bytes"
        )
    return reference


def _tag(name: str) -> str:
    """The tag that a name ends with; "" for none, and for a whole address."""
    if scheme_of(name):
        return ""
    match = _TAG.search(name, name.rfind("/") + 1)
    return match[0][1:] if match else ""
