"""The CSI driver, called as a kubelet calls it: what csi-sanity checks of a node."""

import json
import re
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest

from tests.fakes.model import POD_UID, make_vm
from tests.plugins.volumes.conftest import configured
from tests.polling import serves, until
from virtlet.cli.csi import serving
from virtlet.cri.csi import csi_pb2 as csi
from virtlet.cri.csi import registration_pb2 as registration
from virtlet.host.files import remove_tree
from virtlet.model.disk import Disk, Volume
from virtlet.model.vm import Mount, VolumeRequest

ROOT = Path(__file__).parents[2]
UNIT = ROOT / "deploy/csi/virtlet-csi.service"
EPHEMERAL = {"csi.storage.k8s.io/ephemeral": "true", "csi.storage.k8s.io/pod.name": "web-1"}
MOUNTED = csi.VolumeCapability(
    mount=csi.VolumeCapability.MountVolume(),
    access_mode=csi.VolumeCapability.AccessMode(mode=1),
)


@pytest.fixture
def sockets(tmp_path: Path) -> Iterator[tuple[Path, Path]]:
    """Of a driver that serves: its own, and the registration's."""
    pair = tmp_path / "plugins/csi.sock", tmp_path / "registry/virtlet.cloud-reg.sock"
    with serving(*pair, "node-1"):
        yield pair


@pytest.fixture
def driver(sockets: tuple[Path, Path]) -> Iterator[Any]:
    with grpc.insecure_channel(f"unix:{sockets[0]}") as channel:
        yield channel


class Service:
    """The calls of one service, by their names."""

    def __init__(self, channel: Any, name: str, messages: Any) -> None:
        self._channel, self._name, self._messages = channel, name, messages

    def __getattr__(self, call: str) -> Any:
        answers = {
            "GetInfo": "PluginInfo",
            "NotifyRegistrationStatus": "RegistrationStatusResponse",
        }
        answer = getattr(self._messages, answers.get(call, f"{call}Response"))
        return self._channel.unary_unary(
            f"/{self._name}/{call}",
            request_serializer=lambda message: message.SerializeToString(),
            response_deserializer=answer.FromString,
        )


@pytest.fixture
def node(driver: Any) -> Service:
    return Service(driver, "csi.v1.Node", csi)


@pytest.fixture
def target(tmp_path: Path) -> Iterator[Path]:
    """Where a kubelet wants the volume; it has written above whose it is."""
    path = tmp_path / "pods" / POD_UID / "volumes/kubernetes.io~csi/scratch/mount"
    path.parent.mkdir(parents=True)
    (path.parent / "vol_data.json").write_text('{"driverName": "virtlet.cloud"}')
    yield path
    remove_tree(path)


def publish(target: Path, **changes: Any) -> csi.NodePublishVolumeRequest:
    attributes = changes.pop("attributes", {"size": "20Mi"})
    fields: dict[str, Any] = {
        "volume_id": "csi-0a1b",
        "target_path": str(target),
        "volume_capability": MOUNTED,
        "volume_context": {**EPHEMERAL, **attributes},
    }
    return csi.NodePublishVolumeRequest(**{**fields, **changes})


def unpublish(target: Path | str, volume_id: str = "csi-0a1b") -> csi.NodeUnpublishVolumeRequest:
    return csi.NodeUnpublishVolumeRequest(volume_id=volume_id, target_path=str(target))


def refused(call: Any, request: Any) -> tuple[grpc.StatusCode, str]:
    with pytest.raises(grpc.RpcError) as caught:
        call(request, timeout=20)
    error: Any = caught.value
    return error.code(), error.details()


def serve(root: Path, target: Path) -> Volume | None:
    """What the volume becomes in a VM."""
    directory = root / "data/volumes/vm"
    directory.mkdir(parents=True, exist_ok=True)
    mount = Mount(guest_path="/scratch", host_path=str(target))
    plugin = configured(root, root / "pods")
    return plugin.virtlet_volume(make_vm(directory), VolumeRequest(role="volume-2", source=mount))


def test_a_kubelet_registers_the_driver(sockets: tuple[Path, Path]) -> None:
    for path in sockets:
        assert stat.S_IMODE(path.stat().st_mode) & 0o077 == 0
    with grpc.insecure_channel(f"unix:{sockets[1]}") as channel:
        stub = Service(channel, "pluginregistration.Registration", registration)
        info = stub.GetInfo(registration.InfoRequest(), timeout=20)
        assert (info.type, info.name) == ("CSIPlugin", "virtlet.cloud")
        assert (info.endpoint, list(info.supported_versions)) == (str(sockets[0]), ["1.0.0"])
        status = registration.RegistrationStatus(plugin_registered=True)
        stub.NotifyRegistrationStatus(status, timeout=20)


def test_it_ends_without_its_sockets(tmp_path: Path) -> None:
    """And starts where another one left its own."""
    pair = tmp_path / "csi.sock", tmp_path / "reg.sock"
    pair[0].touch()
    with serving(*pair, "node-1"):
        assert all(path.is_socket() for path in pair)
    assert not any(path.exists() for path in pair)


def test_it_says_who_it_is_and_what_it_can_do(driver: Any, node: Any) -> None:
    identity = Service(driver, "csi.v1.Identity", csi)
    info = identity.GetPluginInfo(csi.GetPluginInfoRequest(), timeout=20)
    assert re.fullmatch(r"[a-z0-9]([-a-z0-9.]{0,61}[a-z0-9])?", info.name)
    assert info.vendor_version
    assert identity.Probe(csi.ProbeRequest(), timeout=20).ready.value
    identity.GetPluginCapabilities(csi.GetPluginCapabilitiesRequest(), timeout=20)
    assert node.NodeGetInfo(csi.NodeGetInfoRequest(), timeout=20).node_id == "node-1"
    node.NodeGetCapabilities(csi.NodeGetCapabilitiesRequest(), timeout=20)


@pytest.mark.parametrize("call", ["NodeStageVolume", "NodeGetVolumeStats", "NodeExpandVolume"])
def test_what_it_does_not_serve_is_unimplemented(driver: Any, call: str) -> None:
    method = driver.unary_unary(f"/csi.v1.Node/{call}")
    assert refused(method, b"")[0] is grpc.StatusCode.UNIMPLEMENTED


def test_a_volume_becomes_a_disk_of_the_vm(node: Any, target: Path, tmp_path: Path) -> None:
    """Every call may come again."""
    for _ in range(2):
        node.NodePublishVolume(publish(target), timeout=20)
    assert target.is_mount()
    file = target / "virtlet-flexvolume.json"
    assert json.loads(file.read_text()) == {"type": "qcow2", "capacity": "20971520B"}
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    disk = serve(tmp_path, target)
    assert isinstance(disk, Disk)
    assert (disk.guest_path, disk.filesystem, disk.path.stat().st_size) == (
        "/scratch",
        True,
        20 << 20,
    )
    for _ in range(2):
        node.NodeUnpublishVolume(unpublish(target), timeout=20)
        assert not target.exists()


def test_a_device_of_the_node_is_had_if_the_manager_gives_it_away(
    node: Any, target: Path, tmp_path: Path
) -> None:
    attributes = {"type": "raw", "path": "/dev/loop0"}
    node.NodePublishVolume(publish(target, attributes=attributes), timeout=20)
    disk = serve(tmp_path, target)
    assert isinstance(disk, Disk)
    assert disk.block


def test_a_volume_of_another_driver_is_shared(node: Any, target: Path, tmp_path: Path) -> None:
    """Whatever files are in it."""
    node.NodePublishVolume(publish(target), timeout=20)
    target.chmod(0o755)
    (target.parent / "vol_data.json").write_text('{"driverName": "other.example"}')
    share = serve(tmp_path, target)
    assert not isinstance(share, Disk)
    remove_tree(tmp_path / "data/volumes/vm")


def test_a_volume_that_is_there_with_other_attributes_is_left_alone(
    node: Any, target: Path
) -> None:
    node.NodePublishVolume(publish(target), timeout=20)
    other = publish(target, attributes={"size": "1Gi"})
    assert refused(node.NodePublishVolume, other)[0] is grpc.StatusCode.ALREADY_EXISTS


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"volume_id": ""}, "volume_id is missing"),
        ({"target_path": ""}, "target_path is missing"),
        ({"target_path": "/x/../y"}, "target_path is missing, or no absolute path"),
        ({"volume_capability": None}, "volume_capability is missing"),
        (
            {"volume_capability": csi.VolumeCapability(block=csi.VolumeCapability.BlockVolume())},
            "volumeMode Filesystem",
        ),
        ({"volume_context": {}}, "only inline volumes are served"),
        ({"attributes": {"size": "0"}}, "capacity: 0 bytes is not between"),
        ({"attributes": {"size": "much"}}, "size: 'much' is no quantity"),
        ({"attributes": {"type": "nfs"}}, "type 'nfs' is none of"),
        ({"attributes": {"type": "ceph", "secret": "hunter2"}}, "option user is ''"),
        ({"attributes": {"secret": "hunter2"}}, "type qcow2 has no option 'secret'"),
        ({"attributes": {"type": "raw"}}, "option path is not the absolute path"),
    ],
)
def test_a_request_that_is_wrong_is_refused_and_leaves_nothing(
    node: Any, target: Path, changes: dict[str, Any], problem: str
) -> None:
    code, details = refused(node.NodePublishVolume, publish(target, **changes))
    assert code is grpc.StatusCode.INVALID_ARGUMENT
    assert problem in details
    assert "hunter2" not in details
    assert not target.exists()


@pytest.mark.parametrize(("volume_id", "path"), [("", "/x"), ("csi-1", "")])
def test_taking_away_needs_to_know_what(node: Any, volume_id: str, path: str) -> None:
    request = unpublish(path, volume_id)
    assert refused(node.NodeUnpublishVolume, request)[0] is grpc.StatusCode.INVALID_ARGUMENT


def test_what_is_in_the_place_of_a_volume_is_not_removed(node: Any, target: Path) -> None:
    target.mkdir()
    (target / "file").touch()
    assert refused(node.NodeUnpublishVolume, unpublish(target))[0] is grpc.StatusCode.INTERNAL
    assert (target / "file").exists()


def test_the_command_serves_until_it_is_ended(tmp_path: Path, target: Path) -> None:
    """Within what its unit allows."""
    pair = tmp_path / "csi.sock", tmp_path / "reg.sock"
    command = [sys.executable, str(ROOT / "tests/confined.py"), str(UNIT)]
    command += [sys.executable, "-m", "virtlet.cli.main", "csi", "--node", "n"]
    command += ["--socket", str(pair[0]), "--registration", str(pair[1])]
    with subprocess.Popen(command) as process:
        try:
            until(lambda: all(map(serves, pair)), "the driver's sockets")
            with grpc.insecure_channel(f"unix:{pair[0]}") as channel:
                node = Service(channel, "csi.v1.Node", csi)
                info = node.NodeGetInfo(csi.NodeGetInfoRequest(), timeout=20, wait_for_ready=True)
                assert info.node_id == "n"
                node.NodePublishVolume(publish(target), timeout=20)
                assert target.is_mount()
                node.NodeUnpublishVolume(unpublish(target), timeout=20)
                assert not target.exists()
        finally:
            process.terminate()
        assert process.wait(30) == 0
    assert not any(path.exists() for path in pair)
