"""VM disk images: where they come from and what is in the store."""

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Protocol

from attrs import field, frozen

from virtlet.model.typed import typed

OWN_ANNOTATIONS = "cloud.virtlet."
"""How the names begin of what an image says of itself for Virtlet."""
IMAGE_PREFIX = "virtlet.cloud/"
"""What image names start with for a CRI proxy to route on; it may be stripped already."""

_DIGEST_AT_END = re.compile(r"@sha(?:256|384|512):[0-9a-f]{64,128}\Z")
_TO_SCHEME = re.compile(r"[^?#@]*?://")
_AUTHORITY = re.compile(r"([^/?#]*)(.*)", re.DOTALL)
_PARAMETERS = re.compile(r"[?#].*", re.DOTALL)


@frozen(kw_only=True, field_transformer=typed)
class TlsCertificate:
    """PEM texts: a certificate (authority or client), and the client's key where it has one."""

    cert: str
    key: str | None = field(default=None, repr=False)


@frozen(kw_only=True, field_transformer=typed)
class Transport:
    """How to reach an image server; the defaults are those of a plain download."""

    timeout: float = 0.0
    """Seconds without a byte before giving up; 0 leaves it to the fetching plugin."""
    max_redirects: int = -1
    """-1 leaves it to the fetching plugin."""
    proxy: str = field(default="", repr=False)
    certificates: tuple[TlsCertificate, ...] = ()
    server_name: str = ""
    insecure: bool = False
    trust_node: bool = False
    """Whether the node's authorities are trusted beside those of `certificates`."""


@frozen(kw_only=True, field_transformer=typed)
class ImageSource:
    """Where the content of an image name is."""

    name: str
    """The normalised image name: no digest, no transport prefix."""
    url: str = field(repr=False)
    """May hold credentials: show `name` in messages instead."""
    digest: str = ""
    """`sha256:<64 hex>` that the content must have, or ""; in a registry, its manifest."""
    transport: Transport = Transport()
    trusted: bool = False
    """True where the node's administrator chose the server, not the author of the pod: it may be
    in networks that other images may not come from, and is shown the pod's credentials."""
    oci: str = ""
    """`HOST/REPOSITORY:TAG` if the name may as well be that of an image in a registry: then a
    plugin for these asks the host before another one downloads from `url`. Or ""."""


@frozen(kw_only=True, field_transformer=typed)
class Credentials:
    """What the kubelet gives for a registry (CRI `AuthConfig`); never logged."""

    username: str = ""
    password: str = field(default="", repr=False)
    auth: str = field(default="", repr=False)
    server_address: str = ""
    identity_token: str = field(default="", repr=False)
    registry_token: str = field(default="", repr=False)


class Staging(Protocol):
    """The core's staging file that a fetching plugin writes into; it hashes as it goes."""

    @property
    def size(self) -> int:
        """Bytes already there: a broken download may go on from here."""

    @property
    def validator(self) -> str:
        """What `begin` was given for the bytes already there (an ETag, say), or ""."""

    @property
    def complete(self) -> bool:
        """True when the bytes already there are the whole image, pulled earlier: a plugin that
        finds `validator` still in force reports them as fetched, without a `begin`."""

    def begin(self, validator: str, offset: int, total: int | None) -> None:
        """Start writing at `offset` (0 throws away what is there).

        Args:
            validator: identifies this version of the content, or "" when nothing does.
            offset: 0, or `size` to go on.
            total: bytes in all, where known: shown as progress and checked for space.

        Raises:
            ResourceExhausted: `total` is over the image limit or the disk's free space.
        """

    def write(self, chunk: bytes) -> None:
        """Append a chunk.

        Raises:
            ResourceExhausted: the limit for one image or the disk's space is reached.
        """

    def at_end(self, close: Callable[[], None]) -> None:
        """Have `close` called once this fetch is over or nobody waits for it any more.

        A plugin closes there what its fetch may hang in, a connection say. It is called from
        another thread, and must neither wait nor raise.
        """


@frozen(kw_only=True, field_transformer=typed)
class FetchedImage:
    """What a fetching plugin reports once the whole content is in the staging file."""

    size: int
    """Bytes, as the server promised or as counted."""
    annotations: Mapping[str, str] = field(factory=dict)
    """Anything worth showing in ImageStatus's info, such as the final media type. Those whose names
    begin with `cloud.virtlet.` become `Image.annotations`."""
    digest: str = ""
    """`sha256:<64 hex>` by which the content is known where it comes from and which the plugin has
    verified, if that is not the digest of the file: of a manifest in a registry. Or ""."""


@frozen(kw_only=True, field_transformer=typed)
class Conversion:
    """A program that makes an image of what was fetched: it reads its standard input and writes
    its standard output. The core runs it as nobody, without network, in bounds."""

    format: str
    """What it reads, for messages and as `Image.source_format`: `gzip`, `vmdk`."""
    argv: tuple[str, ...]
    """Program and arguments."""
    package: str = ""
    """The Debian package that has the program."""


@frozen(kw_only=True, field_transformer=typed)
class RecognizedImage:
    """What a plugin recognised a fetched file as."""

    format: str
    """`qcow2`, `raw`, or a plugin's own word, by which disk plugins tell images apart."""
    virtual_size: int = 0
    """Bytes of the disk a guest sees; 0 where the image is no disk."""
    conversion: Conversion | None = None
    """What makes an image of the file where no VM can start from it as it is. Input and output are
    regular files, which `/proc/self/fd/0` and `/proc/self/fd/1` name. What it writes is recognised
    in place of the file, and must need no further conversion."""


@frozen(kw_only=True, field_transformer=typed)
class Image:
    """An image in the store."""

    id: str
    """`sha256:<64 hex>` of the content as it was fetched; the file is another one where that was
    unpacked or converted."""
    path: Path
    """The file, read-only for the emulator's user."""
    format: str
    """`qcow2`, `raw`, or what else a plugin recognised it as."""
    size: int
    """Bytes of the file."""
    virtual_size: int
    """Bytes of the disk a guest sees; 0 where it is no disk."""
    names: tuple[str, ...] = ()
    """`name:tag` of each name it was pulled by."""
    digests: tuple[str, ...] = ()
    """`name@sha256:…` for each name."""
    pulled_at: int = 0
    """Nanoseconds since the epoch."""
    recognized_by: str = ""
    """The plugin that recognised it; "" of an image from before that was written down."""
    source_format: str = ""
    """What it was fetched as, where that was unpacked or converted: `gzip`, `vmdk`, `xz vhdx`."""
    annotations: Mapping[str, str] = field(factory=dict)
    """Of a VM's image: what it says of itself under names that begin with `cloud.virtlet.`, as it
    was pulled by the name that the pod has. Whoever made the image wrote it."""


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
        # It may end a password with a character that ends the part before it.
        return f"{before}…{end}"
    return before + authority.rpartition("@")[2] + _PARAMETERS.sub("", rest) + end
