"""The disk of an image, found in its layers and brought into the staging file.

Source: "containerDisk" in KubeVirt's user guide: the disk is the one file in /disk. An artifact, as
oras pushes it, is files alone: its only layer is the disk, or the one that is called so.
"""

import hashlib
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from itertools import chain
from pathlib import Path

from attrs import frozen

from virtlet.errors import FailedPrecondition, InvalidArgument, ResourceExhausted
from virtlet.image_servers.ahead import ahead
from virtlet.image_servers.pace import Bounds
from virtlet.model.image import Credentials, FetchedImage, ImageSource, Staging
from virtlet.plugins.image_oci import hosts, manifests
from virtlet.plugins.image_oci.content import OPAQUE, WHITEOUT, Content
from virtlet.plugins.image_oci.layers import Archive, Budget, Damaged, Entry, TooMuch, unpacked
from virtlet.plugins.image_oci.manifests import Descriptor, Malformed, Manifest
from virtlet.plugins.image_oci.registry import Registry
from virtlet.plugins.image_oci.server import NoRegistry, Repository

# Grammar of repositories and tags: OCI's distribution specification, "Pulling manifests".
_ADDRESS = re.compile(
    r"(?:(?P<user>[^/@]*)@)?(?P<registry>[^/@]+)/"
    r"(?P<name>[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*(?:/[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*)*)"
    r"(?::(?P<tag>[A-Za-z0-9_][A-Za-z0-9._-]{0,127}))?(?:@(?P<digest>[a-z0-9]+:[0-9a-f]+))?"
)
SCHEMES = ("oci", "docker")
"""Of addresses in registries; the second one as skopeo writes it."""
_DISK = re.compile(r"\.(?:qcow2|img|raw|iso|vmdk|vhdx|disk)(?:\.(?:gz|xz|zst))?$", re.I)
_HOW = "put it into the image with `ADD disk.qcow2 /disk/`"
MOST_PACKED = 128 << 30
"""Bytes of all layers of an image as they are stored."""
_HEAD = 256 << 10
"""Bytes that tell whether a file is an archive: what is packed unpacks in blocks of 128 KiB."""


@frozen
class _Address:
    """What an image's address says."""

    repository: Repository
    reference: str
    """A tag or digest."""
    scheme: str


def fetch_disk(
    source: ImageSource,
    credentials: Credentials,
    staging: Staging,
    bounds: Bounds,
    certs_dir: Path,
) -> FetchedImage | None:
    """Bring the disk of an image into the staging file; one that did not change stays.

    Args:
        source: the image; it has an address in a registry, or may have one.
        credentials: the pod's.
        staging: takes the disk as it is in the image, which may be packed.
        bounds: of the node.
        certs_dir: has the administrator's hosts.toml files.

    Returns:
        None where the address may be another one, and the host is no registry.

    Raises:
        InvalidArgument: the address or the credentials are malformed.
        NotFound, PermissionDenied: the registry says so.
        FailedPrecondition, ResourceExhausted: trying again as it is cannot help.
        Unavailable: the registry cannot be reached, or the connection broke.
    """
    address = _address(source)
    with _named(source.name):
        servers = hosts.endpoints(
            certs_dir, address.repository.registry, scheme=address.scheme, trusted=source.trusted
        )
        registry = Registry(source, address.repository, servers, credentials, bounds)
        # A silent server would keep the thread and the connection of a pull nobody waits for.
        staging.at_end(registry.close)
        try:
            top = registry.manifest(address.reference)
        except NoRegistry:
            if _is_certain(source):
                raise
            return None
        digest, manifest = top.digest, manifests.parse(top.data, top.media_type)
        chosen = digest
        if not isinstance(manifest, Manifest):
            chosen = manifests.choose(manifest, manifests.node_platform()).digest
            content = registry.manifest(chosen)
            manifest = manifests.parse(content.data, content.media_type)
            if not isinstance(manifest, Manifest):
                raise Malformed("its index leads to another index")
        version, said = f"oci {chosen}", manifest.annotations
        if not (staging.complete and staging.validator == version):
            said = {**_bring(registry, manifest, staging), **said}
            # Only now: a part could not be gone on with, as it is somewhere in a packed layer.
            staging.begin(version, staging.size, staging.size)
        told = {**said, "manifest": chosen, "registry": address.repository.registry}
        return FetchedImage(size=staging.size, annotations=told, digest=digest)


def digest_of(
    source: ImageSource, credentials: Credentials, bounds: Bounds, certs_dir: Path
) -> str:
    """The digest of an image's manifest, or of its index; see `fetch_disk`."""
    address = _address(source)
    with _named(source.name):
        servers = hosts.endpoints(
            certs_dir, address.repository.registry, scheme=address.scheme, trusted=source.trusted
        )
        registry = Registry(source, address.repository, servers, credentials, bounds)
        try:
            return registry.manifest(address.reference).digest
        finally:
            registry.close()


def _is_certain(source: ImageSource) -> bool:
    return source.url.partition("://")[0] in SCHEMES


def _address(source: ImageSource) -> _Address:
    scheme, _, rest = source.url.partition("://")
    if _is_certain(source):
        scheme = "https"
    else:
        rest = source.oci
    match = _ADDRESS.fullmatch(rest)
    digest = source.digest or (match["digest"] if match else "") or ""
    if match is None or (digest and not manifests.is_digest(digest)):
        raise InvalidArgument(
            f"image {source.name}: its address in a registry is malformed; write "
            "oci://HOST[:PORT]/REPOSITORY[:TAG][@sha256:…] in lower case"
        )
    registry, name = match["registry"].lower(), match["name"]
    if registry == "docker.io" and "/" not in name:
        name = f"library/{name}"
    reference = digest or match["tag"] or "latest"
    return _Address(Repository(registry, name, match["user"] or ""), reference, scheme)


@contextmanager
def _named(image: str) -> Iterator[None]:
    """Errors about what was fetched say of which image."""
    try:
        yield
    except (Damaged, Malformed, hosts.Malformed) as error:
        raise FailedPrecondition(f"image {image}: {error}") from None
    except TooMuch as error:
        raise ResourceExhausted(f"image {image}: {error}") from None


def _bring(registry: Registry, manifest: Manifest, staging: Staging) -> Mapping[str, str]:
    """Bring the disk; returns what labels of the image say for Virtlet."""
    packed = sum(layer.size for layer in manifest.layers)
    if packed > MOST_PACKED:
        raise Malformed(f"its layers have {packed} bytes; the most is {MOST_PACKED}")
    if manifest.is_artifact:
        _bring_file(registry, _disk_among(manifest.layers), staging)
        return {}
    config = registry.document(manifest.config)
    diff_ids, labels = manifests.diff_ids(config, len(manifest.layers)), manifests.labels(config)
    search = _Search(staging)
    for number, layer in reversed(tuple(enumerate(manifest.layers))):
        if "encrypted" in layer.media_type:
            raise Malformed("it has an encrypted layer, and there is no key for it")
        diff_id = diff_ids[number] if diff_ids else ""
        # One check tells of every change: of what is kept, and where nothing is packed, or nothing
        # is known of what it unpacks to, of the blob. See docs/decisions/0120.
        by_blob = diff_id in ("", layer.digest)
        with ahead(registry.blob(layer, verified=by_blob)) as chunks:
            pieces = unpacked(chunks) if by_blob else _verified(unpacked(chunks), diff_id)
            with ahead(pieces) as ready:
                search.layer(ready)
        if search.found:
            return labels
        if search.content.lost:
            # Rare, and only then a layer is fetched twice: what it links to cannot be kept for the
            # case that a link comes.
            with ahead(unpacked(registry.blob(layer))) as again:
                search.content.find_lost(again)
    search.content.end()
    return labels


def _disk_among(layers: tuple[Descriptor, ...]) -> Descriptor:
    """Which file of an artifact is the disk."""
    disks = layers if len(layers) == 1 else [each for each in layers if _DISK.search(each.title)]
    if len(disks) != 1:
        titles = ", ".join(repr(each.title[:60]) for each in (disks or layers)[:6])
        raise Malformed(
            f"it is an artifact of {len(layers)} files, {len(disks)} of which are called like a "
            f"disk; it must be one: {titles}"
        )
    return disks[0]


def _bring_file(registry: Registry, layer: Descriptor, staging: Staging) -> None:
    """A layer that is the disk itself, or an archive with it, whatever its media type says."""
    if not layer.size:
        raise Malformed("its disk is empty")
    with ahead(registry.blob(layer)) as chunks:
        head = b""
        while len(head) < _HEAD and (chunk := next(chunks, b"")):
            head += chunk
        whole = chain((head,), chunks)
        if _starts_archive(head):
            search = _Search(staging)
            search.layer(unpacked(whole))
            if not search.found:
                raise Malformed(f"it is an archive without a file in /disk; {_HOW}")
            return
        staging.begin("", 0, layer.size)
        for chunk in whole:
            staging.write(chunk)


def _starts_archive(head: bytes) -> bool:
    try:
        return Archive(unpacked(iter((head,))), Budget()).starts()
    except Damaged:
        return False  # Also what is cut off, as a head is.


def _verified(pieces: Iterator[bytes], digest: str) -> Iterator[bytes]:
    """Pieces of a layer; at their end, whether it unpacks to what it should."""
    algorithm, _, wanted = digest.partition(":")
    hashing = hashlib.new(algorithm)
    for piece in pieces:
        hashing.update(piece)
        yield piece
    if hashing.hexdigest() != wanted:
        raise Malformed(f"a layer of it does not unpack to {digest}, as its configuration says")


class _Search:
    """Looks for the disk, in the uppermost layer first: what is there hides what is below.

    For as long as it is not found, the staging file takes what else is in the layers.
    """

    def __init__(self, staging: Staging) -> None:
        self.found = False
        self._staging = staging
        self._budget = Budget()
        self._hidden: set[str] = set()
        self._covered = False
        self.content = Content(staging, self._budget)

    def layer(self, pieces: Iterator[bytes]) -> None:
        """Read a layer to its end, and store the disk if it has one.

        Raises:
            Damaged, Malformed, TooMuch: something is wrong with it.
        """
        archive = Archive(pieces, self._budget)
        if not archive.starts() and not archive.is_blank:
            raise Damaged("a layer of it is no tar archive")
        hidden: set[str] = set()
        covered = self._covered
        self.content.begin_layer()
        for entry in archive.entries():
            if not self.found and not self._is_disk(entry, covered):
                self.content.add(archive, entry)
            directory, _, name = entry.path.rpartition("/")
            if directory == "":
                self._covered |= name in (f"{WHITEOUT}disk", OPAQUE)
                if name == "disk" and not entry.is_directory and not covered:
                    raise Malformed("its /disk is no directory")
            if directory == "/disk" and name == OPAQUE:
                self._covered = True
            elif directory == "/disk" and name.startswith(WHITEOUT):
                hidden.add(name.removeprefix(WHITEOUT))
            elif self._is_disk(entry, covered):
                self._store(archive, entry)
        self._hidden |= hidden
        self.content.end_layer()

    def _is_disk(self, entry: Entry, covered: bool) -> bool:
        """Whether it is a file in /disk that no upper layer takes away."""
        directory, _, name = entry.path.rpartition("/")
        if directory != "/disk" or entry.is_directory or covered:
            return False
        return not name.startswith(".") and name not in self._hidden

    def _store(self, archive: Archive, entry: Entry) -> None:
        if self.found:
            raise Malformed(f"it has several files in /disk, {entry.path!r} among them: keep one")
        if entry.is_link or not entry.is_file:
            raise Malformed(f"its {entry.path!r} is a link or device: make it a regular file")
        if entry.sparse:
            raise Malformed(f"its {entry.path!r} is packed as a sparse file: pack it in full")
        if not entry.size:
            raise Malformed(f"its {entry.path!r} is empty")
        self.found = True
        self._staging.begin("", 0, entry.size)
        for part in archive.content(entry):
            self._staging.write(part)
