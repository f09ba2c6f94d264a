"""What the node's emulator can be: checked before a VM is made, and not when it does not start.

Source: "Domain capabilities XML format" of libvirt. libvirt's own comparison of CPUs is not used:
for some models it does not return (libvirt 11.3).
"""

import re
import resource
from collections.abc import Callable, Iterator
from difflib import get_close_matches
from pathlib import Path
from xml.etree import ElementTree
from xml.etree.ElementTree import Element

from virtlet.model.flavor import Flavor

FEATURES = Path("/usr/share/libvirt/cpu_map/x86_features.xml")
"""libvirt's names of all features; on nodes that have the file elsewhere names are not checked."""
_HOST = ("", "host-model", "host-passthrough")
_MOST_SHOWN = 8
_SYS_RESOURCE = 24
"""Number of the capability, of <linux/capability.h>."""


class KnownCapabilities:
    """What libvirt said of each machine type, so that it is not asked again for each VM.

    A flaw is never told by what was said before: what the node lacked may be there now. What it
    has no more is told by libvirt when the VM is defined or started.
    """

    def __init__(self) -> None:
        self._known: dict[str, Element] = {}
        self._features: dict[str, frozenset[str]] = {}

    def flaw(
        self,
        flavor: Flavor,
        ask: Callable[[], Element],
        expand: Callable[[str], str],
    ) -> str:
        """Why the node cannot have a machine; see the function of this name.

        Args:
            flavor: the machine.
            ask: asks libvirt what the emulator can be as a machine of this type.
            expand: asks libvirt for all features of a CPU, by its `<cpu>` element as text; takes
                seconds.
        """
        known = self._known.get(flavor.machine)
        if known is None or flaw(flavor, known):
            known = self._known[flavor.machine] = ask()
        return flaw(flavor, known) or self._lacking(flavor, known, expand)

    def _lacking(self, flavor: Flavor, capabilities: Element, expand: Callable[[str], str]) -> str:
        """Why the node's CPU cannot have the features that a flavor requires."""
        required = [name for name, policy in flavor.cpu_features.items() if policy == "require"]
        host = capabilities.find("cpu/mode[@name='host-model'][@supported='yes']")
        if not required or host is None or flavor.extras.get("domain_cpu"):
            return ""
        machine = flavor.machine
        if not self._features.get(machine, frozenset()).issuperset(required):
            cpu = Element("cpu")
            cpu.extend(host)
            found = ElementTree.fromstring(expand(ElementTree.tostring(cpu, encoding="unicode")))
            names = (feature.get("name", "") for feature in found.iterfind("feature"))
            self._features[machine] = frozenset(names)
        missing = [name for name in required if name not in self._features[machine]]
        if not missing:
            return ""
        what = "CPU" if capabilities.findtext("domain") == "kvm" else "QEMU without KVM"
        return (
            f"this node's {what} has no {_some(missing)}, which cpu_features require: choose a "
            "node that has it by a nodeSelector, or take it out"
        )


def flaw(flavor: Flavor, capabilities: Element, features: Path = FEATURES) -> str:
    """Why the node cannot have a machine, as a clause; "" if it can, as far as that is known.

    Args:
        flavor: the machine.
        capabilities: of the emulator, for its machine type and accelerator.
        features: libvirt's list.
    """
    return next(filter(None, _flaws(flavor, capabilities, features)), "")


def _flaws(flavor: Flavor, capabilities: Element, features: Path) -> Iterator[str]:
    # A pod's own element replaces what is checked here.
    if not flavor.extras.get("domain_cpu"):
        yield _model_flaw(flavor, capabilities)
        yield _feature_flaw(flavor, features)
    most = capabilities.find("vcpu")
    if most is not None and max(flavor.vcpus, flavor.max_vcpus) > int(most.get("max", "255")):
        yield f"machine {flavor.machine} has {most.get('max')} vCPUs at most"
    known = _values(capabilities, "video", "modelType")
    if flavor.video and known and flavor.video not in known:
        yield f"video {flavor.video} is none of what this node's QEMU has: {', '.join(known)}"
    # libvirt looks for the programs of both packages, though it is to start none of them.
    if flavor.tpm and "external" not in _values(capabilities, "tpm", "backendModel"):
        yield (
            "this node's libvirt or QEMU has no TPM: install the packages swtpm and swtpm-tools, "
            "and restart what runs libvirt"
        )


def _model_flaw(flavor: Flavor, capabilities: Element) -> str:
    model = flavor.cpu_model
    if model in _HOST:
        return ""
    custom = capabilities.find("cpu/mode[@name='custom']")
    models = {} if custom is None else {m.text or "": m for m in custom.iterfind("model")}
    if not models:
        return ""
    if model not in models:
        near = get_close_matches(model, models, 3) or sorted(models)[:_MOST_SHOWN]
        return f"this node's QEMU knows no CPU model {model!r}: choose another, as {_some(near)}"
    # An emulated CPU has what its emulator knows of the model.
    if capabilities.findtext("domain") != "kvm" or models[model].get("usable") != "no":
        return ""
    assert custom is not None
    blockers = custom.find(f"blockers[@model='{model}']")
    missing = [] if blockers is None else [f.get("name", "") for f in blockers]
    usable = [name for name, m in models.items() if m.get("usable") == "yes"]
    return (
        f"this node's CPU cannot be a {model}, as it has no {_some(missing) or 'such features'}: "
        f"choose another cpu_model, as host-model{', ' * bool(usable)}{_some(usable)}, or a node "
        "with this CPU by a nodeSelector"
    )


def _feature_flaw(flavor: Flavor, features: Path) -> str:
    if not flavor.cpu_features:
        return ""
    try:
        known = {f.get("name", "") for f in ElementTree.parse(features).iterfind("feature")}
    except (OSError, ElementTree.ParseError):
        return ""
    for name in flavor.cpu_features:
        if name not in known:
            near = get_close_matches(name, known, 3)
            hint = f" (did you mean {_some(near)}?)" if near else ""
            return f"libvirt knows no CPU feature {name!r}{hint}: see its cpu_map"
    return ""


def locking_flaw(flavor: Flavor) -> str:
    """Why this process cannot let an emulator lock its memory; "" if it can, or need not."""
    if not flavor.lock_memory:
        return ""
    limit = resource.getrlimit(resource.RLIMIT_MEMLOCK)[1]
    if limit == resource.RLIM_INFINITY or _may_raise_limits():
        return ""
    return (
        f"its flavor has lock_memory, and the manager may lock {limit >> 10}KiB alone: run it with "
        "LimitMEMLOCK=infinity or CAP_SYS_RESOURCE, as its unit does"
    )


def _may_raise_limits() -> bool:
    """Whether this process has CAP_SYS_RESOURCE."""
    status = Path("/proc/self/status").read_text()
    effective = re.search("^CapEff:\\s*([0-9a-f]+)$", status, re.MULTILINE)
    return effective is not None and bool(int(effective[1], 16) >> _SYS_RESOURCE & 1)


def _values(capabilities: Element, device: str, kind: str) -> list[str]:
    path = f"devices/{device}/enum[@name='{kind}']/value"
    return [value.text or "" for value in capabilities.iterfind(path)]


def _some(names: list[str]) -> str:
    more = f" and {len(names) - _MOST_SHOWN} more" if len(names) > _MOST_SHOWN else ""
    return f"{', '.join(names[:_MOST_SHOWN])}{more}"
