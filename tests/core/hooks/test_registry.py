"""Which plugins are taken, which are refused, and what is kept of those that are gone."""

import re
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest

from tests.fakes import models
from virtlet.core.hooks.facade import Hooks
from virtlet.core.hooks.registry import Registry, discover, settings_of_departed
from virtlet.core.paths import Paths
from virtlet.errors import FailedPrecondition

HERE = "tests.fakes.plugins"


def _discover(**plugins: str) -> Registry:
    entries = [EntryPoint(name, f"{HERE}:{value}", "virtlet") for name, value in plugins.items()]
    return discover(entries)


def test_a_class_is_registered_as_one_instance_under_its_entry_point_name() -> None:
    registry = _discover(good="Good")
    assert registry.extra == ("good",)
    assert type(registry.manager.get_plugin("good")).__name__ == "Good"


def test_a_plugin_that_cannot_be_imported_is_refused_and_the_others_go_on() -> None:
    registry = _discover(gone="Missing", good="Good")
    assert registry.extra == ("good",)
    assert "Missing" in registry.refused["gone"]


def test_a_plugin_that_raises_when_made_is_refused_with_its_error() -> None:
    assert "ValueError: no luck" in _discover(bad="RaisesWhenMade").refused["bad"]


def test_a_misspelt_hook_is_refused_by_name() -> None:
    registry = _discover(typo="Misspelt", good="Good")
    assert "virtlet_setup_netwrk" in registry.refused["typo"]
    assert "did you mean virtlet_setup_network?" in registry.refused["typo"]
    assert registry.extra == ("good",)


def test_a_hook_with_an_unknown_argument_is_refused() -> None:
    assert "colour" in _discover(bad="UnknownArgument").refused["bad"]


def test_a_plugin_for_another_major_version_of_the_api_is_refused_with_both_numbers() -> None:
    problem = _discover(old="OtherApi").refused["old"]
    assert "version 99" in problem
    assert "version 1" in problem


def test_a_plugin_that_names_no_version_of_the_api_is_refused_and_told_the_line_to_add() -> None:
    registry = _discover(silent="Undeclared", good="Good")
    assert "add the line `VIRTLET_HOOK_API = 1` to it" in registry.refused["silent"]
    assert registry.extra == ("good",)


def test_two_plugins_of_one_name_are_refused() -> None:
    entry = EntryPoint("good", f"{HERE}:Good", "virtlet")
    registry = discover([entry, entry])
    assert registry.extra == ("good",)
    assert "two installed packages" in registry.refused["good"]


def test_one_module_under_two_names_is_refused_the_second_time() -> None:
    registry = discover(
        EntryPoint(name, "tests.fakes.module_plugin", "virtlet") for name in ("a", "b")
    )
    assert registry.extra == ("a",)
    assert "another name already" in registry.refused["b"]


def test_the_installed_built_in_plugins_are_all_usable() -> None:
    registry = discover()
    assert registry.refused == {}
    assert {"network_cni", "disk_qcow2", "libvirt_qemu", "cloudinit"} <= set(registry.builtin)


def test_what_is_doubtful_in_a_plugin_is_logged_and_it_is_taken(
    caplog: pytest.LogCaptureFixture,
) -> None:
    assert _discover(silent="Unmarked").extra == ("silent",)
    assert caplog.messages == [
        "plugin 'silent': virtlet_lanch looks like a hook and is never called: "
        "did you mean virtlet_launch?",
        "plugin 'silent': it has no hook: mark its methods with @hookimpl",
    ]


UNRULY = "tests.fakes.startup_plugins"


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("ExitsWhenMade", "raised SystemExit"),
        ("RaisesWhenSeen", "looking at .* raised RuntimeError: look away"),
        ("ByValue", "compares by value"),
    ],
)
def test_a_plugin_that_cannot_be_registered_is_refused_and_the_others_go_on(
    name: str, reason: str, caplog: pytest.LogCaptureFixture
) -> None:
    entries = [EntryPoint(name, f"{UNRULY}:{name}", "virtlet")]
    registry = discover([*entries, EntryPoint("zoo", f"{HERE}:Good", "virtlet")])
    assert re.search(reason, registry.refused[name])
    assert registry.extra == ("zoo",)
    assert not registry.manager.has_plugin(name)
    [line] = caplog.messages
    assert name in line
    assert "hunter2" not in line
    assert "\n" not in line


def _registry(*names: str) -> Registry:
    return discover(EntryPoint(n, f"tests.fakes.departing_plugins:{n}", "virtlet") for n in names)


@pytest.fixture
def data_dir(tmp_path: Path) -> Path:
    """A data directory that a manager with both plugins ran with."""
    Hooks(_registry("Light", "Careful")).remember(tmp_path)
    return tmp_path


def _release(hooks: Hooks, plugin: str, directory: Path) -> None:
    hooks.release_root_disk(plugin, models.vm(directory), None)


def test_a_plugin_that_had_no_inverse_is_not_missed_when_its_effect_is_undone(
    data_dir: Path,
) -> None:
    hooks = Hooks(_registry())
    hooks.recall(data_dir, ())
    _release(hooks, "Light", data_dir)


def test_a_plugin_that_had_an_inverse_is_missed_until_it_is_forgotten(data_dir: Path) -> None:
    hooks = Hooks(_registry())
    hooks.recall(data_dir, ())
    with pytest.raises(FailedPrecondition, match="'Careful'.*install it again.*forgottenPlugins"):
        _release(hooks, "Careful", data_dir)
    hooks.recall(data_dir, ("Careful",))
    _release(hooks, "Careful", data_dir)


def test_a_forgotten_plugin_that_is_installed_undoes_what_it_did(data_dir: Path) -> None:
    hooks = Hooks(_registry("Careful"))
    hooks.recall(data_dir, ("Careful",))
    disk = models.vm(data_dir).directory / "light.raw"
    disk.parent.mkdir(parents=True, exist_ok=True)
    disk.touch()
    _release(hooks, "Careful", data_dir)
    assert not disk.exists()


def test_what_is_known_of_a_plugin_outlives_starts_without_it(data_dir: Path) -> None:
    Hooks(_registry("Light")).remember(data_dir)
    assert settings_of_departed(data_dir, _registry()) == {"streamPorts": "plugin 'Careful'"}
    assert settings_of_departed(data_dir, _registry("Careful")) == {}


def test_a_file_that_cannot_be_read_is_passed_over(data_dir: Path) -> None:
    Paths(data_dir).plugins.write_text("{")
    assert settings_of_departed(data_dir, _registry()) == {}
