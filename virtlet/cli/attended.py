"""A client of the node's commands, for a person who waits."""

import threading
from typing import Any

import click

from virtlet.cli.client import Client
from virtlet.cli.ending import CommandFailed
from virtlet.cri import api_pb2 as cri

SLOW = 3.0
"""Seconds after which a person wonders, and between two questions what keeps a call."""


class AttendedClient(Client):
    """Tells on stderr, once a call, what keeps it if the runtime knows: say, that libvirt hangs."""

    def call(self, method: str, request: Any, timeout: float | None = None) -> Any:
        """Make a unary call, as `Client.call`."""
        answered = threading.Event()
        threading.Thread(target=self._watch, args=(method, answered), daemon=True).start()
        try:
            return super().call(method, request, timeout)
        finally:
            answered.set()

    def _watch(self, method: str, answered: threading.Event) -> None:
        while not answered.wait(SLOW):
            try:
                status = super().call("Status", cri.StatusRequest(), SLOW).status
            except (CommandFailed, ValueError):  # ValueError: the client was closed
                continue
            wrong = [f"{c.reason}: {c.message}" for c in status.conditions if not c.status]
            if wrong and not answered.is_set():
                click.echo(f"{method} waits; the node is not ready: {'; '.join(wrong)}", err=True)
                return
