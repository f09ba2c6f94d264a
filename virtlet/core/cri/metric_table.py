"""The metrics that are served: cAdvisor's names and labels, with what they mean for a VM.

Container metrics tell of the guest, where the container's limit is meant, and of its emulator
else; pod metrics tell of the pod's control group. See docs/decisions/0032 and 0033.
"""

from collections.abc import Sequence

from virtlet.core.metrics.figures import (
    NANO,
    Metric,
    Rows,
    VmFigures,
    device_usage,
    faults,
    group_faults,
    of_disk,
    of_files,
    of_group,
    of_io,
    of_nics,
    of_process,
    of_vm,
    pod_cpu,
    seconds,
)
from virtlet.cri import api_pb2 as cri
from virtlet.model.resources import DEFAULT_PERIOD

C, G = cri.COUNTER, cri.GAUGE

_CPU = (
    Metric(
        "container_cpu_usage_seconds_total",
        "CPU time used, in seconds: the emulator's, guest and all.",
        C,
        ("cpu",),
        of_vm(lambda f: seconds(f.sample.cpu_time), "total"),
        pod_cpu,
    ),
    Metric(
        "container_cpu_user_seconds_total",
        "CPU time used in user mode, in seconds; the guest's own is part of it.",
        C,
        (),
        of_process(lambda p: p.user // NANO),
        lambda f: [((), seconds(f.cpu.user))] if f.cpu else [],
    ),
    Metric(
        "container_cpu_system_seconds_total",
        "CPU time used in the node's kernel, in seconds.",
        C,
        (),
        of_process(lambda p: p.system // NANO),
        lambda f: [((), seconds(f.cpu.system))] if f.cpu else [],
    ),
    Metric(
        "container_cpu_cfs_periods_total",
        "Periods for which the VM's CPU quota was in force.",
        C,
        (),
        of_vm(lambda f: f.throttling.periods if f.throttling else None),
    ),
    Metric(
        "container_cpu_cfs_throttled_periods_total",
        "Periods in which the VM had to wait for its CPU quota.",
        C,
        (),
        of_vm(lambda f: f.throttling.throttled if f.throttling else None),
    ),
    Metric(
        "container_cpu_cfs_throttled_seconds_total",
        "Time that the VM had to wait for its CPU quota, in seconds.",
        C,
        (),
        of_vm(lambda f: seconds(f.throttling.time) if f.throttling else None),
    ),
)
_MEMORY = (
    Metric(
        "container_memory_working_set_bytes",
        "Memory that the guest cannot give back at once; of a pod, with its emulator. In bytes.",
        G,
        (),
        of_vm(lambda f: f.sample.memory.working_set),
        of_group(lambda m: m.working_set),
    ),
    Metric(
        "container_memory_usage_bytes",
        "Memory that the guest uses, caches too; of a pod, with its emulator. In bytes.",
        G,
        (),
        of_vm(lambda f: f.sample.memory.usage),
        of_group(lambda m: m.usage),
    ),
    Metric(
        "container_memory_rss",
        "Memory that the guest uses without caches; of a pod, with its emulator. In bytes.",
        G,
        (),
        of_vm(lambda f: f.sample.memory.rss),
        of_group(lambda m: m.rss),
    ),
    Metric(
        "container_memory_cache",
        "Caches of files: in the guest, where it tells; of a pod, on the node. In bytes.",
        G,
        (),
        of_vm(lambda f: f.sample.memory.cache),
        of_group(lambda m: m.cache),
    ),
    Metric(
        "container_memory_swap",
        "What the node has swapped out of it, in bytes.",
        G,
        (),
        of_process(lambda p: p.swapped),
        of_group(lambda m: m.swap),
    ),
    Metric(
        "container_memory_failures_total",
        "Page faults: in the guest, where it tells; of a pod, on the node.",
        C,
        ("failure_type", "scope"),
        faults,
        group_faults,
    ),
    Metric(
        "container_memory_mapped_file",
        "Files that the pod has mapped, in bytes.",
        G,
        of_pod=of_group(lambda m: m.mapped),
    ),
    Metric(
        "container_memory_kernel_usage",
        "Memory of the node's kernel for the pod, in bytes.",
        G,
        of_pod=of_group(lambda m: m.kernel),
    ),
    Metric(
        "container_memory_max_usage_bytes",
        "The most memory that the pod ever used, in bytes.",
        G,
        of_pod=of_group(lambda m: m.most),
    ),
    Metric(
        "container_memory_failcnt",
        "How often the pod met its memory limit.",
        C,
        of_pod=of_group(lambda m: m.limit_hits),
    ),
    Metric(
        "container_oom_events_total",
        "Processes of the VM that the node's OOM killer ended.",
        C,
        (),
        of_vm(lambda f: f.oom_kills),
    ),
)
_DISKS = (
    Metric(
        "container_fs_usage_bytes",
        "Allocated bytes of the VM's disks.",
        G,
        ("device",),
        of_disk(lambda f: f.sample.disk_bytes),
    ),
    Metric(
        "container_fs_limit_bytes",
        "Bytes of the filesystem that the VM's disks are on.",
        G,
        ("device",),
        of_disk(lambda f: f.filesystem.size if f.filesystem else None),
    ),
    Metric(
        "container_fs_inodes_total",
        "Inodes of the filesystem that the VM's disks are on.",
        G,
        ("device",),
        of_disk(lambda f: f.filesystem.inodes if f.filesystem else None),
    ),
    Metric(
        "container_fs_inodes_free",
        "Free inodes of the filesystem that the VM's disks are on.",
        G,
        ("device",),
        of_disk(lambda f: f.filesystem.inodes_free if f.filesystem else None),
    ),
    Metric(
        "container_fs_reads_bytes_total",
        "Bytes read from the node's device for the VM; what its page cache had is not counted.",
        C,
        ("device",),
        of_io(lambda io: io.read_bytes),
    ),
    Metric(
        "container_fs_reads_total",
        "Reads from the node's device for the VM.",
        C,
        ("device",),
        of_io(lambda io: io.reads),
    ),
    Metric(
        "container_fs_writes_bytes_total",
        "Bytes written to the node's device for the VM.",
        C,
        ("device",),
        of_io(lambda io: io.written_bytes),
    ),
    Metric(
        "container_fs_writes_total",
        "Writes to the node's device for the VM.",
        C,
        ("device",),
        of_io(lambda io: io.writes),
    ),
    Metric(
        "container_blkio_device_usage_total",
        "Bytes between the VM and the node's device.",
        C,
        ("device", "major", "minor", "operation"),
        device_usage,
    ),
)
_PROCESSES = (
    Metric(
        "container_processes",
        "Emulator processes.",
        G,
        (),
        of_vm(lambda f: f.sample.processes),
    ),
    Metric("container_threads", "The emulator's threads.", G, (), of_process(lambda p: p.threads)),
    Metric(
        "container_threads_max",
        "Threads that VM or pod may have; 0 for any number.",
        G,
        (),
        of_vm(lambda f: f.most_threads),
    ),
    Metric(
        "container_file_descriptors",
        "The emulator's open file descriptors.",
        G,
        (),
        of_files(lambda files: files.descriptors),
    ),
    Metric(
        "container_sockets",
        "The emulator's open sockets.",
        G,
        (),
        of_files(lambda files: files.sockets),
    ),
    Metric(
        "container_ulimits_soft",
        "The emulator's soft limits, where there are any.",
        G,
        ("ulimit",),
        of_files(lambda files: files.most, "max_open_files"),
    ),
)
_SPEC = (
    Metric(
        "container_spec_cpu_period",
        "Period of the CPU quota, in microseconds.",
        G,
        (),
        of_vm(lambda f: f.record.resources.cpu_period or DEFAULT_PERIOD),
    ),
    Metric(
        "container_spec_cpu_quota",
        "CPU quota in each period, in microseconds, where there is one.",
        G,
        (),
        of_vm(lambda f: f.record.resources.cpu_quota if f.record.resources.cpu_quota > 0 else None),
    ),
    Metric(
        "container_spec_cpu_shares",
        "CPU shares.",
        G,
        (),
        of_vm(lambda f: f.record.resources.cpu_shares or None),
    ),
    Metric(
        "container_spec_memory_limit_bytes",
        "Memory that the container may use, in bytes; 0 when unlimited.",
        G,
        (),
        of_vm(lambda f: f.sample.limit),
    ),
    Metric(
        "container_spec_memory_swap_limit_bytes",
        "Memory and swap that the container may use, in bytes; 0 when unlimited.",
        G,
        (),
        of_vm(lambda f: max(0, f.record.resources.memory_swap_limit)),
    ),
    Metric(
        "container_start_time_seconds",
        "When the VM started, in seconds since the epoch.",
        G,
        (),
        of_vm(lambda f: seconds(f.record.started_at)),
    ),
    Metric(
        "container_last_seen",
        "When these figures were taken, in seconds since the epoch.",
        G,
        (),
        of_vm(lambda f: seconds(f.sample.at)),
    ),
)


def _pressure(what: str, name: str, verb: str, *, stalled: bool) -> Metric:
    def read(figures: VmFigures) -> Rows:
        pressure = figures.pressure.get(what)
        if pressure is not None:
            yield (), (pressure.stalled if stalled else pressure.waiting) // NANO

    needed = {"cpu": "CPU time", "memory": "memory", "io": "input and output"}[what]
    text = f"Time that {verb} the VM's threads on the node waited for {needed}, in seconds."
    return Metric(f"container_pressure_{what}_{name}_seconds_total", text, C, (), read)


_PRESSURE = tuple(
    metric
    for what in ("cpu", "io", "memory")
    for metric in (
        _pressure(what, "waiting", "some of", stalled=False),
        _pressure(what, "stalled", "all of", stalled=True),
    )
)
_NETWORK = tuple(
    Metric(f"container_network_{name}_total", text, C, ("interface",), of_pod=of_nics(read))
    for name, text, read in (
        ("receive_bytes", "Bytes received.", lambda n: n.rx_bytes),
        ("receive_packets", "Packets received.", lambda n: n.rx_packets),
        ("receive_errors", "Errors on reception.", lambda n: n.rx_errors),
        ("receive_packets_dropped", "Packets dropped on reception.", lambda n: n.rx_dropped),
        ("transmit_bytes", "Bytes sent.", lambda n: n.tx_bytes),
        ("transmit_packets", "Packets sent.", lambda n: n.tx_packets),
        ("transmit_errors", "Errors on sending.", lambda n: n.tx_errors),
        ("transmit_packets_dropped", "Packets dropped on sending.", lambda n: n.tx_dropped),
    )
)
_GUEST = (
    Metric(
        "virtlet_vm_balloon_bytes",
        "RAM that the guest has now, in bytes.",
        G,
        (),
        of_vm(lambda f: f.sample.balloon),
    ),
    Metric(
        "virtlet_vm_guest_available_bytes",
        "Memory that the guest's kernel manages, in bytes; where its balloon driver tells.",
        G,
        (),
        of_vm(lambda f: f.sample.guest_available),
    ),
    Metric(
        "virtlet_vm_guest_unused_bytes",
        "Memory that the guest's kernel has free, in bytes; where its balloon driver tells.",
        G,
        (),
        of_vm(lambda f: f.sample.guest_unused),
    ),
)

METRICS: Sequence[Metric] = (
    *_CPU,
    *_MEMORY,
    *_DISKS,
    *_PROCESSES,
    *_SPEC,
    *_PRESSURE,
    *_NETWORK,
    *_GUEST,
)
