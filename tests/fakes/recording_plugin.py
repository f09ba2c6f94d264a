"""A plugin that has every hook, says nothing, and writes down on which thread it was asked."""

import os
import threading
from collections.abc import Callable
from typing import Any

from virtlet import hookimpl, hookspecs

FILE = "VIRTLET_TEST_RECORD"
"""Environment variable: where the lines go, `HOOK THREAD` each."""


def _asked(hook: str, mode: str) -> Callable[[Any], Any]:
    def record(self: Any) -> Any:
        with open(os.environ[FILE], "a") as file:
            file.write(f"{hook} {threading.current_thread().name}\n")
        return () if mode == "collect" else None

    return hookimpl(record)


class Plugin:
    """Declines all that a first hook asks; its inverses are never called for that reason."""

    VIRTLET_HOOK_API = 1


for _hook, _mode in hookspecs.HOOKS.items():
    setattr(Plugin, _hook, _asked(_hook, _mode))
