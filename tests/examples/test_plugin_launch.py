"""The example plugin that puts the pod's labels into the guest's firmware tables."""

import configparser
import importlib
import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from attrs import evolve

from tests.fakes.model import POD_UID, make_pod
from tests.plugins.domain_xml.machines import plain
from virtlet.core.launch.merge import merge_launch
from virtlet.model.vm import Machine

EXAMPLE = Path(__file__).parents[2] / "examples" / "plugin-launch"


@pytest.fixture
def plugin(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """What the package's entry point names."""
    setup = configparser.ConfigParser()
    setup.read(EXAMPLE / "setup.cfg")
    entry = setup["options.entry_points"]["virtlet"].partition("=")[2].strip()
    module_name, _, name = entry.partition(":")
    monkeypatch.syspath_prepend(str(EXAMPLE))
    yield getattr(importlib.import_module(module_name), name)()
    del sys.modules[module_name]


def labelled(**labels: str) -> Machine:
    """A machine of a pod with labels."""
    machine, pod = plain(), make_pod()
    pod = evolve(pod, config=evolve(pod.config, labels=labels))
    return evolve(machine, vm=evolve(machine.vm, pod=pod))


def test_name_and_labels_are_oem_strings(plugin: Any) -> None:
    """With commas as QEMU's options want them."""
    launch = merge_launch([("example", plugin.virtlet_launch(labelled(app="a,b", tier="1")))])
    launch.close()
    assert launch.arguments[:6] == (
        "-smbios",
        "type=11,value=pod=shop/web-1",
        "-smbios",
        "type=11,value=label:app=a,,b",
        "-smbios",
        "type=11,value=label:tier=1",
    )


def test_the_document_is_behind_the_descriptor(plugin: Any) -> None:
    """Whole, and readable from its start by whoever opens it anew."""
    launch = merge_launch([("example", plugin.virtlet_launch(labelled(app="shop")))])
    (item,) = launch.fds
    text = Path(f"/proc/self/fd/{item.fd}").read_text()
    assert json.loads(text) == {
        "name": "web-1",
        "namespace": "shop",
        "uid": POD_UID,
        "labels": {"app": "shop"},
    }
    assert launch.arguments[-1].endswith("{fd:example_pod}")
    launch.close()
    with pytest.raises(OSError, match="Bad file"):
        os.fstat(item.fd)
