"""Machines that the node's emulator cannot be, by libvirt's word."""

import resource
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from virtlet.model.flavor import Flavor
from virtlet.plugins.libvirt_qemu import capabilities
from virtlet.plugins.libvirt_qemu.capabilities import KnownCapabilities, flaw, locking_flaw
from virtlet.plugins.libvirt_qemu.failures import why

_CAPABILITIES = """
<domainCapabilities>
  <domain>{domain}</domain>
  <vcpu max="8"/>
  <cpu>
    <mode name="host-model" supported="yes">
      <model>Nehalem</model><feature policy="require" name="pcid"/>
    </mode>
    <mode name="custom" supported="yes">
      <model usable="yes">Nehalem</model>
      <model usable="no">EPYC</model>
      <blockers model="EPYC"><feature name="svm"/><feature name="sha-ni"/></blockers>
    </mode>
  </cpu>
  <devices>
    <video><enum name="modelType"><value>vga</value></enum></video>
    <tpm><enum name="backendModel"><value>emulator</value></enum></tpm>
  </devices>
</domainCapabilities>
"""


@pytest.fixture
def features(tmp_path: Path) -> Path:
    path = tmp_path / "features.xml"
    path.write_text("<cpus><feature name='avx2'/><feature name='pcid'/></cpus>")
    return path


@pytest.mark.parametrize(
    ("keys", "problem"),
    [
        ({"cpu_model": "EPYC"}, "cannot be a EPYC, as it has no svm, sha-ni: choose another"),
        ({"cpu_model": "Nehalm"}, "knows no CPU model 'Nehalm': choose another, as Nehalem"),
        ({"cpu_features": {"avx3": "require"}}, "no CPU feature 'avx3' (did you mean avx2?)"),
        ({"vcpus": 9}, "machine q35 has 8 vCPUs at most"),
        ({"max_vcpus": 9}, "machine q35 has 8 vCPUs at most"),
        ({"video": "virtio"}, "video virtio is none of what this node's QEMU has: vga"),
        ({"tpm": True}, "has no TPM: install the packages swtpm and swtpm-tools"),
    ],
)
def test_what_the_node_lacks_is_named(features: Path, keys: dict[str, Any], problem: str) -> None:
    found = ElementTree.fromstring(_CAPABILITIES.format(domain="kvm"))
    assert problem in flaw(Flavor(**keys), found, features)


@pytest.mark.parametrize(
    "keys",
    [
        {},
        {"cpu_model": "Nehalem", "cpu_features": {"pcid": "disable"}, "video": "vga", "vcpus": 8},
        {"cpu_model": "host-model"},
        {"cpu_model": "host-passthrough"},
        {"cpu_model": "none", "extras": {"domain_cpu": "<cpu mode='maximum'/>"}},
    ],
)
def test_what_it_has_is_no_flaw(features: Path, keys: dict[str, Any]) -> None:
    found = ElementTree.fromstring(_CAPABILITIES.format(domain="kvm"))
    assert flaw(Flavor(**keys), found, features) == ""


def test_an_emulated_cpu_has_what_its_emulator_knows(features: Path) -> None:
    found = ElementTree.fromstring(_CAPABILITIES.format(domain="qemu"))
    assert flaw(Flavor(cpu_model="EPYC"), found, features) == ""
    assert "knows no CPU model" in flaw(Flavor(cpu_model="none"), found, features)


def test_without_libvirts_list_names_of_features_are_not_checked(tmp_path: Path) -> None:
    found = ElementTree.fromstring(_CAPABILITIES.format(domain="kvm"))
    flavor = Flavor(cpu_features={"avx3": "require"})
    assert flaw(flavor, found, tmp_path / "elsewhere") == ""


def test_libvirt_is_asked_once_for_each_machine_but_again_before_a_refusal() -> None:
    said = _CAPABILITIES.format(domain="kvm")
    asked: list[str] = []

    def flaw_of(flavor: Flavor) -> str:
        def ask() -> ElementTree.Element:
            asked.append(flavor.machine)
            return ElementTree.fromstring(said)

        return known.flaw(flavor, ask, expand=lambda cpu: "<cpu/>")

    known = KnownCapabilities()
    assert [flaw_of(Flavor(vcpus=n)) for n in (1, 2, 8)] == ["", "", ""]
    assert asked == ["q35"]
    assert flaw_of(Flavor(machine="pc")) == ""
    assert asked == ["q35", "pc"]
    assert "has no TPM" in flaw_of(Flavor(tpm=True))
    # It is installed meanwhile.
    said = said.replace("emulator</value>", "external</value>")
    assert flaw_of(Flavor(tpm=True)) == ""
    assert flaw_of(Flavor(tpm=True)) == ""
    assert asked == ["q35", "pc", "q35", "q35"]


@pytest.mark.parametrize(
    ("domain", "what"), [("kvm", "CPU has no avx2"), ("qemu", "QEMU without KVM has no avx2")]
)
def test_features_that_the_nodes_cpu_lacks_are_named(domain: str, what: str) -> None:
    """libvirt is asked for all of its features once, and again before a refusal."""
    asked: list[str] = []

    def expand(cpu: str) -> str:
        asked.append(cpu)
        features = "".join(f"<feature policy='require' name='{name}'/>" for name in has)
        return f"<cpu>{features}</cpu>"

    def flaw_of(**features: str) -> str:
        flavor = Flavor(cpu_features=features)
        found = ElementTree.fromstring(_CAPABILITIES.format(domain=domain))
        return known.flaw(flavor, lambda: found, expand)

    known, has = KnownCapabilities(), ["pcid", "aes"]
    assert [flaw_of(), flaw_of(avx2="disable")] == ["", ""]
    assert asked == []
    assert [flaw_of(pcid="require"), flaw_of(aes="require")] == ["", ""]
    [cpu] = asked
    assert "<model>Nehalem</model>" in cpu
    said = flaw_of(aes="require", avx2="require")
    assert f"this node's {what}, which cpu_features require: choose a node" in said
    has.append("avx2")
    assert flaw_of(avx2="require") == ""
    assert len(asked) == 3


@pytest.mark.parametrize(
    ("capable", "limit", "problem"),
    [(True, 8 << 20, ""), (False, -1, ""), (False, 8 << 20, "may lock 8192KiB alone: run it with")],
)
def test_memory_is_locked_only_by_a_manager_that_may(
    monkeypatch: pytest.MonkeyPatch, capable: bool, limit: int, problem: str
) -> None:
    monkeypatch.setattr(capabilities, "_may_raise_limits", lambda: capable)
    monkeypatch.setattr(resource, "getrlimit", lambda kind: (1 << 16, limit))
    assert locking_flaw(Flavor()) == ""
    said = locking_flaw(Flavor(lock_memory=True))
    assert problem in said
    assert bool(said) == bool(problem)


def test_libvirts_word_for_memory_that_it_may_not_lock_comes_with_what_helps(
    tmp_path: Path,
) -> None:
    """As with passed-through devices, and daemons whose limits the manager does not see."""
    said = "cannot limit locked memory of process 7 to 1140850688: Operation not permitted"
    assert "takes CAP_SYS_RESOURCE or LimitMEMLOCK=infinity" in why(said, tmp_path / "log")
