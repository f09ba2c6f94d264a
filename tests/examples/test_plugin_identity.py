"""The example plugin that makes a pod's MAC addresses and UUID of its name."""

import importlib
import sys
from collections.abc import Iterator
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest
from attrs import evolve

from tests.fakes import models
from virtlet.core.hooks.facade import Hooks
from virtlet.core.hooks.registry import discover
from virtlet.model.flavor import Flavor
from virtlet.model.network import Network, Nic

EXAMPLE = Path(__file__).parents[2] / "examples" / "plugin-identity"
ENTRY = EntryPoint("same", "virtlet_example_identity:Plugin", "virtlet")
SMALL = EntryPoint("SmallFlavor", "tests.fakes.plugins:SmallFlavor", "virtlet")


@pytest.fixture
def hooks(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hooks]:
    """The plugin beside one that chooses a flavor."""
    monkeypatch.syspath_prepend(str(EXAMPLE))
    yield Hooks(discover([SMALL, ENTRY]))
    del sys.modules["virtlet_example_identity"]


def test_nics_have_the_addresses_of_the_pods_name(hooks: Hooks, tmp_path: Path) -> None:
    """Whatever the pod's id is; each NIC has another."""
    nics = (Nic(name=f"eth{n}", mac=f"02:00:00:00:00:0{n}", mtu=1500) for n in range(2))
    network = Network(netns=None, nics=tuple(nics))
    pod = models.pod(tmp_path, plugins=("same",))
    first = hooks.adjust_network(pod, network)
    assert first == hooks.adjust_network(evolve(pod, id="c" * 32), network)
    assert len({nic.mac for nic in (*network.nics, *first.nics)}) == 4
    other = evolve(pod.config.metadata, name="other")
    elsewhere = evolve(pod, config=evolve(pod.config, metadata=other))
    assert hooks.adjust_network(elsewhere, network).nics[0].mac != first.nics[0].mac


def test_a_uuid_that_somebody_asked_for_stays(hooks: Hooks, tmp_path: Path) -> None:
    """Else it is that of the pod's name."""
    vm = models.vm(tmp_path, plugins=("SmallFlavor", "same"))
    found = hooks.flavor(vm.pod, vm.config, vm.image)
    assert found.system_uuid
    assert found == evolve(Flavor(vcpus=1), system_uuid=found.system_uuid)
    plugin = importlib.import_module("virtlet_example_identity").Plugin()
    assert plugin.virtlet_adjust_flavor(vm.pod, Flavor(system_uuid="mine")) is None
