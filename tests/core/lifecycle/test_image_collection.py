"""The kubelet's garbage collection of images: its calls in their order, as pkg/kubelet/images makes
them (image_gc_manager.go). What it asks for is recorded of a kubelet, but for removals."""

from pathlib import Path
from typing import Any

import pytest
from attrs import evolve

from tests.fakes.kubelet import recorded
from tests.fakes.manager import Manager
from tests.images.conftest import put
from tests.images.disks import recognize
from virtlet.core.cri.image_calls import ImageCalls
from virtlet.core.cri.lifecycle_calls import ContainerCalls
from virtlet.core.lifecycle import pods, vms
from virtlet.cri import api_pb2 as cri
from virtlet.images.image_store import ImageStore
from virtlet.images.layout import Layout
from virtlet.images.pull import Images
from virtlet.model.disk import Share
from virtlet.model.pod import PodConfig, PodMetadata
from virtlet.model.reference import parse_reference
from virtlet.model.vm import Mount, VmConfig, VmMetadata


def _request(method: str) -> Any:
    """The request of a stock kubelet that asks for all there is."""
    whole = [each.message for each in recorded(method) if not each.gates]
    return min(whole, key=lambda message: len(message.SerializeToString()))


class Kubelet:
    """Looks at images as a kubelet does, and remembers what was in use when."""

    def __init__(self, manager: Manager) -> None:
        self.manager = manager
        self.calls = ImageCalls(manager.context)

    def used_bytes(self) -> int:
        (images,) = self.calls.fs_info(_request("ImageFsInfo")).image_filesystems
        return int(images.used_bytes.value)

    def listed(self) -> dict[str, cri.Image]:
        images = self.calls.list(_request("ListImages")).images
        return {image.id: image for image in images}

    def collect(self, bytes_to_free: int) -> int:
        """Remove unused images, the least recently used first, until enough is said to be free."""
        listed = ContainerCalls(self.manager.context).list(_request("ListContainers"))
        assert isinstance(listed, bytes)
        vms_of_now = cri.ListContainersResponse.FromString(listed).containers
        in_use = {each.image_id for each in vms_of_now}
        # Images that are volumes are in use too: each container is asked for its mounts.
        for each in vms_of_now:
            request = _request("ContainerStatus")
            request.container_id = each.id
            status = ContainerCalls(self.manager.context).status(request)
            assert isinstance(status, bytes)
            mounts = cri.ContainerStatusResponse.FromString(status).status.mounts
            in_use |= {mount.image.image for mount in mounts if mount.HasField("image")}
        freed = 0
        for image in self.listed().values():
            if freed >= bytes_to_free:
                break
            if image.id in in_use or image.pinned:
                continue
            spec = cri.ImageSpec(image=image.id)
            self.calls.remove(cri.RemoveImageRequest(image=spec))
            freed += image.size
        return freed


@pytest.fixture
def kubelet(manager: Manager) -> Kubelet:
    return Kubelet(manager)


def _vm(manager: Manager, image: str, mounts: tuple[Mount, ...] = ()) -> str:
    metadata = PodMetadata(name="web", uid="uid-web", namespace="default")
    logs = str(manager.context.node.data_dir / "logs")
    pod = pods.run_pod(manager.context, PodConfig(metadata=metadata, log_directory=logs), "")
    config = VmConfig(
        metadata=VmMetadata(name="guest"), image=image, user_image="used:v1", mounts=mounts
    )
    return vms.create_vm(manager.context, pod, config)


def test_collection_frees_what_it_counts_and_leaves_what_vms_use(
    manager: Manager, kubelet: Kubelet
) -> None:
    store = manager.context.images.store
    used, idle = (put(store, name, name) for name in ("used:v1", "idle"))
    for name in ("tagged:v1", "tagged:v2"):
        put(store, name, "tagged")
    vm = _vm(manager, used)
    before = kubelet.used_bytes()
    size = kubelet.listed()[idle].size
    # By id, an image goes with all its names.
    assert kubelet.collect(1 << 40) == 2 * size
    assert kubelet.listed().keys() == {used}
    assert before - kubelet.used_bytes() >= 2 * size
    assert store.get(parse_reference("tagged:v2")) is None
    vms.remove_vm(manager.context, vm)
    kubelet.collect(1)
    assert kubelet.listed() == {}
    assert not list((manager.context.node.data_dir / "images" / "data").iterdir())


def test_collection_leaves_images_that_are_volumes(
    manager: Manager, kubelet: Kubelet, tmp_path: Path
) -> None:
    store = manager.context.images.store
    used, volume, _ = (put(store, name, name) for name in ("used:v1", "site:v1", "idle:v1"))
    manager.node.share = Share(
        host_path=tmp_path, guest_path="/site", readonly=True, tag="volume-0", driver="9p"
    )
    mount = Mount(guest_path="/site", host_path="", image=volume, user_image="site:v1")
    vm = _vm(manager, used, (mount,))
    kubelet.collect(1 << 40)
    assert kubelet.listed().keys() == {used, volume}
    vms.remove_vm(manager.context, vm)
    kubelet.collect(1 << 40)
    assert kubelet.listed() == {}


def test_collection_stops_when_it_has_freed_enough(manager: Manager, kubelet: Kubelet) -> None:
    store = manager.context.images.store
    oldest, newest = put(store, "oldest", "a"), put(store, "newest", "b")
    assert kubelet.collect(1) == 64 * 1024
    assert kubelet.listed().keys() == {newest}
    assert store.get(parse_reference(oldest)) is None


def test_collection_leaves_pinned_images(manager: Manager, kubelet: Kubelet) -> None:
    layout = Layout(manager.context.node.data_dir / "pinned", 0)
    pinned = ("fedora:*", "virtlet.cloud/golden/*", "exact:v1", "whole")
    store = ImageStore(layout, in_use=set, recognize=recognize, pinned=pinned)
    kubelet.calls = ImageCalls(evolve(manager.context, images=Images(store)))
    stay = ("virtlet.cloud/fedora:41", "golden/a", "virtlet.cloud/exact:v1", "whole:v3")
    for name in (*stay, "fedora-extra", "exact:v2", "other/golden/a", "wholes"):
        put(store, name, name)
    kubelet.collect(1 << 40)
    left = kubelet.listed().values()
    assert {name for image in left for name in image.repo_tags} == {*stay, "golden/a:latest"} - {
        "golden/a"
    }
    # An operator removes them as any other.
    store.remove(parse_reference("exact:v1"))
    assert len(kubelet.listed()) == 3
