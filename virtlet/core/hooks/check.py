"""Checking plugins without serving: what the manager would refuse at its start."""

import logging
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from importlib.metadata import EntryPoint, entry_points

from attrs import frozen

from virtlet import PROJECT
from virtlet.core.hooks.facade import Hooks
from virtlet.core.hooks.registry import BUILTIN_PACKAGE, discover
from virtlet.errors import VirtletError


@frozen(kw_only=True)
class Findings:
    """What is wrong with a plugin."""

    flaws: tuple[str, ...] = ()
    """Why the manager refuses it."""
    warnings: tuple[str, ...] = ()
    """What it takes, and its author may not mean."""


def check(entries: Iterable[EntryPoint]) -> Mapping[str, Findings]:
    """Load plugins beside the built-in ones and look at hooks and declarations.

    Returns:
        Name of each plugin to what is wrong with it.
    """
    return {entry.name: _check(entry) for entry in entries}


def _check(entry: EntryPoint) -> Findings:
    builtin = [e for e in entry_points(group=PROJECT) if e.value.startswith(BUILTIN_PACKAGE)]
    with quiet():
        registry = discover([*builtin, entry])
        hooks = Hooks(registry)
        try:
            hooks.options()
            hooks.annotations()
        except VirtletError as error:
            return Findings(flaws=(str(error),))
    refused = registry.refused.get(entry.name)
    return Findings(flaws=(refused,) if refused else ())


@contextmanager
def quiet() -> Iterator[None]:
    """Log nothing: what is refused is told otherwise."""
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        yield
    finally:
        logging.disable(before)
