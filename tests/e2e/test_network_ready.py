"""Status through the socket: NetworkReady follows CNI's configuration, and what else is told."""

import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

import virtlet
from tests.e2e.conftest import ROOT
from tests.polling import until
from virtlet.cli.playground import Playground
from virtlet.cri import api_pb2 as cri

HANDLERS: dict[str, object] = {"other": {}, "broken": {"plugins": ["nobody"]}}


@pytest.fixture(scope="module")
def quiet_node() -> Iterator[Playground]:
    """A node of its own, whose network these tests take away."""
    with Playground({}, settings={"handlers": HANDLERS}) as playground:
        yield playground


def _status(node: Playground, *, verbose: bool = False) -> cri.StatusResponse:
    with node.client() as client:
        reply: cri.StatusResponse = client.call("Status", cri.StatusRequest(verbose=verbose))
        return reply


def _condition(node: Playground, kind: str) -> cri.RuntimeCondition:
    condition: cri.RuntimeCondition
    (condition,) = (c for c in _status(node).status.conditions if c.type == kind)
    return condition


def _documented_keys() -> list[str]:
    """First column of the table of what Status tells."""
    text = (ROOT / "docs" / "node.md").read_text()
    section = text.partition("## What Status tells\n")[2].partition("\n## ")[0]
    cells = [line.split("|")[1] for line in section.splitlines() if line.startswith("| `")]
    return [name for cell in cells for name in re.findall(r"`(\w+)`", cell)]


def _network(node: Playground) -> cri.RuntimeCondition:
    return _condition(node, "NetworkReady")


def test_the_network_is_ready_while_cni_is_configured_and_says_why_when_it_is_not(
    quiet_node: Playground, tmp_path: Path
) -> None:
    assert _network(quiet_node) == cri.RuntimeCondition(type="NetworkReady", status=True)
    directory = quiet_node.directory / "cni"
    (configuration,) = directory.glob("*.conflist")
    text = configuration.read_text()
    configuration.unlink()
    try:
        until(lambda: not _network(quiet_node).status, "the loss of the network")
        condition = _network(quiet_node)
        assert condition.reason == "NetworkPluginNotReady"
        assert str(directory) in condition.message
        # One condition does not make the other untrue.
        assert _condition(quiet_node, "RuntimeReady").status
        configuration.write_text("{")
        assert configuration.name in _network(quiet_node).message
    finally:
        configuration.write_text(text)
    until(lambda: _network(quiet_node).status, "the network's return")
    assert _network(quiet_node).reason == ""


def test_the_runtime_handlers_are_those_that_are_configured_and_served(
    quiet_node: Playground,
) -> None:
    status = _status(quiet_node)
    assert sorted(handler.name for handler in status.runtime_handlers) == ["", "other"]
    for handler in status.runtime_handlers:
        # VMs know neither user namespaces of the node nor recursive read-only mounts.
        assert handler.features == cri.RuntimeHandlerFeatures(recursive_read_only_mounts=True)
    assert status.HasField("features")


def test_what_a_verbose_status_tells_is_json_with_the_documented_keys(
    quiet_node: Playground,
) -> None:
    assert not _status(quiet_node).info
    told = dict(_status(quiet_node, verbose=True).info)
    assert set(told) == {"info", "templates"}
    assert json.loads(told["templates"]) == []
    info = json.loads(told["info"])
    assert list(info) == _documented_keys()
    assert info["dataDir"] == str(quiet_node.data_dir)
    assert info["hookApi"] == virtlet.HOOK_API
    assert list(info["handlers"]) == ["", "other"]
    assert "nobody" in info["brokenHandlers"]["broken"]
    (hypervisor,) = info["hypervisors"].values()
    assert set(hypervisor) == {"name", "version", "accelerator", "isolation"}
    assert (info["pods"], info["vms"]) == (0, 0)
