"""The test kit for plugins: `pip install virtlet[testing]`, then `pytest -p virtlet.testing`.

`check_plugin` says what the manager would refuse a plugin for; `make_…` make what hooks take;
`configured`, `pull_image` and `plugged` try hooks without a VM. The fixture `virtlet_guest` boots a
guest with the plugin on a node of its own, and `own_network` gives a test a network namespace.
docs/hooks.md says how to use them.
"""

from virtlet.testing.alone import configured, pull_image, rendered
from virtlet.testing.contract import PluginWarning, check_plugin
from virtlet.testing.fixtures import (
    BootGuest,
    MakeNode,
    own_network,
    pytest_addoption,
    virtlet_guest,
    virtlet_image,
    virtlet_node,
)
from virtlet.testing.guest import Guest, Output
from virtlet.testing.models import (
    make_image,
    make_machine,
    make_node,
    make_pod,
    make_settings,
    make_vm,
    make_vm_config,
)
from virtlet.testing.plugged import Plugged, plugged

__all__ = [
    "BootGuest",
    "Guest",
    "MakeNode",
    "Output",
    "Plugged",
    "PluginWarning",
    "check_plugin",
    "configured",
    "make_image",
    "make_machine",
    "make_node",
    "make_pod",
    "make_settings",
    "make_vm",
    "make_vm_config",
    "own_network",
    "plugged",
    "pull_image",
    "pytest_addoption",
    "rendered",
    "virtlet_guest",
    "virtlet_image",
    "virtlet_node",
]
