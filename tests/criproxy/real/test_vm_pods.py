"""A VM pod of Virtlet and an ordinary pod of containerd side by side through one proxy."""

from __future__ import annotations

import gzip
import signal
import struct
import subprocess
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import grpc
import pytest
from attrs import define, evolve

from tests.criproxy.fakes.command import ProxyProcess
from tests.criproxy.fakes.proxy import VM, Client
from tests.criproxy.load import Changes, ComingAndGoing, Load
from tests.criproxy.real import websocket
from tests.criproxy.real.containerd import Containerd
from tests.criproxy.real.events import LIFE, listening
from tests.criproxy.real.images import BUSYBOX
from tests.criproxy.real.node import Node
from tests.criproxy.real.sides import Pod, Side
from tests.e2e.conftest import TINY, make_manifest
from tests.e2e.conftest import Pod as VmPod
from tests.fakes.oci_images import container_disk
from tests.fakes.registry import docker_registry
from tests.polling import until
from virtlet.cli.client import CallFailed
from virtlet.cli.client import Client as PodClient
from virtlet.cli.playground import Playground
from virtlet.cri import api_pb2 as cri
from virtlet.host import netns

pytestmark = pytest.mark.e2e
FEDORA = "registry.test/vms/fedora:41"
_BOOT_SECONDS = 120.0


@define
class MixedNode:
    """Containerd, Virtlet, the proxy, and a pod of each, both started through the proxy."""

    virtlet: Playground
    containerd: Containerd
    proxy: ProxyProcess
    vm: VmPod
    ordinary: Pod


@pytest.fixture(scope="module")
def mixed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MixedNode]:
    """The node; its VM has booted.

    A name of containerd's images is one of a disk, too.
    """
    settings: dict[str, object] = {"handlers": {"virtlet": {}}}
    disk = tmp_path_factory.mktemp("images") / "disk.qcow2"
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", disk, "1M"], check=True)
    images = {"tiny": TINY, BUSYBOX.partition(":")[0]: disk}
    with Node() as node, Playground(images, settings=settings) as virtlet:
        containerd = Containerd(node, "a", 1).start()
        containerd.load_images()
        connect = f"containerd:{containerd.socket},{VM}:{virtlet.socket}"
        primary = Side(
            name="containerd",
            socket=containerd.socket,
            target="",
            image=BUSYBOX,
            cgroup_parent=f"{node.cgroup}/a",
            logs=containerd.dir / "logs",
            pid=node.pid,
            kill=containerd.kill,
            start=containerd.start,
        )
        listen = node.dir / "p.sock"
        state = str(node.dir / "s")
        with (
            ProxyProcess(listen, "--connect", connect, "--state-dir", state) as proxy,
            Client(listen) as client,
            PodClient(listen) as pods,
        ):
            ordinary = Pod(client, primary).start()
            vm = VmPod(virtlet, pods, make_manifest(virtlet)).up()
            vm.wait_for_answer()
            yield (mixed := MixedNode(virtlet, containerd, proxy, vm, ordinary))
            mixed.vm.down()
            ordinary.remove()
            assert virtlet.settled_leftovers() == []
            assert proxy.end(signal.SIGTERM) == 0
            assert "traceback" not in proxy.log.read_text()


@pytest.fixture
def fedora(mixed: MixedNode, tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """A registry that Virtlet reaches has the tiny guest's disk under this name."""
    directory = tmp_path_factory.mktemp("registry")
    registry, _, repository = FEDORA.partition("/")
    with ExitStack() as cleanup:

        def serve() -> None:
            address = cleanup.enter_context(docker_registry(directory / "registry"))
            # Packed, so that it is another image than the one that the other VM has.
            disk = container_disk(gzip.compress(TINY.read_bytes()), "disk/fedora.qcow2.gz")
            target = f"docker://{address}/{repository}"
            disk.push(directory / "layout", target, "--dest-tls-verify=false")
            hosts = mixed.virtlet.directory / "certs.d" / registry
            hosts.mkdir(parents=True)
            (hosts / "hosts.toml").write_text(f'server = "http://{address}"\n')

        netns.inside(mixed.virtlet.netns, serve)
        yield


@pytest.fixture
def client(mixed: MixedNode, connect: Callable[[Path | str], Client]) -> Client:
    """A client of the proxy."""
    return connect(mixed.proxy.listen)


def test_both_are_listed_with_the_names_their_users_gave(mixed: MixedNode, client: Client) -> None:
    assert client.pods() == {mixed.vm.id, mixed.ordinary.id}
    image = client.containers()[mixed.vm.vm].image
    assert (image.user_specified_image or image.image).removesuffix(":latest") == f"{VM}/tiny"
    tags = {t for i in client.image.ListImages(cri.ListImagesRequest()).images for t in i.repo_tags}
    assert BUSYBOX in tags
    assert any(tag.startswith(f"{VM}/tiny") for tag in tags)


def test_ids_as_crictl_prints_them_are_understood(mixed: MixedNode, client: Client) -> None:
    for sandbox, container in _pods(mixed).items():
        status = client.runtime.ContainerStatus(
            cri.ContainerStatusRequest(container_id=container[:13])
        ).status
        assert status.id == container
        listed = client.runtime.ListContainers(
            cri.ListContainersRequest(filter=cri.ContainerFilter(pod_sandbox_id=sandbox[:13]))
        ).containers
        assert [c.id for c in listed] == [container]
        # This containerd tells no image_id; its image_ref is one.
        image_id = status.image_id or status.image_ref
        short = image_id.removeprefix("sha256:")[:13]
        image = client.image.ImageStatus(
            cri.ImageStatusRequest(image=cri.ImageSpec(image=short))
        ).image
        assert image.id == image_id
    request = cri.ExecSyncRequest(container_id=mixed.vm.vm[:13], cmd=["echo", "vm"], timeout=60)
    assert client.runtime.ExecSync(request, timeout=_BOOT_SECONDS).stdout == b"vm\n"


def test_the_node_is_ready_and_says_so_for_each(client: Client) -> None:
    answer = client.runtime.Status(cri.StatusRequest())
    conditions = answer.status.conditions
    assert all(condition.status for condition in conditions)
    owners = {condition.reason.partition(":")[0] for condition in conditions}
    assert owners == {"containerd", VM}
    # This containerd lists none: a kubelet looks for "" where anybody lists any.
    assert answer.runtime_handlers[0].name == ""
    assert len({handler.name for handler in answer.runtime_handlers}) > 1


def test_both_log_and_answer(mixed: MixedNode) -> None:
    mixed.vm.wait_for_console("hello from the user-data")
    assert mixed.ordinary.exec("echo", "busybox").stdout == b"busybox\n"
    assert "hello" in mixed.ordinary.log


def test_commands_run_in_the_guest(mixed: MixedNode, client: Client) -> None:
    request = cri.ExecSyncRequest(
        container_id=mixed.vm.vm, cmd=["echo", "from the guest"], timeout=60
    )
    answer = client.runtime.ExecSync(request, timeout=_BOOT_SECONDS)
    assert answer.stdout == b"from the guest\n"
    stream_request = cri.ExecRequest(
        container_id=mixed.vm.vm, cmd=["sh", "-c", "echo streamed; exit 4"], stdout=True
    )
    url = client.runtime.Exec(stream_request, timeout=_BOOT_SECONDS).url
    stream = websocket.Stream(_network_of(mixed), url)
    received = stream.to_end()
    stream.close()
    assert received[websocket.STDOUT] == b"streamed\n"
    assert b'"4"' in received[websocket.ERROR]


def _network_of(mixed: MixedNode) -> int:
    """A process in the network where the manager's streaming server listens."""
    assert mixed.virtlet.process is not None
    return mixed.virtlet.process.pid


def test_attach_reaches_the_guests_console(mixed: MixedNode, client: Client) -> None:
    request = cri.AttachRequest(container_id=mixed.vm.vm, stdin=True, stdout=True, tty=True)
    stream = websocket.Stream(_network_of(mixed), client.runtime.Attach(request).url)
    stream.send(websocket.STDIN, b"\n")
    stream.until(websocket.STDOUT, b"login")
    stream.close()


def test_port_forward_reaches_the_guest(mixed: MixedNode, client: Client) -> None:
    request = cri.PortForwardRequest(pod_sandbox_id=mixed.vm.id, port=[80])
    url = client.runtime.PortForward(request).url
    # The kubelet's streaming library takes the ports of a WebSocket from the query.
    stream = websocket.Stream(_network_of(mixed), url + "?port=80")
    stream.send(0, b"GET / HTTP/1.0\r\n\r\n")
    answer = stream.until(0, b"HTTP/1.")
    stream.close()
    assert answer.startswith(struct.pack("<H", 80))


def test_statistics_come_from_both(mixed: MixedNode, client: Client) -> None:
    stats = client.runtime.ListContainerStats(cri.ListContainerStatsRequest()).stats
    used = {s.attributes.id: s.cpu.usage_core_nano_seconds.value for s in stats}
    assert set(used) == {mixed.vm.vm, mixed.ordinary.container}
    assert all(value > 0 for value in used.values())
    one = client.runtime.ContainerStats(cri.ContainerStatsRequest(container_id=mixed.vm.vm))
    assert one.stats.memory.working_set_bytes.value > 0


def test_metrics_of_vms_are_told_though_this_containerd_knows_no_metrics(
    mixed: MixedNode, client: Client
) -> None:
    told = client.runtime.ListMetricDescriptors(cri.ListMetricDescriptorsRequest()).descriptors
    assert "container_cpu_usage_seconds_total" in {d.name for d in told}
    metrics = client.runtime.ListPodSandboxMetrics(cri.ListPodSandboxMetricsRequest()).pod_metrics
    assert [m.pod_sandbox_id for m in metrics] == [mixed.vm.id]


def test_a_vm_that_cannot_start_leaves_the_ordinary_pod_alone(
    mixed: MixedNode, client: Client
) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        client.create(mixed.vm.id, image=f"{VM}/no-such-image", name="none")
    assert caught.value.code() != grpc.StatusCode.UNAVAILABLE
    assert mixed.ordinary.exec("true").exit_code == 0


def test_one_name_of_a_container_and_of_a_disk_stays_two_images(
    mixed: MixedNode, client: Client
) -> None:
    manifest = evolve(make_manifest(mixed.virtlet), handler="virtlet")
    del manifest.pod.annotations["kubernetes.io/target-runtime"]
    manifest.container.image.image = BUSYBOX
    # As of a kubelet that saw the pod at a moment of its own.
    manifest.pod.annotations["kubernetes.io/config.seen"] = "2026-11-27T10:07:19.442774995Z"
    nobodys = cri.ImageStatusRequest(image=cri.ImageSpec(image=BUSYBOX))
    ask = cri.ImageStatusRequest(image=manifest.image())
    theirs = client.image.ImageStatus(nobodys).image.id
    assert theirs
    pod = VmPod(mixed.virtlet, mixed.vm.client, manifest).run()
    try:
        assert not client.image.ImageStatus(ask).HasField("image")
        pod = pod.create()
        ours = client.image.ImageStatus(ask).image.id
        assert ours not in ("", theirs)
        assert client.image.ImageStatus(nobodys).image.id == theirs
        status = client.containers()[pod.vm]
        assert status.image_ref.endswith(f"@{ours}")
        assert status.image.image == f"{VM}/{BUSYBOX}"
        images = client.image.ListImages(cri.ListImagesRequest()).images
        tags = {i.id: list(i.repo_tags) for i in images}
        assert (tags[theirs], tags[ours]) == ([BUSYBOX], [f"{VM}/{BUSYBOX}"])
        again = Pod(client, mixed.ordinary.side).start()
        assert again.exec("echo", "a container").stdout == b"a container\n"
        again.remove()
    finally:
        pod.down()
    client.image.RemoveImage(cri.RemoveImageRequest(image=cri.ImageSpec(image=ours)))
    left = {i.id for i in client.image.ListImages(cri.ListImagesRequest()).images}
    assert theirs in left
    assert ours not in left
    mountpoints = {
        filesystem.fs_id.mountpoint
        for filesystem in client.image.ImageFsInfo(cri.ImageFsInfoRequest()).image_filesystems
    }
    assert len(mountpoints) == 2


def test_a_guest_boots_from_a_registrys_name_without_the_prefix_that_a_container_has_too(
    mixed: MixedNode, client: Client, fedora: None
) -> None:
    manifest = evolve(make_manifest(mixed.virtlet), handler="virtlet")
    del manifest.pod.annotations["kubernetes.io/target-runtime"]
    manifest.container.image.image = FEDORA
    manifest.pod.annotations["kubernetes.io/config.seen"] = "2026-11-27T10:09:31.118206554Z"
    nobodys, ask = cri.ImageSpec(image=FEDORA), manifest.image()

    def found(spec: cri.ImageSpec) -> str:
        answer = client.image.ImageStatus(cri.ImageStatusRequest(image=spec))
        return str(answer.image.id)

    assert (found(nobodys), found(ask)) == ("", "")
    pod = VmPod(mixed.virtlet, mixed.vm.client, manifest).up()
    try:
        ours = found(ask)
        # No other runtime has an image of the name yet: it is found for nobody in particular.
        assert ours == found(nobodys) != ""
        mixed.containerd.load_image(FEDORA, ["sleep", "1000"])
        until(lambda: found(nobodys) != ours)
        theirs = found(nobodys)
        assert found(ask) == ours
        container = Pod(client, evolve(mixed.ordinary.side, image=FEDORA)).start()
        assert container.exec("echo", "a container").stdout == b"a container\n"
        assert container.status().image_ref == theirs
        pod.wait_for_answer()
        assert client.containers()[pod.vm].image_id == ours
        container.remove()
    finally:
        pod.down()
    images = client.image.ListImages(cri.ListImagesRequest()).images
    tags = {image.id: list(image.repo_tags) for image in images}
    assert (tags[theirs], tags[ours]) == ([FEDORA], [f"{VM}/{FEDORA}"])
    remove = cri.RemoveImageRequest(image=nobodys)
    client.image.RemoveImage(remove)
    until(lambda: found(nobodys) == ours)
    client.image.RemoveImage(remove)
    assert found(nobodys) == ""


def test_every_step_of_a_vms_life_is_told(mixed: MixedNode, client: Client) -> None:
    with listening(mixed.proxy.listen) as heard:
        pod = VmPod(mixed.virtlet, mixed.vm.client, make_manifest(mixed.virtlet)).run().create()
        try:
            client.runtime.StartContainer(
                cri.StartContainerRequest(container_id=pod.vm), timeout=60
            )
            stop = cri.StopContainerRequest(container_id=pod.vm, timeout=0)
            client.runtime.StopContainer(stop, timeout=60)
            client.runtime.RemoveContainer(
                cri.RemoveContainerRequest(container_id=pod.vm), timeout=60
            )
            until(lambda: cri.CONTAINER_DELETED_EVENT in heard.of(pod.vm))
        finally:
            pod.down()
        assert heard.of(pod.vm) == list(LIFE)


def test_a_killed_proxy_comes_back_under_load_and_finds_the_vm_and_its_console(
    mixed: MixedNode,
) -> None:
    with (
        Load(mixed.proxy.listen, _pods(mixed), alone=False).running() as load,
        _changes(mixed).running() as changes,
    ):
        for _ in range(2):
            load.more()
            changes.more()
            mixed.proxy.end(signal.SIGKILL)
            mixed.proxy.start()
        load.more()
        changes.more()
    assert load.wrong == changes.wrong == []
    assert all(error.startswith("StatusCode.UNAVAILABLE") for error in load.errors)
    assert changes.codes <= {grpc.StatusCode.UNAVAILABLE}
    assert mixed.vm.status.state == cri.CONTAINER_RUNNING
    mixed.vm.wait_for_answer()


def test_containerd_killed_under_load_leaves_the_vm_alone_and_comes_back(
    mixed: MixedNode, client: Client
) -> None:
    side = mixed.ordinary.side
    with (
        Load(mixed.proxy.listen, _pods(mixed), alone=False).running() as load,
        _changes(mixed).running() as changes,
    ):
        load.more()
        changes.more()
        side.kill()
        until(lambda: bool(changes.codes))
        load.more()
        request = cri.ContainerStatusRequest(container_id=mixed.vm.vm)
        answer = client.runtime.ContainerStatus(request)
        assert answer.status.state == cri.CONTAINER_RUNNING
        mixed.vm.wait_for_answer()
        side.start()
        changes.more()
        load.more()
    assert load.wrong == changes.wrong == []
    assert load.errors == []
    # UNKNOWN is containerd's own word for what the kill left half done.
    assert changes.codes <= {grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.UNKNOWN}
    assert mixed.ordinary.status().state == cri.CONTAINER_RUNNING


def _pods(mixed: MixedNode) -> dict[str, str]:
    return {mixed.vm.id: mixed.vm.vm, mixed.ordinary.id: mixed.ordinary.container}


def _changes(mixed: MixedNode) -> Changes:
    return Changes(mixed.proxy.listen, mixed.ordinary, mixed.vm.vm)


def test_a_manager_killed_while_its_pods_change_loses_none_and_disturbs_no_ordinary_one(
    mixed: MixedNode,
) -> None:
    vms = ComingAndGoing(mixed.proxy.listen, lambda: make_manifest(mixed.virtlet))
    with (
        Changes(mixed.proxy.listen, mixed.ordinary).running() as ordinary,
        vms.running(),
    ):
        for _ in range(3):
            vms.more()
            ordinary.more()
            vms.codes.clear()
            mixed.virtlet.kill()
            until(lambda: bool(vms.codes))
            ordinary.more()
            mixed.virtlet.start()
        vms.more()
        ordinary.more()
    assert vms.wrong == []
    assert ordinary.wrong == []
    assert ordinary.codes == set()
    assert vms.codes <= {grpc.StatusCode.UNAVAILABLE}
    assert mixed.vm.status.state == cri.CONTAINER_RUNNING
    mixed.vm.wait_for_answer()


def test_a_checkpoint_is_taken_and_restored_by_the_pods_runtime(
    mixed: MixedNode, client: Client, tmp_path: Path
) -> None:
    """The module's VM goes on as the restored one. This containerd does neither."""
    vm, pods = mixed.vm, mixed.vm.client
    with pytest.raises(CallFailed) as caught:
        pods.checkpoint_pod(mixed.ordinary.id, [mixed.ordinary.container], str(tmp_path), 60)
    assert caught.value.code == grpc.StatusCode.UNIMPLEMENTED
    with pytest.raises(CallFailed) as caught:
        pods.restore_pod(str(tmp_path), mixed.ordinary.config, mixed.ordinary.container_config)
    assert caught.value.code == grpc.StatusCode.UNIMPLEMENTED
    vm.exec("sh", "-c", "echo kept >/run/kept")
    pods.checkpoint_pod(vm.id, [vm.vm], str(tmp_path), 120)
    vm.down()
    # As a kubelet has it: with the image's id and the name that its user gave.
    pod_id, vm_id = pods.restore_pod(str(tmp_path), vm.pod, vm.config())
    mixed.vm = vm = evolve(vm, id=pod_id, vm=vm_id)
    assert client.pods() == {vm.id, mixed.ordinary.id}
    image = client.containers()[vm.vm].image
    assert (image.user_specified_image or image.image).removesuffix(":latest") == f"{VM}/tiny"
    pods.start(vm.vm)
    assert vm.exec("cat", "/run/kept").stdout == "kept\n"
    # runc now and then loses the first process of a command on a loaded machine.
    done = until(lambda: mixed.ordinary.exec("true"), "a command", ignore=(grpc.RpcError,))
    assert done.exit_code == 0


def test_a_killed_manager_keeps_its_vm_listed_and_obeys_again(
    mixed: MixedNode, client: Client
) -> None:
    with listening(mixed.proxy.listen) as heard:
        _kill_the_manager(mixed)
        request = cri.StopContainerRequest(container_id=mixed.vm.vm, timeout=0)
        client.runtime.StopContainer(request, timeout=60)
        until(lambda: cri.CONTAINER_STOPPED_EVENT in heard.of(mixed.vm.vm))


def _kill_the_manager(mixed: MixedNode) -> None:
    with Load(mixed.proxy.listen, _pods(mixed)).running() as load:
        load.more()
        mixed.virtlet.kill()

        def refused() -> bool:
            try:
                mixed.vm.client.status(mixed.vm.vm)
            except CallFailed as error:
                return VM in str(error)
            return False

        until(refused, timeout=10)
        load.more()
        assert mixed.ordinary.exec("echo", "here").stdout == b"here\n"
        mixed.virtlet.start()
        until(lambda: not refused(), timeout=30)
        load.more()
    assert load.wrong == []
    assert load.errors == []
    assert mixed.vm.status.state == cri.CONTAINER_RUNNING
    mixed.vm.wait_for_answer()
