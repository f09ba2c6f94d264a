import os
import socket
import stat
import struct
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from attrs import evolve

from tests.fakes.model import make_pod, make_vm
from tests.plugins.volumes.conftest import EMULATOR, configured
from virtlet.errors import FailedPrecondition, InvalidArgument
from virtlet.host.mounts import at_or_below
from virtlet.model.disk import Disk, GuestFiles, Share, Unneeded, Volume
from virtlet.model.vm import Device, Mount, VolumeRequest
from virtlet.plugins.volumes.plugin import Plugin

OVER_9P = {"VirtletShareDriver": "9p"}


def serve(
    plugin: Plugin,
    source: Mount | Device,
    annotations: dict[str, str] | None = None,
    directory: Path = Path("/nonexistent"),
) -> Volume | None:
    vm = make_vm(directory, make_pod(annotations))
    return plugin.virtlet_volume(vm, VolumeRequest(role="volume-3", source=source))


def release(plugin: Plugin, directory: Path) -> None:
    """Undo `serve`, whatever it served; only the role tells."""
    source = Mount(guest_path="/data", host_path="/srv")
    plugin.virtlet_release_volume(make_vm(directory), VolumeRequest(role="volume-3", source=source))


@pytest.fixture
def nodev(tmp_path: Path) -> Iterator[Path]:
    """A file system on which device nodes mean nothing."""
    path = tmp_path / "nodev"
    path.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "nodev,size=64k", "none", path], check=True)
    yield path
    subprocess.run(["umount", path], check=True)


def test_what_a_kubelet_always_mounts_is_served(plugin: Plugin, pod_dir: Path) -> None:
    token = pod_dir / "volumes/kubernetes.io~projected/kube-api-access-x7k2p"
    hosts, log = pod_dir / "etc-hosts", pod_dir / "containers/vm/1a2b3c4d"
    account = "/var/run/secrets/kubernetes.io/serviceaccount"
    assert serve(
        plugin, Mount(guest_path=account, host_path=str(token), readonly=True)
    ) == GuestFiles(host_path=token, guest_path=account, mode=None)
    assert serve(plugin, Mount(guest_path="/etc/hosts", host_path=str(hosts))) == GuestFiles(
        host_path=hosts, guest_path="/etc/hosts", mode=None
    )
    unneeded = serve(plugin, Mount(guest_path="/dev/termination-log", host_path=str(log)))
    assert isinstance(unneeded, Unneeded)
    assert unneeded.guest_path == "/dev/termination-log"
    assert "termination message" in unneeded.reason


@pytest.mark.parametrize("kind", ["configmap", "downward-api", "secret", "projected"])
def test_configuration_becomes_files_of_the_mode_that_the_kubelet_gave_them(
    plugin: Plugin, pod_dir: Path, kind: str
) -> None:
    path = pod_dir / f"volumes/kubernetes.io~{kind}/settings"
    assert serve(plugin, Mount(guest_path="/etc/app", host_path=str(path))) == GuestFiles(
        host_path=path, guest_path="/etc/app", mode=None
    )


@pytest.mark.parametrize("readonly", [True, False])
def test_a_directory_is_shared_by_a_place_that_the_emulator_can_pass(
    plugin: Plugin, pod_dir: Path, vm_dir: Path, readonly: bool
) -> None:
    cache = pod_dir / "volumes/kubernetes.io~empty-dir/cache"
    cache.mkdir(parents=True)
    cache.chmod(0o777)
    (cache / "file").write_text("x")
    mount = Mount(guest_path="/cache", host_path=str(cache), readonly=readonly)
    assert serve(plugin, mount, directory=vm_dir) == Share(
        host_path=vm_dir / "volume-3",
        guest_path="/cache",
        tag="volume-3",
        readonly=readonly,
        driver="virtiofs",
    )
    assert (vm_dir / "volume-3/file").read_text() == "x"
    assert os.access(vm_dir / "volume-3", os.W_OK) is not readonly
    assert stat.S_IMODE((vm_dir / "volume-3").stat().st_mode) == 0o777


def test_what_a_vm_has_of_a_shared_directory_goes_and_the_directory_stays(
    plugin: Plugin, pod_dir: Path, vm_dir: Path
) -> None:
    cache = pod_dir / "volumes/kubernetes.io~empty-dir/cache"
    cache.mkdir(parents=True)
    (cache / "file").write_text("x")
    serve(plugin, Mount(guest_path="/cache", host_path=str(cache)), directory=vm_dir)
    for _ in range(2):
        release(plugin, vm_dir)
        assert list(vm_dir.iterdir()) == []
    assert (cache / "file").read_text() == "x"


def test_a_place_that_is_taken_is_no_way_into_another(
    plugin: Plugin, tmp_path: Path, vm_dir: Path
) -> None:
    """The VM's directory belongs to the emulator's user."""
    elsewhere, data = tmp_path / "elsewhere", tmp_path / "srv"
    elsewhere.mkdir()
    data.mkdir()
    (data / "file").write_text("x")
    (vm_dir / "volume-3").symlink_to(elsewhere)
    with pytest.raises(FailedPrecondition, match=r"mount /data: .*volume-3 as well \(File exists"):
        serve(plugin, Mount(guest_path="/data", host_path=str(data)), directory=vm_dir)
    release(plugin, vm_dir)
    assert list(vm_dir.iterdir()) == []
    assert list(elsewhere.iterdir()) == []


@pytest.mark.parametrize("propagation", [0, 1])
def test_a_directory_of_the_node_that_holds_our_own_is_shared_without_what_is_mounted_inside(
    plugin: Plugin, tmp_path: Path, vm_dir: Path, nodev: Path, propagation: int
) -> None:
    """Else each VM would have the shares of all others a second time."""
    (nodev / "file").write_text("x")
    tmp_path.chmod(0o755)
    mount = Mount(guest_path="/data", host_path=str(tmp_path), propagation=propagation)
    share = serve(plugin, mount, directory=vm_dir)
    assert isinstance(share, Share)
    assert share == Share(
        host_path=vm_dir / "volume-3",
        guest_path="/data",
        tag="volume-3",
        readonly=False,
        driver="9p",
    )
    assert (share.host_path / nodev.name).is_dir()
    assert list((share.host_path / nodev.name).iterdir()) == []
    (tmp_path / "data/later").mkdir()
    subprocess.run(["mount", "--bind", nodev, tmp_path / "data/later"], check=True)
    assert at_or_below(share.host_path) == [share.host_path]
    subprocess.run(["umount", tmp_path / "data/later"], check=True)


def test_a_directory_holds_our_own_under_another_name_too(
    plugin: Plugin,
    tmp_path: Path,
    vm_dir: Path,
    nodev: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    tmp_path.chmod(0o755)
    alias = tmp_path_factory.mktemp("alias")
    subprocess.run(["mount", "--rbind", tmp_path, alias], check=True)
    assert at_or_below(alias) == [alias, alias / nodev.name]
    share = serve(plugin, Mount(guest_path="/data", host_path=str(alias)), directory=vm_dir)
    subprocess.run(["umount", "--recursive", alias], check=True)
    assert isinstance(share, Share)
    assert at_or_below(share.host_path) == [share.host_path]


@pytest.mark.parametrize("inside", ["", "volumes", "volumes/vm"])
@pytest.mark.parametrize("place", ["data", "linked", "bound"])
def test_our_own_directory_is_shared_with_no_vm_under_whatever_name(
    plugin: Plugin, tmp_path: Path, vm_dir: Path, inside: str, place: str
) -> None:
    (tmp_path / "linked").symlink_to(tmp_path / "data")
    (tmp_path / "bound").mkdir()
    subprocess.run(["mount", "--bind", tmp_path / "data", tmp_path / "bound"], check=True)
    mount = Mount(guest_path="/data", host_path=str(tmp_path / place / inside))
    with pytest.raises(InvalidArgument, match=r"mount /data: .* data directory .* outside it"):
        serve(plugin, mount, directory=vm_dir)
    subprocess.run(["umount", tmp_path / "bound"], check=True)
    assert list(vm_dir.iterdir()) == []


@pytest.mark.parametrize(
    ("holds_a_mount", "propagation", "annotations", "driver"),
    [
        (False, 0, {}, "virtiofs"),
        (False, 1, {}, "9p"),
        (True, 0, {}, "9p"),
        (True, 1, {"VirtletShareDriver": "virtiofs"}, "virtiofs"),
        (False, 0, OVER_9P, "9p"),
    ],
)
def test_what_follows_the_nodes_mounts_is_shared_so_that_they_can_be_unmounted(
    plugin: Plugin,
    nodev: Path,
    vm_dir: Path,
    holds_a_mount: bool,
    propagation: int,
    annotations: dict[str, str],
    driver: str,
) -> None:
    """virtiofsd would keep them busy as long as the guest remembers a file of theirs."""
    data = nodev / "data"
    data.mkdir()
    if holds_a_mount:
        (data / "inner").mkdir()
        subprocess.run(["mount", "--bind", data, data / "inner"], check=True)
    mount = Mount(guest_path="/data", host_path=str(data), propagation=propagation)
    share = serve(plugin, mount, annotations, directory=vm_dir)
    assert isinstance(share, Share)
    assert share.driver == driver
    release(plugin, vm_dir)
    if holds_a_mount:
        subprocess.run(["umount", data / "inner"], check=True)


@pytest.mark.parametrize(
    ("said", "flavor", "annotations", "driver"),
    [
        ("9p", {}, {}, "9p"),
        ("9p", {"share_driver": "virtiofs"}, {}, "9p"),
        ("9p", {}, {"VirtletShareDriver": "virtiofs"}, "virtiofs"),
        ("virtiofs", {"share_driver": "9p"}, {}, "virtiofs"),
        ("virtiofs, 9p", {"share_driver": "9p"}, {}, "9p"),
        ("nfs 9p", {}, {}, "9p"),
        ("nfs", {}, {}, "virtiofs"),
        ("", {}, {}, "virtiofs"),
    ],
)
def test_an_image_says_which_drivers_its_kernel_has(
    plugin: Plugin,
    nodev: Path,
    vm_dir: Path,
    said: str,
    flavor: dict[str, str],
    annotations: dict[str, str],
    driver: str,
) -> None:
    """The node's choice stands where the guest has it; the pod's author knows better."""
    pod = make_pod(annotations)
    vm = make_vm(vm_dir, evolve(pod, profile=evolve(pod.profile, flavor=flavor)))
    told = {"cloud.virtlet.share-drivers": said}
    vm = evolve(vm, image=evolve(vm.image, annotations=told))
    nodev.chmod(0o755)
    mount = Mount(guest_path="/data", host_path=str(nodev))
    share = plugin.virtlet_volume(vm, VolumeRequest(role="volume-3", source=mount))
    assert isinstance(share, Share)
    assert share.driver == driver
    release(plugin, vm_dir)


@pytest.mark.parametrize(
    ("flavor", "annotations", "driver"),
    [
        ({"share_driver": "9p"}, {}, "9p"),
        ({"share_driver": "9p"}, {"VirtletShareDriver": "virtiofs"}, "virtiofs"),
        ({"share_driver": "virtiofs"}, OVER_9P, "9p"),
        ({}, {}, "virtiofs"),
    ],
)
def test_a_flavor_says_how_directories_are_shared_unless_the_pod_does(
    plugin: Plugin,
    nodev: Path,
    vm_dir: Path,
    flavor: dict[str, str],
    annotations: dict[str, str],
    driver: str,
) -> None:
    """What follows the node's mounts goes over 9p, whatever a flavor says."""
    pod = make_pod(annotations)
    vm = make_vm(vm_dir, evolve(pod, profile=evolve(pod.profile, flavor=flavor)))
    nodev.chmod(0o755)
    for propagation, expected in ((0, driver), (1, annotations.get("VirtletShareDriver", "9p"))):
        mount = Mount(guest_path="/data", host_path=str(nodev), propagation=propagation)
        share = plugin.virtlet_volume(vm, VolumeRequest(role="volume-3", source=mount))
        assert isinstance(share, Share)
        assert share.driver == expected
        release(plugin, vm_dir)


@pytest.mark.parametrize(
    ("owner", "mode", "open_"),
    [
        ((0, 0), 0o700, False),
        ((0, 0), 0o754, False),
        ((0, 0), 0o755, True),
        ((0, EMULATOR), 0o705, False),
        ((0, EMULATOR), 0o750, True),
        ((EMULATOR, 0), 0o077, False),
        ((EMULATOR, 0), 0o500, True),
    ],
)
def test_a_directory_that_is_closed_to_the_emulator_is_refused_before_the_vm_is_made(
    plugin: Plugin, tmp_path: Path, vm_dir: Path, owner: tuple[int, int], mode: int, open_: bool
) -> None:
    data = tmp_path / "volume"
    data.mkdir()
    os.chown(data, *owner)
    data.chmod(mode)
    mount = Mount(guest_path="/data", host_path=str(data))
    if open_:
        assert serve(plugin, mount, OVER_9P, directory=vm_dir)
        return
    with pytest.raises(FailedPrecondition, match=f"mode {mode:04o} .* VirtletChown9pfsMounts"):
        serve(plugin, mount, OVER_9P, directory=vm_dir)
    assert list(vm_dir.iterdir()) == []


def test_a_directory_that_a_list_opens_to_the_emulator_is_shared(
    plugin: Plugin, tmp_path: Path, vm_dir: Path
) -> None:
    data = tmp_path / "volume"
    data.mkdir(mode=0o700)
    # acl(5): the owner, a user, the group, the mask, and the others; (tag, permissions, id).
    entries = ((1, 7, 2**32 - 1), (2, 5, EMULATOR), (4, 0, 2**32 - 1), (16, 5, 2**32 - 1))
    acl = b"".join(struct.pack("<HHI", *entry) for entry in (*entries, (32, 0, 2**32 - 1)))
    os.setxattr(data, "system.posix_acl_access", struct.pack("<I", 2) + acl)
    assert serve(plugin, Mount(guest_path="/data", host_path=str(data)), OVER_9P, directory=vm_dir)


def test_a_file_of_the_node_is_copied_where_it_cannot_be_written(
    plugin: Plugin, tmp_path: Path
) -> None:
    file = tmp_path / "localtime"
    file.write_bytes(b"x")
    assert serve(
        plugin, Mount(guest_path="/etc/localtime", host_path=str(file), readonly=True)
    ) == GuestFiles(host_path=file, guest_path="/etc/localtime", mode=None)
    with pytest.raises(InvalidArgument, match=r"/etc/localtime: .* never reaches the node: mount"):
        serve(plugin, Mount(guest_path="/etc/localtime", host_path=str(file)))


def test_sockets_pipes_and_terminals_are_refused_by_their_kind(
    plugin: Plugin, tmp_path: Path
) -> None:
    os.mkfifo(tmp_path / "pipe")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "socket"))
    for path, kind in (
        (tmp_path / "pipe", "named pipe"),
        (tmp_path / "socket", "socket"),
        (Path("/dev/null"), "character device"),
    ):
        with pytest.raises(InvalidArgument, match=f"mount /x: {path} is a {kind}"):
            serve(plugin, Mount(guest_path="/x", host_path=str(path), readonly=True))


def test_a_guest_s_mounts_are_not_promised_to_the_node(plugin: Plugin, tmp_path: Path) -> None:
    with pytest.raises(InvalidArgument, match=r"mount /x: .* Bidirectional .* HostToContainer"):
        serve(plugin, Mount(guest_path="/x", host_path=str(tmp_path), propagation=2))


def test_a_path_that_is_not_there_is_refused(plugin: Plugin, tmp_path: Path) -> None:
    with pytest.raises(FailedPrecondition, match="mount /x: .* on the node: No such file"):
        serve(plugin, Mount(guest_path="/x", host_path=str(tmp_path / "missing")))


@pytest.mark.parametrize(
    "source",
    [
        Mount(guest_path="x", host_path="/srv"),
        Mount(guest_path="/x", host_path="srv"),
        Mount(guest_path="/x", host_path=""),
        Device(guest_path="x", host_path="/d"),
        Device(guest_path="/x", host_path="d"),
    ],
)
def test_relative_paths_are_refused(plugin: Plugin, source: Mount | Device) -> None:
    with pytest.raises(InvalidArgument, match="is not absolute"):
        serve(plugin, source)


def test_a_block_volume_is_a_disk_and_the_kubelet_s_link_is_followed(
    plugin: Plugin, tmp_path: Path, pod_dir: Path, block_node: Path
) -> None:
    link = pod_dir / "volumeDevices/kubernetes.io~local-volume/pv-1"
    link.parent.mkdir(parents=True)
    link.symlink_to(block_node)
    assert serve(
        plugin,
        Device(guest_path="/dev/data", host_path=str(link), permissions="mrw"),
        directory=tmp_path,
    ) == Disk(
        path=tmp_path / "volume-3",
        format="raw",
        readonly=False,
        block=True,
        serial="volume-3",
        guest_path="/dev/data",
    )


@pytest.mark.parametrize(
    ("permissions", "readonly"), [("mr", True), ("r", True), ("rwm", False), ("", False)]
)
def test_a_device_is_read_only_where_its_permissions_say_so(
    plugin: Plugin, tmp_path: Path, block_node: Path, permissions: str, readonly: bool
) -> None:
    disk = serve(
        plugin,
        Device(guest_path="/dev/data", host_path=str(block_node), permissions=permissions),
        directory=tmp_path,
    )
    assert isinstance(disk, Disk)
    assert disk.readonly is readonly
    assert stat.S_IMODE(disk.path.stat().st_mode) == (0o400 if readonly else 0o600)


def test_the_emulator_opens_a_device_by_a_node_of_its_own_which_goes_with_the_vm(
    plugin: Plugin, tmp_path: Path, block_node: Path
) -> None:
    before = block_node.stat()
    device = Device(guest_path="/dev/data", host_path=str(block_node))
    disk = serve(plugin, device, directory=tmp_path)
    assert isinstance(disk, Disk)
    node = disk.path.stat()
    assert (node.st_uid, node.st_gid, node.st_rdev) == (EMULATOR, EMULATOR, before.st_rdev)
    assert (before.st_uid, before.st_mode) == (block_node.stat().st_uid, block_node.stat().st_mode)
    for _ in range(2):
        release(plugin, tmp_path)
        assert not disk.path.exists()
    assert block_node.is_block_device()


def test_a_directory_that_cannot_hold_devices_is_refused(
    plugin: Plugin, block_node: Path, nodev: Path
) -> None:
    with pytest.raises(FailedPrecondition, match="nodev, so the emulator cannot open"):
        serve(plugin, Device(guest_path="/dev/data", host_path=str(block_node)), directory=nodev)
    assert not list(nodev.iterdir())


def test_a_device_that_is_not_a_block_device_is_refused(plugin: Plugin) -> None:
    with pytest.raises(InvalidArgument, match=r"device /dev/x: /dev/null is not a block device"):
        serve(plugin, Device(guest_path="/dev/x", host_path="/dev/null"))


def test_a_device_that_is_not_there_is_refused(plugin: Plugin, tmp_path: Path) -> None:
    with pytest.raises(FailedPrecondition, match=r"device /dev/x: .* No such file"):
        serve(plugin, Device(guest_path="/dev/x", host_path=str(tmp_path / "missing")))


def test_a_block_device_by_path_needs_the_node_s_leave(plugin: Plugin, block_node: Path) -> None:
    with pytest.raises(InvalidArgument, match=r"does not give away .*block-node: add it to raw"):
        serve(plugin, Mount(guest_path="/dev/data", host_path=str(block_node)))


def test_a_block_device_that_the_node_gives_away_is_a_disk(
    tmp_path: Path, kubelet_root: Path
) -> None:
    names = sorted(os.listdir("/sys/block"))
    found = [name for name in names if Path("/dev", name).is_block_device()]
    if not found:
        pytest.skip("this host has no block device in /dev")
    plugin = configured(tmp_path, kubelet_root, f"nothing*,{found[0][:2]}*")
    mount = Mount(guest_path="/dev/data", host_path=f"/dev/{found[0]}", readonly=True)
    disk = serve(plugin, mount, directory=tmp_path)
    assert isinstance(disk, Disk)
    assert (disk.readonly, disk.block) == (True, True)
    assert disk.path.stat().st_rdev == Path("/dev", found[0]).stat().st_rdev


def test_a_share_is_given_to_the_emulator_where_the_pod_asks(
    plugin: Plugin, pod_dir: Path, vm_dir: Path
) -> None:
    cache = pod_dir / "volumes/kubernetes.io~empty-dir/cache"
    (cache / "deep").mkdir(parents=True)
    (cache / "deep/file").write_text("x")
    outside = pod_dir / "outside"
    outside.write_text("x")
    (cache / "link").symlink_to(outside)
    mount = Mount(guest_path="/cache", host_path=str(cache))

    give = {"VirtletChown9pfsMounts": "true"}
    for annotations in (OVER_9P, give):
        serve(plugin, mount, annotations, directory=vm_dir)
        assert cache.stat().st_uid == os.getuid()
        release(plugin, vm_dir)
    serve(plugin, mount, OVER_9P | give, directory=vm_dir)
    for path in (cache, cache / "deep", cache / "deep/file", cache / "link"):
        assert (path.lstat().st_uid, path.lstat().st_gid) == (EMULATOR, EMULATOR)
    assert outside.stat().st_uid == os.getuid()


def test_directories_of_the_node_and_read_only_ones_keep_their_owner(
    plugin: Plugin, pod_dir: Path, tmp_path: Path, vm_dir: Path
) -> None:
    cache = pod_dir / "volumes/kubernetes.io~empty-dir/cache"
    cache.mkdir(parents=True)
    tmp_path.chmod(0o755)
    for mount in (
        Mount(guest_path="/cache", host_path=str(cache), readonly=True),
        Mount(guest_path="/data", host_path=str(tmp_path)),
    ):
        serve(plugin, mount, OVER_9P | {"VirtletChown9pfsMounts": "true"}, directory=vm_dir)
        release(plugin, vm_dir)
        assert Path(mount.host_path).stat().st_uid == os.getuid()


def test_in_a_container_a_path_that_is_the_containers_own_is_refused(tmp_path: Path) -> None:
    """Whether there is something at it or not, and through links; what is shared is served."""
    plugin = configured(tmp_path, tmp_path / "pods", host_paths="shared")
    (tmp_path / "link").symlink_to("/etc")
    for path in ("/etc", "/no/such/directory", str(tmp_path / "link")):
        for source in (
            Mount(guest_path="/data", host_path=path),
            Device(guest_path="/data", host_path=path),
        ):
            with pytest.raises(FailedPrecondition, match=f"{path} of the node is not shared"):
                serve(plugin, source)
    kernel = Mount(guest_path="/data", host_path="/proc/version", readonly=True)
    assert isinstance(serve(plugin, kernel), GuestFiles)
