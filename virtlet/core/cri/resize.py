"""UpdateContainerResources and UpdatePodSandboxResources: resize in place."""

import time
from collections.abc import Callable

from attrs import evolve

from virtlet.core.cri import requests
from virtlet.core.cri.calls import Call, Kind
from virtlet.core.lifecycle import resize
from virtlet.core.lifecycle.context import Context
from virtlet.core.lifecycle.refusals import Refusals
from virtlet.cri import api_pb2 as cri
from virtlet.errors import NotFound, VirtletError
from virtlet.model.resources import Resources


class Resizes:
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
            Call("RuntimeService.UpdateContainerResources", Kind.WORK, self.update_container),
            Call("RuntimeService.UpdatePodSandboxResources", Kind.READ, self.update_pod),
        ]

    def update_container(
        self, request: cri.UpdateContainerResourcesRequest
    ) -> cri.UpdateContainerResourcesResponse:
        """UpdateContainerResources; without `linux` there is nothing to do."""
        vm_id = requests.required_id(request.container_id, "container")
        change, vms = _change(request.linux), self._context.store.vms
        self._refusals.check(vm_id, vms.get(vm_id), change)
        try:
            resize.resize_vm(self._context, vm_id, change)
        except VirtletError as error:
            self._refusals.remember(vm_id, vms.get(vm_id), change, error)
            raise
        self._refusals.forget(vm_id)
        return cri.UpdateContainerResourcesResponse()

    def update_pod(
        self, request: cri.UpdatePodSandboxResourcesRequest
    ) -> cri.UpdatePodSandboxResourcesResponse:
        """UpdatePodSandboxResources.

        The kubelet has changed the pod's control group by itself, and tells only so that a runtime
        can tell others.
        """
        pod_id = requests.required_id(request.pod_sandbox_id, "pod sandbox")
        record = self._context.store.pods.get(pod_id)
        if record is None or not record.visible:
            raise NotFound(f"there is no pod sandbox {pod_id}")
        requests.resources(request.overhead, "overhead")
        requests.resources(request.resources, "resources")
        return cri.UpdatePodSandboxResourcesResponse()


def _change(message: cri.LinuxContainerResources) -> Resources:
    # At the start -1 is the same as nothing; here it lifts a limit.
    return evolve(requests.resources(message, "linux"), cpu_quota=message.cpu_quota)
