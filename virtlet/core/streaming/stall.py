"""Waiting for a handler that takes its data slowly.

Neither protocol lets the receiver hold back one stream alone (Kubernetes' SPDY peers ignore its
windows, WebSocket has none), so a full inbox holds back its whole connection.
"""

import asyncio
from typing import Protocol

from virtlet.core.streaming.inbox import Inbox

_LOOK_SECONDS = 1.0


class Lifeline(Protocol):
    """Shows whether the client is there while nothing is read from it."""

    def probe(self) -> None:
        """Raise OSError if the client is gone."""


async def wait_for_room(inbox: Inbox, lifeline: Lifeline, patience: float | None = None) -> bool:
    """Wait until the inbox has room; False if its reader takes nothing for `patience` seconds.

    Raises:
        OSError: the client went away meanwhile.
    """
    waited = 0.0
    while inbox.full:
        if patience is not None and waited >= patience:
            return False
        look = _LOOK_SECONDS if patience is None else min(_LOOK_SECONDS, patience - waited)
        try:
            async with asyncio.timeout(look):
                await inbox.room()
        except TimeoutError:
            waited += look
            lifeline.probe()
    return True
