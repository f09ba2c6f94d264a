"""A session with a guest over the manager's streaming server, on this terminal or a pipe.

The protocol is Kubernetes' remote command over WebSocket: the first byte of a message is its
channel.
"""

import contextlib
import functools
import json
import os
import signal
import sys
import termios
import threading
import tty as terminal_modes
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from urllib.parse import urlsplit

import websocket

from virtlet.cli.ending import CommandFailed
from virtlet.errors import VirtletError
from virtlet.host import netns

_PROTOCOLS = ["v5.channel.k8s.io"]
_STDIN, _STDOUT, _STDERR, _STATUS, _RESIZE, _CLOSE = 0, 1, 2, 3, 4, 255
_CHUNK = 32 << 10
_CONNECT_TIMEOUT = 10.0
_EXITED = "NonZeroExitCode"


class GuestSession:
    """One command in a guest, or one look at its console.

    Args:
        url: where the manager's answer says that it is.
        stdin: give it what comes on standard input.
        tty: it has a terminal; where ours is one, keys go to it as they are typed.
        network: the network namespace that the URL is good in, where it is not ours.
    """

    def __init__(self, url: str, *, stdin: bool, tty: bool, network: Path | None = None) -> None:
        self._url = "ws" + url.removeprefix("http")
        self._network = network
        self._stdin = stdin
        self._raw = stdin and tty and sys.stdin.isatty()
        self._tty = tty

    def run(self) -> int:
        """Go on until it ends; returns its exit code.

        Raises:
            CommandFailed: there is no connection, it broke off, or the command did not run.
        """
        try:
            connection = self._connected()
        except (OSError, VirtletError, websocket.WebSocketException) as error:
            raise CommandFailed(
                f"no connection to the manager's streaming server at {urlsplit(self._url).netloc}: "
                f"{error}. Use this command as root on the node itself, where the manager runs"
            ) from None
        connection.settimeout(None)
        with contextlib.closing(connection), self._terminal(connection):
            if self._stdin:
                threading.Thread(target=_send_input, args=(connection,), daemon=True).start()
            try:
                return _receive(connection)
            except (OSError, websocket.WebSocketException) as error:
                raise CommandFailed(f"the session broke off: {error}") from None

    def _connected(self) -> websocket.WebSocket:
        connect = functools.partial(
            websocket.create_connection,
            self._url,
            timeout=_CONNECT_TIMEOUT,
            subprotocols=_PROTOCOLS,
        )
        return netns.inside(self._network, connect) if self._network else connect()

    @contextlib.contextmanager
    def _terminal(self, connection: websocket.WebSocket) -> Iterator[None]:
        """Tell the size now and when it changes; our own terminal is as before afterwards."""
        if not self._raw:
            yield
            return

        def tell_size(number: int = 0, frame: FrameType | None = None) -> None:
            size = os.get_terminal_size(sys.stdin.fileno())
            text = json.dumps({"Width": size.columns, "Height": size.lines})
            with contextlib.suppress(OSError, websocket.WebSocketException):
                connection.send_binary(bytes([_RESIZE]) + text.encode())

        before = termios.tcgetattr(sys.stdin)
        handler = signal.signal(signal.SIGWINCH, tell_size)
        try:
            tell_size()
            terminal_modes.setraw(sys.stdin)
            yield
        finally:
            termios.tcsetattr(sys.stdin, termios.TCSADRAIN, before)
            signal.signal(signal.SIGWINCH, handler)


def _send_input(connection: websocket.WebSocket) -> None:
    with contextlib.suppress(OSError, websocket.WebSocketException):
        while chunk := os.read(sys.stdin.fileno(), _CHUNK):
            connection.send_binary(bytes([_STDIN]) + chunk)
        connection.send_binary(bytes([_CLOSE, _STDIN]))


def _receive(connection: websocket.WebSocket) -> int:
    outputs = {_STDOUT: sys.stdout.buffer, _STDERR: sys.stderr.buffer}
    while True:
        message = connection.recv()
        if not isinstance(message, bytes) or not message:
            raise CommandFailed("the session ended without an exit code")
        channel, payload = message[0], message[1:]
        if channel == _STATUS:
            return _exit_code(json.loads(payload))
        if channel in outputs:
            outputs[channel].write(payload)
            outputs[channel].flush()


def _exit_code(status: dict[str, object]) -> int:
    """The exit code that a Kubernetes Status tells.

    Raises:
        CommandFailed: it tells why the command did not run instead.
    """
    if status.get("status") == "Success":
        return 0
    details = status.get("details")
    causes = details.get("causes", []) if isinstance(details, dict) else []
    if status.get("reason") == _EXITED:
        for cause in causes:
            if cause.get("reason") == "ExitCode":
                return int(cause["message"])
    raise CommandFailed(str(status.get("message") or "the command did not run"))
