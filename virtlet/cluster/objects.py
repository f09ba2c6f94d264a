"""The objects of a kind as a plugin understands them, kept while the API server is away.

A thread follows them. A copy is on disk, so that they mean the same after a restart of the manager
too. An object that is wrong is logged by its name, keeps its last meaning, and disturbs no other.
"""

import json
import logging
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Generic, TypeVar

from attrs import frozen

from virtlet.cluster.api import Cluster
from virtlet.cluster.follow import Followed, Resource
from virtlet.errors import FailedPrecondition, NotFound, PermissionDenied, VirtletError
from virtlet.host.files import make_private_directory, write_atomically
from virtlet.threads import BackOff, Worker

log = logging.getLogger(__name__)

T = TypeVar("T")

FIRST_PAUSE, LONGEST_PAUSE = 0.5, 30.0
"""Seconds until the API server is asked again after a failure."""
REFUSED_PAUSE = 120.0
"""Seconds where it has no such kind, or the manager's account may not read it."""


@frozen
class _Object(Generic[T]):
    version: str
    content: Mapping[str, Any]
    """Of the object what its reader takes, as it is in the copy."""
    made: T | None
    """The last valid meaning; None if there was none."""
    problem: str = ""
    """What is wrong with the object now, or ""."""


class Objects(Generic[T]):
    """The objects of a kind; readers never wait.

    Args:
        cluster: where they are; nothing is followed where it is not configured.
        resource: which they are.
        copy: file for the copy.
        noun: what one is called in the log.
        read: takes an object's name and content (`spec`, and `created`, its time as text) and
            returns what it means; raises a VirtletError with what is wrong.
        changed: called on the thread after every change, and every few minutes without one.
        follow: False for nobody's objects.
    """

    def __init__(
        self,
        cluster: Cluster,
        resource: Resource,
        copy: Path,
        noun: str,
        read: Callable[[str, Mapping[str, Any]], T],
        changed: Callable[[], None] = lambda: None,
        *,
        follow: bool = True,
    ) -> None:
        self._resource = resource
        self._copy = copy
        self._noun = noun
        self._read = read
        self._told_of_change = changed
        self._found: Mapping[str, _Object[T]] = {}
        self._problem = ""
        self._known = True
        self._reachable = True
        self.tried = threading.Event()
        """Set once the server has told of them, or could not."""
        self._back_off = BackOff(FIRST_PAUSE, LONGEST_PAUSE)
        self._followed = Followed(cluster, resource)
        self._worker = Worker(f"objects-{resource.plural}", self._work)
        self._configured = follow and cluster.configured
        if self._configured:
            self._known = self._load()

    def start(self) -> None:
        """Follow them, once what `changed` needs is there."""
        if self._configured:
            self._worker.start()

    def stop(self) -> None:
        """Follow them no more."""
        self._followed.stop()
        # A connection that is being made is left behind.
        self._worker.stop(2.0)

    @property
    def usable(self) -> Mapping[str, T]:
        """Name to meaning, in the order of the names."""
        found = self._found
        return {n: made for n in sorted(found) if (made := found[n].made) is not None}

    @property
    def wrong(self) -> Mapping[str, str]:
        """Name to what is wrong with the object now."""
        return {name: found.problem for name, found in self._found.items() if found.problem}

    @property
    def unknown(self) -> str:
        """Why it is not known which there are; "" where it is."""
        if self._known:
            return ""
        why = f": {self._problem}" if self._problem else ""
        where = self._resource.namespace
        place = f" of namespace {where}" if where else ""
        return f"the {self._resource.kind}s{place} are not known yet{why}"

    @property
    def awaited(self) -> bool:
        """Whether it will be known soon, by itself: there is a way to the API server."""
        return not self._known and self._reachable

    @property
    def problems(self) -> Sequence[str]:
        """What may keep a name from being found."""
        return [*self.wrong.values(), *([self.unknown] if not self._known else [])]

    def _work(self) -> float:
        try:
            return self._step()
        finally:
            self.tried.set()

    def _step(self) -> float:
        try:
            self._followed.step(self._changed)
        except (NotFound, PermissionDenied) as error:
            # There are none as far as we may know.
            self._known = True
            self._told(error, logging.INFO)
            return REFUSED_PAUSE
        except VirtletError as error:
            self._reachable = not isinstance(error, FailedPrecondition)
            self._told(error, logging.WARNING)
            return self._back_off.pause()
        self._problem = ""
        self._back_off.reset()
        self._told_of_change()
        return FIRST_PAUSE

    def _told(self, error: VirtletError, level: int) -> None:
        """Log a problem once, as long as it stays the same."""
        problem = str(error)
        if problem != self._problem:
            log.log(level, "%ss not followed", self._noun, extra={"problem": problem})
        self._problem = problem

    def _changed(self) -> None:
        if self._problem:
            log.info("%ss followed again", self._noun)
        self._problem = ""
        before = self._found
        self._found = {
            name: self._object(name, _content(found), _version(found), before.get(name))
            for name, found in self._followed.objects.items()
        }
        self._known = True
        self._save()
        self._told_of_change()
        self.tried.set()

    def _object(
        self, name: str, content: Mapping[str, Any], version: str, before: _Object[T] | None
    ) -> _Object[T]:
        if before is not None and before.version == version:
            return before
        try:
            return _Object(version, content, self._read(name, content))
        except VirtletError as error:
            kept = before.made if before else None
            extra = {"problem": str(error), "kept": kept is not None}
            log.error("%s not used", self._noun, extra=extra)
            return _Object(version, content, kept, str(error))

    def _save(self) -> None:
        objects = {name: {"version": o.version, **o.content} for name, o in self._found.items()}
        copy = {"namespace": self._resource.namespace, "objects": objects}
        try:
            make_private_directory(self._copy.parent)
            # root's alone: what is in it may be secret
            write_atomically(self._copy, json.dumps(copy).encode())
        except OSError as error:
            extra = {"problem": error.strerror}
            log.warning("copy of %ss not written", self._noun, extra=extra)

    def _load(self) -> bool:
        """Take the copy; whether there is one."""
        try:
            copy = json.loads(self._copy.read_bytes())
            if copy["namespace"] != self._resource.namespace:
                return False
            objects = {
                name: (str(kept["version"]), {"spec": kept["spec"], "created": kept["created"]})
                for name, kept in copy["objects"].items()
            }
        except FileNotFoundError:
            return False
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            log.warning("copy of %ss cannot be read", self._noun, extra={"file": str(self._copy)})
            return False
        self._found = {
            name: self._object(name, content, version, None)
            for name, (version, content) in objects.items()
        }
        return True


def _version(found: Mapping[str, Any]) -> str:
    return str(found["metadata"].get("resourceVersion", ""))


def _content(found: Mapping[str, Any]) -> Mapping[str, Any]:
    created = str(found["metadata"].get("creationTimestamp") or "")
    return {"spec": found.get("spec"), "created": created}
