"""How far a pull is, for a person who waits."""

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console as Terminal
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)

from virtlet.cli.client import Client
from virtlet.cli.ending import CommandFailed
from virtlet.cri import api_pb2 as cri
from virtlet.errors import InvalidArgument
from virtlet.model.image import shown_name
from virtlet.model.reference import parse_reference

_EVERY = 0.25


@contextmanager
def progress_bar(client: Client, image: str, terminal: Terminal) -> Iterator[None]:
    """Show a bar with rate and time left while an image is pulled; nothing but on a terminal."""
    if not terminal.is_terminal:
        yield
        return
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn())
    bar = Progress(
        *columns, TransferSpeedColumn(), TimeRemainingColumn(), console=terminal, transient=True
    )
    over = threading.Event()
    with bar:
        watcher = threading.Thread(target=_watch, args=(client, image, bar, over), daemon=True)
        watcher.start()
        try:
            yield
        finally:
            over.set()
            watcher.join()


def how_far(client: Client, image: str) -> tuple[int, int | None] | None:
    """Bytes that a pull has brought, and bytes in all where known; None while there is none.

    Raises:
        CommandFailed: the runtime does not say.
    """
    request = cri.ImageStatusRequest(image=cri.ImageSpec(image=image), verbose=True)
    told = json.loads(client.call("ImageStatus", request).info.get("info", "{}"))
    wanted = shown_name(str(parse_reference(image)))
    for pull in told.get("pullsUnderWay", ()):
        if pull.get("reference") == wanted:
            return int(pull["bytes"]), pull["total"]
    return None


def _watch(client: Client, image: str, bar: Progress, over: threading.Event) -> None:
    task = bar.add_task("fetching", total=None)
    while not over.wait(_EVERY):
        try:
            found = how_far(client, image)
        except (CommandFailed, InvalidArgument, ValueError):
            return  # The pull itself says what is wrong.
        if found is not None:
            size, total = found
            words = "examining" if size == total else "fetching"
            bar.update(task, completed=size, total=total, description=words)
