"""What a `flavor:` section may say: of a handler in the node's configuration, of a VirtletFlavor.

The table is the schema of deploy/cluster/virtletflavor.yaml and the reference docs/flavors.md too.
"""

import os
import re
from collections.abc import Callable, Mapping
from difflib import get_close_matches
from typing import Any

from attrs import frozen

from virtlet.errors import FailedPrecondition
from virtlet.model.flavor import FROM_IMAGE, Flavor
from virtlet.model.option import BYTES, choice, integer
from virtlet.plugins.flavors import annotations, disk_tuning, placement
from virtlet.plugins.flavors.annotations import FIRMWARES, disk_size
from virtlet.plugins.flavors.cpu import NESTED

LEAST_BUFFER, MOST_BUFFER = 16 << 20, 1 << 30
"""Bytes of the translation buffer; QEMU takes no more than a GiB."""
WORD = "[A-Za-z0-9][A-Za-z0-9_.+-]{0,63}"
_QUANTITY = r"[0-9]+(\.[0-9]+)?([eE][0-9]+|[EPTGMk]|[EPTGMK]i)?"


@frozen
class Key:
    """One key of the section."""

    check: Callable[[Any], Any]
    """Value as written to value of the flavor; raises ValueError."""
    schema: Mapping[str, Any]
    """OpenAPI, as in a CustomResourceDefinition."""
    help: str


def _scalar(value: Any) -> str:
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise ValueError("must be a number or a quantity")
    return str(value)


def _integer(low: int, high: int, help: str) -> Key:
    kind = integer(low, high)
    schema = {"type": "integer", "minimum": low, "maximum": high}
    return Key(lambda value: kind.parse(_scalar(value)), schema, help)


def _quantity(parse: Callable[[str], int], help: str) -> Key:
    schema = {
        "x-kubernetes-int-or-string": True,
        "anyOf": [{"type": "integer"}, {"type": "string"}],
        "pattern": f"^{_QUANTITY}$",
    }
    return Key(lambda value: parse(_scalar(value)), schema, help)


def _buffer(text: str) -> int:
    size = BYTES.parse(text)
    if not LEAST_BUFFER <= size <= MOST_BUFFER:
        raise ValueError("must be between 16Mi and 1Gi")
    return size


def _word(value: Any) -> str:
    if not isinstance(value, str) or not re.fullmatch(WORD, value):
        raise ValueError("must be a word of letters, digits and . _ + -")
    return value


def _one_of(*words: str, help: str) -> Key:
    schema = {"type": "string", "enum": list(words)}
    return Key(lambda value: choice(*words).parse(_word(value)), schema, help)


def _model(value: Any) -> str:
    return "" if value == "" else _word(value)


def _boolean(value: Any) -> bool:
    if not isinstance(value, bool):
        raise ValueError("must be true or false")
    return value


def _topology(value: Any) -> dict[str, int]:
    if not isinstance(value, Mapping) or set(value) - {"cores", "threads"}:
        raise ValueError("must be a mapping with cores (of a socket) and threads (of a core)")
    return {key: integer(1, 255).parse(_scalar(number)) for key, number in value.items()}


def _extras(value: Any) -> dict[str, str]:
    if not isinstance(value, Mapping):
        raise ValueError("must be a mapping")
    for key, item in value.items():
        if not isinstance(key, str) or isinstance(item, dict | list):
            raise ValueError("must be a mapping of names to texts or numbers")
    return {key: item if isinstance(item, str) else str(item) for key, item in value.items()}


def _features(value: Any) -> dict[str, str]:
    if not isinstance(value, Mapping) or not all(
        isinstance(name, str) and re.fullmatch(WORD, name) and policy in _POLICIES
        for name, policy in value.items()
    ):
        raise ValueError("must be a mapping of features' names to require or disable")
    return dict(value)


def _boot(value: Any) -> tuple[str, ...]:
    if not isinstance(value, list) or not value or set(map(str, value)) - set(_SOURCES):
        raise ValueError(f"must be a list of {', '.join(_SOURCES)}")
    if len(set(value)) < len(value):
        raise ValueError("names something twice")
    return tuple(value)


def _path(value: Any) -> str:
    if not isinstance(value, str) or os.path.normpath(value) != value or value[:1] != "/":
        raise ValueError("must be an absolute path, without . and ..")
    return value


def _boot_file(value: Any) -> str:
    in_image = isinstance(value, str) and value.startswith(FROM_IMAGE)
    return FROM_IMAGE + _path(value.removeprefix(FROM_IMAGE)) if in_image else _path(value)


def _line(value: Any) -> str:
    if not isinstance(value, str) or not value.isprintable() or len(value) > 2000:
        raise ValueError("must be one line of at most 2000 characters")
    return value


def _number_schema(low: int, high: int) -> dict[str, Any]:
    return {"type": "integer", "minimum": low, "maximum": high}


_POLICIES = ("require", "disable")
_BOOT_FILE_SCHEMA = {"type": "string", "pattern": "^(image:)?/", "maxLength": 4096}
_SOURCES = ("root", "disks", "cdroms")
_RATE, _BANDWIDTH = annotations.RATE.parse, annotations.BANDWIDTH.parse
KEYS: Mapping[str, Key] = {
    "vcpus": _integer(1, 255, "Number of vCPUs; the annotation VirtletVCPUCount wins"),
    "max_vcpus": _integer(
        1,
        255,
        "How many a running VM can have; above 1, their number follows the CPU limit; "
        "VirtletMaxVCPUCount wins",
    ),
    "topology": Key(
        _topology,
        {
            "type": "object",
            "properties": {"cores": _number_schema(1, 255), "threads": _number_schema(1, 255)},
        },
        "`cores` of a socket and `threads` of a core, 1 each where only the other is said; there "
        "are as many sockets as the vCPUs fill. Without it each vCPU is a socket. "
        "VirtletLibvirtCPUSetting wins",
    ),
    "memory": _quantity(BYTES.parse, "RAM of VMs without a memory limit, which wins"),
    "max_memory": _quantity(
        BYTES.parse, "How far memory can be raised while a VM runs; VirtletMaxMemory wins"
    ),
    "cpu_model": Key(
        _model,
        {"type": "string", "maxLength": 64},
        "`host-model`, `host-passthrough` or a model libvirt knows; empty leaves it to the setting "
        "`cpuModel`; VirtletCPUModel wins",
    ),
    "cpu_features": Key(
        _features,
        {
            "type": "object",
            "additionalProperties": {"type": "string", "enum": list(_POLICIES)},
        },
        "Features of the CPU, as libvirt calls them, to `require` or `disable`; without KVM and a "
        "model the CPU is the largest that QEMU has. VirtletLibvirtCPUSetting wins",
    ),
    "machine": Key(
        _word,
        {"type": "string", "pattern": f"^{WORD}$"},
        "Machine type, as the hypervisor calls it",
    ),
    "firmware": _one_of(
        *FIRMWARES,
        help="`uefi` needs the package ovmf on the node; `uefi-secure` boots what Microsoft's keys "
        "have signed, as the shim of distributions is, and takes a q35 `machine`; VirtletFirmware "
        "wins, but not over `uefi-secure`",
    ),
    "disk_bus": _one_of(*annotations.DISK_BUSES, help="Bus of the disks; VirtletDiskDriver wins"),
    "disk_cache": _one_of(
        *("none", "writethrough", "writeback", "directsync", "unsafe"),
        help="How the node caches; `unsafe` loses what was written when the node fails",
    ),
    "disk_io": _one_of(
        *("threads", "native", "io_uring"),
        help="How the emulator reads and writes; `native` takes `disk_cache` none or directsync",
    ),
    "disk_iothreads": _integer(1, 64, "Threads for disks alone"),
    "disk_iops": _integer(
        1, annotations.MOST_RATE, "Reads and writes a second of all disks; pods may have less"
    ),
    "disk_iops_burst": _integer(1, annotations.MOST_RATE, "The same for `disk_burst_seconds`"),
    "disk_bandwidth": _quantity(_BANDWIDTH, "Bytes a second of all disks; pods may have less"),
    "disk_bandwidth_burst": _quantity(_BANDWIDTH, "The same for `disk_burst_seconds`"),
    "disk_burst_seconds": _integer(1, 3600, "How long a burst may last"),
    "share_driver": _one_of(
        *("virtiofs", "9p"),
        help="How directories are shared; without it the setting `shareDriver`; "
        "VirtletShareDriver wins",
    ),
    "root_size": _quantity(
        disk_size,
        "Size of root disks; the image's own where that is larger; VirtletRootVolumeSize wins",
    ),
    "guest_agent": Key(_boolean, {"type": "boolean"}, "Whether there is a channel for the agent"),
    "tpm": Key(
        _boolean,
        {"type": "boolean"},
        "Whether guests have a TPM 2.0; needs the packages swtpm and swtpm-tools on the node",
    ),
    "guest_os": _one_of(
        *("linux", "windows"),
        help="`windows` has its clock in the node's local time, and with KVM the enlightenments of "
        "Hyper-V",
    ),
    "video": _one_of(
        *("virtio", "vga"),
        help="A screen, by this graphics adapter; `kubectl port-forward POD 5900` leads to it",
    ),
    "sound": _one_of("ich9", "virtio", help="A sound card, which nobody hears"),
    "rng": Key(_boolean, {"type": "boolean"}, "Whether there is a source of random numbers"),
    "kernel": Key(
        _boot_file,
        _BOOT_FILE_SCHEMA,
        "A kernel that is started without a boot loader: `image:` and its path below a mount of a "
        "volume of kind `image`, as `image:/kernel/boot/vmlinuz`; or, in a node's own flavors "
        "alone, the path of a file of the node that everybody may read",
    ),
    "initrd": Key(_boot_file, _BOOT_FILE_SCHEMA, "Its initial RAM disk, from where the kernel is"),
    "kernel_args": Key(
        _line,
        {"type": "string", "maxLength": 2000},
        "Its command line, as `console=ttyS0 root=/dev/sda1`",
    ),
    "boot": Key(
        _boot,
        {
            "type": "array",
            "minItems": 1,
            "maxItems": len(_SOURCES),
            "items": {"type": "string", "enum": list(_SOURCES)},
        },
        "What the VM boots from, in this order: `root`, and volumes that are `disks` or `cdroms`",
    ),
    "on_reboot": _one_of(
        *("restart", "end"), help="Whether a reboot of the guest ends the VM, as a container ends"
    ),
    "on_panic": _one_of(
        *("end", "keep"),
        help="Whether a panic that the guest tells of ends the VM, or leaves it standing still for "
        "somebody to look at",
    ),
    "watchdog": Key(
        _boolean,
        {"type": "boolean"},
        "Whether there is a watchdog (i6300esb), which resets a guest that has opened it and hangs",
    ),
    "device_rom": Key(
        _boolean,
        {"type": "boolean"},
        "Whether the firmware sees the ROMs of PCI devices that a device plugin or claim brings; "
        "without them it starts sooner, and cannot boot from them or show its screen there",
    ),
    "usb": Key(
        _boolean,
        {"type": "boolean"},
        "Whether there is a USB controller (xHCI), with the pointer of a `video` as a USB tablet, "
        "for systems that expect one there; no device of the node is on it",
    ),
    "vsock": Key(
        _boolean,
        {"type": "boolean"},
        "Whether guest and node can reach each other by vsock (AF_VSOCK): so can every pod of a "
        "node before Linux 7.0, and no network policy holds for it; see machines.md",
    ),
    "lock_memory": Key(
        _boolean,
        {"type": "boolean"},
        "Whether all memory of the guest and its emulator is taken at the start and never "
        "swapped; takes a fixed amount, and CAP_SYS_RESOURCE or no limit for the manager",
    ),
    "dedicated_cpus": Key(
        _boolean,
        {"type": "boolean"},
        "Whether each vCPU has a CPU for itself, of those that the kubelet gives the container "
        "alone; CPUs beyond the vCPUs are for the emulator's other threads",
    ),
    "numa": Key(
        _boolean,
        {"type": "boolean"},
        "Whether the guest has a memory node for each one of the node that its CPUs are on, with "
        "memory from there; takes `dedicated_cpus`",
    ),
    "nested": Key(
        _boolean, {"type": "boolean"}, "Whether guests may run VMs of their own on the host's CPU"
    ),
    "warm": Key(
        _boolean,
        {"type": "boolean"},
        "Whether VMs start from a template, where their guest can (docs/snapshots.md) and their "
        "machine can; others boot",
    ),
    "translation_buffer": _quantity(
        _buffer, "Room for translated code where there is no KVM, 16Mi to 1Gi"
    ),
    "extras": Key(
        _extras,
        {
            "type": "object",
            "additionalProperties": {
                "x-kubernetes-int-or-string": True,
                "anyOf": [{"type": "integer"}, {"type": "string"}],
            },
        },
        "For plugins, by names they agree on. `spoofing: allow` lets guests send from other "
        "addresses; only a handler may say so. `attachment: redirect` leaves the pod's interfaces "
        "as CNI made them",
    ),
}


def firmware_flaw(flavor: Flavor) -> str:
    """Why a machine cannot have its firmware; "" where it can.

    Secure boot keeps its variables from the guest's system by the system management mode of q35.
    """
    plain_pci = flavor.machine == "pc" or flavor.machine.startswith("pc-i440fx")
    if flavor.firmware == "uefi-secure" and plain_pci:
        return f"firmware uefi-secure takes machine q35, not {flavor.machine}"
    return ""


def _nested_flaw(flavor: Flavor) -> str:
    for name in NESTED:
        if flavor.cpu_features.get(name) == "require" and not flavor.nested:
            return f"cpu_features: {name} takes `nested: true`"
    return ""


def _kernel_flaw(flavor: Flavor) -> str:
    if not flavor.kernel and (flavor.initrd or flavor.kernel_args):
        return "initrd and kernel_args take a kernel"
    of_image = flavor.kernel.startswith(FROM_IMAGE)
    if flavor.initrd and flavor.initrd.startswith(FROM_IMAGE) != of_image:
        return "kernel and initrd are both of the node, or both of an image"
    return ""


def read_flavor(where: str, section: Mapping[Any, Any]) -> Flavor:
    """The flavor that a section describes, the defaults where it says nothing.

    Args:
        where: it is, for messages.
        section: as written.

    Raises:
        FailedPrecondition: it has an unknown key or an impossible value.
    """
    settings: dict[str, Any] = {}
    for key, value in section.items():
        known = KEYS.get(key)
        if known is None:
            near = get_close_matches(str(key), KEYS, 1)
            hint = f" (did you mean {near[0]!r}?)" if near else ""
            raise FailedPrecondition(
                f"{where} has the unknown key {key!r}{hint}; known: {', '.join(KEYS)}"
            )
        try:
            settings[key] = known.check(value)
        except ValueError as error:
            raise FailedPrecondition(f"{where}: {key}: {error}") from None
    settings.update(settings.pop("topology", {}))
    flavor = Flavor(**settings)
    problem = (
        _nested_flaw(flavor)
        or _kernel_flaw(flavor)
        or disk_tuning.flaw(flavor)
        or firmware_flaw(flavor)
        or placement.flaw(flavor)
    )
    if problem:
        raise FailedPrecondition(f"{where}: {problem}")
    return flavor
