"""What is kept of plugins for when they are not installed any more."""

from importlib.metadata import EntryPoint
from pathlib import Path

import pytest

from tests.fakes import models
from virtlet.core.hooks.facade import Hooks
from virtlet.core.hooks.registry import Registry, discover, settings_of_departed
from virtlet.core.paths import Paths
from virtlet.errors import FailedPrecondition


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
