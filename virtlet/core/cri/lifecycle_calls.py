"""The calls of pods and VMs: PodSandbox and Container, to the kubelet; and resize in place."""

import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from attrs import evolve

from virtlet.core.cri import fields, replies, requests
from virtlet.core.cri.calls import Call, CallClient, CallKind
from virtlet.core.cri.replies import Listing, ReplyCache, streamed
from virtlet.core.lifecycle import checkpoints, hibernation, pods, resize, restores, vms
from virtlet.core.lifecycle.context import Context
from virtlet.core.lifecycle.refusals import Refusals
from virtlet.core.store.records import PodRecord, VmPhase, VmRecord
from virtlet.cri import api_pb2 as cri
from virtlet.errors import FailedPrecondition, InvalidArgument, VirtletError
from virtlet.model.resources import Resources
from virtlet.model.vm import HIBERNATE

KEY_FILE = "keyFile"
"""Option of CheckpointPod and RestorePod: the path of what the checkpoint is encrypted by."""
IDENTITY, SAME, NEW = "identity", "same", "new"
"""Option of RestorePod and its values: whether the guest stays who it was."""


class SandboxCalls:
    """Serves pods."""

    def __init__(self, context: Context) -> None:
        self._context = context
        store = context.store
        self._listing = Listing(
            lambda: store.pods,
            lambda: store.version,
            replies.pod_item,
            lambda record: record.visible,
            lambda items: cri.ListPodSandboxResponse(items=items),
        )
        self._statuses = ReplyCache(lambda: store.version)

    def calls(self) -> list[Call]:
        """The calls served here."""
        return [
            Call("RuntimeService.ListPodSandbox", CallKind.READ, self.list),
            streamed(
                "RuntimeService.StreamPodSandboxes",
                CallKind.READ,
                self._items,
                lambda items: cri.StreamPodSandboxesResponse(pod_sandboxes=items),
            ),
            Call("RuntimeService.RunPodSandbox", CallKind.WORK, self.run),
            Call("RuntimeService.StopPodSandbox", CallKind.WORK, self.stop),
            Call("RuntimeService.RemovePodSandbox", CallKind.WORK, self.remove),
            Call("RuntimeService.PodSandboxStatus", CallKind.READ, self.status),
            Call("RuntimeService.CheckpointPod", CallKind.WORK, self.checkpoint, attended=True),
            Call("RuntimeService.RestorePod", CallKind.WORK, self.restore),
        ]

    def run(self, request: cri.RunPodSandboxRequest) -> cri.RunPodSandboxResponse:
        """RunPodSandbox."""
        if not request.HasField("config"):
            raise InvalidArgument("the request has no config")
        config = requests.pod_config(request.config)
        pod_id = pods.run_pod(self._context, config, request.runtime_handler)
        return cri.RunPodSandboxResponse(pod_sandbox_id=pod_id)

    def stop(self, request: cri.StopPodSandboxRequest) -> cri.StopPodSandboxResponse:
        """StopPodSandbox."""
        pods.stop_pod(self._context, _pod_id(request.pod_sandbox_id))
        return cri.StopPodSandboxResponse()

    def remove(self, request: cri.RemovePodSandboxRequest) -> cri.RemovePodSandboxResponse:
        """RemovePodSandbox."""
        pods.remove_pod(self._context, _pod_id(request.pod_sandbox_id))
        return cri.RemovePodSandboxResponse()

    def status(self, request: cri.PodSandboxStatusRequest) -> cri.PodSandboxStatusResponse | bytes:
        """PodSandboxStatus."""
        pod_id = _pod_id(request.pod_sandbox_id)

        def make() -> cri.PodSandboxStatusResponse:
            return cri.PodSandboxStatusResponse(
                status=replies.pod_status(self._context.store.known_pod(pod_id)),
                containers_statuses=replies.vm_statuses(self._context.store.vms_of(pod_id)),
            )

        added = cri.PodSandboxStatusResponse(timestamp=replies.now())
        if request.verbose:
            store, opened = self._context.store, self._context.opened_shares
            info = replies.pod_info(store.known_pod(pod_id), store.vms_of(pod_id), opened)
            added.info.update(info)
        # Messages one after the other are one message with the fields of both.
        return self._statuses.reply(pod_id, make) + added.SerializeToString()

    def checkpoint(
        self, request: cri.CheckpointPodRequest, client: CallClient
    ) -> cri.CheckpointPodResponse:
        """CheckpointPod; it may take as long as the client waits, or the usual time."""
        pod_id = _pod_id(request.pod_sandbox_id)
        directory = _path(request.output_path, "output_path")
        key_file = _key_file(_options(request.options, KEY_FILE))
        checkpoints.checkpoint_pod(
            self._context,
            pod_id,
            list(request.container_ids),
            directory,
            client.time_left() or checkpoints.USUAL_TIME,
            client.waits,
            key_file,
        )
        return cri.CheckpointPodResponse()

    def restore(self, request: cri.RestorePodRequest) -> cri.RestorePodResponse:
        """RestorePod."""
        directory = _path(request.checkpoint_path, "checkpoint_path")
        if not request.HasField("config"):
            raise InvalidArgument("the request has no config")
        options = _options(request.options, KEY_FILE, IDENTITY)
        identity = options.get(IDENTITY, SAME)
        if identity not in (SAME, NEW):
            raise InvalidArgument(
                f"option {IDENTITY} is {identity[:100]!r}, and has to be {SAME!r} or {NEW!r}"
            )
        if len(request.container_configs) != 1:
            raise InvalidArgument(
                f"container_configs has {len(request.container_configs)} containers, and a pod's "
                "checkpoint has its one VM"
            )
        config = requests.pod_config(request.config)
        vm_config = requests.vm_config(request.container_configs[0])
        fields.log_file(config.log_directory, vm_config.log_path)
        pod_id, vm_id = restores.restore_pod(
            self._context,
            directory,
            config,
            request.runtime_handler,
            vm_config,
            _key_file(options),
            new_identity=identity == NEW,
        )
        restored = cri.RestoredContainer(name=vm_config.metadata.name, container_id=vm_id)
        return cri.RestorePodResponse(pod_sandbox_id=pod_id, restored_containers=[restored])

    def list(self, request: cri.ListPodSandboxRequest) -> cri.ListPodSandboxResponse | bytes:
        """ListPodSandbox."""
        if not request.filter.ByteSize():
            return self._listing.whole()
        return cri.ListPodSandboxResponse(items=self._items(request))

    def _items(
        self, request: cri.ListPodSandboxRequest | cri.StreamPodSandboxesRequest
    ) -> Sequence[cri.PodSandbox]:
        return self._listing.items(lambda record: _pod_wanted(record, request.filter))


def _options(given: Mapping[str, str], *known: str) -> dict[str, str]:
    for name in sorted(given):
        if name not in known:
            raise InvalidArgument(f"there is no option {name[:100]!r}, but {', '.join(known)}")
    return dict(given)


def _key_file(options: Mapping[str, str]) -> Path | None:
    value = options.get(KEY_FILE)
    return None if value is None else _path(value, f"path in option {KEY_FILE}")


def _path(value: str, name: str) -> Path:
    if not value or "\0" in value:
        raise InvalidArgument(f"the request has no {name}")
    return Path(value)


def _pod_id(value: str) -> str:
    return requests.required_id(value, "pod sandbox")


def _pod_wanted(record: PodRecord, wanted: cri.PodSandboxFilter) -> bool:
    if wanted.id and wanted.id != record.pod.id:
        return False
    if wanted.HasField("state") and wanted.state.state != replies.pod_state(record):
        return False
    return replies.labelled(record.pod.config.labels, wanted.label_selector)


class ContainerCalls:
    """Serves VMs."""

    def __init__(self, context: Context) -> None:
        self._context = context
        store = context.store
        self._listing = Listing(
            lambda: store.vms,
            lambda: store.version,
            replies.vm_item,
            lambda record: record.visible,
            lambda items: cri.ListContainersResponse(containers=items),
        )
        self._statuses = ReplyCache(lambda: store.version)

    def calls(self) -> list[Call]:
        """The calls served here."""
        return [
            Call("RuntimeService.ListContainers", CallKind.READ, self.list),
            streamed(
                "RuntimeService.StreamContainers",
                CallKind.READ,
                self._items,
                lambda items: cri.StreamContainersResponse(containers=items),
            ),
            Call("RuntimeService.CreateContainer", CallKind.WORK, self.create),
            Call("RuntimeService.StartContainer", CallKind.WORK, self.start),
            Call("RuntimeService.StopContainer", CallKind.WORK, self.stop),
            Call("RuntimeService.RemoveContainer", CallKind.WORK, self.remove),
            Call("RuntimeService.ContainerStatus", CallKind.READ, self.status),
            Call("RuntimeService.ReopenContainerLog", CallKind.WORK, self.reopen_log),
            Call(
                "RuntimeService.CheckpointContainer", CallKind.WORK, self.checkpoint, attended=True
            ),
        ]

    def create(self, request: cri.CreateContainerRequest) -> cri.CreateContainerResponse:
        """CreateContainer."""
        if not request.HasField("config"):
            raise InvalidArgument("the request has no config")
        pod_id = requests.required_id(request.pod_sandbox_id, "pod sandbox")
        config = requests.vm_config(request.config)
        pod = self._context.store.pods.get(pod_id)
        if pod is not None:
            fields.log_file(pod.pod.config.log_directory, config.log_path)
        vm_id = vms.create_vm(self._context, pod_id, config)
        return cri.CreateContainerResponse(container_id=vm_id)

    def start(self, request: cri.StartContainerRequest) -> cri.StartContainerResponse:
        """StartContainer."""
        vms.start_vm(self._context, _vm_id(request.container_id))
        return cri.StartContainerResponse()

    def stop(self, request: cri.StopContainerRequest) -> cri.StopContainerResponse:
        """StopContainer; `timeout` is in seconds."""
        if request.timeout < 0:
            raise InvalidArgument(f"timeout {request.timeout} is negative")
        vms.stop_vm(self._context, _vm_id(request.container_id), float(request.timeout))
        return cri.StopContainerResponse()

    def remove(self, request: cri.RemoveContainerRequest) -> cri.RemoveContainerResponse:
        """RemoveContainer."""
        vms.remove_vm(self._context, _vm_id(request.container_id))
        return cri.RemoveContainerResponse()

    def list(self, request: cri.ListContainersRequest) -> cri.ListContainersResponse | bytes:
        """ListContainers."""
        if not request.filter.ByteSize():
            return self._listing.whole()
        return cri.ListContainersResponse(containers=self._items(request))

    def _items(
        self, request: cri.ListContainersRequest | cri.StreamContainersRequest
    ) -> Sequence[cri.Container]:
        return self._listing.items(lambda record: _vm_wanted(record, request.filter))

    def status(self, request: cri.ContainerStatusRequest) -> cri.ContainerStatusResponse | bytes:
        """ContainerStatus."""
        vm_id = _vm_id(request.container_id)

        def make() -> cri.ContainerStatusResponse:
            return cri.ContainerStatusResponse(
                status=replies.vm_status(self._context.store.known_vm(vm_id))
            )

        if not request.verbose:
            return self._statuses.reply(vm_id, make)
        reply = make()
        opened = self._context.opened_shares.get(vm_id, {})
        reply.info.update(replies.vm_info(self._context.store.known_vm(vm_id), opened))
        return reply

    def reopen_log(self, request: cri.ReopenContainerLogRequest) -> cri.ReopenContainerLogResponse:
        """ReopenContainerLog."""
        record = self._context.store.known_vm(_vm_id(request.container_id))
        if record.phase not in (VmPhase.RUNNING, VmPhase.HIBERNATED):
            raise FailedPrecondition(f"VM {record.vm.name} is not running: its log is complete")
        self._context.consoles.reopen(record.vm)
        return cri.ReopenContainerLogResponse()

    def checkpoint(
        self, request: cri.CheckpointContainerRequest, client: CallClient
    ) -> cri.CheckpointContainerResponse:
        """CheckpointContainer; `timeout` is in seconds, 0 for the usual time."""
        vm_id = _vm_id(request.container_id)
        if request.timeout < 0:
            raise InvalidArgument(f"timeout {request.timeout} is negative")
        checkpoints.checkpoint_vm(
            self._context,
            vm_id,
            _path(request.location, "location, the path of the checkpoint"),
            float(request.timeout) or checkpoints.USUAL_TIME,
            client.waits,
        )
        return cri.CheckpointContainerResponse()


def _vm_id(value: str) -> str:
    return requests.required_id(value, "container")


def _vm_wanted(record: VmRecord, wanted: cri.ContainerFilter) -> bool:
    vm = record.vm
    if wanted.id and wanted.id != vm.id:
        return False
    if wanted.pod_sandbox_id and wanted.pod_sandbox_id != vm.pod.id:
        return False
    if wanted.HasField("state") and wanted.state.state != replies.vm_state(record):
        return False
    return replies.labelled(vm.config.labels, wanted.label_selector)


class ResizeCalls:
    """Serves new limits.

    Args:
        context: the manager.
        clock: seconds that never go back.
    """

    def __init__(self, context: Context, clock: Callable[[], float] = time.monotonic) -> None:
        self._context = context
        self._refusals = Refusals(clock)

    def calls(self) -> list[Call]:
        """The calls served here."""
        return [
            Call(
                "RuntimeService.UpdateContainerResources",
                CallKind.WORK,
                self.update_container,
                attended=True,
            ),
            Call("RuntimeService.UpdatePodSandboxResources", CallKind.READ, self.update_pod),
        ]

    def update_container(
        self, request: cri.UpdateContainerResourcesRequest, client: CallClient
    ) -> cri.UpdateContainerResourcesResponse:
        """UpdateContainerResources; without `linux` there is nothing to do, but to hibernate a VM
        or have it go on, which CRI has no call for."""
        vm_id = requests.required_id(request.container_id, "container")
        if HIBERNATE in request.annotations:
            self._hibernate(vm_id, request, client)
            return cri.UpdateContainerResourcesResponse()
        change, vms = _change(request.linux), self._context.store.vms
        self._refusals.check(vm_id, vms.get(vm_id), change)
        try:
            resize.resize_vm(self._context, vm_id, change)
        except VirtletError as error:
            self._refusals.remember(vm_id, vms.get(vm_id), change, error)
            raise
        self._refusals.forget(vm_id)
        return cri.UpdateContainerResourcesResponse()

    def _hibernate(
        self, vm_id: str, request: cri.UpdateContainerResourcesRequest, client: CallClient
    ) -> None:
        value = request.annotations[HIBERNATE]
        if request.HasField("linux") or value not in ("true", "false"):
            raise InvalidArgument(
                f"annotation {HIBERNATE} is true or false, and comes without other resources"
            )
        if value == "true":
            seconds = client.time_left() or checkpoints.USUAL_TIME
            hibernation.hibernate_vm(self._context, vm_id, seconds, client.waits)
        else:
            hibernation.resume_vm(self._context, vm_id)

    def update_pod(
        self, request: cri.UpdatePodSandboxResourcesRequest
    ) -> cri.UpdatePodSandboxResourcesResponse:
        """UpdatePodSandboxResources.

        The kubelet has changed the pod's control group by itself, and tells only so that a runtime
        can tell others.
        """
        pod_id = requests.required_id(request.pod_sandbox_id, "pod sandbox")
        self._context.store.known_pod(pod_id)
        requests.resources(request.overhead, "overhead")
        requests.resources(request.resources, "resources")
        return cri.UpdatePodSandboxResourcesResponse()


def _change(message: cri.LinuxContainerResources) -> Resources:
    # At the start -1 is the same as nothing; here it lifts a limit.
    return evolve(requests.resources(message, "linux"), cpu_quota=message.cpu_quota)
