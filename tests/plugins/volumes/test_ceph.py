"""Volumes of type ceph: who may name which cluster, and what serves them."""

import base64
import json
import struct
import subprocess
from pathlib import Path

import pytest
from attrs import evolve

from tests.fakes.model import make_vm, make_vm_config
from tests.fakes.models import machine as make_machine
from tests.plugins.volumes.conftest import configured
from virtlet.errors import FailedPrecondition, InvalidArgument
from virtlet.model.disk import Disk
from virtlet.model.launch import Backend, LaunchPart
from virtlet.model.vm import Machine, Mount, Vm, VolumeRequest
from virtlet.plugins.volumes.ceph import CEPH_MONITORS
from virtlet.plugins.volumes.plugin import Plugin

ROLE = "volume-0"
KEY = base64.b64encode(struct.pack("<HIIH", 1, 0, 0, 16) + b"0123456789abcdef").decode()
OPTIONS = {
    "type": "ceph",
    "monitor": "10.0.0.1:6789,[2001:DB8::1]:3300,Mon.example.com",
    "user": "vms",
    "secret": KEY,
    "pool": "rbd",
    "volume": "database-1",
}


@pytest.fixture
def plugin(tmp_path: Path, kubelet_root: Path) -> Plugin:
    monitors = "10.0.0.0/24,2001:db8::/32,mon.example.com"
    return configured(tmp_path, kubelet_root, ceph_monitors=monitors)


@pytest.fixture
def vm(vm_dir: Path) -> Vm:
    return make_vm(vm_dir)


@pytest.fixture
def volume(pod_dir: Path) -> Path:
    path = pod_dir / "volumes/virtlet~flexvolume_driver/vol"
    path.mkdir(parents=True)
    return path


def write(place: Path, **changes: str | None) -> Mount:
    """The options with changes; None leaves one out."""
    options = {key: value for key, value in {**OPTIONS, **changes}.items() if value is not None}
    (place / "virtlet-flexvolume.json").write_text(json.dumps(options))
    return Mount(guest_path="/data", host_path=str(place))


def serve(plugin: Plugin, vm: Vm, mount: Mount) -> Disk:
    disk = plugin.virtlet_volume(vm, VolumeRequest(role=ROLE, source=mount))
    assert isinstance(disk, Disk)
    return disk


def machine_of(plugin: Plugin, vm: Vm, mount: Mount) -> Machine:
    vm = evolve(vm, config=evolve(make_vm_config(), mounts=(mount,)))
    return evolve(make_machine(vm.directory), vm=vm, volumes=(serve(plugin, vm, mount),))


def launch(plugin: Plugin, machine: Machine) -> tuple[LaunchPart, Backend]:
    part = plugin.virtlet_launch(machine)
    assert part is not None
    (backend,) = part.backends
    return part, backend


def test_it_is_a_disk_that_a_program_serves_and_leaves_nothing(
    plugin: Plugin, vm: Vm, volume: Path
) -> None:
    mount = write(volume)
    assert serve(plugin, vm, mount) == Disk(
        path=vm.directory / "volume-0.rbd",
        format="raw",
        serial=ROLE,
        guest_path="/data",
        filesystem=True,
        served=True,
    )
    assert list(vm.directory.iterdir()) == []
    plugin.virtlet_release_volume(vm, VolumeRequest(role=ROLE, source=mount))


def test_the_program_opens_the_image_and_nothing_shows_the_key(
    plugin: Plugin, vm: Vm, volume: Path
) -> None:
    machine = machine_of(plugin, vm, write(volume))
    part, backend = launch(plugin, machine)
    assert backend.network
    assert backend.socket == machine.runtime_directory / "disk0"
    assert [(seen.path, seen.writable) for seen in part.visible] == [(backend.socket, True)]
    program, *words = backend.argv
    assert program.endswith("/qemu-storage-daemon")
    given = dict(zip(words[::2], words[1::2], strict=True))
    assert json.loads(given["--blockdev"]) == {
        "driver": "rbd",
        "node-name": ROLE,
        "server": [
            {"host": "10.0.0.1", "port": "6789"},
            {"host": "2001:db8::1", "port": "3300"},
            {"host": "mon.example.com", "port": "3300"},
            {"host": "mon.example.com", "port": "6789"},
        ],
        "user": "vms",
        "pool": "rbd",
        "image": "database-1",
        "conf": "{document:ceph.conf}",
        "read-only": False,
        "discard": "unmap",
        "cache": {"direct": False},
    }
    assert given["--nbd-server"] == "addr.type=fd,addr.str={socket},max-connections=1"
    export = {"type": "nbd", "id": "disk", "node-name": ROLE, "name": ROLE, "writable": True}
    assert json.loads(given["--export"]) == export
    assert f"\nkey = {KEY}\n".encode() in backend.documents["ceph.conf"]
    for shown in (repr(backend), repr(part), repr(machine), *backend.argv):
        assert KEY not in shown


def test_a_read_only_volume_is_opened_so_and_a_flavor_may_keep_no_cache(
    plugin: Plugin, vm: Vm, volume: Path
) -> None:
    machine = machine_of(plugin, vm, evolve(write(volume), readonly=True))
    machine = evolve(machine, flavor=evolve(machine.flavor, disk_cache="none"))
    words = launch(plugin, machine)[1].argv
    opened, export = (json.loads(words[words.index(w) + 1]) for w in ("--blockdev", "--export"))
    assert (opened["read-only"], opened["cache"], export["writable"]) == (
        True,
        {"direct": True},
        False,
    )


def test_a_start_takes_the_key_that_is_there_then(plugin: Plugin, vm: Vm, volume: Path) -> None:
    machine = machine_of(plugin, vm, write(volume))
    other = KEY.replace("A", "B")
    write(volume, secret=None, **{"kubernetes.io/secret/secret": b64(f"{other}\n")})
    assert f"key = {other}\n".encode() in launch(plugin, machine)[1].documents["ceph.conf"]
    (volume / "virtlet-flexvolume.json").unlink()
    with pytest.raises(FailedPrecondition, match="mount /data: "):
        plugin.virtlet_launch(machine)


def b64(text: str) -> str:
    return base64.b64encode(text.encode()).decode()


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"monitor": None}, "option monitor: '' is no HOST"),
        ({"monitor": "10.0.0.300"}, "'10.0.0.300' is no HOST"),
        ({"monitor": "10.0.0.1:0"}, "'10.0.0.1:0' is no HOST"),
        ({"monitor": "10.0.0.1:65536"}, "is no HOST"),
        ({"monitor": "::1"}, "'::1' is no HOST"),
        ({"monitor": "[10.0.0.1]"}, "is no HOST"),
        ({"monitor": "10.0.0.1;[client]"}, "is no HOST"),
        ({"monitor": "10.0.0.1\nkeyring=/etc/shadow"}, "is no HOST"),
        ({"monitor": ",".join(["10.0.0.1"] * 17)}, "has 17 monitors; 16 are enough"),
        ({"monitor": "10.0.0.1,10.0.1.1"}, "no Ceph monitor 10.0.1.1: add it to cephMonitors"),
        ({"monitor": "127.0.0.1"}, "no Ceph monitor 127.0.0.1: add it to cephMonitors"),
        ({"monitor": "other.example.com"}, "no Ceph monitor other.example.com"),
        ({"user": None}, "option user is ''"),
        ({"pool": "a/b"}, "option pool is 'a/b'"),
        ({"volume": "{socket}"}, "option volume is '{socket}'"),
        ({"secret": None}, "no key of the Ceph user"),
        ({"secret": "hunter2"}, "no key of the Ceph user"),
        ({"secret": "aHVudGVyMg=="}, "no key of the Ceph user"),
        ({"secret": f"{KEY}\nlog_file = /x"}, "no key of the Ceph user"),
        ({"secret": None, "kubernetes.io/secret/secret": "/////w=="}, "no key of the Ceph user"),
        ({"conf": "/etc/ceph/ceph.conf"}, "type ceph has no option 'conf'; it has monitor, pool"),
    ],
)
def test_wrong_options_are_refused_by_name_without_the_key(
    plugin: Plugin, vm: Vm, volume: Path, changes: dict[str, str | None], problem: str
) -> None:
    with pytest.raises(InvalidArgument) as caught:
        serve(plugin, vm, write(volume, **changes))
    text = str(caught.value)
    assert text.startswith("mount /data: volume: ")
    assert problem in text
    for secret in (KEY, "hunter2", "aHVudGVyMg=="):
        assert secret not in text


def test_no_monitor_may_be_named_unless_the_node_says_so(
    tmp_path: Path, kubelet_root: Path, vm: Vm, volume: Path
) -> None:
    with pytest.raises(InvalidArgument, match="the node lets pods name no Ceph monitor 10.0.0.1"):
        serve(configured(tmp_path, kubelet_root), vm, write(volume))


@pytest.mark.parametrize("text", ["10.0.0.1/24", "10.0.0.300", "a b", "mon:6789"])
def test_what_is_no_monitor_is_refused_in_the_setting(text: str) -> None:
    with pytest.raises(ValueError, match="is no address, network"):
        CEPH_MONITORS.kind.parse(f"10.0.0.1,{text}")


def test_qemu_takes_the_options_and_fails_at_the_monitor(
    tmp_path: Path, kubelet_root: Path, vm: Vm, volume: Path
) -> None:
    """Nobody listens there: the error names it, and no option."""
    plugin = configured(tmp_path, kubelet_root, ceph_monitors="127.0.0.0/8")
    machine = machine_of(plugin, vm, write(volume, monitor="127.0.0.1:1"))
    _, backend = launch(plugin, machine)
    conf = tmp_path / "ceph.conf"
    text = backend.documents["ceph.conf"].decode()
    conf.write_text(text.replace("client_mount_timeout = 15", "client_mount_timeout = 1"))
    assert conf.read_text() != text
    words = [word.replace("{document:ceph.conf}", str(conf)) for word in backend.argv[:3]]
    done = subprocess.run(words, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 1
    assert "127.0.0.1" in done.stderr
    assert "error connecting: " in done.stderr
