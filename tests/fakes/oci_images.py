"""Images as registries have them, made in memory: served by a fake server, or pushed by skopeo."""

import gzip
import hashlib
import io
import json
import subprocess
import tarfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from attrs import define, field

from tests.fakes.image_server import ImageServer, Resource

MANIFEST = "application/vnd.oci.image.manifest.v1+json"
INDEX = "application/vnd.oci.image.index.v1+json"
CONFIG = "application/vnd.oci.image.config.v1+json"
TAR = "application/vnd.oci.image.layer.v1.tar"
EMPTY = "application/vnd.oci.empty.v1+json"


def digest_of(data: bytes) -> str:
    """`sha256:<hex>` of a text."""
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


def archive(entries: Iterable[tuple[tarfile.TarInfo, bytes]] | Mapping[str, bytes]) -> bytes:
    """A tar archive, of regular files where it is given names and contents."""
    if isinstance(entries, Mapping):
        entries = [(regular(name, len(content)), content) for name, content in entries.items()]
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for info, content in entries:
            tar.addfile(info, io.BytesIO(content))
    return packed.getvalue()


def regular(name: str, size: int = 0, **fields: Any) -> tarfile.TarInfo:
    """An entry, of a regular file unless its fields say otherwise."""
    info = tarfile.TarInfo(name)
    info.size = size
    for key, value in fields.items():
        setattr(info, key, value)
    return info


@define
class OciImage:
    """An image: documents and blobs, by their digest.

    Attributes:
        top: the manifest or index, as text.
        media_type: its.
        blobs: what it refers to, manifests included, with the media types of these.
    """

    top: bytes
    media_type: str
    blobs: dict[str, tuple[bytes, str]] = field(factory=dict)

    @property
    def digest(self) -> str:
        """The one that the image's name may have."""
        return digest_of(self.top)

    def serve(self, server: ImageServer, repository: str, tag: str, prefix: str = "/v2") -> None:
        """Put it into a server, under a tag."""
        for digest, (data, kind) in self.blobs.items():
            place = "manifests" if kind in (MANIFEST, INDEX) else "blobs"
            server.resources[f"{prefix}/{repository}/{place}/{digest}"] = _resource(data, kind)
        for name in (tag, self.digest):
            path = f"{prefix}/{repository}/manifests/{name}"
            server.resources[path] = _resource(self.top, self.media_type)

    def push(self, directory: Path, url: str, *options: str) -> None:
        """Push it with skopeo.

        Args:
            directory: for a layout; made.
            url: `docker://HOST/REPOSITORY:TAG`.
            options: of `skopeo copy`.
        """
        blobs = directory / "blobs" / "sha256"
        blobs.mkdir(parents=True)
        for data in (self.top, *(data for data, _ in self.blobs.values())):
            (blobs / hashlib.sha256(data).hexdigest()).write_bytes(data)
        entry = {"mediaType": self.media_type, "digest": self.digest, "size": len(self.top)}
        (directory / "oci-layout").write_text('{"imageLayoutVersion": "1.0.0"}')
        (directory / "index.json").write_text(
            json.dumps({"schemaVersion": 2, "manifests": [entry]})
        )
        command = ["skopeo", "--insecure-policy", "copy", "--all", "--preserve-digests", *options]
        subprocess.run([*command, f"oci:{directory}", url], check=True, capture_output=True)


def _resource(data: bytes, media_type: str) -> Resource:
    return Resource(data, headers={"Content-Type": media_type})


def descriptor(data: bytes, media_type: str, **more: Any) -> dict[str, Any]:
    """What a document says of a blob."""
    return {"mediaType": media_type, "digest": digest_of(data), "size": len(data), **more}


def image(
    layers: Iterable[bytes], *, unpacked: Iterable[bytes] | None = None, **changes: Any
) -> OciImage:
    """A container image.

    Args:
        layers: as they are stored, the lowest first.
        unpacked: what they unpack to, where it is not themselves; for the diff ids.
        changes: of the manifest's fields.
    """
    stored = list(layers)
    plain = stored if unpacked is None else list(unpacked)
    rootfs = {"type": "layers", "diff_ids": [digest_of(layer) for layer in plain]}
    config = json.dumps({"architecture": "amd64", "os": "linux", "rootfs": rootfs}).encode()
    kinds = [f"{TAR}+gzip" if layer.startswith(b"\x1f\x8b") else TAR for layer in stored]
    parts = [descriptor(data, kind) for data, kind in zip(stored, kinds, strict=True)]
    return manifest(descriptor(config, CONFIG), parts, [config, *stored], **changes)


def artifact(files: Mapping[str, bytes], media_type: str = "application/octet-stream") -> OciImage:
    """Files, as oras pushes them."""
    title = "org.opencontainers.image.title"
    parts = [
        descriptor(data, media_type, annotations={title: name}) for name, data in files.items()
    ]
    return manifest(descriptor(b"{}", EMPTY), parts, [b"{}", *files.values()])


def manifest(config: Any, layers: Any, blobs: Iterable[bytes], **changes: Any) -> OciImage:
    """An image of a manifest with these fields."""
    document = {"schemaVersion": 2, "mediaType": MANIFEST, "config": config, "layers": layers}
    text = json.dumps({**document, **changes}).encode()
    return OciImage(text, MANIFEST, {digest_of(data): (data, "") for data in blobs})


def index(images: Mapping[str, OciImage]) -> OciImage:
    """An index of images by their platform, `OS/ARCHITECTURE`."""
    entries: list[dict[str, Any]] = []
    blobs: dict[str, tuple[bytes, str]] = {}
    for platform, one in images.items():
        os_name, _, architecture = platform.partition("/")
        told = {"os": os_name, "architecture": architecture}
        entries.append(descriptor(one.top, one.media_type, platform=told))
        blobs |= {**one.blobs, one.digest: (one.top, one.media_type)}
    text = json.dumps({"schemaVersion": 2, "mediaType": INDEX, "manifests": entries}).encode()
    return OciImage(text, INDEX, blobs)


def container_disk(disk: bytes, name: str = "disk/disk.img") -> OciImage:
    """An image with a disk as KubeVirt's users make it, of one gzip layer."""
    layer = archive({name: disk})
    return image([gzip.compress(layer, mtime=0)], unpacked=[layer])
