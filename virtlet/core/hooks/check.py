"""Checking plugins without serving: what the manager would refuse or warn of at its start."""

import logging
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from importlib.metadata import EntryPoint, entry_points

from attrs import frozen

from virtlet import PROJECT
from virtlet.core.hooks import contract
from virtlet.core.hooks.facade import Hooks
from virtlet.core.hooks.registry import BUILTIN_PACKAGE, discover
from virtlet.errors import VirtletError


@frozen(kw_only=True)
class Findings:
    """What is wrong with a plugin."""

    flaws: tuple[str, ...] = ()
    """Why the manager refuses it."""
    warnings: tuple[str, ...] = ()
    """What it takes, and the plugin's author may not mean."""


def check(entries: Iterable[EntryPoint]) -> Mapping[str, Findings]:
    """Load plugins, each beside the built-in ones, and look at hooks and declarations.

    Returns:
        Name of each plugin to what is wrong with it.
    """
    return {entry.name: _check(entry) for entry in entries}


def _check(entry: EntryPoint) -> Findings:
    try:
        plugin = entry.load()
        flaws, warnings = contract.flaws(plugin), contract.doubts(plugin)
    except (Exception, SystemExit):
        flaws, warnings = [], []  # Discovery says why.
    return Findings(flaws=tuple(flaws or _refusals(entry)), warnings=tuple(warnings))


def _refusals(entry: EntryPoint) -> list[str]:
    """Why a manager's start refuses a plugin that has no flaw to be seen."""
    builtin = [e for e in entry_points(group=PROJECT) if e.value.startswith(BUILTIN_PACKAGE)]
    with quiet():
        registry = discover([*builtin, entry])
        hooks = Hooks(registry)
        hooks.options()
        try:
            hooks.annotations()
        except VirtletError as error:
            return [str(error)]
    return [registry.refused[entry.name]] if entry.name in registry.refused else []


@contextmanager
def quiet() -> Iterator[None]:
    """Log nothing: what is refused is told otherwise."""
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        yield
    finally:
        logging.disable(before)
