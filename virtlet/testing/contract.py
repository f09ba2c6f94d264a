"""The contract check of a plugin."""

import warnings
from importlib.metadata import EntryPoint

from virtlet import PROJECT
from virtlet.core.hooks.plugin_package import check


class PluginWarning(UserWarning):
    """The manager takes it, and the plugin's author may not mean it."""


def check_plugin(plugin: type) -> None:
    """Fail where the manager would refuse a plugin, and warn where it would warn.

    Hooks, their arguments and types, and the declared options and annotations are looked at,
    beside the built-in plugins.

    Args:
        plugin: the class that the entry point names; defined at the top of its module.

    Raises:
        AssertionError: the manager would refuse it; the message has every reason.
    """
    value = f"{plugin.__module__}:{plugin.__qualname__}"
    (findings,) = check([EntryPoint(plugin.__module__, value, PROJECT)]).values()
    assert not findings.flaws, "\n".join([f"the manager refuses {value}:", *findings.flaws])
    for warning in findings.warnings:
        warnings.warn(warning, PluginWarning, stacklevel=2)
