"""Image names as pods write them become addresses, by the cluster's VirtletImageMappings and by all
translation files of a directory."""

import json
import logging
import re
import threading
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from attrs import frozen

from virtlet import hookimpl
from virtlet.cluster.api import KUBECONFIG, Cluster
from virtlet.cluster.follow import Resource
from virtlet.cluster.objects import Objects
from virtlet.errors import InvalidArgument, NotFound
from virtlet.host.files import Stamp, stamps
from virtlet.model.image import Credentials, FetchedImage, ImageSource, Staging
from virtlet.model.node import Node
from virtlet.model.option import BOOLEAN, PATH, TEXT, Option, Settings, choice
from virtlet.model.reference import Reference, scheme_of
from virtlet.plugins.image_names.translation_files import (
    LARGEST,
    ImageAddress,
    Malformed,
    Translations,
    parse_translations,
)

log = logging.getLogger(__name__)

TRANSLATIONS_DIR: Option[Path] = Option(
    field="imageTranslationConfigsDir",
    flag="--image-translation-configs-dir",
    env="VIRTLET_IMAGE_TRANSLATIONS_DIR",
    kind=PATH,
    default="/etc/virtlet/images",
    help="directory of image translation files (*.yaml); read again when they change",
)
REGEXP_TRANSLATION: Option[bool] = Option(
    field="enableRegexpImageTranslation",
    flag="--enable-regexp-image-translation",
    env="IMAGE_REGEXP_TRANSLATION",
    kind=BOOLEAN,
    default="true",
    help="translate image names by regular expressions too",
    mappable=True,
)
DOWNLOAD_PROTOCOL: Option[str] = Option(
    field="downloadProtocol",
    flag="--image-download-protocol",
    env="VIRTLET_DOWNLOAD_PROTOCOL",
    kind=choice("https", "http"),
    default="https",
    help="scheme for addresses that have none",
)
MAPPING_NAMESPACE: Option[str] = Option(
    field="imageMappingNamespace",
    flag="--image-mapping-namespace",
    env="VIRTLET_IMAGE_MAPPING_NAMESPACE",
    kind=TEXT,
    default="kube-system",
    help="namespace whose VirtletImageMapping objects translate image names, where the manager has "
    "access to the cluster (`kubeconfig`); empty for none",
)

OPTIONS: tuple[Option[Any], ...] = (
    TRANSLATIONS_DIR,
    REGEXP_TRANSLATION,
    DOWNLOAD_PROTOCOL,
    MAPPING_NAMESPACE,
)

_COMPONENT = re.compile(r"[A-Za-z0-9_.~:+,=-]+")

_REGISTRIES = ("oci", "docker")
"""Schemes of addresses in registries."""
# Grammar of repositories: OCI's distribution specification, "Pulling manifests".
_REPOSITORY = re.compile(r"[a-z0-9]+(?:(?:\.|_|__|-+|/)[a-z0-9]+)*")
_FILE = re.compile(
    r"\.(?:qcow2?|img|raw|iso|vmdk|vhdx?|vdi|disk|bin|gz|xz|zst|bz2|lz4|zip|tar|tgz|7z|ova)$"
)
"""How the names of files end that are no images' of a registry."""

UNKNOWN = "untranslated"
"""Scheme of the address of a name without a translation: it may be in the store already, so that
only fetching it is an error."""


def check_name(name: str) -> None:
    """Refuse malformed names, and those with credentials, which lists would show.

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
    stamp: Stamp
    translations: Translations | None
    """The last valid ones; None if there were none."""
    problem: str
    """What is wrong with the file now, or ""."""


class Translator:
    """Translates image names; looks at the directory each time and reads what changed.

    Args:
        directory: where the files are; it may be missing.
        mappings: objects of the cluster, which win over the files.
        regexps: whether regular expressions count.
        protocol: scheme for addresses that have none.
    """

    def __init__(
        self, directory: Path, mappings: Objects[Translations], *, regexps: bool, protocol: str
    ) -> None:
        self._directory = directory
        self._mappings = mappings
        self._regexps = regexps
        self._protocol = protocol
        self._lock = threading.Lock()
        self._files: Mapping[Path, _File] = {}

    def resolve(self, image: Reference) -> ImageSource | None:
        """The source of an image; None if its scheme is left to other plugins.

        The tag counts in registries alone: the kubelet appends `:latest` to names without one.

        Raises:
            InvalidArgument: the name is malformed.
        """
        check_name(image.name)
        if image.scheme:
            known = image.scheme in ("file", "http", "https", "oci")
            return (
                ImageSource(name=image.name, url=image.name, digest=image.digest) if known else None
            )
        files = self._refresh()
        target = self._mapped(image.name)
        if target is None:
            usable = [file.translations for file in files.values() if file.translations]
            target = self._translate(image.name, usable)
        if target is None:
            url = self._plain(image.name, files)
            oci = _in_registry(image) if scheme_of(url) else ""
            return ImageSource(name=image.name, url=url, digest=image.digest, oci=oci)
        url = target.url if scheme_of(target.url) else f"{self._protocol}://{target.url}"
        if scheme_of(url) in _REGISTRIES and not re.search("[:@]", url.rpartition("/")[2]):
            # In a registry a tag is a part of the address, and here the only one.
            url += f":{image.tag}" if image.tag else ""
        return ImageSource(
            name=image.name,
            url=url,
            digest=image.digest,
            transport=target.transport,
            trusted=target.trusted,
        )

    def explain(self, name: str) -> str:
        """Why a name has no address, and what to do."""
        problems = self._problems(self._refresh())
        if problems:
            return f"image {name}: no usable translation file names it; {'; '.join(problems)}"
        return (
            f"image {name}: no translation file in {self._directory} names it, and it is not a "
            "HOST/PATH address"
        )

    def _problems(self, files: Mapping[Path, _File]) -> list[str]:
        """What may keep a name from being translated."""
        found = [file.problem for file in files.values() if file.problem]
        return [*self._mappings.problems, *found]

    def _mapped(self, name: str) -> ImageAddress | None:
        """The address that an object of the cluster gives a name.

        Raises:
            InvalidArgument: it is a file of the node, which only the node's own files may name.
        """
        target = self._translate(name, self._mappings.usable.values())
        if target is not None and scheme_of(target.url) == "file":
            raise InvalidArgument(
                f"image {name}: a VirtletImageMapping leads to a file of the node, which only a "
                f"translation file in {self._directory} may name"
            )
        return target

    def _translate(self, name: str, usable: Iterable[Translations]) -> ImageAddress | None:
        usable = list(usable)
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
                    return ImageAddress(url, transport, trusted=rule.names_server)
        return None

    def _plain(self, name: str, files: Mapping[Path, _File]) -> str:
        host, slash, _ = name.partition("/")
        looks_like_host = _looks_like_host(host)
        # `a/b` may be a name of a file that cannot be read now: a host `a` may have another image.
        unsure = not looks_like_host and bool(self._problems(files))
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

    def _stamps(self) -> dict[Path, Stamp]:
        try:
            return stamps(self._directory, ".yaml")
        except OSError:
            return {}


def _looks_like_host(word: str) -> bool:
    return "." in word or ":" in word or word == "localhost"


def _in_registry(image: Reference) -> str:
    """`HOST/REPOSITORY:TAG` if a name may be an image's in a registry, else ""."""
    host, _, path = image.name.partition("/")
    if not _looks_like_host(host) or not _REPOSITORY.fullmatch(path) or _FILE.search(path):
        return ""
    return image.tagged


def _read(path: Path, stamp: Stamp, before: _File | None) -> _File:
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


def _followed(cluster: Cluster, namespace: str, copy: Path) -> Objects[Translations]:
    def read(name: str, content: Mapping[str, Any]) -> Translations:
        text = json.dumps(content["spec"]).encode()
        return parse_translations(f"VirtletImageMapping {namespace}/{name}", text)

    kind = Resource("VirtletImageMapping", "virtletimagemappings", namespace)
    return Objects(cluster, kind, copy, "image mapping", read, follow=bool(namespace))


class Plugin:
    """Resolves image names by VirtletImageMappings and translation files."""

    VIRTLET_HOOK_API = 1

    _cluster: Cluster
    _mappings: Objects[Translations]
    _translator: Translator

    @hookimpl
    def virtlet_options(self) -> Sequence[Option[Any]]:
        """Declare the translation settings."""
        return OPTIONS

    @hookimpl
    def virtlet_configure(self, settings: Settings, node: Node) -> None:
        """Take the settings, and follow the cluster's objects."""
        self._cluster = Cluster(settings[KUBECONFIG])
        copy = node.state_dir("image_names") / "mappings.json"
        self._mappings = _followed(self._cluster, settings[MAPPING_NAMESPACE], copy)
        self._mappings.start()
        self._translator = Translator(
            settings[TRANSLATIONS_DIR],
            self._mappings,
            regexps=settings[REGEXP_TRANSLATION],
            protocol=settings[DOWNLOAD_PROTOCOL],
        )

    @hookimpl
    def virtlet_resolve_image(self, reference: Reference) -> ImageSource | None:
        """Translate a name, or take it as an address."""
        return self._translator.resolve(reference)

    @hookimpl
    def virtlet_fetch_image(
        self, source: ImageSource, credentials: Credentials, staging: Staging
    ) -> FetchedImage | None:
        """Say why a name has no address."""
        if source.url.startswith(f"{UNKNOWN}:"):
            raise NotFound(self._translator.explain(source.name))
        return None

    @hookimpl
    def virtlet_shutdown(self) -> None:
        """Follow the cluster's objects no more."""
        self._mappings.stop()
        self._cluster.close()
