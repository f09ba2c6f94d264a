"""VirtletImageMappings: translations of image names that are objects of the cluster.

A thread follows those of one namespace. A copy of them is kept on disk, so that names mean the same
while the API server is away, also after a restart of the manager.
"""

import json
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from attrs import frozen

from virtlet.cluster.api import Cluster
from virtlet.cluster.follow import Followed, Resource
from virtlet.errors import NotFound, PermissionDenied, VirtletError
from virtlet.host.files import make_private_directory, write_atomically
from virtlet.plugins.image_names.translation_files import (
    Malformed,
    Translations,
    parse_translations,
)
from virtlet.threads import BackOff, Worker

log = logging.getLogger(__name__)

GROUP, VERSION, PLURAL = "virtlet.k8s", "v1", "virtletimagemappings"
FIRST_PAUSE, LONGEST_PAUSE = 0.5, 30.0
"""Seconds until the API server is asked again after a failure."""
REFUSED_PAUSE = 120.0
"""Seconds where it has no such kind, or the manager's account may not read it."""


@frozen
class _Mapping:
    """One object."""

    version: str
    spec: Any
    translations: Translations | None
    """The last valid ones; None if there were none."""
    problem: str = ""
    """What is wrong with the object now, or ""."""


class Mappings:
    """The objects of a namespace, as translations; readers never wait.

    Args:
        cluster: where they are.
        namespace: of the objects; "" for none.
        copy: file for the copy.
    """

    def __init__(self, cluster: Cluster, namespace: str, copy: Path) -> None:
        self._namespace = namespace
        self._copy = copy
        self._mappings: Mapping[str, _Mapping] = {}
        self._problem = ""
        self._known = True
        self._back_off = BackOff(FIRST_PAUSE, LONGEST_PAUSE)
        self._followed = Followed(cluster, Resource(GROUP, VERSION, PLURAL, namespace))
        self._worker = Worker("image-mappings", self._work)
        if namespace and cluster.configured:
            self._known = self._load()
            self._worker.start()

    def stop(self) -> None:
        """Follow them no more."""
        self._followed.stop()
        # A connection that is being made is left behind.
        self._worker.stop(2.0)

    @property
    def translations(self) -> Sequence[Translations]:
        """Those of all objects, in the order of their names."""
        found = self._mappings
        return [made for name in sorted(found) if (made := found[name].translations)]

    @property
    def problems(self) -> Sequence[str]:
        """What may keep a name from being translated."""
        wrong = [found.problem for found in self._mappings.values() if found.problem]
        if not self._known:
            why = f": {self._problem}" if self._problem else ""
            wrong.append(
                f"the VirtletImageMappings of namespace {self._namespace} are not known yet{why}"
            )
        return wrong

    def _work(self) -> float:
        try:
            self._followed.step(self._changed)
        except (NotFound, PermissionDenied) as error:
            # There are none as far as we may know.
            self._known = True
            self._told(error, logging.INFO)
            return REFUSED_PAUSE
        except VirtletError as error:
            self._told(error, logging.WARNING)
            return self._back_off.pause()
        self._problem = ""
        self._back_off.reset()
        return FIRST_PAUSE

    def _told(self, error: VirtletError, level: int) -> None:
        """Log a problem once, as long as it stays the same."""
        problem = str(error)
        if problem != self._problem:
            log.log(level, "image mappings not followed", extra={"problem": problem})
        self._problem = problem

    def _changed(self) -> None:
        if self._problem:
            log.info("image mappings followed again")
        self._problem = ""
        before = self._mappings
        self._mappings = {
            name: _read(self._namespace, name, found, before.get(name))
            for name, found in self._followed.objects.items()
        }
        self._known = True
        self._save()

    def _save(self) -> None:
        copy = {name: {"version": m.version, "spec": m.spec} for name, m in self._mappings.items()}
        content = json.dumps({"namespace": self._namespace, "mappings": copy}).encode()
        try:
            make_private_directory(self._copy.parent)
            write_atomically(self._copy, content)  # root's alone: transports may have keys
        except OSError as error:
            log.warning("copy of image mappings not written", extra={"problem": error.strerror})

    def _load(self) -> bool:
        """Take the copy; whether there is one."""
        try:
            found = json.loads(self._copy.read_bytes())
            if found["namespace"] != self._namespace:
                return False
            objects = {
                name: {"metadata": {"resourceVersion": kept["version"]}, "spec": kept["spec"]}
                for name, kept in found["mappings"].items()
            }
        except FileNotFoundError:
            return False
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            log.warning("copy of image mappings cannot be read", extra={"file": str(self._copy)})
            return False
        self._mappings = {
            name: _read(self._namespace, name, made, None) for name, made in objects.items()
        }
        return True


def _read(namespace: str, name: str, found: Mapping[str, Any], before: _Mapping | None) -> _Mapping:
    version = str(found["metadata"].get("resourceVersion", ""))
    if before is not None and before.version == version:
        return before
    spec = found.get("spec")
    try:
        content = json.dumps(spec).encode()
        made = parse_translations(f"VirtletImageMapping {namespace}/{name}", content)
    except Malformed as error:
        kept = before.translations if before else None
        extra = {"problem": str(error), "kept": kept is not None}
        log.error("image mapping not used", extra=extra)
        return _Mapping(version, spec, kept, str(error))
    return _Mapping(version, spec, made)
