"""The pod's labels in the guest's firmware, without a VM and with one."""

import json
import os
from pathlib import Path

import pytest
from virtlet_example_launch import Plugin

from virtlet.api import LaunchPart
from virtlet.testing import BootGuest, check_plugin, make_machine, make_pod


def launched(directory: Path, **labels: str) -> LaunchPart:
    """The plugin's part for a pod with labels."""
    return Plugin().virtlet_launch(make_machine(directory, make_pod(labels=labels)))


def test_the_manager_takes_the_plugin() -> None:
    check_plugin(Plugin)


def test_name_and_labels_are_oem_strings(tmp_path: Path) -> None:
    """With commas as QEMU's options want them."""
    part = launched(tmp_path, app="a,b", tier="1")
    os.close(part.fds[0].fd)
    assert part.arguments[:6] == (
        "-smbios",
        "type=11,value=pod=shop/web-1",
        "-smbios",
        "type=11,value=label:app=a,,b",
        "-smbios",
        "type=11,value=label:tier=1",
    )


def test_the_document_is_behind_the_descriptor(tmp_path: Path) -> None:
    """Whole, and readable from its start by all who open it."""
    part = launched(tmp_path, app="shop")
    (item,) = part.fds
    text = Path(f"/proc/self/fd/{item.fd}").read_text()
    os.close(item.fd)
    said = json.loads(text)
    assert (said["name"], said["namespace"], said["labels"]) == ("web-1", "shop", {"app": "shop"})
    assert part.arguments[-1].endswith("{fd:example_pod}")


def test_the_guest_reads_its_labels(virtlet_guest: BootGuest) -> None:
    guest = virtlet_guest(labels={"app": "shop"})
    firmware = guest.exec("cat", "/sys/firmware/dmi/entries/11-0/raw")
    if firmware.exit_code != 0:
        pytest.skip("the guest's kernel shows no DMI tables")
    assert "label:app=shop" in firmware.stdout
