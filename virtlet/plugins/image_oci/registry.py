"""Asking the servers of a registry for manifests and blobs, which are verified.

Source: OCI's distribution specification.
"""

import hashlib
import logging
import re
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import ExitStack
from typing import TypeVar

import httpx
from attrs import frozen

from virtlet.errors import (
    FailedPrecondition,
    Unavailable,
    VirtletError,
)
from virtlet.image_servers.pace import Bounds, paced
from virtlet.image_servers.session import Session
from virtlet.model.image import Credentials, ImageSource
from virtlet.plugins.image_oci.hosts import Endpoint
from virtlet.plugins.image_oci.manifests import INDEXES, LARGEST, MANIFESTS, Descriptor
from virtlet.plugins.image_oci.server import (
    NoRegistry,
    Repository,
    Server,
    parse_json,
    show_to,
)

log = logging.getLogger(__name__)

T = TypeVar("T")

_CONTENT_RANGE = re.compile(r"bytes (\d{1,18})-\d{1,18}/(?:\d{1,18}|\*)")
_MOST_BREAKS = 20
"""Times that a blob is gone on with; each after bytes have come."""
_DELAY = 0.5


@frozen
class Content:
    """A document that was fetched, with its digest."""

    data: bytes
    media_type: str
    digest: str
    """`sha256:…`, whatever it was asked for by."""


class Registry:
    """The servers of a registry, asked for one repository of it.

    Args:
        source: the image.
        repository: where it is.
        endpoints: the servers, in the order in which they are asked.
        credentials: for the registry itself.
        bounds: of the node.

    Raises:
        InvalidArgument: the credentials are malformed.
    """

    def __init__(
        self,
        source: ImageSource,
        repository: Repository,
        endpoints: tuple[Endpoint, ...],
        credentials: Credentials,
        bounds: Bounds,
    ) -> None:
        self._source = source
        self._about = f"image {source.name}"
        self._repository = repository
        self._least_rate = bounds.least_rate
        self._servers = [
            Server(
                endpoint,
                source,
                repository,
                show_to(endpoint, source, repository, credentials),
                bounds,
            )
            for endpoint in endpoints
        ]

    def close(self) -> None:
        """End the connection, from any thread; what is asked for later fails at once."""
        for server in self._servers:
            server.close()

    def manifest(self, reference: str) -> Content:
        """A manifest or index.

        Args:
            reference: its tag, or its digest, which is verified.

        Raises:
            NoRegistry: the registry's own server does not speak the protocol.
            NotFound, PermissionDenied: it says so.
            FailedPrecondition: it is too long, or not what the digest says.
            Unavailable: the server cannot be reached, or the connection broke.
        """
        by_digest = ":" in reference
        accepted = {"Accept": ", ".join((*INDEXES, *MANIFESTS))}

        def ask(server: Server) -> Content:
            path = f"manifests/{reference}"
            with server.get(path, accepted) as (session, response):
                if response.status_code != 200:
                    raise server.refusal(session, response, "the manifest")
                data = server.read(session, response)
                kind = response.headers.get("Content-Type", "").partition(";")[0].strip().lower()
                told = "docker-distribution-api-version" in response.headers
            known = told or kind in (*INDEXES, *MANIFESTS)
            if not (known or parse_json(data).get("schemaVersion") == 2):
                raise NoRegistry(f"{self._about}: {session.server} is no image registry")
            if len(data) > LARGEST:
                raise FailedPrecondition(
                    f"{self._about}: its manifest is larger than {LARGEST} bytes"
                )
            if by_digest and not _matches(data, reference):
                raise self._other(session.server, "manifest", reference)
            return Content(data, kind, f"sha256:{hashlib.sha256(data).hexdigest()}")

        return self._ask(ask, resolving=not by_digest)

    def document(self, descriptor: Descriptor) -> bytes:
        """A small blob, whole and verified.

        Raises:
            FailedPrecondition: it is too long, or not what its digest says.
            NotFound, PermissionDenied, Unavailable: as `manifest`.
        """
        if descriptor.size > LARGEST:
            raise FailedPrecondition(
                f"{self._about}: its configuration is larger than {LARGEST} bytes"
            )
        return b"".join(self.blob(descriptor))

    def blob(
        self, descriptor: Descriptor, *, verified: bool = True
    ) -> Generator[bytes, None, None]:
        """A blob in chunks, verified at its end; what breaks is gone on with where it broke.

        Args:
            descriptor: what the manifest says of it.
            verified: False where the caller verifies what the blob unpacks to; its size counts
                all the same.

        Raises:
            FailedPrecondition: it is not what its descriptor says, or comes too slowly.
            NotFound, PermissionDenied, Unavailable: as `manifest`.
        """
        algorithm, _, wanted = descriptor.digest.partition(":")
        hashing, there, tries = hashlib.new(algorithm) if verified else None, 0, 0
        while True:
            before = there
            try:
                for chunk in self._blob_from(descriptor, there):
                    there += len(chunk)
                    if hashing is not None:
                        hashing.update(chunk)
                    yield chunk
                if there < descriptor.size:
                    raise Unavailable(
                        f"{self._about}: {descriptor.digest} ended after {there} of "
                        f"{descriptor.size} bytes"
                    )
                break
            except Unavailable as error:
                tries += 1
                if there == before or tries > _MOST_BREAKS:
                    raise
                log.warning(
                    "image download broken, going on",
                    extra={"image": self._source.name, "size": there, "problem": str(error)},
                )
                time.sleep(_DELAY)
        if hashing is not None and hashing.hexdigest() != wanted:
            raise self._other(self._repository.registry, "blob", descriptor.digest)

    def _blob_from(self, descriptor: Descriptor, start: int) -> Iterator[bytes]:
        """What of a blob follows its first `start` bytes."""
        headers = {"Range": f"bytes={start}-"} if start else {}
        with ExitStack() as stack:

            def ask(server: Server) -> tuple[Session, httpx.Response]:
                path = f"blobs/{descriptor.digest}"
                with ExitStack() as attempt:
                    session, response = attempt.enter_context(server.get(path, headers))
                    if response.status_code == 416 and start:
                        raise FailedPrecondition(
                            f"{self._about}: {session.server} has {start} of the "
                            f"{descriptor.size} bytes of {descriptor.digest}"
                        )
                    if response.status_code not in (200, 206):
                        raise server.refusal(session, response, "a blob", of_registry=True)
                    stack.push(attempt.pop_all())
                return session, response

            session, response = self._ask(ask)
            passed = self._passed(session, response, start)
            length = response.headers.get("Content-Length", "")
            if length.isdigit() and passed + int(length[:19]) > descriptor.size:
                raise self._longer(session, descriptor)
            chunks = paced(self._source.name, session.server, response.iter_raw(), self._least_rate)
            for chunk in chunks:
                skip = min(len(chunk), max(0, start - passed))
                passed += len(chunk)
                if passed > descriptor.size:
                    raise self._longer(session, descriptor)
                if skip < len(chunk):
                    yield chunk[skip:] if skip else chunk

    def _passed(self, session: Session, response: httpx.Response, start: int) -> int:
        """Bytes of a blob that come before an answer's body."""
        if response.status_code == 200:
            return 0
        match = _CONTENT_RANGE.fullmatch(response.headers.get("Content-Range", ""))
        if match is None or int(match[1]) != start:
            raise FailedPrecondition(
                f"{self._about}: {session.server} sends another part of a blob than asked for"
            )
        return start

    def _ask(self, ask: Callable[[Server], T], *, resolving: bool = False) -> T:
        """Ask the servers in turn; the last one's error is the pull's."""
        able = [
            server
            for server in self._servers
            if (server.endpoint.resolves if resolving else server.endpoint.pulls)
        ]
        if not able:
            what = "resolve" if resolving else "pull"
            raise FailedPrecondition(
                f"{self._about}: no host in the hosts.toml of {self._repository.registry} has the "
                f"capability {what}"
            )
        for server in able[:-1]:
            try:
                return ask(server)
            except VirtletError as error:
                log.info(
                    "mirror passed over",
                    extra={"image": self._source.name, "problem": str(error)},
                )
        return ask(able[-1])

    def _longer(self, session: Session, descriptor: Descriptor) -> FailedPrecondition:
        return FailedPrecondition(
            f"{self._about}: {session.server} sends more of {descriptor.digest} than the "
            f"{descriptor.size} bytes of its manifest"
        )

    def _other(self, server: str, what: str, digest: str) -> FailedPrecondition:
        return FailedPrecondition(
            f"{self._about}: the {what} that {server} sends is not {digest}; its content was "
            "changed or damaged"
        )


def _matches(data: bytes, digest: str) -> bool:
    algorithm, _, wanted = digest.partition(":")
    return hashlib.new(algorithm, data).hexdigest() == wanted
