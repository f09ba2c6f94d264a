"""How hooks are called, and what a plugin's misbehaviour becomes."""

import logging
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest

from tests.fakes import models
from virtlet.core.hooks.facade import Hooks
from virtlet.core.hooks.profiles import Profiles
from virtlet.core.hooks.registry import Registry, discover
from virtlet.errors import FailedPrecondition, PluginError
from virtlet.model.event import Event, EventKind
from virtlet.model.execution import GuestCommand
from virtlet.model.flavor import Flavor
from virtlet.model.pod import Profile


def _registry(*names: str) -> Registry:
    return discover(EntryPoint(name, f"tests.fakes.plugins:{name}", "virtlet") for name in names)


def _hooks(*names: str) -> Hooks:
    return Hooks(_registry(*names))


def _flavor(hooks: Hooks, directory: Path, *plugins: str) -> Flavor:
    vm = models.vm(directory, plugins=plugins)
    return hooks.flavor(vm.pod, vm.config, vm.image)


@pytest.mark.parametrize(("first", "vcpus"), [("LargeFlavor", 8), ("SmallFlavor", 1)])
def test_of_two_that_would_answer_the_first_of_the_handlers_list_does(
    tmp_path: Path, first: str, vcpus: int
) -> None:
    registry = _registry("LargeFlavor", "SmallFlavor")
    names = sorted(registry.extra, key=lambda name: name != first)
    profile = Profiles({"x": {"plugins": names}}, registry).get("x")
    assert _flavor(Hooks(registry), tmp_path, *profile.plugins).vcpus == vcpus


def test_a_plugin_that_the_handler_does_not_name_is_not_asked(tmp_path: Path) -> None:
    hooks = _hooks("LargeFlavor", "SmallFlavor")
    assert _flavor(hooks, tmp_path, "SmallFlavor").vcpus == 1


def test_a_plugin_that_declines_leaves_the_answer_to_the_next(tmp_path: Path) -> None:
    names = ("SmallFlavor", "Declines")
    assert _flavor(_hooks(*names), tmp_path, *names).vcpus == 1


def test_when_nobody_answers_the_error_names_the_hook_and_who_was_asked(tmp_path: Path) -> None:
    with pytest.raises(FailedPrecondition, match=r"virtlet_flavor.*asked: Declines"):
        _flavor(_hooks("Declines"), tmp_path, "Declines")


def test_a_raising_plugin_is_named_and_its_text_is_kept_out_of_the_error(tmp_path: Path) -> None:
    with pytest.raises(PluginError) as caught:
        _flavor(_hooks("Raises"), tmp_path, "Raises")
    assert caught.value.plugin == "Raises"
    assert caught.value.hook == "virtlet_flavor"
    assert "RuntimeError" in str(caught.value)
    assert "take it out of the handler" in str(caught.value)
    assert "hunter2" not in str(caught.value)


def test_a_wrong_type_is_named_with_what_was_wanted(tmp_path: Path) -> None:
    with pytest.raises(PluginError, match=r"'WrongType'.*returned a dict instead of Flavor"):
        _flavor(_hooks("WrongType"), tmp_path, "WrongType")


def _recognize(plugin: str, file: Path) -> None:
    file.write_bytes(b"x")
    _hooks(plugin).recognize_image(Profile(handler="", plugins=(plugin,)), "busybox", file)


@pytest.mark.parametrize(
    ("plugin", "problem"),
    [
        ("Nameless", "returned a RecognizedImage without a format or of a negative size"),
        ("Shrinks", "returned a RecognizedImage without a format or of a negative size"),
        ("Scribbles", "changed the file, which is for reading alone"),
        ("Takes", "changed the file, which is for reading alone"),
    ],
)
def test_a_plugin_that_recognises_an_image_wrongly_is_named(
    tmp_path: Path, plugin: str, problem: str
) -> None:
    with pytest.raises(PluginError, match=f"'{plugin}'.*virtlet_recognize_image.*{problem}"):
        _recognize(plugin, tmp_path / "part")


def test_an_object_without_the_methods_of_a_hypervisor_or_session_is_refused(
    tmp_path: Path,
) -> None:
    hooks, profile = _hooks("WrongType"), Profile(handler="", plugins=("WrongType",))
    with pytest.raises(PluginError, match="returned a str instead of Hypervisor"):
        hooks.hypervisor(profile)
    machine = models.machine(tmp_path, plugins=("WrongType",))
    with pytest.raises(PluginError, match="returned an int instead of ExecSession"):
        hooks.guest_exec(machine, GuestCommand(argv=("true",)))


def test_every_active_plugin_contributes_to_the_seed_by_name(tmp_path: Path) -> None:
    hooks = _hooks("Contributes", "Declines")
    parts = hooks.cloud_init(models.vm(tmp_path, plugins=("Contributes", "Declines")), Flavor(), ())
    assert [name for name, _ in parts] == ["Contributes"]


def test_a_contribution_of_the_wrong_type_is_refused(tmp_path: Path) -> None:
    hooks = _hooks("WrongType")
    with pytest.raises(PluginError, match="returned a str instead of CloudInitPart"):
        hooks.cloud_init(models.vm(tmp_path, plugins=("WrongType",)), Flavor(), ())


def test_the_error_of_an_observer_goes_no_further(caplog: pytest.LogCaptureFixture) -> None:
    profile = Profile(handler="", plugins=("Raises",))
    with caplog.at_level(logging.ERROR):
        _hooks("Raises").event(profile, Event(kind=EventKind.POD_CREATED, subject="x"))
    assert "observer failed" in caplog.text


def test_undoing_with_a_plugin_that_is_gone_says_so(tmp_path: Path) -> None:
    hooks = _hooks("Good")
    with pytest.raises(
        FailedPrecondition, match="virtlet_teardown_network is needed: plugin 'gone'"
    ):
        hooks.teardown_network("gone", models.pod(tmp_path), None)
