"""Plugins that fail when the manager starts, and what becomes of the others."""

from importlib.metadata import EntryPoint, distributions
from pathlib import Path

import pytest
from attrs import evolve

from tests.fakes.model import make_node
from tests.fakes.startup_plugins import HangsAtConfigure
from virtlet.core.config.load import load
from virtlet.core.config.options import CORE_OPTIONS
from virtlet.core.hooks.facade import Hooks
from virtlet.core.hooks.profiles import Profiles
from virtlet.core.hooks.registry import Registry, discover
from virtlet.errors import FailedPrecondition, InvalidArgument, PluginError
from virtlet.model.option import Settings


def _registry(*names: str) -> Registry:
    modules = {n: "plugins" if n in ("Good", "Twin") else "startup_plugins" for n in names}
    return discover(EntryPoint(n, f"tests.fakes.{m}:{n}", "virtlet") for n, m in modules.items())


@pytest.mark.parametrize(
    ("plugin", "reason"),
    [
        (
            "RaisesAtOptions",
            r"virtlet_options: raised ValueError: no colour \(startup_plugins.py, line \d+\)",
        ),
        ("ExitsAtOptions", "virtlet_options: raised SystemExit"),
        ("Twin", "declares colour, which plugin 'Good' declares too"),
        ("CoreTwin", "declares criSocketPath, which the core declares too"),
        ("FlagTwin", "declares --config, which the core declares too"),
        ("BadName", "'my-own'.*wanted are names like myOption"),
        ("BadDefault", "option mine with a default that its kind does not take"),
        ("NoKind", "made an Option whose kind is a str instead of Kind"),
    ],
)
def test_a_plugin_whose_options_cannot_be_had_is_refused_in_one_line(
    plugin: str, reason: str, caplog: pytest.LogCaptureFixture
) -> None:
    registry = _registry("Good", plugin)
    assert [name for name, _ in Hooks(registry).options()] == ["Good"]
    profiles = Profiles({"x": {"plugins": [plugin]}, "y": {"plugins": ["Good"]}}, registry)
    with pytest.raises(FailedPrecondition, match=f"'{plugin}' was refused: .*{reason}.*; mend"):
        profiles.get("x")
    assert profiles.get("y").plugins == ("Good",)
    [line] = caplog.records
    assert f"plugin {plugin!r} refused: " in line.getMessage()
    assert "\n" not in line.getMessage()
    assert "hunter2" not in line.getMessage()
    assert line.exc_info is None


@pytest.mark.parametrize(
    ("plugin", "reason"),
    [("RaisesAtConfigure", "raised ValueError: no colour"), ("RefusesSettings", "red is sold out")],
)
def test_a_plugin_that_does_not_take_its_settings_is_refused_and_the_others_go_on(
    plugin: str, reason: str, tmp_path: Path
) -> None:
    registry = _registry("Configured", plugin)
    hooks = Hooks(registry)
    hooks.configure(Settings(values={}), make_node(tmp_path))
    assert registry.extra == ("Configured",)
    assert reason in registry.refused[plugin]
    assert "hunter2" not in registry.refused[plugin]
    profiles = Profiles({"x": {"plugins": [plugin]}}, registry)
    assert profiles.broken["x"].startswith(f"its plugin '{plugin}' was refused")
    hooks.shutdown()


def test_a_plugin_that_hangs_over_its_settings_is_refused_and_the_others_go_on(
    tmp_path: Path,
) -> None:
    registry = _registry("Configured", "HangsAtConfigure")
    hooks = Hooks(registry)
    hooks.watch.patience = 0.1
    try:
        hooks.configure(Settings(values={}), make_node(tmp_path))
    finally:
        HangsAtConfigure.release.set()
    assert registry.extra == ("Configured",)
    reason = registry.refused["HangsAtConfigure"]
    assert reason.startswith("virtlet_configure: has not returned for 0.1 s (hookPatience)")
    hooks.shutdown()


def test_a_plugin_that_cannot_look_after_what_it_keeps_is_refused_and_the_others_go_on() -> None:
    registry = _registry("Configured", "RaisesAtReconcile")
    Hooks(registry).reconcile([], [])
    assert registry.extra == ("Configured",)
    reason = registry.refused["RaisesAtReconcile"]
    assert reason.startswith("virtlet_reconcile: raised ValueError (startup_plugins.py, line")
    assert "hunter2" not in reason
    assert registry.manager.get_plugin("Configured").heard == 1  # type: ignore[union-attr]


def test_without_a_built_in_plugin_the_manager_does_not_start(tmp_path: Path) -> None:
    def builtin(name: str) -> Hooks:
        return Hooks(evolve(_registry(name), builtin=(name,), extra=()))

    with pytest.raises(PluginError, match="'RaisesAtOptions'.*virtlet_options: raised ValueError"):
        builtin("RaisesAtOptions").options()
    with pytest.raises(InvalidArgument, match="red is sold out"):
        builtin("RefusesSettings").configure(Settings(values={}), make_node(tmp_path))
    with pytest.raises(PluginError, match="'RaisesAtReconcile'.*virtlet_reconcile: raised"):
        builtin("RaisesAtReconcile").reconcile([], [])


def test_a_built_in_plugin_keeps_an_option_that_another_declares_too() -> None:
    found = _registry("Good", "Twin")
    registry = evolve(found, builtin=("Twin",), extra=("Good",))
    assert [name for name, _ in Hooks(registry).options()] == ["Twin"]
    assert "which plugin 'Twin' declares too" in registry.refused["Good"]


def test_a_default_may_have_braces() -> None:
    [(plugin, option)] = Hooks(_registry("Braces")).options()
    settings = load([*CORE_OPTIONS, option], file=None, environment={}, flags={})
    assert (plugin, settings[option]) == ("Braces", {})


def test_of_two_that_declare_one_annotation_the_later_is_refused_and_both_packages_are_named(
    tmp_path: Path,
) -> None:
    registry = _packaged(tmp_path, one="Good", two="Shades")
    hooks = Hooks(registry)
    hooks.configure(Settings(values={}), make_node(tmp_path))
    assert registry.extra == ("one",)
    assert registry.refused["two"] == (
        "virtlet_annotations: declares VirtletColour, which plugin 'one' (package acme-one) "
        "declares too; mend the plugin or uninstall its package acme-two"
    )
    profiles = Profiles({"x": {"plugins": ["two"]}, "y": {"plugins": ["one"]}}, registry)
    assert "x" in profiles.broken
    assert [name for name, _ in hooks.annotations(profiles.get("y"))] == ["one"]


def _packaged(directory: Path, **plugins: str) -> Registry:
    """The plugins, each in a package of its own."""
    for name, kind in plugins.items():
        info = directory / f"acme_{name}-1.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: acme-{name}\nVersion: 1\n")
        (info / "entry_points.txt").write_text(f"[virtlet]\n{name} = tests.fakes.plugins:{kind}\n")
    found = distributions(path=[str(directory)])
    return discover(entry for package in found for entry in package.entry_points)
