"""Plugins that are uninstalled, or that hang, while pods of theirs are there: the ways out."""

import os
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from tests.e2e.conftest import ROOT, TINY, Pod, make_manifest
from tests.polling import until
from virtlet.cli.client import CallFailed
from virtlet.cli.ending import CommandFailed
from virtlet.cli.playground import Playground
from virtlet.core.hooks.plugin_package import SourcePackage, pretend_installed

PLUGINS = {"light": "Light", "careful": "Careful", "stuck": "Stuck"}


@pytest.fixture
def node(tmp_path: Path) -> Iterator[Playground]:
    """A node with the plugins, a handler of each, and a setting of one."""
    departing = SourcePackage(
        directory=ROOT,
        name="departing",
        version="1.0",
        plugins={n: f"tests.fakes.departing_plugins:{kind}" for n, kind in PLUGINS.items()},
    )
    paths = pretend_installed([departing], tmp_path)
    settings = {
        "handlers": {name: {"plugins": [name]} for name in PLUGINS},
        "streamPorts": "1",
        "hookPatience": 1,
    }
    with Playground(
        {"tiny": TINY},
        subnet="10.130.0.0/16",
        settings=settings,
        environment={"PYTHONPATH": os.pathsep.join(map(str, paths))},
    ) as node:
        yield node


def _set(node: Playground, **settings: object) -> None:
    """Write settings into the configuration file and restart the manager."""
    content = yaml.safe_load(node.config_file.read_text()) | settings
    node.config_file.write_text(yaml.safe_dump(content))
    node.stop()
    node.start()


def _hangs(node: Playground) -> bool:
    """Whether the log names the stuck plugin; on a slow machine it may name others first."""
    lines = node.tail().splitlines()
    return any("has not returned" in line and "'stuck'" in line.replace('"', "'") for line in lines)


def _refusal(pod: Pod) -> str:
    with pytest.raises(CallFailed) as caught:
        pod.down()
    return str(caught.value)


def test_pods_of_plugins_that_hang_or_are_gone_can_be_removed_by_what_the_messages_say(
    node: Playground,
) -> None:
    with node.client() as client:
        pods = {
            name: Pod(node, client, make_manifest(node, handler=name)).run() for name in PLUGINS
        }

        def make_the_stuck_one() -> None:
            with pytest.raises(CommandFailed):  # the manager ends before it does
                pods["stuck"].create()

        making = threading.Thread(target=make_the_stuck_one)
        making.start()
        until(lambda: _hangs(node), "the plugin's name in the log", 60)
        said = _refusal(pods["stuck"])
        assert "UNAVAILABLE" in said
        assert "plugin 'stuck' has not returned from virtlet_root_disk" in said
        for name in ("light", "careful"):
            pods[name].create()

        # They are uninstalled; a setting of one is left over, and looks like one of the core's.
        del node.environment["PYTHONPATH"]
        _set(node)
        making.join(20)
        log = node.log_file.read_text()
        assert "'streamPorts' is passed over: it is of plugin 'careful' (package departing)" in log
        pods["light"].down()
        pods["stuck"].down()
        said = _refusal(pods["careful"])
        assert "plugin 'careful' (package departing) is not installed any more" in said
        assert "forgottenPlugins" in said

        _set(node, forgottenPlugins="careful")
        pods["careful"].down()
    assert node.settled_leftovers() == []
