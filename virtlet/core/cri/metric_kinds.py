"""What a metric is, and how its values are read off the figures of a VM or a pod."""

from collections.abc import Callable, Iterable, Iterator

from attrs import frozen

from virtlet.core.metrics.figures import PodFigures, VmFigures, device_name
from virtlet.core.metrics.sample import NicSample, ProcessFiles, ProcessUsage
from virtlet.cri import api_pb2 as cri
from virtlet.host.cgroup_usage import DeviceIo, Memory

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
