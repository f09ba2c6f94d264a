"""ListMetricDescriptors and ListPodSandboxMetrics: cAdvisor's names for what VMs consume."""

from collections.abc import Iterator, Sequence

from virtlet.core.cri.calls import Call, Kind
from virtlet.core.cri.lists import streamed
from virtlet.core.cri.metric_kinds import Metric, Rows
from virtlet.core.cri.metric_table import METRICS
from virtlet.core.lifecycle.context import Context
from virtlet.core.metrics.figures import group_of, pod_figures, vm_figures
from virtlet.core.metrics.sampler import Sampler, Samples
from virtlet.core.store.records import PodRecord, VmPhase, VmRecord
from virtlet.cri import api_pb2 as cri
from virtlet.host.cgroup_usage import CgroupUsage
from virtlet.model.pod import Pod
from virtlet.model.vm import Vm

IDENTITY = ("id", "name", "image", "container", "pod", "namespace")
"""Labels of every metric: a kubelet adds none of its own; names as its cAdvisor gives them."""


class Metrics:
    """Serves metrics."""

    def __init__(self, context: Context, sampler: Sampler) -> None:
        self._context = context
        self._sampler = sampler
        self._groups = CgroupUsage()

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
