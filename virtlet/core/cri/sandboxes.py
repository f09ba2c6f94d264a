"""The six PodSandbox calls."""

from collections.abc import Sequence

from virtlet.core.cri import replies, requests
from virtlet.core.cri.calls import Call, CallKind
from virtlet.core.cri.lists import Listing, ReplyCache, streamed
from virtlet.core.lifecycle import pods
from virtlet.core.lifecycle.context import Context
from virtlet.core.store.records import PodRecord
from virtlet.cri import api_pb2 as cri
from virtlet.errors import InvalidArgument


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
        pods.stop_pod(self._context, _id(request.pod_sandbox_id))
        return cri.StopPodSandboxResponse()

    def remove(self, request: cri.RemovePodSandboxRequest) -> cri.RemovePodSandboxResponse:
        """RemovePodSandbox."""
        pods.remove_pod(self._context, _id(request.pod_sandbox_id))
        return cri.RemovePodSandboxResponse()

    def status(self, request: cri.PodSandboxStatusRequest) -> cri.PodSandboxStatusResponse | bytes:
        """PodSandboxStatus."""
        pod_id = _id(request.pod_sandbox_id)

        def make() -> cri.PodSandboxStatusResponse:
            return cri.PodSandboxStatusResponse(
                status=replies.pod_status(self._context.store.known_pod(pod_id)),
                containers_statuses=replies.vm_statuses(self._context.store.vms_of(pod_id)),
            )

        added = cri.PodSandboxStatusResponse(timestamp=replies.now())
        if request.verbose:
            added.info.update(replies.pod_info(self._context.store.known_pod(pod_id)))
        # Messages one after the other are one message with the fields of both.
        return self._statuses.reply(pod_id, make) + added.SerializeToString()

    def list(self, request: cri.ListPodSandboxRequest) -> cri.ListPodSandboxResponse | bytes:
        """ListPodSandbox."""
        if not request.filter.ByteSize():
            return self._listing.whole()
        return cri.ListPodSandboxResponse(items=self._items(request))

    def _items(
        self, request: cri.ListPodSandboxRequest | cri.StreamPodSandboxesRequest
    ) -> Sequence[cri.PodSandbox]:
        return self._listing.items(lambda record: _wanted(record, request.filter))


def _id(value: str) -> str:
    return requests.required_id(value, "pod sandbox")


def _wanted(record: PodRecord, wanted: cri.PodSandboxFilter) -> bool:
    if wanted.id and wanted.id != record.pod.id:
        return False
    if wanted.HasField("state") and wanted.state.state != replies.pod_state(record):
        return False
    return replies.labelled(record.pod.config.labels, wanted.label_selector)
