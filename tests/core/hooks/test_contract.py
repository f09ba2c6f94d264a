"""What is said of a plugin that is looked at and not called."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import pytest

import tests.fakes.module_plugin
from tests.fakes.models import untyped
from tests.fakes.plugins import Current, Good, OtherApi, Undeclared
from tests.fakes.startup_plugins import ByValue
from virtlet import hookspecs
from virtlet.api import (
    Disk,
    Flavor,
    Image,
    LaunchPart,
    Machine,
    Option,
    Pod,
    Vm,
    VmConfig,
    hookimpl,
)
from virtlet.core.hooks.hook_contract import ADJUSTING, doubts, flaws
from virtlet.core.hooks.registry import discover

if TYPE_CHECKING:
    from decimal import Decimal


class Sound(Current):
    """Implements hooks in the ways that the language has for it."""

    @hookimpl
    def virtlet_launch(self, machine: Machine) -> LaunchPart:
        raise NotImplementedError

    @hookimpl
    def virtlet_options(self) -> list[Option[str]]:
        raise NotImplementedError

    @hookimpl
    def virtlet_flavor(self, config: VmConfig, pod: Pod) -> None:
        raise NotImplementedError

    @hookimpl
    def virtlet_event(self, event: Decimal) -> None:
        """Names a type that is imported for type checkers alone."""

    @staticmethod
    @hookimpl
    def virtlet_admit_pod(pod: object) -> None:
        raise NotImplementedError

    @classmethod
    @hookimpl
    def virtlet_shutdown(cls) -> Any:
        raise NotImplementedError

    @hookimpl(specname="virtlet_admit_vm")
    def refuse(self, pod: Pod) -> None:
        raise NotImplementedError

    @hookimpl(optionalhook=True)
    def virtlet_of_tomorrow(self, moon: object) -> None:
        """A hook of a later version."""


class Wrapper(Current):
    @hookimpl(wrapper=True)
    def virtlet_flavor(self, pod: Pod, config: VmConfig, image: Image) -> Iterator[Any]:
        yield


class OldWrapper(Current):
    @hookimpl(hookwrapper=True)
    def virtlet_launch(self, machine: Machine) -> Iterator[Any]:
        yield


class Pushes(Current):
    @hookimpl(tryfirst=True)
    def virtlet_launch(self, machine: Machine) -> None:
        raise NotImplementedError


class Misspelt(Current):
    @hookimpl
    def virtlet_setup_netwrk(self, pod: Pod) -> None:
        raise NotImplementedError


class Unknown(Current):
    @hookimpl
    def virtlet_paint(self) -> None:
        raise NotImplementedError


class WrongArgument(Current):
    @hookimpl
    def virtlet_flavor(self, pods: Pod) -> None:
        raise NotImplementedError


class Default(Current):
    @hookimpl
    def virtlet_launch(self, machine: Machine | None = None) -> None:
        raise NotImplementedError


class Anything(Current):
    @hookimpl
    def virtlet_launch(self, **arguments: object) -> None:
        raise NotImplementedError


class NoSelf(Current):
    @hookimpl
    def virtlet_launch(machine: Machine) -> None:  # type: ignore[misc] # noqa: N805
        raise NotImplementedError


class WrongType(Current):
    @hookimpl
    def virtlet_launch(self, machine: Vm) -> None:
        raise NotImplementedError


class WrongReturn(Current):
    @hookimpl
    def virtlet_network_status(self) -> Sequence[int]:
        raise NotImplementedError


class Coroutine(Current):
    @hookimpl
    async def virtlet_launch(self, machine: Machine) -> LaunchPart:
        raise NotImplementedError


class Generator(Current):
    @hookimpl
    def virtlet_options(self) -> Iterator[Option[str]]:
        yield from ()


class AsyncGenerator(Current):
    @hookimpl
    async def virtlet_options(self) -> AsyncIterator[Option[str]]:
        yield untyped(None)


class Twice(Current):
    @hookimpl
    def virtlet_event(self, event: object) -> None:
        raise NotImplementedError

    @hookimpl(specname="virtlet_event")
    def hear(self, event: object) -> None:
        raise NotImplementedError


class NoInverse(Current):
    @hookimpl
    def virtlet_root_disk(self, vm: Vm, flavor: Flavor) -> Disk:
        raise NotImplementedError


class Unmarked(Good):
    def virtlet_launch(self, machine: Machine) -> None:
        raise NotImplementedError

    def virtlet_home(self) -> None:
        raise NotImplementedError


class Empty(Current):
    pass


@pytest.mark.parametrize("plugin", [Sound, Sound(), Good, tests.fakes.module_plugin])
def test_a_sound_class_object_or_module_has_no_flaw(plugin: object) -> None:
    assert flaws(plugin) == []
    assert doubts(plugin) == []


@pytest.mark.parametrize(
    ("plugin", "flaw"),
    [
        (Undeclared, "add the line `VIRTLET_HOOK_API = 1` to it"),
        (OtherApi, "built for version 99 of the plugin API and this Virtlet has version 1"),
        (ByValue, "ByValue compares by value: write a class without __eq__"),
        (Wrapper, "virtlet_flavor is a wrapper.*: implement virtlet_adjust_flavor to change"),
        (OldWrapper, "virtlet_launch is a wrapper.*: implement virtlet_launch itself"),
        (Pushes, "virtlet_launch has the mark tryfirst: take it away, the handler's `plugins:` is"),
        (Misspelt, "virtlet_setup_netwrk is not a hook: did you mean virtlet_setup_network?"),
        (Unknown, "virtlet_paint is not a hook: see docs/hooks.md"),
        (
            WrongArgument,
            r"virtlet_flavor takes the argument pods, which it does not have \(did you mean "
            r"pod\?\): write `def virtlet_flavor\(self, pod, config, image\)`",
        ),
        (Default, "virtlet_launch takes `machine: .* = None`, which is never passed: write"),
        (Anything, r"virtlet_launch takes `\*\*arguments: .*`, which is never passed: write"),
        (NoSelf, r"virtlet_launch has no self: write `def virtlet_launch\(self, machine\)`"),
        (WrongType, "virtlet_launch takes machine as Vm: it is Machine"),
        (WrongReturn, r"virtlet_network_status returns Sequence\[int\].*to return Sequence\[str\]"),
        (Coroutine, "virtlet_launch is a coroutine: write a plain function"),
        (Generator, "virtlet_options is a generator: write a plain function"),
        (AsyncGenerator, "virtlet_options is a generator: write a plain function"),
        (Twice, "virtlet_event is implemented twice"),
    ],
)
@pytest.mark.parametrize("made", [False, True], ids=["class", "object"])
def test_a_flaw_is_named_with_its_remedy(plugin: type, flaw: str, made: bool) -> None:
    [found] = flaws(plugin() if made else plugin)
    assert re.search(flaw, found)
    assert "\n" not in found


@pytest.mark.parametrize(
    ("plugin", "wanted"),
    [
        (NoInverse, ["virtlet_root_disk has no inverse: implement virtlet_release_root_disk"]),
        (
            Unmarked,
            [
                "virtlet_home looks like a hook and is never called: give it another name",
                "virtlet_launch looks like a hook and is never called: mark it with @hookimpl",
            ],
        ),
        (Empty, ["it has no hook"]),
    ],
)
def test_what_is_probably_not_meant_is_a_doubt(plugin: type, wanted: list[str]) -> None:
    assert flaws(plugin) == []
    found = doubts(plugin)
    assert len(found) == len(wanted)
    for doubt, beginning in zip(found, wanted, strict=True):
        assert doubt.startswith(beginning)


def test_the_built_in_plugins_are_beyond_doubt() -> None:
    registry = discover()
    for name in registry.builtin:
        assert doubts(registry.manager.get_plugin(name)) == []


def test_every_inverse_has_its_effect_and_every_wrapper_its_remedy() -> None:
    inverses = {hook for hook, mode in hookspecs.HOOKS.items() if mode == "inverse"}
    assert inverses == set(hookspecs.INVERSES.values())
    named = {*hookspecs.INVERSES, *ADJUSTING, *ADJUSTING.values()}
    assert named <= set(hookspecs.HOOKS)
