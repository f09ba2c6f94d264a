"""The node's templates: which are there, and the one that is being made.

One is made at a time, in the background, when a VM boots that could have used it. A template is of
one boot of the node, as another kernel or microcode may be another CPU.

What there is stands on disk alone: a directory for each template, with a file that says what it is
of. So `virtlet templates rm` takes one away beside the manager: a start that was about to use it
fails, and the VM boots.
"""

import contextlib
import json
import logging
import os
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

from attrs import define, evolve, field, frozen

from virtlet.errors import FailedPrecondition, VirtletError
from virtlet.host.files import make_private_directory, remove_tree
from virtlet.threads import BackOff

log = logging.getLogger(__name__)

ABOUT = "about.json"
"""In a template's directory: what it is of, for people and for the bounds."""
READY, MAKING, FAILED = "ready", "making", "failed"
"""States of a template."""
LOOK = 600.0
"""Seconds between two looks for templates that nobody uses any more."""
_FIRST_PAUSE, _LONGEST_PAUSE = 600.0, 86400.0
"""Seconds after which one that could not be made is tried again, when a VM wants it."""
_MOST_FAILURES = 256
"""Kept in memory; the oldest is forgotten, and tried again."""
_NOTHING: Mapping[str, Any] = MappingProxyType({})


class NoTemplate(FailedPrecondition):
    """A VM has no template.

    Args:
        kind: why, as a word for metrics.
        reason: why, as a sentence.
    """

    def __init__(self, kind: str, reason: str) -> None:
        super().__init__(reason)
        self.kind = kind


@frozen(kw_only=True)
class Bounds:
    """What the node gives for templates; what was used least recently makes way."""

    number: int = 4
    memory: int = 8 << 30
    """Bytes of their guests' memory, all together."""
    disk: int = 16 << 30
    """Bytes that they take on the disk, all together."""
    age: float = 168 * 3600.0
    """Seconds without a start from it after which a template goes."""


@frozen(kw_only=True)
class Known:
    """A template, or what is to become one."""

    key: str
    state: str
    about: Mapping[str, Any] = _NOTHING
    disk: int = 0
    """Bytes that it takes on the disk."""
    used_at: float = 0.0
    """Seconds since the epoch: when a VM started from it last, or when it was made."""
    reason: str = ""
    """Why it could not be made, or did not do."""
    retry_at: float = 0.0
    """When it may be tried again."""
    directory: Path | None = None

    @property
    def memory(self) -> int:
        """Bytes of its guest's memory."""
        return int(self.about.get("memory", 0))


@define
class _Failure:
    about: Mapping[str, Any]
    reason: str = ""
    until: float = 0.0
    back_off: BackOff = field(
        factory=lambda: BackOff(_FIRST_PAUSE, _LONGEST_PAUSE, jitter=0.0), repr=False
    )


@frozen
class _Making:
    thread: threading.Thread
    key: str
    about: Mapping[str, Any]


@define
class Templates:
    """Templates by what their VMs have in common (`templates.key_of`)."""

    bounds: Bounds = Bounds()
    now: Callable[[], float] = time.time
    _lock: threading.Lock = field(factory=threading.Lock)
    _making: _Making | None = None
    _failures: dict[str, _Failure] = field(factory=dict)
    _counts: Counter[tuple[str, str]] = field(factory=Counter)

    def find(
        self,
        parent: Path,
        key: str,
        make: Callable[[Path], None],
        about: Mapping[str, Any] = _NOTHING,
    ) -> Path | None:
        """The directory of the template with a key; None where there is none.

        One is made then, unless another one is being made.

        Args:
            parent: where templates are.
            key: what the VM has in common with others.
            make: makes one in a directory.
            about: what it is of; `memory` is its guest's, in bytes.

        Raises:
            NoTemplate: there can be none, or none now; says why.
        """
        directory = parent / f"{_boot()}-{key}"
        with self._lock:
            now = self.now()
            with contextlib.suppress(FileNotFoundError):
                os.utime(directory, (now, now))
                return directory
            failure = self._failures.get(key)
            if failure is not None and now < failure.until:
                minutes = int(-(-(failure.until - now) // 60))
                raise NoTemplate(FAILED, f"{failure.reason} (tried again in {minutes} min)")
            self._refuse(about)
            if self._making is None:
                thread = threading.Thread(
                    target=self._make,
                    args=(directory, key, make, about),
                    name="template",
                    daemon=True,
                )
                self._making = _Making(thread, key, about)
                thread.start()
        return None

    def _refuse(self, about: Mapping[str, Any]) -> None:
        memory = int(about.get("memory", 0))
        if not self.bounds.number:
            raise NoTemplate("unfit", "the node has none (templateLimit is 0)")
        if memory > self.bounds.memory:
            raise NoTemplate(
                "unfit",
                f"its {memory >> 20}Mi of memory are more than the {self.bounds.memory >> 20}Mi of "
                "templateMemory",
            )

    @property
    def making(self) -> str:
        """Key of the template that is being made; "" for none."""
        making = self._making
        return making.key if making else ""

    def wait(self, patience: float) -> None:
        """Wait until the one that is being made is made, or could not be; at most some seconds."""
        with self._lock:
            making = self._making
        if making is not None:
            making.thread.join(patience)

    def worked(self, directory: Path) -> None:
        """A VM has started from a template."""
        with self._lock:
            self._failures.pop(_key(directory), None)
            self._counts["warm", ""] += 1

    def discard(self, directory: Path, reason: str) -> None:
        """Remove a template that does not do; VMs that run from it go on.

        Another one is made after a while.
        """
        about = _about(directory)
        with self._lock:
            gone = self._take_away(directory, "broken")
            self._fail(_key(directory), about, reason)
        _remove(gone)

    def evict(self, parent: Path) -> float:
        """Remove templates that nobody has used for long, and those beyond the bounds.

        Returns:
            Seconds until it is worth another look.
        """
        gone: list[Path] = []
        with self._lock:
            known = sorted(_ready(parent), key=lambda template: template.used_at)
            while known and (reason := self._excess(known)):
                oldest = known.pop(0)
                assert oldest.directory is not None
                gone += self._take_away(oldest.directory, reason)
        _remove(gone)
        return LOOK

    def _excess(self, known: list[Known]) -> str:
        """Why the first has to make way; "" if it has not."""
        bounds = self.bounds
        reasons = {
            "age": self.now() - known[0].used_at > bounds.age,
            "number": len(known) > bounds.number,
            "memory": sum(template.memory for template in known) > bounds.memory,
            "disk": sum(template.disk for template in known) > bounds.disk,
        }
        return next((reason for reason, holds in reasons.items() if holds), "")

    def known(self, parent: Path) -> list[Known]:
        """All templates, the one that is being made, and what could not be made."""
        with self._lock:
            making = self._making
            failures = [(key, evolve(failure)) for key, failure in self._failures.items()]
        ready = list(_ready(parent))
        made = {template.key for template in ready}
        found = sorted(ready, key=lambda template: -template.used_at)
        if making is not None:
            found.append(Known(key=making.key, state=MAKING, about=making.about))
        for key, failure in failures:
            if key not in made and (making is None or key != making.key):
                found.append(
                    Known(
                        key=key,
                        state=FAILED,
                        about=failure.about,
                        reason=failure.reason,
                        retry_at=failure.until,
                    )
                )
        return found

    def count(self, what: str, why: str = "") -> None:
        """Count a start."""
        with self._lock:
            self._counts[what, why] += 1

    def counts(self) -> Mapping[tuple[str, str], int]:
        """What happened since the manager's start: `made`, `failed`, `warm` starts, `cold` starts
        by the kind of reason, `evicted` by what they made way for."""
        with self._lock:
            return dict(self._counts)

    def _make(
        self, directory: Path, key: str, make: Callable[[Path], None], about: Mapping[str, Any]
    ) -> None:
        place, began = directory.with_suffix(".new"), time.monotonic()
        log.info("making a template", extra={"key": key, "image": about.get("image", "")})
        try:
            remove_tree(place)
            make_private_directory(place)
            make(place)
            made = {**about, "madeAt": int(self.now())}
            (place / ABOUT).write_text(json.dumps(made))
            taken = _taken(place)
            if taken > self.bounds.disk:
                raise FailedPrecondition(
                    f"it takes {taken >> 20}Mi of the disk, more than the "
                    f"{self.bounds.disk >> 20}Mi of templateDisk"
                )
            with self._lock:
                now = self.now()
                os.utime(place, (now, now))
                place.rename(directory)
                self._counts["made", ""] += 1
            self.evict(directory.parent)
            seconds = round(time.monotonic() - began, 1)
            log.info("template made", extra={"key": key, "seconds": seconds})
        except Exception as error:
            with self._lock:
                self._fail(key, about, _words(error))
            extra = {"key": key, "problem": str(error)}
            log.warning("no template", extra=extra, exc_info=not isinstance(error, VirtletError))
        finally:
            _remove([place])
            with self._lock:
                self._making = None

    def _fail(self, key: str, about: Mapping[str, Any], reason: str) -> None:
        """Leave a key alone for a while; holds the lock."""
        failure = self._failures.pop(key, None) or _Failure(about)
        failure.reason, failure.until = reason, self.now() + failure.back_off.pause()
        self._failures[key] = failure
        self._counts["failed", ""] += 1
        while len(self._failures) > _MOST_FAILURES:
            del self._failures[next(iter(self._failures))]

    def _take_away(self, directory: Path, reason: str) -> list[Path]:
        """Have nobody find a template any more; holds the lock. Returns what is to be removed."""
        gone = directory.with_suffix(".gone")
        try:
            directory.rename(gone)
        except FileNotFoundError:
            return []
        self._counts["evicted", reason] += 1
        log.info("template removed", extra={"key": _key(directory), "reason": reason})
        return [gone]


def reconcile(parent: Path) -> None:
    """Remove what another boot, or a manager that was killed, has left."""
    for path in parent.iterdir():
        if not path.name.startswith(f"{_boot()}-") or path.suffix:
            remove_tree(path)


def _ready(parent: Path) -> Iterator[Known]:
    for directory in parent.iterdir() if parent.is_dir() else ():
        if directory.suffix:
            continue
        # It may be taken away at any moment.
        with contextlib.suppress(FileNotFoundError):
            yield Known(
                key=_key(directory),
                state=READY,
                about=_about(directory),
                disk=_taken(directory),
                used_at=directory.stat().st_mtime,
                directory=directory,
            )


def _about(directory: Path) -> Mapping[str, Any]:
    """What a template says that it is of; nothing where it does not say."""
    with contextlib.suppress(OSError, ValueError):
        said = json.loads((directory / ABOUT).read_bytes())
        return said if isinstance(said, dict) else _NOTHING
    return _NOTHING


def _taken(directory: Path) -> int:
    """Bytes that the files of a directory take: holes take none."""
    return sum(path.lstat().st_blocks * 512 for path in directory.iterdir())


def _words(error: Exception) -> str:
    """An error for the pod's owner: no path of the node, and nothing that a bug has to say."""
    if isinstance(error, VirtletError):
        return str(error)[:1000]
    if isinstance(error, OSError) and error.strerror:
        return f"none could be made: {error.strerror}"
    return f"none could be made: {type(error).__name__}"


def _remove(paths: list[Path]) -> None:
    for path in paths:
        try:
            remove_tree(path)
        except (OSError, VirtletError) as error:
            # The next start of the manager removes it.
            log.warning("template not removed", extra={"path": str(path), "problem": str(error)})


def _key(directory: Path) -> str:
    return directory.name.partition("-")[2]


def _boot() -> str:
    """Begins the names of this boot's templates."""
    return Path("/proc/sys/kernel/random/boot_id").read_text()[:8]
