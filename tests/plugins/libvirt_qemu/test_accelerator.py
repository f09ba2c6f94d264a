"""What was found out about the host is remembered as long as it holds."""

import json
from pathlib import Path

from attrs import evolve

from tests.fakes.model import make_config, make_node
from virtlet.plugins.libvirt_qemu.accelerator import Host, examine
from virtlet.plugins.libvirt_qemu.plugin import OPTIONS, Plugin, make_hypervisor

_EMULATOR = """#!/bin/sh
echo "$*" >> {calls}
case "$1" in
--version) echo "QEMU emulator version 99.1 (Test)";;
*) {before}; printf RPLXFSUT; exit {status};;
esac
"""


class Emulator:
    """An emulator that counts how often it is asked; KVM works with it or not.

    Args:
        directory: for its files.
        kvm: whether the test guest runs to its end.
        before: what the emulator does first, as a line for the shell.
    """

    def __init__(self, directory: Path, *, kvm: bool, before: str = ":") -> None:
        self.calls = directory / "calls"
        self.device = directory / "kvm"
        self.device.touch(0o600)
        node = make_node(directory)
        status = 1 if kvm else 0
        node.vmwrapper.write_text(_EMULATOR.format(calls=self.calls, status=status, before=before))
        node.vmwrapper.chmod(0o755)
        self.node = node

    @property
    def asked(self) -> int:
        return len(self.calls.read_text().splitlines()) if self.calls.exists() else 0

    def examine(self) -> Host:
        return examine(self.node, ask_kvm=True, device=self.device)

    def accelerator(self, **settings: str) -> str:
        config = make_config(OPTIONS, **settings)
        return make_hypervisor(config, self.node).info().accelerator


def test_it_is_asked_once(tmp_path: Path) -> None:
    """Version and KVM, and nothing at the next start."""
    emulator = Emulator(tmp_path, kvm=True)
    first = emulator.examine()
    assert first.qemu_version == "99.1"
    assert first.kvm is not None
    assert first.kvm.usable
    assert emulator.asked == 2
    assert emulator.examine() == first
    assert emulator.asked == 2


def test_another_emulator_or_user_or_boot_is_asked_anew(tmp_path: Path) -> None:
    """The answer may be another one."""
    emulator = Emulator(tmp_path, kvm=True)
    examine(emulator.node, ask_kvm=True)
    asked = emulator.asked
    examine(evolve(emulator.node, emulator_uid=12345), ask_kvm=True)
    assert emulator.asked == 2 * asked

    memory = emulator.node.state_dir("libvirt_qemu") / "host.json"
    document = json.loads(memory.read_text())
    document["key"]["boot"] = "an earlier one"
    memory.write_text(json.dumps(document))
    examine(emulator.node, ask_kvm=True)
    assert emulator.asked == 3 * asked


def test_a_device_that_comes_or_is_opened_to_others_is_asked_anew(tmp_path: Path) -> None:
    """As after modprobe, or a change of who may open it."""
    emulator = Emulator(tmp_path, kvm=True)
    emulator.device.unlink()
    for _ in range(2):
        host = emulator.examine()
        assert host.kvm is not None
        assert "is not there" in host.kvm.reason
    assert emulator.asked == 1  # the version
    emulator.device.touch(0o600)
    host = emulator.examine()
    assert host.kvm is not None
    assert host.kvm.usable
    asked = emulator.asked
    emulator.device.chmod(0o660)
    emulator.examine()
    assert emulator.asked > asked


def test_a_verdict_of_a_busy_host_is_asked_again_at_the_next_start(tmp_path: Path) -> None:
    """The guest had no time to show anything; the version is known all the same."""
    first = tmp_path / "first"
    emulator = Emulator(tmp_path, kvm=True, before=f"mkdir {first} && sleep 60")
    host = emulator.examine()
    assert host.kvm is not None
    assert "hung" in host.kvm.reason
    host = emulator.examine()
    assert host.kvm is not None
    assert host.kvm.usable
    assert emulator.asked == 3


def test_a_damaged_memory_is_no_memory(tmp_path: Path) -> None:
    """It is asked again and mended."""
    emulator = Emulator(tmp_path, kvm=True)
    memory = emulator.node.state_dir("libvirt_qemu") / "host.json"
    memory.parent.mkdir(parents=True)
    for text in ("", "{", "[]", '{"key": {}}'):
        memory.write_text(text)
        assert examine(emulator.node, ask_kvm=False).qemu_version == "99.1"


def test_kvm_is_used_by_setting_and_probe(tmp_path: Path) -> None:
    """Disabling wins over forcing, forcing over the probe."""
    emulator = Emulator(tmp_path, kvm=False)
    assert emulator.accelerator() == "qemu"
    assert emulator.accelerator(kvm="force") == "kvm"
    assert emulator.accelerator(kvm="force", disableKVM="true") == "qemu"


def test_with_kvm_disabled_nothing_is_booted(tmp_path: Path) -> None:
    """Only the version is asked."""
    emulator = Emulator(tmp_path, kvm=True)
    assert emulator.accelerator(disableKVM="true") == "qemu"
    assert emulator.asked == 1


def test_hook_virtlet_hypervisor(tmp_path: Path) -> None:
    """One hypervisor for all handlers, and none before the settings are known."""
    emulator = Emulator(tmp_path, kvm=True)
    plugin = Plugin()
    assert plugin.virtlet_hypervisor() is None
    plugin.virtlet_configure(make_config(OPTIONS), emulator.node)
    first = plugin.virtlet_hypervisor()
    assert first is not None
    assert plugin.virtlet_hypervisor() is first
    plugin.virtlet_shutdown()
