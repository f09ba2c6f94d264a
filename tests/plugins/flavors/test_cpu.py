from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st

from virtlet.plugins.flavors.cpu import parse_cpu


def xml(text: str) -> str:
    cpu = parse_cpu(text)
    assert cpu is not None
    return cpu.xml


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("mode: host-passthrough", '<cpu mode="host-passthrough" />'),
        (
            "Match: exact\nModel:\n  Fallback: allow\n  Value: core2duo\n",
            '<cpu match="exact"><model fallback="allow">core2duo</model></cpu>',
        ),
        ("model: qemu64", "<cpu><model>qemu64</model></cpu>"),
        (
            "Mode: host-model\nFeatures:\n- Policy: disable\n  Name: avx\n- {Name: vmx}\n",
            '<cpu mode="host-model"><feature policy="disable" name="avx" />'
            '<feature name="vmx" /></cpu>',
        ),
        ("feature: {name: vmx}", '<cpu><feature name="vmx" /></cpu>'),
        ("migratable: off\ncheck: none", '<cpu migratable="off" check="none" />'),
        (
            "Numa:\n  Cell:\n  - {ID: 0, CPUs: 0-1, Memory: 512, Unit: MiB, MemAccess: shared,"
            " Discard: true}\n",
            '<cpu><numa><cell id="0" cpus="0-1" memory="512" unit="MiB" memAccess="shared"'
            ' discard="yes" /></numa></cpu>',
        ),
        ("Model: {VendorID: GenuineIntel}", '<cpu><model vendor_id="GenuineIntel" /></cpu>'),
        ("model: {vendor_id: GenuineIntel}", '<cpu><model vendor_id="GenuineIntel" /></cpu>'),
        ("mode: maximum\nvendor:\n", '<cpu mode="maximum" />'),
        ("cache: {level: 3, mode: emulate}", '<cpu><cache level="3" mode="emulate" /></cpu>'),
        ("{}", "<cpu />"),
    ],
)
def test_yaml_becomes_the_element_that_libvirt_documents(text: str, expected: str) -> None:
    assert xml(text) == expected


def test_an_empty_text_is_no_element() -> None:
    assert parse_cpu("") is None


def test_the_topology_says_how_many_vcpus_it_makes() -> None:
    cpu = parse_cpu("topology: {sockets: 2, dies: 1, cores: 3, threads: 2}")
    assert cpu is not None
    assert cpu.vcpus == 12
    plain = parse_cpu("mode: host-model")
    assert plain is not None
    assert plain.vcpus is None


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[1]", "the document must be a mapping"),
        ("models: qemu64", "'models' is nothing a <cpu> can have; known: cache, check"),
        ("mode: fast", "cpu.mode must be one of custom, host-model"),
        ("mode: [custom]", "cpu.mode must be one of"),
        ("features: avx", "cpu.features must be a mapping"),
        ("features: [{name: [a]}]", "feature.name must be a text"),
        ("model: [a, b]", "cpu.model must be one mapping, not a list"),
        ("model: true", "model.value must be a text"),
        ('model: "a\\nb"', "model.value must be a text"),
        ('model: ""', "model.value must be a text"),
        ("topology: {cores: 0}", "topology.cores must be at least 1"),
        ("topology: {cores: -1}", "topology.cores must be a whole number"),
        ("topology: {cores: yes}", "topology.cores must be a whole number"),
        ("topology: {cores: 1.5}", "topology.cores must be a whole number"),
        ("topology: {cores: '٣'}", "topology.cores must be a whole number"),
        ("migratable: maybe", "cpu.migratable must be one of on, off"),
        ("a: [", "no valid YAML at line 1"),
    ],
)
def test_what_libvirt_does_not_know_is_refused_by_its_place(text: str, message: str) -> None:
    with pytest.raises(ValueError) as caught:
        parse_cpu(text)
    assert message in str(caught.value)


@given(st.text(alphabet=st.characters(min_codepoint=0x20, max_codepoint=0x7E), min_size=1))
def test_no_text_breaks_out_of_the_element(text: str) -> None:
    import json

    value = text[:128]
    element = ElementTree.fromstring(
        xml(json.dumps({"model": {"value": value, "vendor_id": value}}))
    )
    model = element.find("model")
    assert model is not None
    assert len(element) == 1
    assert (model.text, model.get("vendor_id")) == (value, value)
