"""Requests to one VM's agent: one at a time, each with its own answer, whatever was before.

An agent answers in order and one request after the other. Sessions of one VM take turns request
by request. An answer that came too late must not be taken for the next one: after every
trouble the link synchronises again (`guest-sync-delimited`), which skips what is left over.
"""

import contextlib
import itertools
import json
import secrets
import threading
import time
from collections import deque
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from attrs import frozen

from virtlet.errors import FailedPrecondition, ResourceExhausted, Unavailable
from virtlet.plugins.guest_agent.answers import Nonsense, ReplyBudget
from virtlet.plugins.guest_agent.channel import Channel, ChannelClosed
from virtlet.plugins.guest_agent.waiting import CallerGone, Deadline, TimeUp

AGENT_WAIT = 60.0
"""Seconds that a caller without a deadline waits for an agent that has answered before."""
ANSWER_WAIT = 120.0
"""Seconds for one answer; an emulated guest moves its largest, 43 MiB, in about 15."""
SYNC_INTERVAL = 5.0
"""Seconds after which an unanswered synchronisation is sent again: the agent may have started,
or started again, in between."""
SMALL_REPLY = 1 << 20
"""Bytes of an answer where no more is expected."""
LARGEST_REPLY = 44 << 20
"""Bytes: two outputs of 16 MiB in base64, and a little JSON."""
ONE_GUEST = 40 << 20
"""Bytes of long texts that one guest's answers may hold at one time."""
MOST_SKIPPED = 1000
"""Lines that are skipped while an answer is looked for."""


class AgentError(Exception):
    """The agent refused a request.

    Args:
        kind: QAPI's error class.
        text: the agent's words.
    """

    def __init__(self, kind: str, text: str) -> None:
        super().__init__(text)
        self.kind = kind
        self.text = text


@frozen
class _Sync:
    ident: int
    sent_at: float


class Link:
    """The way to one VM's agent, for any number of threads."""

    def __init__(self, path: Path, vm_name: str, budget: ReplyBudget) -> None:
        self._path = path
        self._vm_name = vm_name
        self._budget = ReplyBudget(ONE_GUEST, budget)
        self._turn = threading.Lock()
        self._channel: Channel | None = None
        self._synced = False
        self._sync: _Sync | None = None
        self._numbers = itertools.count(1)
        self._unanswered: set[int] = set()
        self._closed = False
        self.answered = False
        """Whether the agent has ever answered."""
        self._late: deque[int] = deque()

    def call(
        self,
        command: str,
        arguments: Mapping[str, object],
        deadline: Deadline,
        *,
        limit: int = SMALL_REPLY,
    ) -> Any:
        """Make a request and return what the agent returns.

        Args:
            command: the agent's name for it.
            arguments: the agent's names to JSON values.
            deadline: how long the caller waits; an agent that is not there yet is waited for.
            limit: bytes of the largest answer to expect.

        Raises:
            AgentError: the agent refuses.
            FailedPrecondition: its configuration forbids the command.
            Unavailable: there is no agent, or it stopped answering.
            ResourceExhausted: see `ReplyBudget`.
            TimeUp, CallerGone: the caller waits no longer.
        """
        with self._connected(deadline) as channel:
            answer = self._exchange(channel, command, arguments, deadline, limit)
        return self._result(command, answer)

    def settle(self, deadline: Deadline) -> None:
        """Wait for the agent, and take in what it answered too late; errors as for `call`."""
        if not self._synced:
            with self._connected(deadline):
                pass

    @property
    def owing(self) -> bool:
        """Whether a process may have started whose caller did not wait for the answer."""
        return bool(self._unanswered or self._late)

    def take_late(self) -> set[int]:
        """The processes whose start was answered after its caller had left; each once."""
        late: set[int] = set()
        with contextlib.suppress(IndexError):  # other threads take, too
            while True:
                late.add(self._late.popleft())
        return late

    def silence(self) -> str:
        """What to say, and to advise, when no agent answers."""
        if self.answered:
            return (
                f"the guest agent of VM {self._vm_name} does not answer any more: see on the VM's "
                "console whether the guest is overloaded or qemu-guest-agent has ended"
            )
        return (
            f"no guest agent answers in VM {self._vm_name}: the guest may still be booting; "
            "otherwise install the package qemu-guest-agent in its image, and start it at boot"
        )

    def close(self) -> None:
        """Close it for good; callers that wait for an answer get Unavailable."""
        self._closed = True
        channel = self._channel
        if channel is not None:
            channel.wake()
        if self._turn.acquire(timeout=1):
            try:
                self._drop()
            finally:
                self._turn.release()

    @contextlib.contextmanager
    def _connected(self, deadline: Deadline) -> Iterator[Channel]:
        """The connection for one exchange, with nothing left over on it."""
        patience = deadline if deadline.limited else deadline.within(AGENT_WAIT)
        try:
            with self._my_turn(patience):
                yield self._ready(patience)
        except TimeUp:
            deadline.slice()  # raises when it was the caller's own time
            raise Unavailable(self.silence()) from None
        except (ChannelClosed, Nonsense) as error:
            raise Unavailable(f"lost the guest agent of VM {self._vm_name}: {error}") from None

    @contextlib.contextmanager
    def _my_turn(self, patience: Deadline) -> Iterator[None]:
        while not self._turn.acquire(timeout=patience.slice()):
            pass
        try:
            yield
        except (ChannelClosed, Nonsense, ResourceExhausted):
            self._drop()
            raise
        finally:
            self._turn.release()

    def _ready(self, patience: Deadline) -> Channel:
        while True:
            if self._closed:
                raise Unavailable(f"VM {self._vm_name} or the manager is stopping")
            if self._channel is None:
                self._channel = Channel(self._path, patience)
            if self._synced:
                return self._channel
            self._synchronise(self._channel, patience)

    def _synchronise(self, channel: Channel, patience: Deadline) -> None:
        """Try it for a while."""
        now = time.monotonic()
        if self._sync is None or now - self._sync.sent_at >= SYNC_INTERVAL:
            self._sync = _Sync(secrets.randbits(48), now)
            request = {"execute": "guest-sync-delimited", "arguments": {"id": self._sync.ident}}
            # The leading byte makes the agent forget half a request.
            if not self._sent(channel, b"\xff" + _line(request), patience.within(SYNC_INTERVAL)):
                return
        attempt = patience.within(self._sync.sent_at + SYNC_INTERVAL - now)
        try:
            self._skip_to(channel, self._sync.ident, attempt)
        except TimeUp:
            patience.slice()
            return
        self._sync = None
        self._synced = self.answered = True

    def _skip_to(self, channel: Channel, ident: int, attempt: Deadline) -> None:
        """Read up to the answer of a synchronisation."""
        for _ in range(MOST_SKIPPED):
            try:
                found = channel.receive(LARGEST_REPLY, attempt)
            except Nonsense:
                continue  # the rest of an answer to somebody before us
            self._note_late(found)
            if found.get("return") == ident:
                return
        raise ChannelClosed("it sends answers without questions")

    def _note_late(self, found: Mapping[str, Any]) -> None:
        ident, returned = found.get("id"), found.get("return")
        if isinstance(ident, int) and ident in self._unanswered and isinstance(returned, dict):
            if isinstance(pid := returned.get("pid"), int):
                self._late.append(pid)
            self._unanswered.discard(ident)

    def _exchange(
        self,
        channel: Channel,
        command: str,
        arguments: Mapping[str, object],
        deadline: Deadline,
        limit: int,
    ) -> dict[str, Any]:
        ident = next(self._numbers)
        request = {"execute": command, "arguments": arguments, "id": ident}
        patience = deadline.within(ANSWER_WAIT)
        self._synced = False  # until the answer is here
        if not self._sent(channel, _line(request), patience):
            raise TimeUp
        try:
            answer = channel.receive(limit, patience, self._budget)
        except (TimeUp, CallerGone):
            if command == "guest-exec":
                self._unanswered.add(ident)
            raise
        # Agents before QEMU 4.0 do not repeat the id.
        if answer.get("id", ident) != ident:
            raise Nonsense("its answers do not belong to the questions")
        self._synced = True
        return answer

    def _sent(self, channel: Channel, data: bytes, patience: Deadline) -> bool:
        """Send in time, or drop the connection: half a request is worse than none."""
        try:
            channel.send(data, patience)
        except TimeUp:
            self._drop()
            return False
        except CallerGone:
            self._drop()
            raise
        return True

    def _drop(self) -> None:
        if self._channel is not None:
            self._channel.close()
        self._channel = self._sync = None
        self._synced = False

    def _result(self, command: str, answer: Mapping[str, Any]) -> Any:
        if "return" in answer:
            return answer["return"]
        error = answer.get("error")
        told = error if isinstance(error, dict) else {}
        kind, text = str(told.get("class", "")), str(told.get("desc", "no reason given"))[:500]
        if kind == "CommandNotFound":
            raise FailedPrecondition(
                f"the guest agent of VM {self._vm_name} does not serve {command} ({text}): take it "
                "off block-rpcs (BLACKLIST_RPC, FILTER_RPC_ARGS) in the agent's configuration in "
                "the image"
            )
        raise AgentError(kind, text)


def _line(request: Mapping[str, object]) -> bytes:
    return json.dumps(request).encode() + b"\n"
