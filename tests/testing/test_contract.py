"""The contract check, as a plugin's author calls it."""

import pytest

from tests.fakes import checked_plugins
from virtlet.testing import PluginWarning, check_plugin


def test_a_sound_plugin_passes() -> None:
    check_plugin(checked_plugins.Sound)


@pytest.mark.parametrize(
    ("plugin", "said"),
    [
        (checked_plugins.Misspelt, "virtlet_rot_disk"),
        (checked_plugins.Ageless, "VIRTLET_HOOK_API = 1"),
        (checked_plugins.TakesAnOption, "declares dataDir, which the core declares too"),
        (checked_plugins.DefaultsWrongly, "count with a default that its kind does not take"),
        (checked_plugins.TakesAnAnnotation, "VirtletVCPUCount"),
    ],
)
def test_a_flaw_is_named(plugin: type, said: str) -> None:
    with pytest.raises(AssertionError, match=said) as caught:
        check_plugin(plugin)
    assert f"{plugin.__module__}:{plugin.__name__}" in str(caught.value)


def test_what_the_author_may_not_mean_is_a_warning() -> None:
    with pytest.warns(PluginWarning, match="virtlet_seed has no inverse"):
        check_plugin(checked_plugins.LeavesThings)
