"""A guest whose agent does as a test says: late, silent, broken or malicious."""

import contextlib
import json
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from attrs import define, field


@define
class Conversation:
    """One connection, as the agent sees it."""

    connection: socket.socket
    requests: list[dict[str, Any]] = field(factory=list)
    _rest: bytes = b""

    def read(self) -> dict[str, Any] | None:
        """The next request; None when the manager has hung up."""
        while b"\n" not in self._rest:
            try:
                data = self.connection.recv(65536)
            except OSError:
                return None
            if not data:
                return None
            self._rest += data
        line, _, self._rest = self._rest.partition(b"\n")
        request: dict[str, Any] = json.loads(line.rpartition(b"\xff")[2])
        self.requests.append(request)
        return request

    def send(self, data: bytes) -> None:
        """Send bytes; nobody may be there to take them."""
        with contextlib.suppress(OSError):
            self.connection.sendall(data)

    def answer(self, request: dict[str, Any], returned: object) -> None:
        """Answer as an agent does."""
        answer = {"return": returned}
        if "id" in request:
            answer["id"] = request["id"]
        prefix = b"\xff" if request["execute"] == "guest-sync-delimited" else b""
        self.send(prefix + json.dumps(answer).encode() + b"\n")

    def refuse(self, request: dict[str, Any], kind: str, text: str) -> None:
        """Answer with an error."""
        error = {"error": {"class": kind, "desc": text}, "id": request["id"]}
        self.send(json.dumps(error).encode() + b"\n")

    def answer_sync(self, request: dict[str, Any]) -> bool:
        """Answer a synchronisation; False for any other request."""
        if request["execute"] != "guest-sync-delimited":
            return False
        self.answer(request, request["arguments"]["id"])
        return True


Script = Callable[[Conversation], None]


class FakeAgent:
    """Listens like QEMU: one client at a time; each conversation is a script's."""

    def __init__(self, path: Path, script: Script) -> None:
        self.path = path
        self._script = script
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(path))
        self._listener.listen(1)
        self._current: socket.socket | None = None
        self.conversations: list[Conversation] = []
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()

    def _serve(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            self._current = connection
            conversation = Conversation(connection)
            self.conversations.append(conversation)
            with connection:
                self._script(conversation)

    @property
    def requests(self) -> list[str]:
        """Names of all requests so far."""
        return [r["execute"] for c in self.conversations for r in c.requests]

    def close(self) -> None:
        """End it."""
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        if self._current is not None:
            with contextlib.suppress(OSError):
                self._current.shutdown(socket.SHUT_RDWR)
        self._thread.join()


@contextlib.contextmanager
def listening(path: Path, script: Script) -> Iterator[FakeAgent]:
    """A fake agent for a while."""
    agent = FakeAgent(path, script)
    try:
        yield agent
    finally:
        agent.close()
