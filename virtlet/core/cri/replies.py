"""Our records as CRI messages: single replies, lists, and what is kept of them."""

import asyncio
import contextlib
import json
import time
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from typing import Any, Generic, TypeVar

from google.protobuf.message import Message

from virtlet.core.cri.calls import Call, CallKind
from virtlet.core.paths import pod_log
from virtlet.core.store.records import PodPhase, PodRecord, VmPhase, VmRecord
from virtlet.cri import api_pb2 as cri
from virtlet.errors import InvalidArgument
from virtlet.model.disk import Share
from virtlet.model.image import Image
from virtlet.model.pod import PodMetadata
from virtlet.model.reference import is_id, parse_reference
from virtlet.model.resources import Resources
from virtlet.model.vm import Mount, VmMetadata

_VM_STATES = {
    VmPhase.CREATING: cri.CONTAINER_CREATED,
    VmPhase.CREATED: cri.CONTAINER_CREATED,
    VmPhase.STARTING: cri.CONTAINER_CREATED,
    VmPhase.RUNNING: cri.CONTAINER_RUNNING,
    # Its kubelet would start another one in the place of one that has ended.
    VmPhase.HIBERNATED: cri.CONTAINER_RUNNING,
    VmPhase.EXITED: cri.CONTAINER_EXITED,
    # Its disks are going, it cannot run again.
    VmPhase.REMOVING: cri.CONTAINER_EXITED,
}


def pod_state(record: PodRecord) -> cri.PodSandboxState:
    """READY, or not."""
    ready = record.phase is PodPhase.READY
    return cri.SANDBOX_READY if ready else cri.SANDBOX_NOTREADY


def vm_state(record: VmRecord) -> cri.ContainerState:
    """A VM's state in CRI's words; a paused VM runs."""
    return _VM_STATES[record.phase]


def pod_item(record: PodRecord) -> cri.PodSandbox:
    """A pod in a list."""
    pod = record.pod
    return cri.PodSandbox(
        id=pod.id,
        metadata=_pod_metadata(pod.config.metadata),
        state=pod_state(record),
        created_at=pod.created_at,
        labels=pod.config.labels,
        annotations=pod.config.annotations,
        runtime_handler=pod.profile.handler,
    )


def pod_status(record: PodRecord) -> cri.PodSandboxStatus:
    """All there is to say of a pod."""
    pod = record.pod
    addresses = record.network.ips if record.network and pod_is_up(record) else ()
    return cri.PodSandboxStatus(
        id=pod.id,
        metadata=_pod_metadata(pod.config.metadata),
        state=pod_state(record),
        created_at=pod.created_at,
        network=cri.PodSandboxNetworkStatus(
            ip=addresses[0] if addresses else "",
            additional_ips=[cri.PodIP(ip=ip) for ip in addresses[1:]],
        ),
        linux=cri.LinuxPodSandboxStatus(
            namespaces=cri.Namespace(
                options=cri.NamespaceOption(
                    network=cri.NamespaceMode.POD,
                    pid=cri.NamespaceMode.POD,
                    ipc=cri.NamespaceMode.POD,
                )
            )
        ),
        labels=pod.config.labels,
        annotations=pod.config.annotations,
        runtime_handler=pod.profile.handler,
    )


def pod_is_up(record: PodRecord) -> bool:
    """Whether the pod's network is there."""
    return record.phase is PodPhase.READY


def pod_info(
    record: PodRecord, vms: Iterable[VmRecord], opened: Mapping[str, Mapping[str, bool]]
) -> dict[str, str]:
    """What `verbose` adds to a pod's status.

    Args:
        record: of the pod.
        vms: of its VMs; the shares of those that run are shown.
        opened: of VMs, as for `vm_info`.
    """
    network = record.network
    info = {
        "phase": record.phase.value,
        "plugins": list(record.pod.profile.plugins),
        "netns": str(network.netns) if network and network.netns else "",
        "interfaces": [
            {
                "name": nic.name,
                "mac": nic.mac,
                "mtu": nic.mtu,
                "addresses": list(nic.addresses),
                "kind": nic.kind,
                "device": nic.device,
            }
            for nic in (network.nics if network else ())
        ],
        "shares": [
            {"container": each.vm.id, **share}
            for each in vms
            if each.phase is VmPhase.RUNNING
            for share in _shares(each, opened.get(each.vm.id, {}))
        ],
    }
    return {"info": json.dumps(info)}


def vm_item(record: VmRecord) -> cri.Container:
    """A VM in a list."""
    vm = record.vm
    return cri.Container(
        id=vm.id,
        pod_sandbox_id=vm.pod.id,
        metadata=_vm_metadata(vm.config.metadata),
        image=_image_spec(record),
        image_ref=_image_ref(record),
        state=vm_state(record),
        created_at=vm.created_at,
        labels=vm.config.labels,
        annotations=vm.config.annotations,
        image_id=vm.image.id,
    )


def vm_statuses(records: Iterable[VmRecord]) -> list[cri.ContainerStatus]:
    """A pod's VMs as its status and its events list them: newest first.

    A kubelet with evented PLEG takes the first status of a name for the container's present one.
    """
    shown = [record for record in records if record.visible]
    shown.sort(key=lambda r: (r.vm.created_at, r.vm.config.metadata.attempt), reverse=True)
    return [vm_status(record) for record in shown]


def vm_status(record: VmRecord) -> cri.ContainerStatus:
    """All there is to say of a VM."""
    vm, ended = record.vm, record.exit
    log = str(pod_log(vm) or "")
    reason, message = (ended.reason, ended.message) if ended else ("", "")
    if record.paused:
        reason, message = "Paused", "the guest's CPUs are stopped"
    if record.phase is VmPhase.HIBERNATED:
        reason, message = "Hibernated", f"its memory is on disk: {record.state}"
    return cri.ContainerStatus(
        id=vm.id,
        metadata=_vm_metadata(vm.config.metadata),
        state=vm_state(record),
        created_at=vm.created_at,
        started_at=record.started_at,
        finished_at=ended.finished_at if ended else 0,
        exit_code=ended.exit_code if ended else 0,
        image=_image_spec(record),
        image_ref=_image_ref(record),
        reason=reason,
        message=message,
        labels=vm.config.labels,
        annotations=vm.config.annotations,
        mounts=[
            cri.Mount(
                container_path=mount.guest_path,
                host_path=mount.host_path,
                readonly=mount.readonly,
                propagation=mount.propagation,  # type: ignore[arg-type]
                image=_mounted_image(mount),
                image_sub_path=mount.image_sub_path,
            )
            for mount in vm.config.mounts
        ],
        log_path=log,
        resources=cri.ContainerResources(linux=_resources(record.resources)),
        image_id=vm.image.id,
    )


def vm_info(record: VmRecord, opened: Mapping[str, bool]) -> dict[str, str]:
    """What `verbose` adds to a VM's status; no document, no environment.

    Args:
        record: of the VM.
        opened: tags of its shares to whether the guest has mounted them, where that is known.
    """
    machine = record.machine
    info: dict[str, object] = {"phase": record.phase.value, "hypervisor": record.hypervisor}
    if machine:
        info |= {
            "vcpus": machine.flavor.vcpus,
            "memory": machine.flavor.memory,
            "accelerator": machine.accelerator,
            "rootDisk": str(machine.root.path),
            "console": str(machine.console.output),
            "shares": _shares(record, opened),
        }
    return {"info": json.dumps(info)}


def _shares(record: VmRecord, opened: Mapping[str, bool]) -> list[dict[str, object]]:
    return [
        {
            "guestPath": share.guest_path,
            "driver": share.driver,
            "tag": share.tag,
            "mounted": opened.get(share.tag),
        }
        for share in (record.machine.volumes if record.machine else ())
        if isinstance(share, Share)
    ]


def image_item(image: Image, *, pinned: bool) -> cri.Image:
    """An image in a list or status."""
    return cri.Image(
        id=image.id,
        repo_tags=image.names,
        repo_digests=image.digests,
        size=image.size,
        spec=cri.ImageSpec(image=image.id),
        pinned=pinned,
    )


def image_info(
    image: Image,
    handler: str | None,
    annotations: Mapping[str, str],
    pulls: Sequence[Mapping[str, object]],
) -> dict[str, str]:
    """What `verbose` adds to an image's status; with it, how far the pulls under way are."""
    info = {
        "format": image.format,
        "sourceFormat": image.source_format,
        "recognizedBy": image.recognized_by,
        "virtualSize": image.virtual_size,
        "path": str(image.path),
        "pulledAt": image.pulled_at,
        "pulledFor": handler,
        "annotations": dict(annotations),
        "pullsUnderWay": list(pulls),
    }
    return {"info": json.dumps(info)}


def pulls_info(pulls: Sequence[Mapping[str, object]]) -> dict[str, str]:
    """What `verbose` tells of an image that is not there: how far the pulls under way are."""
    return {"info": json.dumps({"pullsUnderWay": list(pulls)})}


def labelled(labels: Mapping[str, str], selector: Mapping[str, str]) -> bool:
    """Whether something carries all labels of a selector."""
    return all(labels.get(key) == value for key, value in selector.items())


def now() -> int:
    """Nanoseconds since the epoch."""
    return time.time_ns()


def _pod_metadata(meta: PodMetadata) -> cri.PodSandboxMetadata:
    return cri.PodSandboxMetadata(
        name=meta.name, uid=meta.uid, namespace=meta.namespace, attempt=meta.attempt
    )


def _vm_metadata(meta: VmMetadata) -> cri.ContainerMetadata:
    return cri.ContainerMetadata(name=meta.name, attempt=meta.attempt)


def _image_spec(record: VmRecord) -> cri.ImageSpec:
    """A VM's image by name: a kubelet shows it as the pod's, and creates VMs by id."""
    config, names = record.vm.config, record.vm.image.names
    asked = "" if is_id(config.image) else config.image
    name = config.user_image or asked or (names[0] if names else config.image)
    return cri.ImageSpec(image=name, user_specified_image=config.user_image)


def _mounted_image(mount: Mount) -> cri.ImageSpec | None:
    if not mount.image:
        return None
    return cri.ImageSpec(image=mount.image, user_specified_image=mount.user_image)


def _image_ref(record: VmRecord) -> str:
    """The image with its digest, of its names the one that the pod has."""
    image = record.vm.image
    with contextlib.suppress(InvalidArgument):
        asked = parse_reference(record.vm.config.user_image or record.vm.config.image)
        for digest in image.digests:
            if parse_reference(digest).name == asked.name:
                return digest
    return image.digests[0] if image.digests else image.id


def _resources(value: Resources) -> cri.LinuxContainerResources:
    """What a VM may use, of what holds for VMs: swap and `unified` are for processes' cgroups."""
    return cri.LinuxContainerResources(
        cpu_period=value.cpu_period,
        cpu_quota=value.cpu_quota,
        cpu_shares=value.cpu_shares,
        memory_limit_in_bytes=value.memory_limit,
        oom_score_adj=value.oom_score_adj,
        cpuset_cpus=value.cpuset_cpus,
        cpuset_mems=value.cpuset_mems,
        hugepage_limits=[
            cri.HugepageLimit(page_size=size, limit=limit)
            for size, limit in value.hugepage_limits.items()
        ],
    )


# Lists, and replies that are kept until a record changes.

Record = TypeVar("Record")
Item = TypeVar("Item", bound=Message)
PORTION = 100
"""Items of one message."""


class ReplyCache:
    """Serialised replies by what they are about. Used on the event loop alone.

    Args:
        version: changes whenever a record does; no reply may depend on anything else.
    """

    def __init__(self, version: Callable[[], int]) -> None:
        self._version = version
        self._made: tuple[int, dict[str, bytes]] = (-1, {})

    def reply(self, key: str, make: Callable[[], Message]) -> bytes:
        """The reply about `key`.

        Args:
            key: an id.
            make: called when there is none since the last change. It looks the records up itself:
                what was looked up before may be older than the version.
        """
        # Asked first: a change in between makes the bytes newer than their number, never older.
        version = self._version()
        if self._made[0] != version:
            self._made = (version, {})
        known = self._made[1]
        if key not in known:
            known[key] = make().SerializeToString()
        return known[key]


class Listing(Generic[Record, Item]):
    """Records as list items.

    Args:
        records: the records by id, now; the same mapping's values are the same objects.
        version: changes whenever a record does.
        item: a record as a list item.
        visible: whether a record is listed at all.
        reply: a list of items as the reply.
    """

    def __init__(
        self,
        records: Callable[[], Mapping[str, Record]],
        version: Callable[[], int],
        item: Callable[[Record], Item],
        visible: Callable[[Record], bool],
        reply: Callable[[list[Item]], Message],
    ) -> None:
        self._records = records
        self._version = version
        self._item = item
        self._visible = visible
        self._reply = reply
        self._made: dict[str, tuple[Record, Item]] = {}
        self._whole: tuple[int, bytes] = (-1, b"")

    def whole(self) -> bytes:
        """The reply with everything, serialised."""
        # Asked first: a change in between makes the bytes newer than their number, never older.
        version = self._version()
        if self._whole[0] != version:
            items = self.items(lambda record: True)
            self._whole = (version, self._reply(items).SerializeToString())
        return self._whole[1]

    def items(self, wanted: Callable[[Record], bool]) -> list[Item]:
        """The items of the records that are wanted."""
        records = self._records()
        if len(self._made) > 2 * len(records) + 100:
            self._made = {key: made for key, made in self._made.items() if key in records}
        return list(self._items(records, wanted))

    def _items(
        self, records: Mapping[str, Record], wanted: Callable[[Record], bool]
    ) -> Iterable[Item]:
        for key, record in records.items():
            if not self._visible(record) or not wanted(record):
                continue
            made = self._made.get(key)
            if made is None or made[0] is not record:
                made = self._made[key] = (record, self._item(record))
            yield made[1]


def streamed(
    name: str,
    kind: CallKind,
    items: Callable[[Any], Sequence[Any]],
    reply: Callable[[list[Any]], Any],
) -> Call:
    """The streamed form of a list call.

    Args:
        name: `Service.Method` of the streamed call; its request has the fields of the unary one.
        kind: where the unary call is answered.
        items: what a request lists.
        reply: makes a message of a portion of it.
    """

    async def stream(request: Any) -> AsyncIterator[Any]:
        if kind is CallKind.READ:
            found = list(items(request))
        else:
            found = list(await asyncio.to_thread(items, request))
        for start in range(0, len(found), PORTION):
            yield reply(found[start : start + PORTION])

    return Call(name, CallKind.STREAM, stream)
