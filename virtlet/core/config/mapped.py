"""VirtletConfigMappings: settings of nodes as objects of the cluster, chosen by name and labels.

They win over defaults alone: what the node's file, environment or flags say stays. Only options
that are declared `mappable` can be set so.
"""

import contextlib
import json
import logging
import socket
import threading
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from attrs import frozen

from virtlet.cluster.api import Cluster
from virtlet.cluster.follow import Resource
from virtlet.cluster.objects import Objects
from virtlet.core.config.load import as_text, parse
from virtlet.errors import FailedPrecondition, InvalidArgument, NotFound, VirtletError
from virtlet.host.files import make_private_directory, write_atomically
from virtlet.model.option import Option

log = logging.getLogger(__name__)

KIND, PLURAL = "VirtletConfigMapping", "virtletconfigmappings"
FIRST_TIME = 10.0
"""Seconds that a start waits for the API server, where no copy of the objects is on disk."""
SPEC = ("nodeName", "nodeSelector", "priority", "config")


@frozen
class ConfigMapping:
    """One valid object."""

    where: str
    node: str
    """Name of the one node that it is for; "" for all that have the labels."""
    labels: Mapping[str, str]
    priority: int
    config: Mapping[str, str]
    """Field of an option to its text."""


class ConfigMappings:
    """What the cluster's objects set on this node.

    Args:
        cluster: where they are.
        namespace: of the objects; "" for none.
        node: this node's name; "" for the host's.
        options: all declared.
        directory: for copies of the objects and of the node's labels.
    """

    def __init__(
        self,
        cluster: Cluster,
        namespace: str,
        node: str,
        options: Iterable[Option[Any]],
        directory: Path,
    ) -> None:
        self._cluster = cluster
        self._node = node or socket.gethostname()
        self._options = {option.field: option for option in options}
        self._directory = directory
        self._labels_file = directory / "labels.json"
        self._labels: Mapping[str, str] = self._kept_labels()
        self._changed: Callable[[], None] = lambda: None
        self._told: frozenset[str] = frozenset()
        self._guard = threading.Lock()
        self._where = f"{KIND} {namespace}"
        self._objects = Objects(
            cluster,
            Resource(KIND, PLURAL, namespace),
            directory / "objects.json",
            "configuration mapping",
            self._read,
            self._look_again,
            follow=bool(namespace),
        )

    def start(self, patience: float = FIRST_TIME) -> None:
        """Follow the objects; where none are known from before, wait for them for a moment."""
        wait = bool(self._objects.unknown)
        if wait:
            with contextlib.suppress(VirtletError):
                self._cluster.client()  # loading it takes seconds of a slow node
        self._objects.start()
        if wait:
            self._objects.tried.wait(patience)

    def stop(self) -> None:
        """Follow them no more."""
        self._objects.stop()
        self._cluster.close()

    def tell(self, changed: Callable[[], None]) -> None:
        """Have a function called now, and whenever `values` may have changed."""
        self._changed = changed
        with self._guard:
            changed()

    def values(self) -> Mapping[str, tuple[str, str]]:
        """Field to (text, the object that says so); of several the highest priority counts."""
        found: dict[str, tuple[str, str]] = {}
        priorities: dict[str, int] = {}
        problems = set()
        ours = [made for made in self._objects.usable.values() if self._is_for_us(made)]
        for made in sorted(ours, key=lambda one: (-one.priority, one.where)):
            for name, text in made.config.items():
                said, where = found.setdefault(name, (text, made.where))
                if priorities.setdefault(name, made.priority) == made.priority and said != text:
                    problems.add(
                        f"{made.where}: {where} says otherwise of {name} with the same priority, "
                        "and counts; give one of them a higher priority"
                    )
        for problem in sorted(problems - self._told):
            log.warning("configuration mappings contradict each other", extra={"problem": problem})
        self._told = frozenset(problems)
        return found

    def _is_for_us(self, made: ConfigMapping) -> bool:
        if made.node and made.node != self._node:
            return False
        return all(self._labels.get(key) == value for key, value in made.labels.items())

    def _look_again(self) -> None:
        """On the thread that follows the objects: read the node's labels, and tell of all."""
        try:
            self._labels = self._cluster.labels_of_node(self._node)
        except VirtletError as error:
            level = logging.INFO if isinstance(error, NotFound) else logging.WARNING
            extra = {"problem": str(error)}
            log.log(level, "labels of the node not read; the last known count", extra=extra)
        else:
            self._keep_labels()
        with self._guard:
            self._changed()

    def _keep_labels(self) -> None:
        try:
            make_private_directory(self._directory)
            write_atomically(self._labels_file, json.dumps(dict(self._labels)).encode())
        except OSError as error:
            log.warning("copy of labels not written", extra={"problem": error.strerror})

    def _kept_labels(self) -> Mapping[str, str]:
        try:
            found = json.loads(self._labels_file.read_bytes())
        except (OSError, ValueError):
            return {}
        return found if isinstance(found, dict) else {}

    def _read(self, name: str, content: Mapping[str, Any]) -> ConfigMapping:
        where, spec = f"{self._where}/{name}", content["spec"]
        if not isinstance(spec, Mapping):
            raise FailedPrecondition(f"{where}: spec must be a mapping")
        unknown = sorted(set(map(str, spec)) - set(SPEC))
        if unknown:
            raise FailedPrecondition(
                f"{where}: spec has the unknown key {unknown[0]!r}; known: {', '.join(SPEC)}"
            )
        node, labels = spec.get("nodeName") or "", spec.get("nodeSelector") or {}
        priority, config = spec.get("priority") or 0, spec.get("config") or {}
        if not isinstance(node, str) or not isinstance(priority, int):
            raise FailedPrecondition(f"{where}: nodeName must be a text, priority a number")
        if not all(isinstance(part, Mapping) for part in (labels, config)):
            raise FailedPrecondition(f"{where}: nodeSelector and config must be mappings")
        texts = {str(key): self._text(where, str(key), value) for key, value in config.items()}
        return ConfigMapping(where, node, dict(labels), priority, texts)

    def _text(self, where: str, name: str, value: Any) -> str:
        option = self._options.get(name)
        if option is None:
            raise FailedPrecondition(f"{where}: config: no option of this node is called {name!r}")
        if not option.mappable:
            raise FailedPrecondition(
                f"{where}: config: {name} is for the node's file, environment or flags alone: it "
                "says what the cluster may reach of the node, or has to fit what is on it"
            )
        place = f"{where}: config: {name}"
        try:
            text = as_text(value, option, place)
            parse(option, text, place)
        except InvalidArgument as error:
            raise FailedPrecondition(str(error)) from None
        return text


class AppliedSettings:
    """Which of the mapped settings are in force: some change at once, others with a restart.

    Args:
        mappings: what the objects say.
        options: all declared.
        said: fields that the node's own file, environment or flags set.
        values: what `mappings` said when the settings were read.
        live: field to what puts a value in force.
    """

    def __init__(
        self,
        mappings: ConfigMappings,
        options: Iterable[Option[Any]],
        said: frozenset[str],
        values: Mapping[str, tuple[str, str]],
        live: Mapping[str, Callable[[Any], None]],
    ) -> None:
        self._mappings = mappings
        self._options = {o.field: o for o in options if o.mappable and o.field not in said}
        self._live = live
        self._texts = {
            name: values.get(name, (option.default, ""))[0]
            for name, option in self._options.items()
        }
        self.needs_restart: Mapping[str, str] = {}
        """Field of an option to what says otherwise now."""

    def look(self) -> None:
        """Put in force what has changed and can be; say what cannot."""
        said = self._mappings.values()
        waiting: dict[str, str] = {}
        for name, option in self._options.items():
            text, where = said.get(name, (option.default, f"no {KIND} any more"))
            if text == self._texts[name]:
                continue
            if name not in self._live:
                waiting[name] = where
                continue
            self._live[name](option.kind.parse(text))
            self._texts[name] = text
            log.info("setting changed", extra={"setting": name, "value": text, "by": where})
        for name in sorted(set(waiting) - set(self.needs_restart)):
            facts = {"setting": name, "by": waiting[name]}
            log.warning("setting changes with the next start of the manager", extra=facts)
        self.needs_restart = waiting
