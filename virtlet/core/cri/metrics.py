"""ListMetricDescriptors and ListPodSandboxMetrics: cAdvisor's names for what VMs consume."""

from collections.abc import Callable

from attrs import frozen

from virtlet.core.cri.calls import Call, Kind
from virtlet.core.cri.streams import streamed
from virtlet.core.lifecycle.context import Context
from virtlet.core.metrics.sample import NicSample, VmSample
from virtlet.core.metrics.sampler import Sampler, Samples
from virtlet.core.store.records import PodRecord, VmPhase
from virtlet.cri import api_pb2 as cri
from virtlet.model.pod import Pod
from virtlet.model.vm import Vm

_NANO = 1_000_000_000


_IDENTITY = ("id", "name", "image", "container", "pod", "namespace")
"""Labels of every metric: a kubelet adds none of its own; names as its cAdvisor gives them."""


@frozen
class _VmMetric:
    """A metric of every VM."""

    name: str
    help: str
    kind: cri.MetricType
    read: Callable[[VmSample], int | None]
    """None where it is not known of this VM: it is left out then."""


@frozen
class _NicMetric:
    """A metric of every interface of a pod."""

    name: str
    help: str
    read: Callable[[NicSample], int]


# CRI carries whole numbers only, so seconds are rounded down.
_VM_METRICS = (
    _VmMetric(
        "container_cpu_usage_seconds_total",
        "CPU time used, in seconds.",
        cri.COUNTER,
        lambda s: None if s.cpu_time is None else s.cpu_time // _NANO,
    ),
    _VmMetric(
        "container_memory_working_set_bytes",
        "Memory that cannot be given back, in bytes.",
        cri.GAUGE,
        lambda s: s.working_set,
    ),
    _VmMetric(
        "container_memory_usage_bytes", "Memory used, in bytes.", cri.GAUGE, lambda s: s.resident
    ),
    _VmMetric(
        "container_memory_rss", "Resident memory, in bytes.", cri.GAUGE, lambda s: s.resident
    ),
    _VmMetric(
        "container_memory_failures_total",
        "Major page faults.",
        cri.COUNTER,
        lambda s: s.major_page_faults,
    ),
    _VmMetric(
        "container_spec_memory_limit_bytes",
        "Memory the pod may use, in bytes; 0 when unlimited.",
        cri.GAUGE,
        lambda s: s.limit,
    ),
    _VmMetric(
        "container_fs_usage_bytes",
        "Allocated bytes of the VM's disks.",
        cri.GAUGE,
        lambda s: s.disk_bytes,
    ),
    _VmMetric("container_processes", "Emulator processes.", cri.GAUGE, lambda s: s.processes),
    # What cAdvisor has no name for: the emulator's footprint, above, and the guest's own view.
    _VmMetric(
        "virtlet_vm_balloon_bytes",
        "Memory that the balloon leaves the guest, of what it started with, in bytes.",
        cri.GAUGE,
        lambda s: s.balloon,
    ),
    _VmMetric(
        "virtlet_vm_guest_available_bytes",
        "Memory that the guest's kernel manages, in bytes; where its balloon driver tells.",
        cri.GAUGE,
        lambda s: s.guest_available,
    ),
    _VmMetric(
        "virtlet_vm_guest_unused_bytes",
        "Memory that the guest's kernel has free, in bytes; where its balloon driver tells.",
        cri.GAUGE,
        lambda s: s.guest_unused,
    ),
)
_NIC_METRICS = (
    _NicMetric("container_network_receive_bytes_total", "Bytes received.", lambda n: n.rx_bytes),
    _NicMetric("container_network_transmit_bytes_total", "Bytes sent.", lambda n: n.tx_bytes),
    _NicMetric(
        "container_network_receive_packets_total", "Packets received.", lambda n: n.rx_packets
    ),
    _NicMetric("container_network_transmit_packets_total", "Packets sent.", lambda n: n.tx_packets),
    _NicMetric(
        "container_network_receive_errors_total", "Errors on reception.", lambda n: n.rx_errors
    ),
    _NicMetric(
        "container_network_transmit_errors_total", "Errors on sending.", lambda n: n.tx_errors
    ),
    _NicMetric(
        "container_network_receive_packets_dropped_total",
        "Packets dropped on reception.",
        lambda n: n.rx_dropped,
    ),
    _NicMetric(
        "container_network_transmit_packets_dropped_total",
        "Packets dropped on sending.",
        lambda n: n.tx_dropped,
    ),
)


class Metrics:
    """Serves metrics."""

    def __init__(self, context: Context, sampler: Sampler) -> None:
        self._context = context
        self._sampler = sampler

    def calls(self) -> list[Call]:
        """The calls served here."""
        listed = Call("RuntimeService.ListPodSandboxMetrics", Kind.MEASURE, self.list)
        return [
            listed,
            Call("RuntimeService.ListMetricDescriptors", Kind.READ, self.descriptors),
            streamed(
                "RuntimeService.StreamPodSandboxMetrics",
                Kind.MEASURE,
                lambda request: self.list(request).pod_metrics,
                lambda items: cri.StreamPodSandboxMetricsResponse(pod_sandbox_metrics=items),
            ),
        ]

    def descriptors(
        self, request: cri.ListMetricDescriptorsRequest
    ) -> cri.ListMetricDescriptorsResponse:
        """ListMetricDescriptors."""
        vm = [
            cri.MetricDescriptor(name=m.name, help=m.help, label_keys=_IDENTITY)
            for m in _VM_METRICS
        ]
        nic = [
            cri.MetricDescriptor(name=m.name, help=m.help, label_keys=[*_IDENTITY, "interface"])
            for m in _NIC_METRICS
        ]
        return cri.ListMetricDescriptorsResponse(descriptors=[*vm, *nic])

    def list(self, request: cri.ListPodSandboxMetricsRequest) -> cri.ListPodSandboxMetricsResponse:
        """ListPodSandboxMetrics."""
        samples = self._sampler.samples()
        return cri.ListPodSandboxMetricsResponse(
            pod_metrics=[
                self._pod(record, samples)
                for record in self._context.store.pods.values()
                if record.visible
            ]
        )

    def _pod(self, record: PodRecord, samples: Samples) -> cri.PodSandboxMetrics:
        pod = samples.pods.get(record.pod.id)
        return cri.PodSandboxMetrics(
            pod_sandbox_id=record.pod.id,
            metrics=[
                cri.Metric(
                    name=metric.name,
                    timestamp=pod.at,
                    metric_type=cri.COUNTER,
                    label_values=[*_pod_labels(record.pod), nic.name],
                    value=cri.UInt64Value(value=metric.read(nic)),
                )
                for metric in _NIC_METRICS
                for nic in pod.nics
            ]
            if pod
            else [],
            container_metrics=[
                cri.ContainerMetrics(
                    container_id=vm.vm.id,
                    metrics=_vm_metrics(vm.vm, samples.vms[vm.vm.id]),
                )
                for vm in self._context.store.vms_of(record.pod.id)
                if vm.phase is VmPhase.RUNNING and vm.vm.id in samples.vms
            ],
        )


def _pod_labels(pod: Pod) -> list[str]:
    """Values of the labels of what is the whole pod's."""
    metadata = pod.config.metadata
    return [pod.id, pod.id, "", "", metadata.name, metadata.namespace]


def _vm_metrics(vm: Vm, sample: VmSample) -> list[cri.Metric]:
    pod, config = vm.pod.config.metadata, vm.config
    image = config.user_image or config.image
    labels = [vm.id, vm.id, image, config.metadata.name, pod.name, pod.namespace]
    read = [(metric, metric.read(sample)) for metric in _VM_METRICS]
    return [
        cri.Metric(
            name=metric.name,
            timestamp=sample.at,
            metric_type=metric.kind,
            label_values=labels,
            value=cri.UInt64Value(value=value),
        )
        for metric, value in read
        if value is not None
    ]
