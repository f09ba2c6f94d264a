"""Whether the node's network is usable, and told honestly."""

import logging
import time

import pytest

from tests.plugins.network_cni.conftest import TestNode, set_up
from virtlet.errors import FailedPrecondition


def test_no_configuration(node: TestNode) -> None:
    """Without a configuration the reason says what to do; with one there is nothing to say."""
    plugin = node.plugin()
    assert plugin.virtlet_network_status() == (
        f"cannot read the CNI configuration directory {node.configuration}: it does not exist: "
        "install a network add-on, or name another one with --cni-conf-dir",
    )
    node.configuration.mkdir()
    (problem,) = plugin.virtlet_network_status()
    assert problem == (
        f"no CNI configuration in {node.configuration}: install a network add-on for this node"
    )
    node.configure(node.bridge())
    assert plugin.virtlet_network_status() == ()


def test_start_without_a_network(node: TestNode, caplog: pytest.LogCaptureFixture) -> None:
    """What is wrong with the network is in the log from the start on, once."""
    node.configuration.write_text("no directory")
    node.plugin()
    assert [(r.levelno, r.getMessage()) for r in caplog.records] == [
        (
            logging.WARNING,
            "pods get no network until this is mended: cannot read the CNI configuration directory "
            f"{node.configuration}: it is not a directory: name another one with --cni-conf-dir",
        )
    ]


def test_broken_configuration(node: TestNode) -> None:
    """A broken first file is told by name, although a good one follows."""
    node.configure(node.bridge())
    (node.configuration / "00-broken.conf").write_text("{")
    plugin = node.plugin()
    (problem,) = plugin.virtlet_network_status()
    assert f"{node.configuration}/00-broken.conf: no valid JSON" in problem
    with pytest.raises(FailedPrecondition, match=r"00-broken\.conf"):
        set_up(plugin, node.pod())
    assert node.leftovers() == []


def test_missing_plugin(node: TestNode) -> None:
    """A plugin that is not installed is named."""
    node.configure(node.bridge(), {"type": "nowhere"})
    (problem,) = node.plugin().virtlet_network_status()
    assert problem == f"CNI plugin nowhere is missing in {node.plugin_directory}: install it"
    bridge = node.bridge()
    bridge["ipam"]["type"] = "whereabouts"
    node.configure(bridge)
    (problem,) = node.plugin().virtlet_network_status()
    assert problem.startswith("CNI plugin whereabouts is missing")


def test_plugin_too_old(node: TestNode) -> None:
    """A configuration for a newer specification than a plugin speaks is told."""
    node.configure(node.bridge(), cniVersion="1.1.0")
    (problem,) = node.plugin().virtlet_network_status()
    assert "written for CNI 1.1.0, but plugin bridge speaks" in problem


def test_status_of_plugins(node: TestNode) -> None:
    """From CNI 1.1 on plugins are asked for their STATUS, and not again at every call."""
    down = {"print": {"cniVersion": "1.1.0", "code": 50, "msg": "daemon down"}, "exit": 1}
    node.configure(node.fake(STATUS=down), cniVersion="1.1.0")
    plugin = node.plugin()
    expected = (
        "CNI plugin cni_plugin failed to STATUS: code 50 (the plugin is not available): daemon down"
    )
    assert plugin.virtlet_network_status() == (expected,)
    assert plugin.virtlet_network_status() == (expected,)
    assert [call["command"] for call in node.calls()] == ["STATUS"]
    node.configure(node.fake(), cniVersion="1.0.0", cniVersions=["1.0.0", "1.1.0"])
    assert plugin.virtlet_network_status() == ()


def test_hanging_status(node: TestNode) -> None:
    """A plugin that hangs at STATUS is a reason, after a bounded wait."""
    node.configure(node.fake(STATUS={"sleep": 60}), cniVersion="1.1.0")
    started = time.monotonic()
    (problem,) = node.plugin().virtlet_network_status()
    assert problem == "CNI plugin cni_plugin did not finish STATUS within 3 s"
    assert time.monotonic() - started < 20
