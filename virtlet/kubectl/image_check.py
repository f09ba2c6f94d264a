"""`kubectl virtlet image check`: whether a node would take an image, by the beginning of it.

The manager's own code fetches and judges it. It is left off as soon as enough is known, so that no
more than the beginning of a disk comes over the network; of a container's image also what is before
the disk in its layer.
"""

import socket
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from urllib.parse import urlsplit

import click

from virtlet.cli.findings import FAULT, NOTE, OK, Finding, show
from virtlet.errors import Unavailable, VirtletError
from virtlet.kubectl import pull_secrets
from virtlet.kubectl.cluster import Kubectl, with_cluster
from virtlet.kubectl.pull_secrets import PullSecret
from virtlet.model.image import Credentials, ImageSource, RecognizedImage, shown_name
from virtlet.model.reference import Reference, parse_reference

REFUSED, UNKNOWN = 1, 3
"""Exit codes."""
_ENOUGH = 1 << 20
"""Bytes of the beginning of a disk, packed or not."""
_HOSTS = Path("/etc/virtlet/certs.d")


@click.group()
def image() -> None:
    """Look at images."""


@image.command()
@click.argument("url")
@click.option(
    "--hosts",
    type=click.Path(path_type=Path, file_okay=False),
    default=_HOSTS,
    show_default=True,
    help="HOST/hosts.toml files of registries.",
)
@click.option(
    "--pull-secret", "names", multiple=True, help="A pull secret of the namespace; may be repeated."
)
@click.option(
    "--docker-config",
    "file",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Credentials as in Docker's config.json, instead.",
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead.")
@with_cluster
def check(
    kubectl: Kubectl,
    url: str,
    hosts: Path,
    names: tuple[str, ...],
    file: Path | None,
    as_json: bool,
) -> None:
    """Say whether a node would take the image at URL, from this machine and by its beginning.

    URL is http://, https:// or oci://, or the name of an image in a registry, HOST/REPOSITORY:TAG.
    A cluster is asked for pull secrets alone. Credentials are shown to whom a node would show them.

    Exit code 1 says that a node would refuse it, 3 that its server does not answer now.
    """
    secrets = [pull_secrets.of_cluster(kubectl, name) for name in names]
    secrets += [pull_secrets.of_file(file)] if file else []
    try:
        usable = show(_findings(url, hosts, secrets), as_json=as_json)
    except Unavailable as error:
        click.echo(str(error), err=True)
        sys.exit(UNKNOWN)
    sys.exit(0 if usable else REFUSED)


class _Enough(Exception):
    """No more of the image is needed."""


class Beginning:
    """Takes the beginning of an image, as a staging file takes all of it."""

    size = 0
    validator = ""
    complete = False

    def __init__(self) -> None:
        self.head = b""
        self.total: int | None = None

    def begin(self, validator: str, offset: int, total: int | None) -> None:
        """Start again."""
        self.head, self.total = b"", total

    def write(self, chunk: bytes) -> None:
        """Take more, until it is enough."""
        self.head += chunk
        if len(self.head) >= _ENOUGH:
            raise _Enough

    def at_end(self, close: Callable[[], None]) -> None:
        """Nothing: the process ends with its connections."""


def _findings(url: str, hosts: Path, secrets: Sequence[PullSecret]) -> Iterator[Finding]:
    try:
        reference = parse_reference(url)
        source = _source(reference)
        yield from _reach(source)
        found = [(secret.name, entry) for secret in secrets if (entry := secret.of(source.url))]
        credentials = Credentials()
        if found:
            name, (registry, credentials) = found[0]
            yield Finding("pull secret", OK, f"{name} has credentials of {registry}")
        elif secrets:
            of = (
                ", ".join(sorted({name for secret in secrets for name in secret.entries})) or "none"
            )
            yield Finding("pull secret", NOTE, f"none for this image; there are those of: {of}")
        yield from _looked_at(source, credentials, hosts)
    except Unavailable:
        raise
    except VirtletError as error:
        yield Finding("image", FAULT, str(error))


def _source(reference: Reference) -> ImageSource:
    name = shown_name(reference.name)
    url = reference.name if reference.scheme else f"oci://{reference.tagged}"
    return ImageSource(name=name, url=url, digest=reference.digest)


def _reach(source: ImageSource) -> Iterator[Finding]:
    """What of its server's addresses a node refuses unless its administrator allows it."""
    from virtlet.image_servers.reach import Reach

    host = urlsplit(source.url).hostname or ""
    try:
        found = {str(each[4][0]) for each in socket.getaddrinfo(host, None)}
        Reach().check(source.name, host, found)
    except OSError:
        return  # The fetcher says so.
    except VirtletError as error:
        yield Finding("reach", NOTE, str(error))


def _looked_at(source: ImageSource, credentials: Credentials, hosts: Path) -> Iterator[Finding]:
    beginning = Beginning()
    scheme = source.url.partition("://")[0]
    try:
        if scheme in ("http", "https"):
            yield from _of_server(source, credentials, beginning)
        elif scheme in ("oci", "docker"):
            yield from _of_registry(source, credentials, hosts, beginning)
        else:
            yield Finding(
                "image", FAULT, f"{scheme}:// is no address of a server: look on the node"
            )
            return
    except _Enough:
        pass
    yield from _of_disk(source.name, beginning)


def _of_server(
    source: ImageSource, credentials: Credentials, beginning: Beginning
) -> Iterator[Finding]:
    from virtlet.image_servers.pace import Bounds
    from virtlet.image_servers.reach import EVERYWHERE
    from virtlet.plugins.image_http.download import download

    told = (
        "not looked at: it is known once all is there" if source.digest else "none: add @sha256:…"
    )
    yield Finding("digest", NOTE, told)
    download(source, credentials, beginning, Bounds(EVERYWHERE))


def _of_registry(
    source: ImageSource, credentials: Credentials, hosts: Path, beginning: Beginning
) -> Iterator[Finding]:
    from virtlet.image_servers.pace import Bounds
    from virtlet.image_servers.reach import EVERYWHERE
    from virtlet.plugins.image_oci.disk import digest_of, fetch_disk

    bounds = Bounds(EVERYWHERE)
    yield Finding("digest", OK, digest_of(source, credentials, bounds, hosts))
    fetch_disk(source, credentials, beginning, bounds, hosts)
    if not beginning.head:
        yield Finding("disk", FAULT, "it has no file in /disk: no VM starts from it")


def _of_disk(name: str, beginning: Beginning) -> Iterator[Finding]:
    from virtlet.plugins.image_formats.foreign import unpacking
    from virtlet.plugins.image_formats.plugin import first_look

    head, size, packing = beginning.head, beginning.total, unpacking(beginning.head)
    if packing:
        head, size = _unpacked(head), None
    found = first_look(name, head, size)
    packed = f", packed by {packing.format}" if packing else ""
    converted = ", which the node converts" if found.conversion else ""
    yield Finding("format", OK, f"{found.format}{packed}{converted}")
    yield _size(found, beginning.total)


def _size(found: RecognizedImage, there: int | None) -> Finding:
    bytes_there = "" if there is None else f"; {there} bytes to download"
    if not found.virtual_size:
        return Finding("size", NOTE, f"of the disk: known once it is unpacked{bytes_there}")
    return Finding("size", OK, f"a disk of {found.virtual_size} bytes{bytes_there}")


def _unpacked(head: bytes) -> bytes:
    """As much as the beginning of something packed unpacks to."""
    from virtlet.plugins.image_oci.layers import Damaged, unpacked

    found = b""
    try:
        for piece in unpacked(iter((head,))):
            found += piece
            if len(found) >= _ENOUGH:
                break
    except Damaged:
        pass  # It is cut off.
    return found
