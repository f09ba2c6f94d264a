"""Who is blamed: for what plugins raise, for answers that are wrong, for what ends processes."""

import json
import logging
import os
import re
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Protocol

import pytest

from tests.fakes import models
from tests.fakes.models import untyped
from virtlet.core.hooks.blame import Blamed
from virtlet.core.hooks.facade import Hooks
from virtlet.core.hooks.registry import discover
from virtlet.errors import NotFound, PluginError
from virtlet.model.flavor import Flavor
from virtlet.model.pod import Profile


class Wanted(Protocol):
    """What is asked of it."""

    def works(self, number: int) -> int: ...

    def lies(self) -> tuple[str, ...]: ...

    def chats(self) -> None: ...


class Thing:
    """Somebody's hypervisor, or session."""

    def works(self, number: int) -> int:
        return number + 1

    def refuses(self) -> None:
        raise NotFound("not here")

    def breaks(self) -> None:
        raise ZeroDivisionError("hunter2")

    def parses(self) -> None:
        json.loads("{")

    def exits(self) -> None:
        sys.exit(3)

    def interrupts(self) -> None:
        raise KeyboardInterrupt

    def lies(self) -> tuple[str, ...]:
        answer: tuple[str, ...] = untyped((1,))
        return answer

    def chats(self) -> str:
        return "done"


@pytest.fixture
def thing() -> Blamed:
    return Blamed("acme", "virtlet_hypervisor", Wanted, Thing())


def test_what_works_and_what_is_refused_passes_through(thing: Blamed) -> None:
    assert thing.works(1) == 2
    with pytest.raises(NotFound, match="not here"):
        thing.refuses()


def test_whatever_else_is_raised_names_plugin_hook_and_method(
    thing: Blamed, caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(PluginError) as caught:
        thing.breaks()
    assert (caught.value.plugin, caught.value.hook) == ("acme", "virtlet_hypervisor")
    assert "breaks raised ZeroDivisionError" in str(caught.value)
    assert "hunter2" not in str(caught.value)
    assert [r.levelno for r in caplog.records] == [logging.ERROR]


@pytest.mark.parametrize("deed", ["exits", "interrupts"])
def test_what_would_end_the_process_is_an_error_as_any_other(thing: Blamed, deed: str) -> None:
    with ThreadPoolExecutor(1) as worker:
        error = worker.submit(getattr(thing, deed)).exception()
    assert isinstance(error, PluginError)
    assert f"{deed} raised" in str(error)


def test_the_operator_s_own_interrupt_on_the_main_thread_is_left_alone(thing: Blamed) -> None:
    with pytest.raises(KeyboardInterrupt):
        thing.interrupts()


def test_an_answer_of_another_type_than_the_protocol_s_is_refused(thing: Blamed) -> None:
    with pytest.raises(
        PluginError, match=r"'acme'.*lies returned a tuple whose item \[0\] is an int"
    ):
        thing.lies()


def test_an_answer_where_none_is_wanted_harms_nobody(thing: Blamed) -> None:
    assert thing.chats() == "done"


def test_the_place_is_the_plugins_own_code_and_not_pythons(thing: Blamed) -> None:
    """An author mends the line that called the library."""
    with pytest.raises(PluginError, match=r"raised JSONDecodeError \(test_blame\.py, line \d+\)"):
        thing.parses()


PLAIN = ("SmallFlavor", "LargeFlavor", "Declares", "Raises", "Contributes")


def _hooks(*names: str) -> Hooks:
    modules = {n: "plugins" if n in PLAIN else "unruly_plugins" for n in names}
    return Hooks(
        discover(EntryPoint(n, f"tests.fakes.{m}:{n}", "virtlet") for n, m in modules.items())
    )


def _flavor(directory: Path, *names: str) -> Flavor:
    vm = models.vm(directory, plugins=names)
    return _hooks(*names).flavor(vm.pod, vm.config, vm.image)


def test_a_wrong_type_inside_an_answer_is_named_by_its_field_and_not_shown(tmp_path: Path) -> None:
    with pytest.raises(PluginError, match="'Spoils'.*virtlet_flavor.*vcpus is a str") as caught:
        _flavor(tmp_path, "SmallFlavor", "Spoils")
    assert "hunter2" not in str(caught.value)
    assert "docs/hooks.md" in str(caught.value)


def test_a_spoilt_contribution_to_the_seed_names_its_field(tmp_path: Path) -> None:
    vm = models.vm(tmp_path, plugins=("Contributes", "Spoils"))
    with pytest.raises(PluginError, match="'Spoils'.*meta_data is a list instead of Mapping"):
        _hooks("Contributes", "Spoils").cloud_init(vm, Flavor(), ())


def test_a_wrong_type_is_named_with_the_line_that_made_it(tmp_path: Path) -> None:
    with pytest.raises(PluginError, match=r"made a Flavor.*\(unruly_plugins.py, line \d+\)"):
        _flavor(tmp_path, "Spoils")


@pytest.mark.parametrize(
    ("hook", "problem"),
    [
        ("flavor", r"'Misuses', hook virtlet_flavor: made a Flavor by position instead of by"),
        ("cloud_init", "made a CloudInitPart with a field that it does not have"),
        ("launch", "made a LaunchFd without a field that it has to have"),
        ("hypervisor", "made a Hypervisor with.* abstract methods .*start"),
    ],
)
def test_what_is_made_as_nothing_is_made_is_named_with_the_line_that_made_it(
    tmp_path: Path, hook: str, problem: str
) -> None:
    hooks, vm = _hooks("Misuses"), models.vm(tmp_path, plugins=("Misuses",))
    calls: dict[str, Callable[[], object]] = {
        "flavor": lambda: hooks.flavor(vm.pod, vm.config, vm.image),
        "cloud_init": lambda: hooks.cloud_init(vm, Flavor(), ()),
        "launch": lambda: hooks.launch(models.machine(tmp_path, plugins=("Misuses",))),
        "hypervisor": lambda: hooks.hypervisor(vm.pod.profile),
    }
    with pytest.raises(PluginError, match=problem) as caught:
        calls[hook]()
    assert re.search(r"\(unruly_plugins.py, line \d+\); mend the plugin", str(caught.value))
    assert "hunter2" not in str(caught.value)


def test_the_descriptors_of_a_launch_that_another_plugin_spoils_are_closed(tmp_path: Path) -> None:
    before = len(os.listdir("/proc/self/fd"))
    write_ends = 1  # The plugin itself keeps the other end of its pipe.
    names = ("Pipes", "Spoils")
    with pytest.raises(PluginError, match=r"'Spoils'.*arguments\[0\] is an int"):
        _hooks(*names).launch(models.machine(tmp_path, plugins=names))
    assert len(os.listdir("/proc/self/fd")) == before + write_ends


def test_a_spoilt_status_names_the_plugin() -> None:
    with pytest.raises(PluginError, match=r"'Spoils'.*virtlet_network_status.*\[0\] is an int"):
        _hooks("Spoils").network_status(Profile(handler="", plugins=("Spoils",)))


def test_of_two_plugins_with_the_same_code_the_one_that_was_asked_is_named(tmp_path: Path) -> None:
    hooks = _hooks("Raises", "SameCode")
    vm = models.vm(tmp_path, plugins=("Raises",))
    with pytest.raises(PluginError) as caught:
        hooks.flavor(vm.pod, vm.config, vm.image)
    assert caught.value.plugin == "Raises"


@pytest.mark.parametrize(
    ("plugin", "raised"), [("Exits", "SystemExit"), ("Interrupts", "KeyboardInterrupt")]
)
def test_what_would_end_the_manager_is_an_error_that_names_the_plugin(
    tmp_path: Path, plugin: str, raised: str
) -> None:
    with ThreadPoolExecutor(1) as worker:
        error = worker.submit(_flavor, tmp_path, plugin).exception()
    assert isinstance(error, PluginError)
    assert (error.plugin, error.problem.split()[1]) == (plugin, raised)


def test_what_looks_like_a_cancelled_call_is_an_error_too(tmp_path: Path) -> None:
    with pytest.raises(PluginError, match="'Interrupts'.*raised CancelledError"):
        _hooks("Interrupts").cloud_init(models.vm(tmp_path, plugins=("Interrupts",)), Flavor(), ())


def test_shutting_down_goes_on_past_a_plugin_that_exits(caplog: pytest.LogCaptureFixture) -> None:
    _hooks("Exits").shutdown()
    assert "plugin did not shut down" in caplog.messages
