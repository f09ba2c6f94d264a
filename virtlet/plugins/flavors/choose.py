"""Choosing the machine: annotations win over the handler's `flavor:` section, it over defaults."""

from collections.abc import Mapping
from typing import Any

import attrs

from virtlet.errors import InvalidArgument
from virtlet.host.cpus import cpuset
from virtlet.model.flavor import Flavor
from virtlet.model.pod import Pod, Profile
from virtlet.model.resources import DEFAULT_PERIOD, Resources
from virtlet.model.vm import VmConfig
from virtlet.plugins.flavors import annotations, disk_tuning, placement
from virtlet.plugins.flavors.flavor_keys import firmware_flaw, read_flavor

_MIB = 1 << 20
MIN_MEMORY = 32 * _MIB
"""Below this neither firmware nor kernel gets anywhere."""
MAX_MEMORY = 1 << 44
"""16 TiB."""


def check_flavors(handlers: Mapping[str, Any]) -> None:
    """Read the flavor of every handler in the configuration; all else of them is the core's.

    Raises:
        FailedPrecondition: as `flavor_of`.
    """
    for handler, section in handlers.items():
        match section:
            case {"without": [*names]} if "flavors" in names:
                pass  # it means something to another plugin
            case {"flavor": Mapping() as settings}:
                flavor_of(Profile(handler=handler, plugins=(), flavor=settings))


def flavor_of(profile: Profile) -> Flavor:
    """The flavor that a handler's section describes, the defaults where it says nothing.

    Raises:
        FailedPrecondition: the section has an unknown key or an impossible value.
    """
    return read_flavor(f"configuration: handler {profile.handler!r}: flavor", profile.flavor)


def machine_of(pod: Pod) -> Flavor:
    """The flavor of a pod's VMs before their memory limit is known.

    Raises:
        InvalidArgument: an annotation is wrong, or two do not fit together.
        FailedPrecondition: the handler's profile is wrong.
    """
    flavor = flavor_of(pod.profile)
    cpu = annotations.CPU_SETTING.of(pod)
    asked: dict[str, Any] = {
        "vcpus": annotations.VCPU_COUNT.of(pod),
        "max_vcpus": annotations.MAX_VCPU_COUNT.of(pod),
        "max_memory": annotations.MAX_MEMORY.of(pod),
        "cpu_model": annotations.CPU_MODEL.of(pod),
        "extras": {**flavor.extras, "domain_cpu": cpu.xml} if cpu else None,
        "firmware": annotations.FIRMWARE.of(pod),
        "disk_bus": annotations.DISK_DRIVER.of(pod),
        "root_size": annotations.ROOT_VOLUME_SIZE.of(pod),
        "system_uuid": annotations.SYSTEM_UUID.of(pod),
    }
    allowed = flavor
    flavor = attrs.evolve(flavor, **{k: v for k, v in asked.items() if v is not None})
    flavor = disk_tuning.limited(pod, flavor, allowed)
    if allowed.firmware == "uefi-secure" != flavor.firmware:
        raise InvalidArgument(
            f"annotation {annotations.FIRMWARE.name}: handler {pod.profile.handler!r} asks for "
            f"secure boot, which {flavor.firmware!r} lacks: leave the annotation out, or "
            "choose another RuntimeClass or VirtletFlavor"
        )
    if problem := firmware_flaw(flavor):
        raise InvalidArgument(
            f"pod {pod.name}: {problem}: choose another {annotations.FIRMWARE.name}, or another "
            f"machine in the flavor of handler {pod.profile.handler!r}"
        )
    if problem := placement.flaw(flavor):
        raise InvalidArgument(f"pod {pod.name}: {problem}")
    most = flavor.max_vcpus or flavor.vcpus
    if flavor.vcpus > most:
        raise InvalidArgument(
            f"pod {pod.name}: the VM gets {flavor.vcpus} vCPUs and can have {most} at most: raise "
            f"{annotations.MAX_VCPU_COUNT.name} or lower {annotations.VCPU_COUNT.name}, or the "
            f"same of handler {pod.profile.handler!r}"
        )
    threads = max(flavor.cores, 1) * max(flavor.threads, 1)
    if not cpu and most % threads:
        raise InvalidArgument(
            f"pod {pod.name}: the VM can have {most} vCPUs, which fill no whole sockets of the "
            f"flavor's topology, {threads} each: choose a multiple of {threads} vCPUs"
        )
    if cpu and cpu.vcpus not in (None, most):
        count = annotations.MAX_VCPU_COUNT if flavor.max_vcpus else annotations.VCPU_COUNT
        raise InvalidArgument(
            f"annotation {annotations.CPU_SETTING.name}: the topology makes {cpu.vcpus} vCPUs, "
            f'but the VM gets {most}: set {count.name} to "{cpu.vcpus}", or change the topology'
        )
    if cpu and cpu.cells_end > most:
        raise InvalidArgument(
            f"annotation {annotations.CPU_SETTING.name}: a NUMA cell has vCPU {cpu.cells_end - 1}, "
            f"but the VM gets {most}, from 0 on"
        )
    if cpu and cpu.nested and not flavor.nested:
        raise InvalidArgument(
            f"annotation {annotations.CPU_SETTING.name}: handler {pod.profile.handler!r} does not "
            "allow nested virtualisation: take the features vmx and svm out, or have the node's "
            "administrator write `nested: true` into the handler's flavor"
        )
    if flavor.max_memory > MAX_MEMORY:
        raise InvalidArgument(
            f"pod {pod.name}: the VM could grow to {flavor.max_memory} bytes of memory; "
            f"{MAX_MEMORY // _MIB}Mi is the most"
        )
    return flavor


def choose(pod: Pod, vm: VmConfig) -> Flavor:
    """The flavor of one VM: the memory limit is its RAM, in whole MiB, or its huge pages are.

    Where the number of vCPUs can change, the CPU limit says how many there are.

    Raises:
        InvalidArgument: as `machine_of`, the memory is too little or too much, the cpuset names a
            CPU that is not there, or CPUs that are to be the VM's own are not the container's.
        FailedPrecondition: the handler's profile is wrong.
    """
    flavor = machine_of(pod)
    limit = vm.resources.memory_limit
    page_size, pages = placement.huge_pages(pod, vm.resources.hugepage_limits)
    memory = pages or (limit if limit > 0 else flavor.memory)
    if not MIN_MEMORY <= memory <= MAX_MEMORY:
        source = "its memory limit" if limit > 0 else f"the flavor of {pod.profile.handler!r}"
        source = "its limit of huge pages" if pages else source
        raise InvalidArgument(
            f"pod {pod.name}: {source} gives the VM {memory} bytes of memory; it must be between "
            f"{MIN_MEMORY // _MIB}Mi and {MAX_MEMORY // _MIB}Mi"
        )
    cpu = annotations.CPU_SETTING.of(pod)
    if cpu and cpu.memory > _whole(memory):
        raise InvalidArgument(
            f"annotation {annotations.CPU_SETTING.name}: its NUMA cells have {cpu.memory} bytes "
            f"together, and the VM has {_whole(memory)}: lower them, or raise the memory limit"
        )
    if vm.resources.cpuset_cpus:
        cpuset(vm.resources.cpuset_cpus)
    if page_size and flavor.max_memory:
        raise InvalidArgument(
            f"pod {pod.name}: memory on huge pages cannot grow: leave out "
            f"{annotations.MAX_MEMORY.name}, and max_memory of the flavor"
        )
    chosen = attrs.evolve(
        flavor,
        vcpus=_vcpus(flavor, vm.resources),
        memory=_whole(memory),
        max_memory=_whole(flavor.max_memory),
        page_size=page_size,
    )
    placement.check_cpus(pod, chosen, vm.resources)
    return chosen


def _vcpus(flavor: Flavor, resources: Resources) -> int:
    """As many as the CPU limit keeps busy; the flavor's own number where there is no limit."""
    if flavor.max_vcpus <= 1 or resources.cpu_quota <= 0:
        return flavor.vcpus
    period = resources.cpu_period or DEFAULT_PERIOD
    return min(-(-resources.cpu_quota // period), flavor.max_vcpus)


def _whole(memory: int) -> int:
    return memory // _MIB * _MIB
