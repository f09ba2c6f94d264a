"""The last known items on disk, so that a restarted proxy knows a runtime that is away.

Without them, a proxy that starts while a runtime is away would not know whether the runtime has
pods: it would have to fail every list, or to serve short ones.
"""

from __future__ import annotations

import base64
import hashlib
import json
import logging
import os
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from attrs import frozen
from google.protobuf.message import DecodeError

from criproxy.methods import BY_NAME
from criproxy.runtimes.last_known import Known, LastKnown

log = logging.getLogger(__name__)

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


class StateFile:
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
