"""The libvirt `<cpu>` element that a pod writes as YAML.

Source: "CPU model and topology" of libvirt's domain XML format. Keys are the names of its
elements and attributes in any case (Virtlet's users write them capitalised); the text of an
element is its `value`.
"""

from collections.abc import Mapping
from typing import Any
from xml.etree import ElementTree

from attrs import frozen

from virtlet.host.cpus import numa_memory, parse_list
from virtlet.model.bounded_yaml import load_yaml

_NUMBER = "number"
_TEXT = "text"
NESTED = ("vmx", "svm")
"""Features by which a guest runs VMs of its own."""
_WANTED = ("force", "require", "optional")
_ON_OFF = ("on", "off")
_YES_NO = ("yes", "no")
_Check = str | tuple[str, ...]


@frozen
class _Form:
    """What an element may hold; attribute and child names are those of the XML."""

    attributes: Mapping[str, _Check] = {}
    value: bool = False
    children: Mapping[str, "_Form"] = {}
    lists: Mapping[str, str] = {}
    """Key of a list to the child each of its items becomes."""


_CPU = _Form(
    attributes={
        "mode": ("custom", "host-model", "host-passthrough", "maximum"),
        "match": ("minimum", "exact", "strict"),
        "check": ("none", "partial", "full"),
        "migratable": _ON_OFF,
    },
    lists={"features": "feature"},
    children={
        "model": _Form({"fallback": ("allow", "forbid"), "vendor_id": _TEXT}, value=True),
        "vendor": _Form(value=True),
        "topology": _Form(
            dict.fromkeys(("sockets", "dies", "clusters", "cores", "threads"), _NUMBER)
        ),
        "cache": _Form({"level": _NUMBER, "mode": ("emulate", "passthrough", "disable")}),
        "maxphysaddr": _Form(
            {"mode": ("passthrough", "emulate"), "bits": _NUMBER, "limit": _NUMBER}
        ),
        "feature": _Form(
            {"policy": ("force", "require", "optional", "disable", "forbid"), "name": _TEXT}
        ),
        "numa": _Form(
            lists={"cells": "cell"},
            children={
                "cell": _Form(
                    {
                        "id": _NUMBER,
                        "cpus": _TEXT,
                        "memory": _NUMBER,
                        "unit": _TEXT,
                        "memAccess": ("shared", "private"),
                        "discard": _YES_NO,
                    }
                )
            },
        ),
    },
)


@frozen
class Cpu:
    """A `<cpu>` element."""

    xml: str
    vcpus: int | None
    """How many vCPUs its topology has, where it gives one."""
    memory: int
    """Bytes of its NUMA cells; 0 where it has none."""
    cells_end: int
    """One more than the highest vCPU of a NUMA cell."""
    nested: bool
    """Whether it asks for nested virtualisation."""


def parse_cpu(text: str) -> Cpu | None:
    """The element that a YAML document describes; None for an empty document.

    Raises:
        ValueError: it is no YAML mapping, or has a key or value that libvirt does not know.
    """
    document = load_yaml(text)
    if document is None:
        return None
    element = _element("cpu", _CPU, document, "the document")
    topology = element.find("topology")
    vcpus = None
    if topology is not None:
        vcpus = 1
        for count in topology.attrib.values():
            vcpus *= int(count)
    cells = [parse_list(cell.get("cpus", "0")) for cell in element.iterfind("numa/cell")]
    return Cpu(
        xml=ElementTree.tostring(element, encoding="unicode"),
        vcpus=vcpus,
        memory=numa_memory(element),
        cells_end=max(map(max, cells), default=-1) + 1,
        nested=any(
            feature.get("name") in NESTED and feature.get("policy", "require") in _WANTED
            for feature in element.iterfind("feature")
        ),
    )


def _element(tag: str, form: _Form, content: Any, where: str) -> ElementTree.Element:
    element = ElementTree.Element(tag)
    if form.value and not isinstance(content, Mapping):
        content = {"value": content}
    if not isinstance(content, Mapping):
        raise ValueError(f"{where} must be a mapping")
    known = _known(form)
    for key, value in content.items():
        name = known.get(_fold(key))
        if name is None:
            raise ValueError(
                f"{where}: {key[:40]!r} is nothing a <{tag}> can have; known: "
                f"{', '.join(sorted(known.values()))}"
            )
        if value is not None:
            _add(element, form, name, value, f"{tag}.{name}")
    return element


def _known(form: _Form) -> dict[str, str]:
    names = [*form.attributes, *form.children, *form.lists]
    return {_fold(name): name for name in names + (["value"] if form.value else [])}


def _fold(key: str) -> str:
    return key.lower().replace("_", "")


def _add(element: ElementTree.Element, form: _Form, name: str, value: Any, where: str) -> None:
    if name in form.attributes:
        element.set(name, _scalar(form.attributes[name], value, where))
        return
    if name == "value":
        element.text = _scalar(_TEXT, value, where)
        return
    tag = form.lists.get(name, name)
    items = value if isinstance(value, list) else [value]
    if name not in form.lists and tag not in form.lists.values() and len(items) != 1:
        raise ValueError(f"{where} must be one mapping, not a list")
    for item in items:
        element.append(_element(tag, form.children[tag], item, where))


def _scalar(check: _Check, value: Any, where: str) -> str:
    if isinstance(check, tuple):
        # YAML 1.1 reads on, off, yes and no as booleans.
        if isinstance(value, bool) and check in (_ON_OFF, _YES_NO):
            return check[0] if value else check[1]
        if value not in check:
            raise ValueError(f"{where} must be one of {', '.join(check)}")
        return str(value)
    text = str(value)
    if check == _NUMBER:
        if isinstance(value, bool) or not (text.isascii() and text.isdigit() and len(text) <= 15):
            raise ValueError(f"{where} must be a whole number")
        if int(text) == 0 and where.startswith("topology."):
            raise ValueError(f"{where} must be at least 1")
        return text
    if isinstance(value, bool | list | dict) or not (
        0 < len(text) <= 128 and text.isascii() and text.isprintable()
    ):
        raise ValueError(f"{where} must be a text of 1 to 128 printable ASCII characters")
    return text
