"""Reading ahead: a layer is fetched, unpacked and stored on a thread each.

All three spend their time in the kernel or in hashing and unpacking, which let other threads run.
"""

import contextlib
import contextvars
import queue
import threading
from collections.abc import Iterator
from contextlib import contextmanager

_BATCH = 1 << 20
"""Bytes that are handed over at once."""
_MOST = 4
"""Batches that wait to be taken."""


@contextmanager
def ahead(chunks: Iterator[bytes]) -> Iterator[Iterator[bytes]]:
    """Have chunks made on another thread, some MiB before they are taken.

    Args:
        chunks: makes them; what it raises, the iterator that is given raises in that place. Its
            thread is not waited for at the end: the owner of what it may wait for closes that.
    """
    batches: queue.Queue[list[bytes] | BaseException | None] = queue.Queue(_MOST)
    over = threading.Event()

    def work() -> None:
        batch: list[bytes] = []
        size = 0
        try:
            for chunk in chunks:
                batch.append(chunk)
                size += len(chunk)
                if size >= _BATCH:
                    batches.put(batch)
                    batch, size = [], 0
                if over.is_set():
                    break
            batches.put(batch)
            batches.put(None)
        except BaseException as error:
            batches.put(batch)
            batches.put(error)

    def taken() -> Iterator[bytes]:
        while (batch := batches.get()) is not None:
            if isinstance(batch, BaseException):
                raise batch
            yield from batch

    context = contextvars.copy_context()
    threading.Thread(target=context.run, args=(work,), name="image-layer", daemon=True).start()
    try:
        yield taken()
    finally:
        over.set()
        # Room for what the thread still puts, and an end for one that takes from here.
        with contextlib.suppress(queue.Empty):
            while True:
                batches.get_nowait()
        batches.put(None)
