"""What reads are answered from: an unchanging picture of the store."""

from collections.abc import Collection, Mapping

from attrs import field, frozen

from virtlet.images.layout import ImageRecord, Layout, Origin
from virtlet.images.reference import DEFAULT_TAG, Reference
from virtlet.model.image import Image


@frozen
class View:
    """One state of the store; a change makes a new one."""

    records: Mapping[str, ImageRecord]
    """By digest; also of files without a name, which wait for a VM to let go of them."""
    links: Mapping[Reference, str]
    """Reference to digest."""
    images: Mapping[str, Image] = field(factory=dict)
    """By digest; those with a name."""
    repositories: Mapping[str, Collection[str]] = field(factory=dict)
    """Names without tags, by digest."""

    def find(self, reference: Reference) -> Image | None:
        """The image that a reference means."""
        if not reference.name:
            return self.images.get(reference.digest)
        if not reference.digest:
            return self.images.get(self.links.get(reference, ""))
        known = reference.repository in self.repositories.get(reference.digest, ())
        return self.images.get(reference.digest) if known else None

    def find_any_tag(self, reference: Reference) -> Image | None:
        """As `find`; an image whose tag was not written down has any."""
        found = self.find(reference)
        if found is not None or not reference.name or reference.digest:
            return found
        untold = Reference(f"{reference.repository}{DEFAULT_TAG}")
        origin = self.origin(untold)
        return self.find(untold) if origin is None or not origin.name else None

    def origin(self, reference: Reference) -> Origin | None:
        """Where what a name leads to came from."""
        record = self.records.get(self.links.get(reference, ""))
        return record.origins.get(str(reference)) if record else None

    def references(self, digest: str) -> list[Reference]:
        """All references that lead to an image."""
        return [reference for reference, target in self.links.items() if target == digest]


def make_view(
    layout: Layout, records: Mapping[str, ImageRecord], links: Mapping[Reference, str]
) -> View:
    """Draw the picture again."""
    names: dict[str, set[str]] = {}
    digests: dict[str, set[str]] = {}
    repositories: dict[str, set[str]] = {}
    for reference, digest in links.items():
        record = records.get(digest)
        origin = record.origins.get(str(reference)) if record else None
        pulled = origin.name if origin and origin.name else reference.name
        prefix = pulled.removesuffix(reference.name)
        # A name that was pulled by digest is known by that digest alone: it says nothing of
        # what the bare name leads to.
        digests.setdefault(digest, set()).add(f"{prefix}{reference.repository}@{digest}")
        repositories.setdefault(digest, set()).add(reference.repository)
        if not reference.digest:
            names.setdefault(digest, set()).add(pulled)
    images = {
        digest: Image(
            id=digest,
            path=layout.data(digest),
            format=record.format,
            size=record.size,
            virtual_size=record.virtual_size,
            names=tuple(sorted(names.get(digest, ()))),
            digests=tuple(sorted(digests[digest])),
            pulled_at=record.pulled_at,
            recognized_by=record.recognized_by,
        )
        for digest, record in records.items()
        if digest in digests
    }
    return View(dict(records), dict(links), images, repositories)
