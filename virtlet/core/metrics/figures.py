"""All that a metric can tell of a pod and its VMs at this moment."""

import functools
import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from attrs import frozen

from virtlet.core.metrics.sample import (
    NicSample,
    PodSample,
    ProcessFiles,
    ProcessUsage,
    VmSample,
    process_files,
)
from virtlet.core.store.records import PodRecord, VmRecord
from virtlet.cri import api_pb2 as cri
from virtlet.host import cgroups
from virtlet.host.cgroup_usage import CgroupUsage, CpuTime, DeviceIo, Memory, Pressure, Throttling
from virtlet.model.pod import Pod

_BLOCK_DEVICES = Path("/sys/dev/block")
SHORT_OF = ("cpu", "memory", "io")


@frozen
class Filesystem:
    """Where VMs' disks lie."""

    device: str
    size: int
    """Bytes."""
    inodes: int
    inodes_free: int


@frozen
class VmFigures:
    """A VM, its emulator and its control group."""

    record: VmRecord
    sample: VmSample
    filesystem: Filesystem | None
    files: ProcessFiles | None
    throttling: Throttling | None
    oom_kills: int | None
    io: tuple[DeviceIo, ...]
    pressure: Mapping[str, Pressure]
    """By what it is short of."""
    most_threads: int | None
    """0 for any number."""


@frozen
class PodFigures:
    """A pod's network and its control group, with everything in it."""

    record: PodRecord
    at: int
    """Nanoseconds since the epoch."""
    network: PodSample | None
    cpu: CpuTime | None
    memory: Memory | None


def group_of(groups: CgroupUsage, pod: Pod, running: Sequence[VmRecord]) -> Path | None:
    """A pod's control group; None if it has none, or a VM of it runs elsewhere."""
    group = cgroups.group_of(pod.config.cgroup_parent)
    if group is None or not all(groups.holds(group / record.vm.id) for record in running):
        return None
    return group


def vm_figures(groups: CgroupUsage, record: VmRecord, sample: VmSample) -> VmFigures:
    """The figures of a VM that runs."""
    filesystem = filesystem_of(record.vm.directory.parent)
    pod = cgroups.group_of(record.vm.pod.config.cgroup_parent)
    own = pod / record.vm.id if pod else None
    files = process_files(sample.pid) if sample.pid is not None else None
    if pod is None or own is None or not groups.holds(own):
        return VmFigures(record, sample, filesystem, files, None, None, (), {}, None)
    told = [most for group in (own, pod) if (most := groups.most_threads(group)) is not None]
    return VmFigures(
        record=record,
        sample=sample,
        filesystem=filesystem,
        files=files,
        throttling=groups.throttling(own),
        oom_kills=groups.oom_kills(own),
        io=groups.io(own),
        pressure={
            what: pressure
            for what in SHORT_OF
            if (pressure := groups.pressure(own, what)) is not None
        },
        most_threads=min((most for most in told if most), default=0) if told else None,
    )


def pod_figures(
    groups: CgroupUsage, record: PodRecord, network: PodSample | None, group: Path | None
) -> PodFigures:
    """The figures of a pod.

    Args:
        groups: reads control groups.
        record: the pod's.
        network: what is known of its interfaces.
        group: its control group.
    """
    return PodFigures(
        record,
        time.time_ns(),
        network,
        groups.cpu(group) if group else None,
        groups.memory(group) if group else None,
    )


def filesystem_of(directory: Path) -> Filesystem | None:
    """The filesystem that a directory is on; None when it is gone."""
    try:
        told, device = os.statvfs(directory), directory.stat().st_dev
    except OSError:
        return None
    return Filesystem(
        device=device_name(f"{os.major(device)}:{os.minor(device)}"),
        size=told.f_blocks * told.f_frsize,
        inodes=told.f_files,
        inodes_free=told.f_ffree,
    )


@functools.lru_cache(maxsize=256)
def device_name(number: str) -> str:
    """A block device's path by its `MAJOR:MINOR`; the number itself for what is not one."""
    try:
        return f"/dev/{(_BLOCK_DEVICES / number).readlink().name}"
    except OSError:
        return number


NANO = 1_000_000_000

Value = int | None
Rows = Iterable[tuple[tuple[str, ...], Value]]
"""Values of a metric's further labels, and its value; None where it is not known of this VM."""


def _nothing(_: object) -> Rows:
    return ()


@frozen
class Metric:
    """A metric of VMs, of pods, or of both."""

    name: str
    help: str
    kind: cri.MetricType
    labels: tuple[str, ...] = ()
    """Beside those of identity."""
    of_vm: Callable[[VmFigures], Rows] = _nothing
    of_pod: Callable[[PodFigures], Rows] = _nothing


def of_vm(read: Callable[[VmFigures], Value], *labels: str) -> Callable[[VmFigures], Rows]:
    """A figure of each VM."""
    return lambda figures: [(labels, read(figures))]


def seconds(nanoseconds: Value) -> Value:
    """Whole seconds: CRI carries no others."""
    return None if nanoseconds is None else nanoseconds // NANO


def of_process(read: Callable[[ProcessUsage], int]) -> Callable[[VmFigures], Rows]:
    """A figure of the emulator's process."""
    return of_vm(lambda f: read(f.sample.process) if f.sample.process else None)


def of_files(read: Callable[[ProcessFiles], Value], *labels: str) -> Callable[[VmFigures], Rows]:
    """A figure of what the emulator has open."""
    return of_vm(lambda f: read(f.files) if f.files else None, *labels)


def of_group(read: Callable[[Memory], Value], *labels: str) -> Callable[[PodFigures], Rows]:
    """A figure of the pod's control group."""
    return lambda figures: [(labels, read(figures.memory))] if figures.memory else []


def of_disk(read: Callable[[VmFigures], Value]) -> Callable[[VmFigures], Rows]:
    """A figure of the VM's disks, by the device that they are on."""
    return lambda f: [((f.filesystem.device,), read(f))] if f.filesystem else []


def of_io(read: Callable[[DeviceIo], int]) -> Callable[[VmFigures], Rows]:
    """A figure of each device that the VM used."""
    return lambda f: [((device_name(io.device),), read(io)) for io in f.io]


def device_usage(figures: VmFigures) -> Iterator[tuple[tuple[str, ...], Value]]:
    """Bytes read and written, by device."""
    for io in figures.io:
        major, _, minor = io.device.partition(":")
        for operation, count in (("Read", io.read_bytes), ("Write", io.written_bytes)):
            yield (device_name(io.device), major, minor, operation), count


def faults(figures: VmFigures) -> Rows:
    """The guest's page faults, where it tells."""
    memory = figures.sample.memory
    yield ("pgfault", "container"), memory.page_faults
    yield ("pgmajfault", "container"), memory.major_page_faults


def group_faults(figures: PodFigures) -> Rows:
    """Page faults of everything in the pod's control group."""
    if figures.memory:
        yield ("pgfault", "hierarchy"), figures.memory.page_faults
        yield ("pgmajfault", "hierarchy"), figures.memory.major_page_faults


def of_nics(read: Callable[[NicSample], int]) -> Callable[[PodFigures], Rows]:
    """A figure of each interface of the pod."""
    return lambda f: [((nic.name,), read(nic)) for nic in f.network.nics] if f.network else []


def pod_cpu(f: PodFigures) -> Rows:
    """CPU time of everything in the pod's control group."""
    return [(("total",), seconds(f.cpu.used))] if f.cpu else []
