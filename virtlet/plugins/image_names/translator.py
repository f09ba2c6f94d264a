"""Image names as pods write them, to sources, by all translation files of a directory."""

import logging
import os
import re
import threading
from collections.abc import Mapping
from pathlib import Path

from attrs import frozen

from virtlet.errors import InvalidArgument
from virtlet.model.image import ImageSource
from virtlet.model.reference import Reference, scheme_of
from virtlet.plugins.image_names.translation import (
    LARGEST,
    Malformed,
    Target,
    Translations,
    parse_translations,
)

log = logging.getLogger(__name__)


_COMPONENT = re.compile(r"[A-Za-z0-9_.~:+,=-]+")

UNKNOWN = "untranslated"
"""Scheme of the address of a name that leads nowhere: it still is a name, for what is in the
store already, and only fetching it is an error."""
_Stamp = tuple[int, int, int]


def check_name(name: str) -> None:
    """Refuse what is no address, or holds what must not be shown in lists.

    Args:
        name: without tag and digest; with a scheme where the client wrote one.

    Raises:
        InvalidArgument: says why.
    """
    scheme = scheme_of(name)
    if "@" in name or "?" in name or "#" in name:
        raise InvalidArgument(
            "an image name has @, ? or # in it; addresses with credentials or parameters belong "
            "in an image translation file"
        )
    path = name.removeprefix(f"{scheme}://") if scheme else name
    if scheme == "file":
        path = path.removeprefix("/")
    for component in path.split("/"):
        if component in ("", ".", "..") or not _COMPONENT.fullmatch(component):
            raise InvalidArgument(
                f"image name {name!r}: {component!r} cannot be a part of it; write "
                "[HOST[:PORT]/]PATH of letters, digits and ._~:+,=- with single slashes"
            )


@frozen
class _File:
    stamp: _Stamp
    translations: Translations | None
    """The last good ones; None when there never were any."""
    problem: str
    """What is wrong with the file as it is now, or ""."""


class Translator:
    """Translates image names; looks at the directory each time and reads what changed.

    Args:
        directory: where the files are; it may be missing.
        regexps: whether regular expressions count.
        protocol: scheme for addresses that have none.
    """

    def __init__(self, directory: Path, *, regexps: bool, protocol: str) -> None:
        self._directory = directory
        self._regexps = regexps
        self._protocol = protocol
        self._lock = threading.Lock()
        self._files: Mapping[Path, _File] = {}

    def resolve(self, image: Reference) -> ImageSource | None:
        """Say where an image is; None when its scheme is for others to know.

        The tag says nothing, because the kubelet appends `:latest` to what has none.

        Raises:
            InvalidArgument: the name cannot be one of a translation, and is no address.
        """
        check_name(image.name)
        if image.scheme:
            known = image.scheme in ("file", "http", "https")
            return (
                ImageSource(name=image.name, url=image.name, digest=image.digest) if known else None
            )
        files = self._refresh()
        target = self._translate(image.name, files)
        if target is None:
            url = self._plain(image.name, files)
            return ImageSource(name=image.name, url=url, digest=image.digest)
        url = target.url if scheme_of(target.url) else f"{self._protocol}://{target.url}"
        return ImageSource(
            name=image.name,
            url=url,
            digest=image.digest,
            transport=target.transport,
            trusted=target.trusted,
        )

    def explain(self, name: str) -> str:
        """Why a name leads nowhere, and what to do."""
        problems = [file.problem for file in self._refresh().values() if file.problem]
        if problems:
            return f"image {name}: no usable translation file names it; {'; '.join(problems)}"
        return (
            f"image {name}: no translation file in {self._directory} names it, and it is no "
            "HOST/PATH address either"
        )

    def _translate(self, name: str, files: Mapping[Path, _File]) -> Target | None:
        usable = [file.translations for file in files.values() if file.translations]
        for translations in usable:
            relative = translations.relative(name)
            if relative is not None and relative in translations.fixed:
                return translations.fixed[relative]
        if not self._regexps:
            return None
        for translations in usable:
            relative = translations.relative(name)
            if relative is None:
                continue
            for rule, transport in translations.rules:
                url = rule.apply(relative)
                if url is not None:
                    return Target(url, transport, trusted=rule.names_server)
        return None

    def _plain(self, name: str, files: Mapping[Path, _File]) -> str:
        host, slash, _ = name.partition("/")
        looks_like_host = "." in host or ":" in host or host == "localhost"
        # While a file is unreadable, `a/b` may be one of its names: asking a host `a` for it
        # could bring another image than was meant.
        unsure = not looks_like_host and any(file.problem for file in files.values())
        if not slash or unsure:
            return f"{UNKNOWN}:{name}"
        return f"{self._protocol}://{name}"

    def _refresh(self) -> Mapping[Path, _File]:
        stamps = self._stamps()
        files = self._files
        if {path: file.stamp for path, file in files.items()} == stamps:
            return files
        with self._lock:
            before = self._files
            self._files = {
                path: before[path]
                if path in before and before[path].stamp == stamp
                else _read(path, stamp, before.get(path))
                for path, stamp in sorted(stamps.items())
            }
            return self._files

    def _stamps(self) -> dict[Path, _Stamp]:
        stamps: dict[Path, _Stamp] = {}
        try:
            with os.scandir(self._directory) as entries:
                for entry in entries:
                    if entry.name.endswith(".yaml") and entry.is_file():
                        stat = entry.stat()
                        stamp = (stat.st_mtime_ns, stat.st_size, stat.st_ino)
                        stamps[self._directory / entry.name] = stamp
        except OSError:
            return {}
        return stamps


def _read(path: Path, stamp: _Stamp, before: _File | None) -> _File:
    try:
        with path.open("rb") as file:
            content = file.read(LARGEST + 1)
        translations = parse_translations(path, content)
    except (Malformed, OSError) as error:
        problem = str(error)
        kept = before.translations if before else None
        log.error(
            "image translation file not used", extra={"problem": problem, "kept": kept is not None}
        )
        return _File(stamp, kept, problem)
    return _File(stamp, translations, "")
