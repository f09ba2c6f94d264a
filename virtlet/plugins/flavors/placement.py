"""What a VM takes of its node: CPUs of its own, memory nodes, huge pages, a kernel's file.

Sources: "CPU Management Policies", "Manage HugePages" and "Memory Manager" of the Kubernetes
documentation. A kubelet with the static policy gives a Guaranteed container with whole CPUs as many
for itself, and any other container those that are left, together.
"""

import os
import re
import stat
from collections.abc import Collection, Mapping
from pathlib import Path

from virtlet.errors import FailedPrecondition, InvalidArgument
from virtlet.host.cpus import NODES, SYSTEM, cpuset, free_pages, memset, nodes_of
from virtlet.model.flavor import FROM_IMAGE, Flavor
from virtlet.model.pod import Pod
from virtlet.model.resources import Resources
from virtlet.model.vm import Mount, image_mount

VSOCK = Path("/dev/vhost-vsock")
"""By which an emulator gets its guest's address."""
_SHARES = 1024
"""CPU shares of a whole CPU."""
_UNITS = {"KB": 1 << 10, "MB": 1 << 20, "GB": 1 << 30, "TB": 1 << 40}
"""As kubelets have them in sizes of pages, which are powers of two."""


def flaw(flavor: Flavor) -> str:
    """Why a machine cannot be placed as it says; "" where it can."""
    if flavor.numa and not flavor.dedicated_cpus:
        return "numa needs dedicated_cpus, which say where the VM is"
    if flavor.dedicated_cpus and flavor.max_vcpus > 1:
        return "dedicated_cpus takes a fixed number of vCPUs: leave max_vcpus out"
    if flavor.lock_memory and flavor.max_memory:
        return "lock_memory takes a fixed amount of memory: leave max_memory out"
    if flavor.numa and flavor.max_memory:
        return "numa takes a fixed amount of memory: leave max_memory out"
    return ""


def huge_pages(pod: Pod, limits: Mapping[str, int]) -> tuple[int, int]:
    """Bytes of a page and of all pages that a container has; (0, 0) for none.

    Raises:
        InvalidArgument: it has pages of several sizes, or of an unknown one.
    """
    asked = {size: limit for size, limit in limits.items() if limit > 0}
    if not asked:
        return 0, 0
    if len(asked) > 1:
        raise InvalidArgument(
            f"pod {pod.name}: it has huge pages of several sizes ({', '.join(sorted(asked))}), and "
            "a guest's memory is on those of one size: limit one"
        )
    ((text, limit),) = asked.items()
    parts = re.fullmatch("([1-9][0-9]{0,9})([KMGT]B)", text)
    if parts is None:
        raise InvalidArgument(f"hugepage_limits: {text[:32]!r} is no size of pages, as 2MB is")
    size = int(parts[1]) * _UNITS[parts[2]]
    return size, limit // size * size


def check_cpus(pod: Pod, flavor: Flavor, resources: Resources, nodes: Path = NODES.parent) -> None:
    """Refuse a machine with CPUs of its own that the pod does not have.

    Raises:
        InvalidArgument: so it is.
    """
    if not flavor.dedicated_cpus:
        return
    wish = f"pod {pod.name}: its flavor has dedicated_cpus"
    cpus = cpuset(resources.cpuset_cpus) if resources.cpuset_cpus else frozenset()
    if not cpus or resources.cpu_shares != _SHARES * len(cpus):
        has = f"shares CPUs {resources.cpuset_cpus} with others" if cpus else "has none"
        raise InvalidArgument(
            f"{wish}, and the container {has}: give it whole CPUs, with requests that equal the "
            "limits of CPU and memory, on a node whose kubelet has cpuManagerPolicy: static"
        )
    if len(cpus) < flavor.vcpus:
        raise InvalidArgument(
            f"{wish}, and the container has {len(cpus)} of its own for {flavor.vcpus} vCPUs: limit "
            f"its CPU to {flavor.vcpus}, or to more, which the emulator's threads get, or lower "
            "VirtletVCPUCount"
        )
    if flavor.numa:
        here = nodes_of(cpus, nodes)
        if not here:
            raise InvalidArgument(
                f"{wish} and numa, and this node's kernel has no memory nodes: take numa out"
            )
        whole = flavor.memory // (flavor.page_size or 1 << 20)
        if whole < len(here):
            raise InvalidArgument(
                f"{wish} and numa, and its memory has {whole} pages for {len(here)} nodes"
            )
        if flavor.extras.get("domain_cpu"):
            raise InvalidArgument(
                f"{wish} and numa, which make the topology: take VirtletLibvirtCPUSetting out"
            )


def check_kernel(pod: Pod, flavor: Flavor, mounts: Collection[Mount]) -> None:
    """Refuse a machine whose kernel or initial RAM disk its emulator could not read.

    Args:
        pod: for messages.
        flavor: the machine.
        mounts: of the container; what is in their images is looked at when the disk is made.

    Raises:
        FailedPrecondition: so it is.
    """
    for key, path in (("kernel", flavor.kernel), ("initrd", flavor.initrd)):
        if not path:
            continue
        if path.startswith(FROM_IMAGE):
            if image_mount(mounts, path.removeprefix(FROM_IMAGE)) is None:
                raise FailedPrecondition(
                    f"pod {pod.name}: {key} {path} of its flavor is below no mount of an image: "
                    "mount a volume of kind `image` there"
                )
            continue
        try:
            status = os.stat(path)
        except OSError as error:
            raise FailedPrecondition(
                f"pod {pod.name}: {key} {path} of its flavor: {error.strerror}: put the file there"
            ) from None
        if not stat.S_ISREG(status.st_mode) or not status.st_mode & stat.S_IROTH:
            raise FailedPrecondition(
                f"pod {pod.name}: {key} {path} of its flavor is no file that everybody may read"
            )


def check_vsock(pod: Pod, flavor: Flavor, device: Path = VSOCK) -> None:
    """Refuse a machine with vsock where the kernel has none.

    Raises:
        FailedPrecondition: so it is.
    """
    if flavor.vsock and not device.exists():
        raise FailedPrecondition(
            f"pod {pod.name}: its flavor has vsock, and this node has no {device}: load the module "
            "vhost_vsock (/etc/modules-load.d), or take vsock out"
        )


def check_pages(pod: Pod, flavor: Flavor, resources: Resources, system: Path = SYSTEM) -> None:
    """Refuse a machine whose huge pages are not there now.

    Raises:
        FailedPrecondition: so it is.
    """
    size = flavor.page_size
    if not size:
        return
    needed = flavor.memory // size
    nodes: frozenset[int] | None = None
    if flavor.numa:
        nodes = frozenset(nodes_of(cpuset(resources.cpuset_cpus), system / "devices/system/node"))
    elif resources.cpuset_mems:
        nodes = memset(resources.cpuset_mems, system / "devices/system/node/online")
    found = [free_pages(size, node, system) for node in sorted(nodes)] if nodes else []
    found = found or [free_pages(size, None, system)]
    where = f" on memory nodes {', '.join(map(str, sorted(nodes)))}" if nodes else ""
    if None in found:
        raise FailedPrecondition(
            f"pod {pod.name}: this node has no huge pages of {size >> 10}KiB{where}: the kernel "
            "lacks them, or has none set aside (see hugepages= and default_hugepagesz= of Linux)"
        )
    free = sum(pages or 0 for pages in found)
    if free < needed:
        raise FailedPrecondition(
            f"pod {pod.name}: it takes {needed} huge pages of {size >> 10}KiB, and {free} are free"
            f"{where}: set more aside on the node, or lower the pod's limit"
        )
