"""Several calls side by side, as one."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

_T = TypeVar("_T")


async def together(*works: Coroutine[Any, Any, _T]) -> list[_T]:
    """All results in the order of the works, or the first error; the others are cancelled then."""
    tasks = [asyncio.ensure_future(work) for work in works]
    try:
        return list(await asyncio.gather(*tasks))
    finally:
        for task in tasks:
            task.cancel()
