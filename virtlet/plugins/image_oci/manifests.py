"""Manifests and indexes of images, as registries serve them.

Source: manifest.md, image-index.md, descriptor.md and config.md of OCI's image specification, and
the older forms of the distribution project, which have other media types and the same fields.
"""

import json
import os
import re
from collections.abc import Mapping, Sequence
from typing import Any

from attrs import field, frozen

from virtlet.errors import FailedPrecondition
from virtlet.model.image import OWN_ANNOTATIONS

LARGEST = 1 << 20
"""Bytes of the largest manifest, index or configuration."""
MOST_LAYERS = 128
"""As of Docker's and containerd's overlays."""
MOST_MANIFESTS = 512
"""Of an index."""

MANIFESTS = (
    "application/vnd.oci.image.manifest.v1+json",
    "application/vnd.docker.distribution.manifest.v2+json",
)
INDEXES = (
    "application/vnd.oci.image.index.v1+json",
    "application/vnd.docker.distribution.manifest.list.v2+json",
)
_CONFIGS = (
    "application/vnd.oci.image.config.v1+json",
    "application/vnd.docker.container.image.v1+json",
)
_OLD = ("application/vnd.docker.distribution.manifest.v1",)
_DIGEST = re.compile(r"sha256:[0-9a-f]{64}|sha512:[0-9a-f]{128}")
_WORD = re.compile(r"[A-Za-z0-9_.-]{1,40}")
"""Of a platform: what messages can show."""
_TITLE = "org.opencontainers.image.title"
_ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64"}
_SHOWN = 6
_MOST_OWN, _LONGEST_OWN = 16, 256
"""Annotations for Virtlet, and characters of each name and value."""


class Malformed(FailedPrecondition):
    """A document is not what it has to be; the text is a clause."""


@frozen
class Descriptor:
    """What a document says of another one or of a layer."""

    media_type: str
    digest: str
    size: int
    title: str = ""
    """The file's name, where a publisher gave one."""
    platform: str = ""
    """`OS/ARCHITECTURE[/VARIANT]`, or ""."""


@frozen
class Manifest:
    """An image's layers."""

    config: Descriptor
    layers: tuple[Descriptor, ...]
    """The lowest first."""
    annotations: Mapping[str, str] = field(factory=dict)
    """What it says of itself for Virtlet."""

    @property
    def is_artifact(self) -> bool:
        """Whether its layers are files, not a container's file system."""
        return self.config.media_type not in _CONFIGS


def is_digest(text: str) -> bool:
    """Whether a text is a digest that is understood here."""
    return _DIGEST.fullmatch(text) is not None


def node_platform() -> str:
    """The platform of the node's images."""
    machine = os.uname().machine
    return f"linux/{_ARCHITECTURES.get(machine, machine)}"


def parse(content: bytes, media_type: str) -> Manifest | tuple[Descriptor, ...]:
    """Read a manifest, or an index as the descriptors of its manifests.

    Args:
        content: the document.
        media_type: as the server calls it; what the document itself says goes first.

    Raises:
        Malformed: it is neither.
    """
    document = _document(content)
    told = document.get("mediaType")
    kind = told if isinstance(told, str) and told else media_type
    if kind.startswith(_OLD) or document.get("schemaVersion") == 1:
        raise Malformed("its manifest is of Docker's first schema; push it again with new tools")
    if kind in INDEXES or (kind not in MANIFESTS and "manifests" in document):
        return _descriptors(document, "manifests", MOST_MANIFESTS)
    if kind not in MANIFESTS:
        raise Malformed(f"its manifest is of an unknown type, {kind[:80]!r}")
    layers = _descriptors(document, "layers", MOST_LAYERS)
    config = _descriptor(document.get("config"), "its manifest's config")
    return Manifest(config, layers, _own(document.get("annotations")))


def choose(index: Sequence[Descriptor], platform: str) -> Descriptor:
    """The manifest of an index that is for a platform.

    Raises:
        Malformed: there is none; names those there are.
    """
    for entry in index:
        if f"{entry.platform}/".startswith(f"{platform}/"):
            return entry
    if len(index) == 1 and not index[0].platform:
        return index[0]
    there = [entry.platform for entry in index if "unknown" not in entry.platform]
    names = ", ".join(sorted({name or "none" for name in there})[:_SHOWN]) or "none"
    raise Malformed(f"it has no manifest for {platform}; there are: {names}")


def diff_ids(content: bytes, layers: int) -> tuple[str, ...]:
    """Digests of the unpacked layers, as an image's configuration gives them; () for none.

    Raises:
        Malformed: it gives something else.
    """
    rootfs = _document(content).get("rootfs")
    if rootfs is None:
        return ()
    given = rootfs.get("diff_ids") if isinstance(rootfs, dict) else None
    if not isinstance(given, list) or not all(isinstance(d, str) and is_digest(d) for d in given):
        raise Malformed("its configuration's diff_ids are no digests")
    if len(given) != layers:
        raise Malformed(f"its configuration has {len(given)} diff_ids for {layers} layers")
    return tuple(given)


def labels(content: bytes) -> Mapping[str, str]:
    """What an image's configuration says of it for Virtlet, by labels as of a Dockerfile."""
    config = _document(content).get("config")
    return _own(config.get("Labels")) if isinstance(config, dict) else {}


def _own(given: Any) -> Mapping[str, str]:
    """Those of some annotations that are for Virtlet; what is too long for any is not."""
    found = {
        name: value
        for name, value in (given.items() if isinstance(given, dict) else ())
        if name.startswith(OWN_ANNOTATIONS) and isinstance(value, str)
        if len(name) <= _LONGEST_OWN and len(value) <= _LONGEST_OWN
    }
    return found if len(found) <= _MOST_OWN else {}


def _document(content: bytes) -> Mapping[str, Any]:
    try:
        document = json.loads(content)
    except (ValueError, RecursionError):
        raise Malformed("its manifest or configuration is no JSON") from None
    if not isinstance(document, dict):
        raise Malformed("its manifest or configuration is no JSON object")
    return document


def _descriptors(document: Mapping[str, Any], name: str, most: int) -> tuple[Descriptor, ...]:
    given = document.get(name)
    if not isinstance(given, list) or not given:
        raise Malformed(f"its manifest has no {name}")
    if len(given) > most:
        raise Malformed(f"its manifest has {len(given)} {name}; the most is {most}")
    return tuple(_descriptor(each, f"an entry of its manifest's {name}") for each in given)


def _descriptor(given: Any, what: str) -> Descriptor:
    if not isinstance(given, dict):
        raise Malformed(f"{what} is no descriptor")
    media_type, digest, size = (given.get(key) for key in ("mediaType", "digest", "size"))
    if not isinstance(digest, str) or not is_digest(digest):
        raise Malformed(f"{what} has no sha256 or sha512 digest")
    if not isinstance(size, int) or isinstance(size, bool) or not 0 <= size < 1 << 63:
        raise Malformed(f"{what} has no size")
    platform, annotations = given.get("platform"), given.get("annotations")
    title = annotations.get(_TITLE, "") if isinstance(annotations, dict) else ""
    return Descriptor(
        media_type=media_type if isinstance(media_type, str) else "",
        digest=digest,
        size=size,
        title=title if isinstance(title, str) else "",
        platform=_platform(platform) if isinstance(platform, dict) else "",
    )


def _platform(given: Mapping[str, Any]) -> str:
    parts = (given.get(key) for key in ("os", "architecture", "variant"))
    words = [part for part in parts if isinstance(part, str) and part]
    return "/".join(word if _WORD.fullmatch(word) else "unknown" for word in words)
