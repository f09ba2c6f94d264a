"""Small helpers for tasks that end together."""

import asyncio
from collections.abc import Coroutine
from typing import Any


async def first_of(*jobs: Coroutine[Any, Any, None]) -> None:
    """Run the jobs at once; when the first ends, cancel the others and wait for them.

    Raises:
        BaseException: what the job that ended first raised.
    """
    tasks = [asyncio.ensure_future(job) for job in jobs]
    try:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        await cancel(*tasks)
    for task in tasks:
        if task in done:
            task.result()


async def cancel(*tasks: asyncio.Future[Any]) -> None:
    """Cancel the tasks and wait until each has cleaned up, whatever it raises.

    Cancelled meanwhile, the caller waits on all the same, since what it does next relies on the
    tasks' end, and is cancelled then.
    """
    for task in tasks:
        task.cancel()
    interrupted = None
    while unfinished := [task for task in tasks if not task.done()]:
        try:
            await asyncio.wait(unfinished)
        except asyncio.CancelledError as error:
            interrupted = error
    for task in tasks:
        if not task.cancelled():
            task.exception()  # asyncio complains of errors that nobody looked at
    if interrupted:
        raise interrupted
