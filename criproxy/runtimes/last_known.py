"""The last complete answers of a runtime, the ids in them, and their copy on disk.

Without the copy, a proxy that starts while a runtime is away would not know whether the runtime has
pods: it would have to fail every list, or to serve short ones.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import json
import logging
import math
import os
import time
from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from attrs import frozen
from google.protobuf.message import DecodeError

from criproxy.image_names import digest_of
from criproxy.methods import BY_NAME
from criproxy.runtimes import list_edits
from criproxy.runtimes.list_edits import Edit, ListEdits

log = logging.getLogger(__name__)

#: Methods that list a runtime's ids. They are called when it connects, and again when no client
#: listed for a while, so that they are up to date when it goes.
INVENTORY = ("ListPodSandbox", "ListContainers", "ListImages")
#: Number of removed ids that are remembered, so that late calls for them find their owner.
_FORMER = 8192
#: Number of new ids, UIDs and marks that are remembered until lists have them.
_LEARNT = 4096
#: Shortest time between two updates of ids from clients' lists.
_INDEX_SECONDS = 0.05
#: Annotations that a kubelet adds to a pod; the first is when it saw the pod, to the nanosecond.
_SEEN = "kubernetes.io/config.seen"
_OF_KUBELET = "kubernetes.io/config."


def pod_marks(annotations: Mapping[str, str]) -> tuple[str, ...]:
    """Return what shows that two calls are about one pod, the surest first.

    A kubelet sends a pod's annotations where it does not say which pod it is. It adds when it saw
    the pod, which no two pods share; after its restart this differs, so the others are compared.

    Returns:
        Texts that are equal for equal annotations; none for annotations without the kubelet's.
    """
    if not annotations.get(_SEEN):
        return ()
    others = sorted((k, v) for k, v in annotations.items() if not k.startswith(_OF_KUBELET))
    digest = hashlib.sha256(json.dumps(others).encode()).hexdigest()
    return f"seen {annotations[_SEEN]}", f"others {digest}"


@frozen
class Known:
    """One method's last answer.

    Args:
        raw: its message as received.
        changes: what calls have changed since.
    """

    raw: bytes
    changes: Sequence[Edit]

    def edited(self, answer: Any) -> Any:
        """Apply the changes to the decoded answer, and return it."""
        for change in self.changes:
            change(answer)
        return answer


class LastKnown:
    """The last complete answers of one runtime, and the ids in them.

    Attributes:
        answers: the answers as received, by method; `answer` has the changes since.
        seen: whether the runtime ever answered, to this proxy or (by the saved state) to an
            earlier one.
        confirmed: whether it answered to this proxy.
        pending_update: an UpdateRuntimeConfig request that it did not get yet, or None.
        sandboxes, containers, images: ids.
        pod_uids: UIDs of its pods.
        pod_marks: what `pod_marks` returns for its pods.
        digests: of its images.
    """

    def __init__(self) -> None:
        self.answers: dict[str, bytes] = {}
        self.seen = False
        self.confirmed = False
        self.pending_update: bytes | None = None
        self.sandboxes: set[str] = set()
        self.containers: set[str] = set()
        self.pod_uids: set[str] = set()
        self.pod_marks: set[str] = set()
        self.images: set[str] = set()
        self.digests: set[str] = set()
        self._former: OrderedDict[str, None] = OrderedDict()
        self._stored: dict[str, float] = {}
        self._edits = ListEdits()
        self._changed = 0.0
        self._waiting: dict[str, tuple[bytes, float]] = {}
        #: When ids, UIDs and marks were made; lists of earlier calls may lack them.
        self._learnt: dict[str, float] = {}

    def has(self, some_id: str) -> bool:
        """Whether a sandbox or container with this id is there."""
        return some_id in self.containers or some_id in self.sandboxes

    def beginning(self, text: str, of_sandbox: bool) -> list[str]:
        """Return the ids of sandboxes, or of containers, that begin with a text."""
        self.catch_up()
        ids = self.sandboxes if of_sandbox else self.containers
        return [i for i in ids if i.startswith(text)]

    @property
    def is_empty(self) -> bool:
        """Whether it has no pods."""
        return not (self.sandboxes or self.containers)

    def had(self, some_id: str) -> bool:
        """Whether a sandbox or container with this id was removed."""
        return some_id in self._former

    def store(self, name: str, raw: bytes, asked: float | None = None) -> None:
        """Keep a complete answer.

        Args:
            name: the method.
            raw: its answer's message.
            asked: when the call was made (monotonic seconds); None is now.

        Raises:
            DecodeError: if an inventory answer is malformed; nothing is kept then.
        """
        asked = time.monotonic() if asked is None else asked
        if self._is_late(name, asked):
            return
        if name in INVENTORY:
            answer = BY_NAME[name].response.FromString(raw)
            self._waiting.pop(name, None)
            self._index(name, answer, asked)
        self._keep(name, raw, asked)

    def store_soon(self, name: str, raw: bytes, asked: float) -> None:
        """Keep a complete answer as `store` does, but update the ids a little later.

        A client waits for the same answer, and the ids are rarely new: ids made through the proxy
        are known already. A malformed answer is dropped.
        """
        if self._is_late(name, asked):
            return
        if name not in INVENTORY:
            self._keep(name, raw, asked)
            return
        if not self._waiting:
            asyncio.get_running_loop().call_later(_INDEX_SECONDS, self.catch_up)
        self._waiting[name] = (raw, asked)

    def _keep(self, name: str, raw: bytes, asked: float) -> None:
        self.answers[name] = raw
        self._stored[name] = asked
        self._edits.listed(name, asked)

    def answer(self, name: str) -> Known | None:
        """Return a method's last answer with the changes since, or None without one."""
        self.catch_up()
        raw = self.answers.get(name)
        return None if raw is None else Known(raw, self._edits.since(name))

    def edits_known(self, name: str) -> bool:
        """Whether all changes since the last answer are known."""
        self.catch_up()
        return self._edits.known(name)

    def _is_late(self, name: str, asked: float) -> bool:
        """Whether the answer to a later call is known already."""
        _, waiting = self._waiting.get(name, (b"", -math.inf))
        return asked < max(waiting, self._stored.get(name, -math.inf))

    def catch_up(self) -> None:
        """Store the answers that `store_soon` has put off."""
        waiting, self._waiting = self._waiting, {}
        for name, (raw, asked) in waiting.items():
            try:
                self.store(name, raw, asked)
            except DecodeError:
                log.warning("a malformed answer to %s is not kept", name)

    def learn_sandbox(self, sandbox_id: str, request: Any) -> None:
        """Note a sandbox that RunPodSandbox or RestorePod made with this request."""
        pod_uid = request.config.metadata.uid
        self.sandboxes.add(sandbox_id)
        self.pod_uids.add(pod_uid)
        self._learn(sandbox_id)
        self._learn(pod_uid)
        for mark in pod_marks(request.config.annotations):
            self.pod_marks.add(mark)
            self._learn(mark)
        self._edits.add(list_edits.sandbox_made(sandbox_id, request))

    def learn_container(self, container_id: str, request: Any | None = None) -> None:
        """Note a container that CreateContainer made with this request."""
        self.containers.add(container_id)
        self._learn(container_id)
        if request is not None:
            self._edits.add(list_edits.container_made(container_id, request))

    def did(self, method: str, some_id: str = "") -> None:
        """Note a call that was answered with OK, and the sandbox or container in it."""
        self._edits.add(list_edits.done(method, some_id))

    def _learn(self, name: str) -> None:
        self._learnt[name] = time.monotonic()
        if len(self._learnt) > _LEARNT:
            del self._learnt[next(iter(self._learnt))]

    def changed(self) -> None:
        """Note a change: stored answers are outdated."""
        self._changed = time.monotonic()

    def outdated(self, age: float) -> list[str]:
        """Return the inventory methods whose answers changed or are `age` seconds old."""
        oldest = max(self._changed, time.monotonic() - age)
        return [name for name in INVENTORY if self._stored.get(name, -1.0) <= oldest]

    def _index(self, name: str, answer: Any, asked: float) -> None:
        if name == "ListPodSandbox":
            self.sandboxes = self._replaced(self.sandboxes, (s.id for s in answer.items), asked)
            uids = {s.metadata.uid for s in answer.items}
            self.pod_uids = uids | self._newer(self.pod_uids, asked)
            marks = {mark for s in answer.items for mark in pod_marks(s.annotations)}
            self.pod_marks = marks | self._newer(self.pod_marks, asked)
        elif name == "ListContainers":
            listed = (c.id for c in answer.containers)
            self.containers = self._replaced(self.containers, listed, asked)
        else:
            self.images = {i.id for i in answer.images}
            digests = (d for i in answer.images for d in i.repo_digests)
            self.digests = {digest_of(digest) for digest in digests}

    def _newer(self, ids: set[str], asked: float) -> set[str]:
        """Return the ids that were made after a list was asked for: it may lack them."""
        return {i for i, learnt in self._learnt.items() if learnt >= asked and i in ids}

    def _replaced(self, old: set[str], ids: Iterable[str], asked: float) -> set[str]:
        new = set(ids) | self._newer(old, asked)
        for gone in old - new:
            self._former[gone] = None
        while len(self._former) > _FORMER:
            self._former.popitem(last=False)
        return new


_VERSION = 1
#: The saved methods, and the field that shows whether they changed: the inventory and the handlers.
SAVED: Mapping[str, str] = {
    "ListPodSandbox": "items",
    "ListContainers": "containers",
    "ListImages": "images",
    "Status": "runtime_handlers",
}


@frozen
class State:
    """The saved state of one runtime.

    Args:
        answers: its last known answers by method.
        update: an UpdateRuntimeConfig request that it did not get yet, or None.
    """

    answers: Mapping[str, Known]
    update: bytes | None


class InventoryFile:
    """The state file of one runtime.

    Args:
        directory: the state directory; created if it is missing.
        name: the runtime's name.
        socket: the runtime's socket; another socket has another file.
    """

    def __init__(self, directory: str, name: str, socket: str) -> None:
        tag = hashlib.sha256(socket.encode()).hexdigest()[:8]
        self.path = Path(directory) / f"{name}-{tag}.json"
        self._name = name
        self._written: str | None = None

    def load(self, last: LastKnown) -> None:
        """Fill `last` from the file; ignore an unusable file with a warning."""
        try:
            document = json.loads(self.path.read_text(encoding="ascii"))
            if document["version"] != _VERSION:
                raise ValueError(f"version {document['version']} is not {_VERSION}")
            for name in SAVED:
                if name in document["answers"]:
                    raw = base64.b64decode(document["answers"][name])
                    BY_NAME[name].response.FromString(raw)
                    last.store(name, raw, asked=-1.0)
            if "update" in document:
                last.pending_update = base64.b64decode(document["update"])
            # A runtime that answered has listed its pods.
            last.seen = bool(document["answers"])
        except FileNotFoundError:
            return
        except (OSError, ValueError, KeyError, TypeError, DecodeError) as error:
            log.warning("saved state %s cannot be used: %s", self.path, error)

    def save(self, state: State | None) -> None:
        """Write the file if something has changed; log a warning if the disk refuses it.

        Args:
            state: from `to_save`.
        """
        if state is None:
            with suppress(OSError):
                self.path.unlink()
            return
        current = {
            name: answer.edited(BY_NAME[name].response.FromString(answer.raw))
            for name, answer in state.answers.items()
        }
        fingerprint = _fingerprint(current, state.update)
        if fingerprint == self._written:
            return
        answers = {
            name: base64.b64encode(answer.SerializeToString()).decode()
            for name, answer in current.items()
        }
        document: dict[str, object] = {
            "version": _VERSION,
            "runtime": self._name,
            "answers": answers,
        }
        if state.update is not None:
            document["update"] = base64.b64encode(state.update).decode()
        text = json.dumps(document)
        part = self.path.with_suffix(".part")
        try:
            self.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            with open(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
            os.replace(part, self.path)
        except OSError as error:
            if self._written != "":
                log.warning("cannot save the state of runtime %s: %s", self._name, error)
            self._written = ""
            return
        self._written = fingerprint


def to_save(last: LastKnown) -> State | None:
    """Return the present state, or None if there is nothing to save."""
    if not last.seen:
        # A file with answers would mean that the runtime answered once.
        return None if last.pending_update is None else State({}, last.pending_update)
    answers = ((name, last.answer(name)) for name in SAVED)
    known = {name: answer for name, answer in answers if answer is not None}
    return State(known, last.pending_update)


def _fingerprint(current: Mapping[str, Any], update: bytes | None) -> str:
    """Return a digest of the items in any order: runtimes list them in no fixed order."""
    digest = hashlib.sha256(b"" if update is None else b"update" + update)
    for name, answer in current.items():
        items = getattr(answer, SAVED[name])
        ordered = sorted(item.SerializeToString(deterministic=True) for item in items)
        digest.update(name.encode() + b"".join(hashlib.sha256(i).digest() for i in ordered))
    return digest.hexdigest()
