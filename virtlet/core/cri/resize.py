"""UpdateContainerResources and UpdatePodSandboxResources: resize in place."""

from attrs import evolve

from virtlet.core.cri import requests
from virtlet.core.cri.calls import Call, Kind
from virtlet.core.lifecycle import resize
from virtlet.core.lifecycle.context import Context
from virtlet.cri import api_pb2 as cri
from virtlet.errors import NotFound
from virtlet.model.resources import Resources


class Resizes:
    """Serves new limits."""

    def __init__(self, context: Context) -> None:
        self._context = context

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
        resize.resize_vm(self._context, vm_id, _change(request.linux))
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
