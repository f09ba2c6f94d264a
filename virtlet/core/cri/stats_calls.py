"""The Stats and Metrics calls: consumption in CRI's terms, and under cAdvisor's names."""

from collections.abc import Iterator, Sequence

from virtlet.core.cri import replies, requests
from virtlet.core.cri.calls import Call, CallKind
from virtlet.core.cri.metric_table import METRICS
from virtlet.core.cri.replies import streamed
from virtlet.core.lifecycle.context import Context
from virtlet.core.metrics.figures import Metric, Rows, group_of, pod_figures, vm_figures
from virtlet.core.metrics.sample import NicSample, PodSample, VmSample
from virtlet.core.metrics.sampler import Sampler, Samples
from virtlet.core.store.records import PodRecord, VmPhase, VmRecord
from virtlet.cri import api_pb2 as cri
from virtlet.host.cgroup_usage import CgroupUsage, CpuTime, Memory
from virtlet.model.pod import Pod
from virtlet.model.vm import Vm


class StatsCalls:
    """Serves statistics of pods and VMs."""

    def __init__(self, context: Context, sampler: Sampler) -> None:
        self._context = context
        self._sampler = sampler
        self._groups = CgroupUsage()

    def calls(self) -> list[Call]:
        """The calls served here."""
        containers = Call(
            "RuntimeService.ListContainerStats", CallKind.MEASURE, self.list_containers
        )
        pods = Call("RuntimeService.ListPodSandboxStats", CallKind.MEASURE, self.list_pods)
        return [
            containers,
            pods,
            Call("RuntimeService.ContainerStats", CallKind.MEASURE, self.container),
            Call("RuntimeService.PodSandboxStats", CallKind.MEASURE, self.pod),
            streamed(
                "RuntimeService.StreamContainerStats",
                CallKind.MEASURE,
                lambda request: self.list_containers(request).stats,
                lambda items: cri.StreamContainerStatsResponse(container_stats=items),
            ),
            streamed(
                "RuntimeService.StreamPodSandboxStats",
                CallKind.MEASURE,
                lambda request: self.list_pods(request).stats,
                lambda items: cri.StreamPodSandboxStatsResponse(pod_sandbox_stats=items),
            ),
        ]

    def container(self, request: cri.ContainerStatsRequest) -> cri.ContainerStatsResponse:
        """ContainerStats."""
        vm_id = requests.required_id(request.container_id, "container")
        record = self._context.store.known_vm(vm_id)
        return cri.ContainerStatsResponse(stats=_vm_stats(record, self._sampler.samples()))

    def list_containers(
        self, request: cri.ListContainerStatsRequest
    ) -> cri.ListContainerStatsResponse:
        """ListContainerStats: the running VMs."""
        wanted, samples = request.filter, self._sampler.samples()
        return cri.ListContainerStatsResponse(
            stats=[
                _vm_stats(record, samples)
                for record in self._context.store.vms.values()
                if record.phase is VmPhase.RUNNING
                and wanted.id in ("", record.vm.id)
                and wanted.pod_sandbox_id in ("", record.vm.pod.id)
                and replies.labelled(record.vm.config.labels, wanted.label_selector)
            ]
        )

    def pod(self, request: cri.PodSandboxStatsRequest) -> cri.PodSandboxStatsResponse:
        """PodSandboxStats."""
        pod_id = requests.required_id(request.pod_sandbox_id, "pod sandbox")
        record = self._context.store.known_pod(pod_id)
        return cri.PodSandboxStatsResponse(stats=self._pod_stats(record, self._sampler.samples()))

    def list_pods(self, request: cri.ListPodSandboxStatsRequest) -> cri.ListPodSandboxStatsResponse:
        """ListPodSandboxStats: the ready pods."""
        wanted, samples = request.filter, self._sampler.samples()
        return cri.ListPodSandboxStatsResponse(
            stats=[
                self._pod_stats(record, samples)
                for record in self._context.store.pods.values()
                if replies.pod_is_up(record)
                and wanted.id in ("", record.pod.id)
                and replies.labelled(record.pod.config.labels, wanted.label_selector)
            ]
        )

    def _pod_stats(self, record: PodRecord, samples: Samples) -> cri.PodSandboxStats:
        pod = record.pod
        running = [vm for vm in self._context.store.vms_of(pod.id) if vm.phase is VmPhase.RUNNING]
        seen = [samples.vms[vm.vm.id] for vm in running if vm.vm.id in samples.vms]
        # A VM that runs and was never measured is not at zero: its figures are missing.
        known = len(seen) == len(running)
        network = samples.pods.get(pod.id)
        group = group_of(self._groups, pod, running)
        now = replies.now()
        item = replies.pod_item(record)
        return cri.PodSandboxStats(
            attributes=cri.PodSandboxAttributes(
                id=pod.id,
                metadata=item.metadata,
                labels=item.labels,
                annotations=item.annotations,
            ),
            linux=cri.LinuxPodSandboxStats(
                cpu=_pod_cpu(self._groups.cpu(group) if group else None, now, seen),
                memory=_pod_memory(self._groups.memory(group) if group else None, now, seen),
                network=_network(network),
                process=cri.ProcessUsage(
                    timestamp=min(
                        (s.looked_at for s in seen), default=network.at if network else now
                    ),
                    process_count=_value(sum(s.processes for s in seen)),
                )
                if known
                else None,
                containers=[_vm_stats(vm, samples) for vm in running],
            ),
        )


def _vm_stats(record: VmRecord, samples: Samples) -> cri.ContainerStats:
    vm = record.vm
    item = replies.vm_item(record)
    attributes = cri.ContainerAttributes(
        id=vm.id, metadata=item.metadata, labels=item.labels, annotations=item.annotations
    )
    sample = samples.vms.get(vm.id)
    if sample is None and record.phase is VmPhase.RUNNING:
        # Not measured yet: its figures are missing, not zero.
        return cri.ContainerStats(attributes=attributes)
    sample = sample or VmSample(vm.id, replies.now())
    return cri.ContainerStats(
        attributes=attributes,
        cpu=_cpu(sample),
        memory=_memory(sample),
        writable_layer=cri.FilesystemUsage(
            timestamp=sample.looked_at or sample.at,
            fs_id=cri.FilesystemIdentifier(mountpoint=str(vm.directory.parent)),
            used_bytes=_value(sample.disk_bytes),
            inodes_used=_value(sample.disk_inodes),
        ),
        swap=cri.SwapUsage(
            timestamp=sample.at,
            swap_available_bytes=_value(0),
            swap_usage_bytes=_value(sample.process.swapped if sample.process else 0),
        ),
    )


def _cpu(sample: VmSample) -> cri.CpuUsage | None:
    if sample.cpu_time is None:
        return None
    return cri.CpuUsage(
        timestamp=sample.at,
        usage_core_nano_seconds=_value(sample.cpu_time),
        usage_nano_cores=_value(sample.nano_cores),
    )


def _memory(sample: VmSample) -> cri.MemoryUsage:
    """Of the container: what the guest uses, of which the container's limit is the most."""
    memory = sample.memory
    most = sample.limit or sample.ram
    return cri.MemoryUsage(
        timestamp=sample.memory_at or sample.at,
        working_set_bytes=_value(memory.working_set),
        available_bytes=_value(max(0, most - memory.working_set)),
        usage_bytes=_value(memory.usage),
        rss_bytes=_value(memory.rss),
        page_faults=_value(memory.page_faults),
        major_page_faults=_value(memory.major_page_faults),
    )


def _pod_cpu(group: CpuTime | None, now: int, vms: Sequence[VmSample]) -> cri.CpuUsage | None:
    """Of the pod: what its control group has used, with emulators that are gone."""
    if group is None:
        return _cpu(vms[0]) if vms else None
    return cri.CpuUsage(
        timestamp=now,
        usage_core_nano_seconds=_value(group.used),
        usage_nano_cores=_value(sum(vm.nano_cores for vm in vms)),
    )


def _pod_memory(group: Memory | None, now: int, vms: Sequence[VmSample]) -> cri.MemoryUsage | None:
    """Of the pod: what the node gives for it, guest and emulator, as its control group counts."""
    if group is not None:
        return cri.MemoryUsage(
            timestamp=now,
            working_set_bytes=_value(group.working_set),
            available_bytes=_value(max(0, group.limit - group.working_set)),
            usage_bytes=_value(group.usage),
            rss_bytes=_value(group.rss),
            page_faults=_value(group.page_faults),
            major_page_faults=_value(group.major_page_faults),
        )
    processes = [vm.process for vm in vms if vm.process is not None]
    if not processes:
        return _memory(vms[0]) if vms else None
    resident = sum(p.resident for p in processes)
    working_set = sum(max(0, p.resident - p.file_backed) for p in processes)
    return cri.MemoryUsage(
        timestamp=min(vm.at for vm in vms),
        working_set_bytes=_value(working_set),
        usage_bytes=_value(resident),
        rss_bytes=_value(resident),
        page_faults=_value(sum(p.minor_faults for p in processes)),
        major_page_faults=_value(sum(p.major_faults for p in processes)),
    )


def _network(sample: PodSample | None) -> cri.NetworkUsage | None:
    if sample is None:
        return None
    nics = [_nic(nic) for nic in sample.nics]
    return cri.NetworkUsage(
        timestamp=sample.at,
        default_interface=nics[0] if nics else None,
        interfaces=nics[1:],
    )


def _nic(nic: NicSample) -> cri.NetworkInterfaceUsage:
    return cri.NetworkInterfaceUsage(
        name=nic.name,
        rx_bytes=_value(nic.rx_bytes),
        rx_errors=_value(nic.rx_errors),
        tx_bytes=_value(nic.tx_bytes),
        tx_errors=_value(nic.tx_errors),
    )


def _value(value: int | None) -> cri.UInt64Value | None:
    return None if value is None else cri.UInt64Value(value=value)


IDENTITY = ("id", "name", "image", "container", "pod", "namespace")
"""Labels of every metric: a kubelet adds none of its own; names as its cAdvisor gives them."""


class MetricsCalls:
    """Serves metrics."""

    def __init__(self, context: Context, sampler: Sampler) -> None:
        self._context = context
        self._sampler = sampler
        self._groups = CgroupUsage()

    def calls(self) -> list[Call]:
        """The calls served here."""
        listed = Call("RuntimeService.ListPodSandboxMetrics", CallKind.MEASURE, self.list)
        return [
            listed,
            Call("RuntimeService.ListMetricDescriptors", CallKind.READ, self.descriptors),
            streamed(
                "RuntimeService.StreamPodSandboxMetrics",
                CallKind.MEASURE,
                lambda request: self.list(request).pod_metrics,
                lambda items: cri.StreamPodSandboxMetricsResponse(pod_sandbox_metrics=items),
            ),
        ]

    def descriptors(
        self, request: cri.ListMetricDescriptorsRequest
    ) -> cri.ListMetricDescriptorsResponse:
        """ListMetricDescriptors."""
        return cri.ListMetricDescriptorsResponse(
            descriptors=[
                cri.MetricDescriptor(name=m.name, help=m.help, label_keys=[*IDENTITY, *m.labels])
                for m in METRICS
            ]
        )

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
        pod = record.pod
        running = [vm for vm in self._context.store.vms_of(pod.id) if vm.phase is VmPhase.RUNNING]
        group = group_of(self._groups, pod, running)
        figures = pod_figures(self._groups, record, samples.pods.get(pod.id), group)
        labels = _pod_labels(pod)
        return cri.PodSandboxMetrics(
            pod_sandbox_id=pod.id,
            metrics=[
                message
                for metric in METRICS
                for message in _messages(metric, labels, figures.at, metric.of_pod(figures))
            ],
            container_metrics=[self._vm(vm, samples) for vm in running if vm.vm.id in samples.vms],
        )

    def _vm(self, record: VmRecord, samples: Samples) -> cri.ContainerMetrics:
        sample = samples.vms[record.vm.id]
        figures = vm_figures(self._groups, record, sample)
        labels = _vm_labels(record.vm)
        return cri.ContainerMetrics(
            container_id=record.vm.id,
            metrics=[
                message
                for metric in METRICS
                for message in _messages(metric, labels, sample.at, metric.of_vm(figures))
            ],
        )


def _messages(metric: Metric, labels: Sequence[str], at: int, rows: Rows) -> Iterator[cri.Metric]:
    for further, value in rows:
        if value is not None:
            yield cri.Metric(
                name=metric.name,
                timestamp=at,
                metric_type=metric.kind,
                label_values=[*labels, *further],
                value=cri.UInt64Value(value=value),
            )


def _pod_labels(pod: Pod) -> list[str]:
    """Values of the labels of what is the whole pod's."""
    metadata = pod.config.metadata
    return [pod.id, pod.id, "", "", metadata.name, metadata.namespace]


def _vm_labels(vm: Vm) -> list[str]:
    pod, config = vm.pod.config.metadata, vm.config
    image = config.user_image or config.image
    return [vm.id, vm.id, image, config.metadata.name, pod.name, pod.namespace]
