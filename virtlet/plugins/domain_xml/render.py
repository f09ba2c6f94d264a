"""From a machine to its domain document: CPU, firmware, room to grow, and the template.

Source: "CPU Allocation", "Memory Allocation" and "Memory devices" of libvirt's domain XML
format.
"""

import re
import uuid
from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from xml.etree import ElementTree
from xml.etree.ElementTree import Element, SubElement

import jinja2
from attrs import frozen
from markupsafe import Markup

from virtlet.errors import FailedPrecondition, InvalidArgument
from virtlet.host.cpus import cpuset, numa_memory
from virtlet.model.disk import Share
from virtlet.model.vm import Machine
from virtlet.plugins.domain_xml.disks import targets
from virtlet.plugins.domain_xml.passed_devices import passed_devices
from virtlet.plugins.domain_xml.placement import Placement, placement_of, with_cells

EXTRA = "domain_cpu"
"""Name in a flavor's extras of a whole `<cpu>` element that wins over its `cpu_model`."""
_HOST = ("host-model", "host-passthrough")
_NESTED = ("vmx", "svm")

_MIB = 1 << 20
BLOCK = 2 * _MIB
"""Granularity of a virtio-mem device: a huge page."""
_GUEST_BLOCK = 128 * _MIB
"""Linux on x86 adds memory in blocks of at least this size, and cannot use a part of one."""
_LONGEST_NAME = 40
"""Characters of a pod's name in a domain's name: the driver makes file names of it."""


def cpu_element(machine: Machine, default_model: str) -> Element | None:
    """The `<cpu>` element of a machine; None leaves the CPU to QEMU.

    Args:
        machine: whose CPU.
        default_model: of the node, for flavors without one.

    Raises:
        InvalidArgument: the flavor's own element is not a `<cpu>` element.
    """
    cpu = _chosen(machine, default_model)
    if not machine.flavor.extras.get(EXTRA):
        for name, policy in machine.flavor.cpu_features.items():
            assert cpu is not None, "features have a model"
            SubElement(cpu, "feature", {"policy": policy, "name": name})
    if cpu is not None and not machine.flavor.nested and _passes_on(cpu, machine):
        named = {feature.get("name") for feature in cpu.iterfind("feature")}
        for name in _NESTED:
            if name not in named:
                SubElement(cpu, "feature", {"policy": "disable", "name": name})
    return cpu


def _passes_on(cpu: Element, machine: Machine) -> bool:
    """Whether a CPU may have features by which a guest runs VMs of its own.

    QEMU's default CPU has none with KVM, and libvirt takes no features for it.
    """
    kvm = machine.accelerator == "kvm" and cpu.find("model") is not None
    return kvm or cpu.get("mode") in (*_HOST, "maximum")


def _chosen(machine: Machine, default_model: str) -> Element | None:
    if machine.flavor.extras.get(EXTRA):
        return _checked(machine)
    kvm = machine.accelerator == "kvm"
    # Without KVM the smallest model is the fastest: guests use the features that they find, and
    # emulated ones are slow.
    own = "host-model" if kvm or machine.flavor.cpu_features else ""
    model = machine.flavor.cpu_model or default_model or own
    if not model:
        return None
    cpu = Element("cpu")
    if model in _HOST:
        # Without KVM there is no host CPU to pass on; `maximum` has all that QEMU can emulate.
        cpu.set("mode", model if kvm else "maximum")
    else:
        cpu.set("mode", "custom")
        cpu.set("match", "exact")
        name = ElementTree.SubElement(cpu, "model", {"fallback": "forbid"})
        name.text = model
    return cpu


def _checked(machine: Machine) -> Element:
    try:
        cpu = ElementTree.fromstring(machine.flavor.extras[EXTRA])
    except ElementTree.ParseError as error:
        raise InvalidArgument(
            f"the CPU setting of VM {machine.vm.name} is not XML ({error}): "
            "see the annotation VirtletLibvirtCPUSetting"
        ) from None
    if cpu.tag != "cpu":
        raise InvalidArgument(
            f"the CPU setting of VM {machine.vm.name} is a <{cpu.tag}> element, not <cpu>"
        )
    try:
        cells = numa_memory(cpu)
    except ValueError as error:
        raise InvalidArgument(f"the CPU setting of VM {machine.vm.name}: {error}") from None
    if cells > machine.flavor.memory:
        # The emulator's need may have made the machine smaller than its limit.
        raise InvalidArgument(
            f"the NUMA cells of VM {machine.vm.name} have {cells} bytes together, and the VM has "
            f"{machine.flavor.memory}: lower them in the annotation VirtletLibvirtCPUSetting"
        )
    return cpu


@frozen
class Firmware:
    """A firmware image and the template of its variable store."""

    code: Path
    variables: Path
    secure: bool = False
    """Whether it boots signed programs alone: its variables have Microsoft's keys."""


_OVMF, _FEDORA = Path("/usr/share/OVMF"), Path("/usr/share/edk2/ovmf")
_ARCH = Path("/usr/share/edk2/x64")
CANDIDATES = (
    # Debian and Ubuntu
    Firmware(_OVMF / "OVMF_CODE_4M.fd", _OVMF / "OVMF_VARS_4M.fd"),
    Firmware(_OVMF / "OVMF_CODE.fd", _OVMF / "OVMF_VARS.fd"),
    Firmware(_OVMF / "OVMF_CODE_4M.ms.fd", _OVMF / "OVMF_VARS_4M.ms.fd", secure=True),
    # Fedora and its relatives
    Firmware(_FEDORA / "OVMF_CODE.fd", _FEDORA / "OVMF_VARS.fd"),
    Firmware(_FEDORA / "OVMF_CODE.secboot.fd", _FEDORA / "OVMF_VARS.secboot.fd", secure=True),
    # Arch
    Firmware(_ARCH / "OVMF_CODE.4m.fd", _ARCH / "OVMF_VARS.4m.fd"),
)


def find_uefi(candidates: tuple[Firmware, ...] = CANDIDATES, *, secure: bool = False) -> Firmware:
    """The first UEFI firmware that is installed, of those with or without secure boot.

    Raises:
        FailedPrecondition: none is installed.
    """
    for firmware in candidates:
        whole = firmware.code.is_file() and firmware.variables.is_file()
        if whole and firmware.secure == secure:
            return firmware
    kind = "uefi-secure" if secure else "uefi"
    which = "OVMF firmware with keys for secure boot" if secure else "OVMF firmware"
    raise FailedPrecondition(
        f"the VM's firmware is {kind}, but there is no {which} on this node: install Debian's "
        "package ovmf, or choose another `firmware` in the handler's flavor or VirtletFirmware"
    )


def _firmware(machine: Machine, find: Callable[..., Firmware]) -> Firmware | None:
    """The UEFI firmware of a machine; None for the BIOS."""
    match machine.flavor.firmware:
        case "bios":
            return None
        case "uefi":
            return find()
        case "uefi-secure" if not is_plain_pci(machine.flavor.machine):
            return find(secure=True)
    raise FailedPrecondition(
        f"VM {machine.vm.name}: no firmware {machine.flavor.firmware!r} for machine "
        f"{machine.flavor.machine!r}: choose bios or uefi, or uefi-secure with q35"
    )


@frozen
class Growth:
    """Room for vCPUs and memory that a machine can get while it runs."""

    vcpus: int
    """vCPUs at the start."""
    most_vcpus: int
    memory: int
    """Bytes at the start."""
    device: int
    """Bytes of the virtio-mem device; 0 for none."""
    cpus: str
    """CPUs of the node that the machine may run on; "" for all."""

    @property
    def block(self) -> int:
        """Bytes of the device's smallest change."""
        return BLOCK

    @property
    def total(self) -> int:
        """Bytes of all memory, that of the device included."""
        return self.memory + self.device


def growth_of(machine: Machine) -> Growth:
    """Find a machine's room to grow.

    Raises:
        InvalidArgument: its cpuset is malformed, or names absent CPUs.
    """
    flavor = machine.flavor
    more = max(flavor.max_memory - flavor.memory, 0)
    cpus = machine.vm.config.resources.cpuset_cpus
    return Growth(
        vcpus=flavor.vcpus,
        most_vcpus=max(flavor.vcpus, flavor.max_vcpus),
        memory=flavor.memory,
        device=-(-more // _GUEST_BLOCK) * _GUEST_BLOCK,
        cpus=",".join(map(str, sorted(cpuset(cpus)))) if cpus else "",
    )


def with_topology(cpu: Element | None, machine: Machine, growth: Growth) -> Element | None:
    """A `<cpu>` element with the flavor's cores and threads.

    Args:
        cpu: the element, which is changed; one with a topology of its own stays as it is.
        machine: whose CPU.
        growth: of the machine.

    Raises:
        InvalidArgument: the vCPUs fill no whole sockets.
    """
    cores, threads = machine.flavor.cores, machine.flavor.threads
    if not (cores or threads) or machine.flavor.extras.get(EXTRA):
        return cpu
    size = max(cores, 1) * max(threads, 1)
    if growth.most_vcpus % size:
        raise InvalidArgument(
            f"VM {machine.vm.name} can have {growth.most_vcpus} vCPUs, which fill no whole sockets "
            f"of {size}: choose a multiple of {size} vCPUs, or another topology in the flavor"
        )
    if cpu is None:
        cpu = Element("cpu")
    counts = (growth.most_vcpus // size, max(cores, 1), max(threads, 1))
    names = ("sockets", "cores", "threads")
    # Before features and NUMA cells, in the order of libvirt's schema.
    place = len(cpu.findall("model"))
    cpu.insert(place, Element("topology", dict(zip(names, map(str, counts), strict=True))))
    return cpu


def with_node(cpu: Element | None, growth: Growth) -> Element | None:
    """A `<cpu>` element with the NUMA node that a memory device belongs to.

    Args:
        cpu: the element, which is changed.
        growth: of the machine; without a device the element stays as it is.
    """
    if not growth.device:
        return cpu
    if cpu is None:
        cpu = Element("cpu")
    if cpu.find("numa") is None:
        numa = SubElement(cpu, "numa")
        last = growth.most_vcpus - 1
        node = {"id": "0", "cpus": f"0-{last}" if last else "0"}
        SubElement(numa, "cell", node | {"memory": str(growth.memory), "unit": "b"})
    return cpu


class Renderer:
    """Writes domain documents.

    Args:
        uid: user the emulator runs as.
        gid: its group.
        cpu_model: the node's CPU model, or "".
        uefi: finds UEFI firmware, as `find_uefi` does, where a flavor asks for it.
    """

    def __init__(
        self, uid: int, gid: int, cpu_model: str, uefi: Callable[..., Firmware] = find_uefi
    ) -> None:
        self._uid = uid
        self._gid = gid
        self._cpu_model = cpu_model
        self._uefi = uefi

    @cached_property
    def _template(self) -> jinja2.Template:
        environment = jinja2.Environment(
            loader=jinja2.FileSystemLoader(Path(__file__).parent),
            autoescape=True,
            undefined=jinja2.StrictUndefined,
            trim_blocks=True,
            lstrip_blocks=True,
            keep_trailing_newline=True,
        )
        return environment.get_template("domain.xml.j2")

    def render(self, machine: Machine) -> Element:
        """The document of a machine.

        Raises:
            InvalidArgument: too many disks, or an unusable CPU setting or cpuset.
            FailedPrecondition: the node does not have the firmware that the flavor asks for.
        """
        flavor = machine.flavor
        pci_express = not is_plain_pci(flavor.machine)
        growth = growth_of(machine)
        cpu = with_topology(cpu_element(machine, self._cpu_model), machine, growth)
        placement = placement_of(machine)
        cpu = with_cells(with_node(cpu, growth), placement)
        shares = [v for v in machine.volumes if isinstance(v, Share)]
        disks = targets(machine, "sata" if pci_express else "ide")
        # All disks of a SCSI controller share its thread.
        scsi_iothread = 1 if flavor.disk_bus == "scsi" and flavor.disk_iothreads else 0
        text = self._template.render(
            m=machine,
            name=domain_name(machine),
            uuid=str(uuid.UUID(machine.vm.id)),
            growth=growth,
            placement=placement,
            cpu=None if cpu is None else Markup(ElementTree.tostring(cpu, encoding="unicode")),
            # libvirt's console of type `pipe` reads from PATH.in and writes to PATH.out.
            console=machine.console.output.with_suffix(""),
            firmware=_firmware(machine, self._uefi),
            pci_express=pci_express,
            windows=flavor.guest_os == "windows",
            disks=disks,
            iothreads=max((scsi_iothread, *(disk.iothread for disk in disks))),
            scsi_iothread=scsi_iothread,
            limited=bool(flavor.disk_iops or flavor.disk_bandwidth),
            shares=shares,
            devices=passed_devices(machine, placement if pci_express else Placement()),
            shared_memory=any(share.driver == "virtiofs" for share in shares),
            uid=self._uid,
            gid=self._gid,
        )
        return ElementTree.fromstring(text)


def is_plain_pci(machine_type: str) -> bool:
    """Whether a machine type is the old PC with PCI and IDE, not q35."""
    return machine_type == "pc" or machine_type.startswith("pc-i440fx")


def domain_name(machine: Machine) -> str:
    """A unique name that shows the pod and can be a file name."""
    pod = machine.vm.pod.config.metadata.name
    safe = re.sub(r"[^A-Za-z0-9-]+", "-", pod)[:_LONGEST_NAME].strip("-")
    return f"virtlet-{machine.vm.id[:12]}-{safe}".rstrip("-")
