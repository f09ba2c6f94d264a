"""Disks with a file system: emptyDirs that are disks, and volumes of the FlexVolume driver."""

import json
import os
import stat
import subprocess
from pathlib import Path

import pytest
from attrs import evolve

from tests.fakes.model import make_pod, make_vm, make_vm_config
from tests.plugins.volumes.conftest import EMULATOR
from virtlet.errors import (
    FailedPrecondition,
    InvalidArgument,
    ResourceExhausted,
)
from virtlet.model.disk import Disk, Volume
from virtlet.model.vm import Mount, Vm, VolumeRequest
from virtlet.plugins.volumes.flexvolume import capacity
from virtlet.plugins.volumes.new_disks import make_disk_file
from virtlet.plugins.volumes.plugin import Plugin

MIB = 1 << 20
DRIVER = Path(__file__).parents[3] / "deploy/flexvolume/flexvolume_driver"
ROLE = "volume-1"


def serve(plugin: Plugin, vm: Vm, mount: Mount) -> Volume | None:
    """Admit the VM, then serve: as the core does."""
    config = evolve(make_vm_config(), mounts=(mount,))
    plugin.virtlet_admit_vm(vm.pod, config)
    return plugin.virtlet_volume(vm, VolumeRequest(role=ROLE, source=mount))


def release(plugin: Plugin, vm: Vm, mount: Mount) -> None:
    plugin.virtlet_release_volume(vm, VolumeRequest(role=ROLE, source=mount))


def check_file_system(path: Path) -> None:
    subprocess.run(["e2fsck", "-fn", str(path)], check=True, capture_output=True)


class TestEmptyDirs:
    """Annotation VirtletEmptyDirDisks."""

    @pytest.fixture
    def mount(self, pod_dir: Path) -> Mount:
        cache = pod_dir / "volumes/kubernetes.io~empty-dir/cache"
        cache.mkdir(parents=True)
        cache.chmod(0o777)
        return Mount(guest_path="/var/cache", host_path=str(cache))

    @pytest.fixture
    def vm(self, vm_dir: Path) -> Vm:
        return make_vm(vm_dir, make_pod({"VirtletEmptyDirDisks": "cache: 64Mi"}))

    def test_an_empty_dir_becomes_a_disk_in_its_own_directory(
        self, plugin: Plugin, vm: Vm, mount: Mount
    ) -> None:
        """So the kubelet counts it, and takes it away."""
        disk = serve(plugin, vm, mount)
        assert disk == Disk(
            path=vm.directory / ROLE / "disk.img",
            format="raw",
            serial=ROLE,
            guest_path="/var/cache",
            filesystem=True,
        )
        file = Path(mount.host_path, "disk.img")
        status = file.stat()
        assert (status.st_size, stat.S_IMODE(status.st_mode)) == (64 * MIB, 0o600)
        assert (status.st_uid, status.st_gid) == (EMULATOR, EMULATOR)
        assert status.st_blocks * 512 < 16 * MIB
        assert [path.name for path in Path(mount.host_path).iterdir()] == ["disk.img"]
        check_file_system(file)
        for _ in range(2):
            release(plugin, vm, mount)
            assert list(vm.directory.iterdir()) == []
        assert file.exists()

    def test_another_attempt_finds_what_the_last_one_left(
        self, plugin: Plugin, vm: Vm, mount: Mount
    ) -> None:
        serve(plugin, vm, mount)
        release(plugin, vm, mount)
        file = Path(mount.host_path, "disk.img")
        with file.open("r+b") as disk:
            disk.seek(48 * MIB)
            disk.write(b"GUEST")
        serve(plugin, evolve(vm, uid=70001, gid=70002), evolve(mount, readonly=True))
        assert (file.stat().st_uid, file.stat().st_gid) == (70001, 70002)
        assert b"GUEST" in file.read_bytes()
        release(plugin, vm, mount)

    @pytest.mark.parametrize("kind", ["link", "second name", "directory"])
    def test_what_is_planted_in_the_place_of_the_disk_is_refused(
        self, plugin: Plugin, vm: Vm, mount: Mount, tmp_path: Path, kind: str
    ) -> None:
        """Everybody on the node may write to an emptyDir who can reach it."""
        other, place = tmp_path / "other", Path(mount.host_path, "disk.img")
        other.write_bytes(b"not yours")
        match kind:
            case "link":
                place.symlink_to(other)
            case "second name":
                place.hardlink_to(other)
            case _:
                place.mkdir()
        with pytest.raises(FailedPrecondition, match="mount /var/cache: "):
            serve(plugin, vm, mount)
        release(plugin, vm, mount)
        assert (other.read_bytes(), other.stat().st_uid) == (b"not yours", os.getuid())

    @pytest.mark.parametrize(
        ("text", "problem"),
        [
            ("cache: 0", "cache: 0 bytes is not between 16Mi and 16Ti"),
            ("cache: 17Ti", "is not between 16Mi and 16Ti"),
            ("cache: lots", "cache: 'lots' is no quantity"),
            ("cache: -1Gi", "is not between 0 and"),
            ("cache: true", "must map names of emptyDirs to sizes"),
            ("cache: [1Gi]", "must map names of emptyDirs to sizes"),
            ("[cache]", "must be a mapping"),
            ("other: 1Gi", "mounts no emptyDir 'other' as a whole"),
        ],
    )
    def test_a_wrong_annotation_is_refused_before_anything_is_made(
        self, plugin: Plugin, vm: Vm, mount: Mount, text: str, problem: str
    ) -> None:
        wrong = evolve(vm, pod=make_pod({"VirtletEmptyDirDisks": text}))
        with pytest.raises(InvalidArgument, match=f"^annotation VirtletEmptyDirDisks: .*{problem}"):
            serve(plugin, wrong, mount)
        assert list(Path(mount.host_path).iterdir()) == []

    def test_an_empty_dir_that_is_mounted_twice_is_refused(
        self, plugin: Plugin, vm: Vm, mount: Mount
    ) -> None:
        config = evolve(make_vm_config(), mounts=(mount, evolve(mount, guest_path="/b")))
        with pytest.raises(InvalidArgument, match="is mounted 2 times"):
            plugin.virtlet_admit_vm(vm.pod, config)

    def test_a_full_node_leaves_nothing(self, tmp_path: Path) -> None:
        full = tmp_path / "full"
        full.mkdir()
        subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "none", full], check=True)
        try:
            with pytest.raises(ResourceExhausted):
                make_disk_file(full / "disk.img", 1 << 30, EMULATOR, EMULATOR)
            assert list(full.iterdir()) == []
        finally:
            subprocess.run(["umount", full], check=True)


class TestFlexVolumes:
    """Driver virtlet/flexvolume_driver."""

    @pytest.fixture
    def volume(self, pod_dir: Path) -> Path:
        return pod_dir / "volumes/virtlet~flexvolume_driver/vol"

    @pytest.fixture
    def vm(self, vm_dir: Path) -> Vm:
        return make_vm(vm_dir)

    @staticmethod
    def write(volume: Path, options: object) -> Mount:
        volume.mkdir(parents=True, exist_ok=True)
        (volume / "virtlet-flexvolume.json").write_text(json.dumps(options))
        return Mount(guest_path="/data", host_path=str(volume))

    def test_qcow2_is_a_disk_of_the_vm_alone(self, plugin: Plugin, vm: Vm, volume: Path) -> None:
        """The kubelet's own options, which may be secrets, are passed over."""
        mount = self.write(
            volume,
            {"type": "qcow2", "capacity": "20MB", "kubernetes.io/secret/key": "aHVudGVyMg=="},
        )
        disk = serve(plugin, vm, mount)
        assert disk == Disk(
            path=vm.directory / ROLE,
            format="raw",
            serial=ROLE,
            guest_path="/data",
            filesystem=True,
        )
        assert (vm.directory / ROLE).stat().st_size == 20_000_000
        assert (vm.directory / ROLE).stat().st_uid == EMULATOR
        check_file_system(vm.directory / ROLE)
        for _ in range(2):
            release(plugin, vm, mount)
            assert list(vm.directory.iterdir()) == []

    def test_raw_is_a_device_that_the_node_gives_away(
        self, plugin: Plugin, vm: Vm, volume: Path
    ) -> None:
        mount = self.write(volume, {"type": "raw", "path": "/dev/loop0"})
        disk = serve(plugin, vm, mount)
        assert isinstance(disk, Disk)
        assert (disk.path, disk.block, disk.filesystem) == (vm.directory / ROLE, True, True)
        assert disk.path.is_block_device()

    @pytest.mark.parametrize(
        ("options", "problem"),
        [
            ({}, "type '' is none of 'qcow2', 'raw', 'ceph'"),
            ({"type": "nfs"}, "type 'nfs' is none of"),
            ({"type": "qcow2", "capacity": "much"}, "capacity: 'much' is no size"),
            ({"type": "qcow2", "capacity": "0"}, "capacity: 0 bytes is not between"),
            ({"type": "qcow2", "capacity": "1XB"}, "capacity: '1XB' is no size"),
            ({"type": "qcow2", "size": "1GB"}, "type qcow2 has no option 'size'; it has capacity"),
            ({"type": "raw"}, "option path is not the absolute path"),
            ({"type": "raw", "path": "/dev/sda"}, "does not give away /dev/sda"),
            ({"type": "raw", "path": "/etc/shadow"}, "does not give away /etc/shadow"),
            ({"type": "raw", "path": "/dev/loop0", "part": "1"}, "has no option 'part'"),
            ({"type": 1}, "no JSON object of texts"),
            ([], "no JSON object of texts"),
            ("x" * 70_000, "no JSON object of texts"),
        ],
    )
    def test_wrong_options_are_refused_by_name(
        self, plugin: Plugin, vm: Vm, volume: Path, options: object, problem: str
    ) -> None:
        with pytest.raises(InvalidArgument, match=f"mount /data: .*{problem}"):
            serve(plugin, vm, self.write(volume, options))
        assert list(vm.directory.iterdir()) == []

    def test_a_device_that_is_gone_is_refused(self, plugin: Plugin, vm: Vm, volume: Path) -> None:
        with pytest.raises(FailedPrecondition, match="/dev/loop-gone"):
            serve(plugin, vm, self.write(volume, {"type": "raw", "path": "/dev/loop-gone"}))

    def test_options_that_the_driver_did_not_write_are_told(
        self, plugin: Plugin, vm: Vm, volume: Path
    ) -> None:
        with pytest.raises(FailedPrecondition, match="is deploy/flexvolume's driver the one"):
            serve(plugin, vm, Mount(guest_path="/data", host_path=str(volume)))

    @pytest.mark.parametrize(
        ("text", "size"),
        [
            ("1024MB", 1024 * 10**6),
            ("1024", 1024 * 10**6),
            (" 100 M ", 100 << 20),
            ("1GiB", 1 << 30),
            ("2G", 2 << 30),
            ("1Gi", 1 << 30),
            ("20000000bytes", 20_000_000),
        ],
    )
    def test_capacities_are_those_of_virtlet_1(self, text: str, size: int) -> None:
        assert capacity(text) == size


class TestDriver:
    """The program that the kubelet calls."""

    @staticmethod
    def call(*arguments: str) -> dict[str, object]:
        done = subprocess.run(
            ["sh", str(DRIVER), *arguments], capture_output=True, text=True, check=False
        )
        answer: dict[str, object] = json.loads(done.stdout)
        assert done.stderr == ""
        assert (done.returncode == 0) == (answer["status"] != "Failure")
        return answer

    def test_it_says_what_it_can_do(self) -> None:
        assert self.call("init") == {
            "status": "Success",
            "capabilities": {"attach": False, "fsGroup": False, "selinuxRelabel": False},
        }
        for command in ("attach", "waitforattach", "getvolumename", "expandfs", ""):
            assert self.call(command, "{}", "node") == {"status": "Not supported"}

    def test_what_it_mounts_is_served_and_is_gone_when_it_is_unmounted(
        self, plugin: Plugin, vm_dir: Path, pod_dir: Path
    ) -> None:
        """Called again it answers the same."""
        volume = pod_dir / "volumes/virtlet~flexvolume_driver/vol"
        options = json.dumps({"type": "qcow2", "capacity": "20MB", "kubernetes.io/fsType": ""})
        for _ in range(2):
            assert self.call("mount", str(volume), options) == {"status": "Success"}
        assert volume.is_mount()
        file = volume / "virtlet-flexvolume.json"
        assert (file.read_text(), stat.S_IMODE(file.stat().st_mode)) == (options, 0o600)
        mount = Mount(guest_path="/data", host_path=str(volume))
        assert isinstance(serve(plugin, make_vm(vm_dir), mount), Disk)
        release(plugin, make_vm(vm_dir), mount)
        for _ in range(2):
            assert self.call("unmount", str(volume)) == {"status": "Success"}
        assert not volume.exists()

    def test_a_call_that_fails_says_why(self, tmp_path: Path) -> None:
        (tmp_path / "file").touch()
        assert self.call("mount", str(tmp_path / "file/vol"), "{}")["message"] == (
            "virtlet: the volume's directory cannot be made"
        )
        assert self.call("mount", "/x")["message"] == "virtlet: mount with 1 arguments"
        (tmp_path / "full").mkdir()
        (tmp_path / "full/file").touch()
        assert "not empty" in str(self.call("unmount", str(tmp_path / "full"))["message"])
