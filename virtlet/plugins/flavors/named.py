"""VirtletFlavors: machines with names, as objects of the cluster and as files of the node.

A file has the form of the object. Of one name the node's file counts; of those that claim one
handler, files come first, then the oldest.
"""

import fnmatch
import logging
import re
from collections.abc import Collection, Iterable, Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from attrs import evolve, frozen

from virtlet.cluster.objects import Objects
from virtlet.errors import FailedPrecondition, InvalidArgument, Unavailable
from virtlet.host.files import Stamp, stamps
from virtlet.model.bounded_yaml import load_yaml
from virtlet.model.flavor import FROM_IMAGE
from virtlet.model.plain import UnquotedError
from virtlet.model.pod import Pod
from virtlet.plugins.flavors import annotations
from virtlet.plugins.flavors.flavor_keys import read_flavor

log = logging.getLogger(__name__)

API, KIND = "virtlet.k8s/v1", "VirtletFlavor"
SPEC: Mapping[str, str] = {
    "description": "For people; `kubectl get` shows it",
    "flavor": "The machine: see below",
    "handlers": "Runtime handlers whose pods have this machine unless they name another",
    "allowedNamespaces": "Names of namespaces, or globs such as `team-*`, whose pods may have it; "
    "without it all may",
    "fixed": "True refuses pods with annotations that change the machine",
}
"""What an object says, with its meaning."""
HANDLERS_OWN: Mapping[str, str] = {
    "spoofing": "lets guests send from addresses of others",
    "domain_cpu": "is a part of the domain document",
}
"""Extras that only the `handlers` of a node's configuration may have."""
LARGEST = 1 << 20
"""Bytes of a file."""
_MOST_SHOWN = 20
_NAME = re.compile(r"[a-z0-9](?:[-a-z0-9.]{0,251}[a-z0-9])?")
_NAMESPACES = re.compile(r"[-a-z0-9*?]{1,63}")


@frozen
class NamedFlavor:
    """A valid VirtletFlavor."""

    name: str
    where: str
    """It is, for messages."""
    section: Mapping[str, Any]
    """Its `flavor`, as written."""
    handlers: tuple[str, ...] = ()
    namespaces: tuple[str, ...] | None = None
    """None for all."""
    fixed: bool = False
    rank: tuple[int, str, str] = (0, "", "")
    """The least is first among those that claim a handler."""

    def allows(self, namespace: str) -> bool:
        """Whether pods of a namespace may have it."""
        if self.namespaces is None:
            return True
        return any(fnmatch.fnmatchcase(namespace, glob) for glob in self.namespaces)


def read_spec(name: str, content: Mapping[str, Any]) -> NamedFlavor:
    """The flavor of an object of the cluster.

    Args:
        name: the object's.
        content: its `spec`, and `created`, its time as text.

    Raises:
        FailedPrecondition: it is wrong; names the object and the place in it.
    """
    made = _read(f"{KIND} {name}", name, content["spec"])
    for key in ("kernel", "initrd"):
        if not str(made.section.get(key, FROM_IMAGE)).startswith(FROM_IMAGE):
            raise FailedPrecondition(
                f"{KIND} {name}: flavor: {key} names a file of nodes: only a node's own flavors "
                "may; others may name one of an image (image:/PATH)"
            )
    return evolve(made, rank=(1, str(content.get("created", "")), name))


def _read(where: str, name: str, spec: Any) -> NamedFlavor:
    if not isinstance(spec, Mapping):
        raise FailedPrecondition(f"{where}: spec must be a mapping")
    for key in spec:
        if key not in SPEC:
            near = get_close_matches(str(key), SPEC, 1)
            hint = f" (did you mean {near[0]!r}?)" if near else ""
            raise FailedPrecondition(
                f"{where}: spec has the unknown key {key!r}{hint}; known: {', '.join(SPEC)}"
            )
    section = spec.get("flavor")
    if not isinstance(section, Mapping):
        raise FailedPrecondition(f"{where}: spec: flavor must be a mapping")
    flavor = read_flavor(f"{where}: flavor", section)
    for extra, meaning in HANDLERS_OWN.items():
        if extra in flavor.extras:
            raise FailedPrecondition(
                f"{where}: flavor: extras: {extra} {meaning}: only `handlers` of a node's "
                "configuration may have it"
            )
    globs = None
    if spec.get("allowedNamespaces") is not None:
        globs = _words(where, spec, "allowedNamespaces")
        for glob in globs:
            if not _NAMESPACES.fullmatch(glob):
                raise FailedPrecondition(
                    f"{where}: spec: allowedNamespaces: {glob!r} is neither a namespace nor a glob"
                )
    fixed = spec.get("fixed", False)
    if not isinstance(fixed, bool):
        raise FailedPrecondition(f"{where}: spec: fixed must be true or false")
    handlers = _words(where, spec, "handlers")
    return NamedFlavor(name, where, dict(section), handlers, globs, fixed, (0, "", name))


def _words(where: str, spec: Mapping[str, Any], key: str) -> tuple[str, ...]:
    value = spec.get(key)
    value = [] if value is None else value
    if not isinstance(value, list) or not all(isinstance(word, str) for word in value):
        raise FailedPrecondition(f"{where}: spec: {key} must be a list of words")
    return tuple(value)


@frozen
class _File:
    stamp: Stamp
    made: NamedFlavor | None
    """The last valid one; None if there was none."""


class FlavorFiles:
    """The flavors of a directory; looks at it each time and reads what changed.

    Args:
        directory: of the files `*.yaml`; it may be missing.
    """

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._files: Mapping[Path, _File] = {}

    def look(self) -> tuple[Mapping[str, NamedFlavor], list[str]]:
        """(name to flavor, contradictions); the first file of a name counts."""
        before, files = self._files, {}
        for path, stamp in sorted(self._stamps().items()):
            known = before.get(path)
            files[path] = (
                known if known and known.stamp == stamp else _read_file(path, stamp, known)
            )
        self._files = files
        found: dict[str, NamedFlavor] = {}
        problems: list[str] = []
        for file in files.values():
            if file.made is None:
                continue
            first = found.setdefault(file.made.name, file.made)
            if first is not file.made:
                problems.append(
                    f"{file.made.where} is not used: {first.where} has the name {first.name!r} too"
                )
        return found, problems

    def _stamps(self) -> dict[Path, Stamp]:
        try:
            return stamps(self._directory, ".yaml")
        except FileNotFoundError:
            return {}
        except OSError as error:
            raise FailedPrecondition(
                f"directory of flavors {self._directory}: {error.strerror}"
            ) from None


def _read_file(path: Path, stamp: Stamp, before: _File | None) -> _File:
    try:
        with path.open("rb") as file:
            content = file.read(LARGEST + 1)
        made = _parsed(path, content)
    except (FailedPrecondition, OSError) as error:
        kept = before.made if before else None
        extra = {"problem": str(error), "kept": kept is not None}
        log.error("flavor file not used", extra=extra)
        return _File(stamp, kept)
    return _File(stamp, made)


def _parsed(path: Path, content: bytes) -> NamedFlavor:
    if len(content) > LARGEST:
        raise FailedPrecondition(f"{path}: is over {LARGEST} bytes")
    try:
        found = load_yaml(content.decode())
    except UnicodeDecodeError:
        raise FailedPrecondition(f"{path}: is no UTF-8 text") from None
    except UnquotedError as error:
        raise FailedPrecondition(f"{path}: {error}") from None
    if not isinstance(found, Mapping) or (found.get("apiVersion"), found.get("kind")) != (
        API,
        KIND,
    ):
        raise FailedPrecondition(f"{path}: must be one document with apiVersion {API}, kind {KIND}")
    metadata = found.get("metadata")
    name = metadata.get("name") if isinstance(metadata, Mapping) else None
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise FailedPrecondition(
            f"{path}: metadata.name must be a name as Kubernetes' objects have"
        )
    return _read(str(path), name, found.get("spec"))


class Flavors:
    """Which flavor a pod has.

    Args:
        files: the node's.
        objects: the cluster's.
        handlers: that the node serves.
    """

    def __init__(
        self, files: FlavorFiles, objects: Objects[NamedFlavor], handlers: Collection[str]
    ) -> None:
        self._files = files
        self._objects = objects
        self._handlers = {"", *handlers}
        self._told: frozenset[str] = frozenset()

    def section_of(self, pod: Pod) -> Mapping[str, Any] | None:
        """The settings of the machine a pod has: its flavor's over its handler's.

        Args:
            pod: as it is before it is admitted.

        Returns:
            None where neither the pod nor its handler has a flavor.

        Raises:
            InvalidArgument: there is no such flavor, or the pod may not have it.
            FailedPrecondition: it does not fit the handler's section.
            Unavailable: the cluster's flavors are not known yet.
        """
        files, problems = self._files.look()
        everything = {**self._objects.usable, **files}
        self._tell(everything, problems)
        wanted = annotations.FLAVOR.of(pod)
        if wanted:
            chosen = everything.get(wanted)
            wait = bool(self._objects.unknown)
        else:
            chosen = first_of(pod.profile.handler, everything.values())
            wait = self._objects.awaited
        if wait and (chosen is None or chosen.name not in files):
            raise Unavailable(f"pod {pod.name}: {self._objects.unknown}")
        if chosen is None and wanted:
            because = self._objects.wrong.get(wanted, "")
            raise InvalidArgument(
                f"annotation {annotations.FLAVOR.name}: there is no flavor {wanted!r}"
                f"{f' that can be used ({because})' if because else ''}; {_choice(pod, everything)}"
            )
        if chosen is None:
            return None
        _check(pod, chosen, everything)
        mine, its = pod.profile.flavor, chosen.section
        merged = {**mine, **its}
        if isinstance(mine.get("extras"), Mapping):
            merged["extras"] = {**mine["extras"], **its.get("extras", {})}
        where = f"{chosen.where}, over the flavor of handler {pod.profile.handler!r}"
        read_flavor(where, merged)
        return merged

    def _tell(self, everything: Mapping[str, NamedFlavor], problems: Iterable[str]) -> None:
        """Log contradictions, each once as long as it lasts."""
        found = set(problems)
        for handler in {handler for made in everything.values() for handler in made.handlers}:
            claims = sorted(
                (m for m in everything.values() if handler in m.handlers), key=lambda m: m.rank
            )
            for other in claims[1:]:
                found.add(
                    f"{other.where}: handler {handler!r} has the flavor {claims[0].name!r} "
                    f"({claims[0].where}) already, which counts; take the handler out of one"
                )
            if handler not in self._handlers:
                found.add(f"{claims[0].where}: this node serves no handler {handler!r}")
        for problem in sorted(found - self._told):
            log.warning("flavor not used as it says", extra={"problem": problem})
        self._told = frozenset(found)


def first_of(handler: str, flavors: Iterable[NamedFlavor]) -> NamedFlavor | None:
    """The flavor of a handler's pods that name none."""
    claims = [made for made in flavors if handler in made.handlers]
    return min(claims, key=lambda made: made.rank, default=None)


def _check(pod: Pod, chosen: NamedFlavor, everything: Mapping[str, NamedFlavor]) -> None:
    namespace = pod.config.metadata.namespace
    if not chosen.allows(namespace):
        raise InvalidArgument(
            f"pod {pod.name}: its namespace may not have flavor {chosen.name!r}"
            f"{'' if annotations.FLAVOR.of(pod) else ', that of its handler'}; "
            f"{_choice(pod, everything)}"
        )
    changed = [one.name for one in annotations.ABOUT_MACHINES if one.of(pod) is not None]
    if chosen.fixed and changed:
        raise InvalidArgument(
            f"pod {pod.name}: flavor {chosen.name!r} is fixed: take out {', '.join(changed)}, or "
            f"choose another flavor; {_choice(pod, everything)}"
        )


def _choice(pod: Pod, everything: Mapping[str, NamedFlavor]) -> str:
    namespace = pod.config.metadata.namespace
    names = sorted(name for name, made in everything.items() if made.allows(namespace))
    if not names:
        return f"namespace {namespace} may use none"
    more = f" and {len(names) - _MOST_SHOWN} more" if len(names) > _MOST_SHOWN else ""
    return f"namespace {namespace} may use {', '.join(names[:_MOST_SHOWN])}{more}"
