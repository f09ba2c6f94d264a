"""Volumes of a pod, seen from inside the guest."""

import json
import os
import stat
import subprocess
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest
from attrs import evolve, frozen

from tests.e2e.conftest import AS_THE_UNIT, BOOT_TIMEOUT, TINY, Pod, PodFactory, make_manifest
from tests.fakes.image_server import Resource, image_server
from tests.fakes.kubelet import write_account, write_atomic
from tests.polling import until
from virtlet.cli.client import CallFailed
from virtlet.cli.playground import Playground
from virtlet.core.paths import Paths
from virtlet.cri import api_pb2 as cri
from virtlet.host import netns
from virtlet.host.mounts import at_or_below

SIZE = 1 << 20
FLEXVOLUME_DRIVER = Path(__file__).parents[2] / "deploy/flexvolume/flexvolume_driver"
ROOT_SIZE = 1 << 30
SERVICE_ACCOUNT = "/var/run/secrets/kubernetes.io/serviceaccount"
GATEWAY = "10.131.0.1"
"""The node, for the guests of `own_node`."""
UNTIL_UP = "until [ -e /var/lib/cloud/instance/boot-finished ]; do sleep 0.2; done; "


@pytest.fixture
def block_device(tmp_path: Path) -> Iterator[tuple[Path, Path]]:
    """(device, file behind it): a block device of the node's, as a local volume is one."""
    file = tmp_path / "disk"
    file.write_bytes(b"written on the node".ljust(SIZE, b"\0"))
    argv = ["losetup", "--find", "--show", str(file)]
    device = subprocess.run(argv, check=True, capture_output=True, text=True).stdout.strip()
    yield Path(device), file
    subprocess.run(["losetup", "--detach", device], check=True)


def _add_new_disks(pod: Pod) -> Path:
    """An emptyDir that is a disk, at /cache, and a FlexVolume, at /flex, as a kubelet makes them.

    Returns:
        The emptyDir on the node.
    """
    volumes = pod.node.kubelet_dir / pod.pod.metadata.uid / "volumes"
    cache = volumes / "kubernetes.io~empty-dir/cache"
    cache.mkdir(parents=True)
    cache.chmod(0o777)
    flex = volumes / "virtlet~flexvolume_driver/flex"
    options = '{"type": "qcow2", "capacity": "32MB", "kubernetes.io/readwrite": "rw"}'
    subprocess.run(["sh", str(FLEXVOLUME_DRIVER), "mount", str(flex), options], check=True)
    pod.pod.annotations["VirtletEmptyDirDisks"] = "cache: 64Mi"
    pod.manifest.container.mounts.add(container_path="/cache", host_path=str(cache))
    pod.manifest.container.mounts.add(container_path="/flex", host_path=str(flex))
    return cache


def test_a_block_volume_is_read_and_written_by_the_guest(
    new_pod: PodFactory, block_device: tuple[Path, Path]
) -> None:
    """At the path the pod names, with its serial number, within the pod's limits, and what the
    guest discards is the node's again; the node's own device keeps its owner and mode."""
    device, file = block_device
    before = device.stat()
    pod = new_pod("with-block-volume")
    # A script of the pod's own stands instead of the cloud-config that makes device paths.
    pod.pod.annotations.pop("VirtletCloudInitUserDataScript")
    pod.manifest.container.devices.add(
        host_path=str(device), container_path="/dev/data", permissions="mrw"
    )
    cache = _add_new_disks(pod)
    pod.pod.annotations.update({"VirtletDiskIOPS": "1000", "VirtletDiskBandwidth": "4Mi"})
    pod = pod.up()
    pod.wait_for_console("login:")

    def run(script: str) -> bytes:
        command = cri.ExecSyncRequest(
            container_id=pod.vm, cmd=["/bin/sh", "-c", script], timeout=60
        )
        reply = pod.client.call("ExecSync", command, timeout=70)
        assert reply.exit_code == 0, reply.stderr
        return bytes(reply.stdout)

    run("until [ -b /dev/data ]; do sleep 0.2; done")
    assert run("head -c 19 /dev/data") == b"written on the node"
    run("printf 'written in the guest' | dd of=/dev/data bs=512 seek=1 conv=notrunc,fsync")
    subprocess.run(["blockdev", "--flushbufs", str(device)], check=True)
    assert file.read_bytes()[512:532] == b"written in the guest"

    run("until grep -q ' /flex ext4' /proc/mounts; do sleep 0.2; done")
    run("grep -q ' /cache ext4' /proc/mounts")
    run("chmod 700 /cache /flex; echo written >/cache/file; echo written >/flex/file; sync")
    assert (cache / "disk.img").stat().st_size == 64 << 20
    assert b"written" in (cache / "disk.img").read_bytes()

    os.truncate(file, 2 * SIZE)
    subprocess.run(["losetup", "--set-capacity", str(device)], check=True)
    sectors = 2 * SIZE // 512
    run(
        f"until grep -qx {sectors} /sys/class/block/$(basename $(readlink -f /dev/data))/size; "
        "do sleep 0.5; done"
    )

    pages = "for d in /sys/block/sd*; do tail -c +5 $d/device/vpd_pg80; echo; done"
    serials = run(pages).decode().split()
    assert len(set(serials)) == len(serials) == 4
    assert serials.count("root") == 1
    assert int(run("cat /sys/block/sda/queue/discard_max_bytes")) > 0
    device_of_cache = "$(grep ' /cache ' /proc/mounts | cut -d' ' -f1)"
    before_reading = time.monotonic()
    run(f"dd if={device_of_cache} of=/dev/null bs=64k count=256")
    assert time.monotonic() - before_reading > 2  # 16 MiB at 4 MiB a second

    pod.down()
    flex = cache.parents[1] / "virtlet~flexvolume_driver/flex"
    subprocess.run(["sh", str(FLEXVOLUME_DRIVER), "unmount", str(flex)], check=True)
    assert [path.name for path in cache.iterdir()] == ["disk.img"]
    after = device.stat()
    assert (after.st_uid, after.st_gid, after.st_mode) == (
        before.st_uid,
        before.st_gid,
        before.st_mode,
    )
    assert not (pod.node.data_dir / "volumes" / pod.vm).exists()


@pytest.fixture
def root_device(tmp_path: Path) -> Iterator[Path]:
    """An empty block device of a GiB."""
    file = tmp_path / "root"
    with file.open("wb") as empty:
        empty.truncate(ROOT_SIZE)
    argv = ["losetup", "--find", "--show", str(file)]
    device = subprocess.run(argv, check=True, capture_output=True, text=True).stdout.strip()
    yield Path(device)
    subprocess.run(["losetup", "--detach", device], check=True)


def test_a_persistent_root_survives_its_pod_its_attempt_and_the_manager(
    own_node: Playground, root_device: Path
) -> None:
    """And starts one VM at a time."""

    def pod() -> Pod:
        made = Pod(own_node, own_node.client(), make_manifest(own_node))
        made.manifest.container.devices.add(
            host_path=str(root_device), container_path="/", permissions="mrw"
        )
        return made

    at_end = ROOT_SIZE // 512 - 2
    first = pod().up()
    first.wait_for_console("login:")
    _run(first, f"printf persistent | dd of=/dev/sda bs=512 seek={at_end} conv=fsync")
    other = pod().run()
    with pytest.raises(CallFailed, match=f"{root_device} is in use: another VM of this node"):
        other.create()
    other.client.remove_pod(other.id)
    first.client.stop(first.vm, 0)
    again = first.create(attempt=1)
    again.client.start(again.vm)
    until(lambda: "login:" in again.console(), "the second attempt", BOOT_TIMEOUT)
    read = f"dd if=/dev/sda bs=512 skip={at_end} count=1 2>/dev/null | head -c 10"
    assert _run(again, read) == "persistent"
    again.down()

    own_node.stop()
    own_node.start()
    second = pod().up()
    second.wait_for_console("login:")
    assert _run(second, read) == "persistent"
    second.down()
    assert own_node.settled_leftovers() == []


@frozen
class KubeletPod:
    """A pod with volumes as a kubelet makes them: nobody but root passes its directories."""

    pod: Pod

    @property
    def directory(self) -> Path:
        """The kubelet's for this pod."""
        return self.pod.node.kubelet_dir / self.pod.pod.metadata.uid

    def volume(self, plugin: str, name: str) -> Path:
        """Where a volume is."""
        return self.directory / "volumes" / f"kubernetes.io~{plugin}" / name

    def make(self) -> None:
        """Make emptyDirs of both kinds and a Secret, and ask for what a kubelet 1.36 asks for."""
        memory, on_disk = self.volume("empty-dir", "m"), self.volume("empty-dir", "e")
        on_node = self.pod.node.directory / "srv"
        for path in (on_disk, memory, on_node):
            path.mkdir(parents=True, exist_ok=True)
        subprocess.run(["mount", "-t", "tmpfs", "-o", "size=16m", "tmpfs", memory], check=True)
        # As systemd has all mounts of a node.
        subprocess.run(["mount", "--bind", on_node, on_node], check=True)
        subprocess.run(["mount", "--make-shared", on_node], check=True)
        memory.chmod(0o777)
        # As with `fsGroup: 2000`.
        os.chown(on_disk, 0, 2000)
        on_disk.chmod(0o2775)
        (on_node / "of-the-node").write_text("on the node")
        write_atomic(self.volume("secret", "sec"), {"key": (b"hunter2", 0o440, 2000)})
        for path in (self.pod.node.kubelet_dir, self.directory, self.directory / "volumes"):
            path.chmod(0o750)
        add = self.pod.manifest.container.mounts.add
        add(container_path="/e", host_path=str(on_disk))
        add(container_path="/m", host_path=str(memory))
        add(
            container_path="/h",
            host_path=str(on_node),
            propagation=cri.PROPAGATION_HOST_TO_CONTAINER,
        )
        secret = str(self.volume("secret", "sec"))
        add(container_path="/etc/sec", host_path=secret, readonly=True)


@pytest.fixture(scope="module")
def own_node() -> Iterator[Playground]:
    """A node whose manager is restarted."""
    with Playground({"tiny": TINY}, subnet="10.131.0.0/16", wrapper=AS_THE_UNIT) as playground:
        yield playground


@pytest.fixture
def kubelet_pod(own_node: Playground) -> Iterator[KubeletPod]:
    """The pod, with a cloud-config instead of a script."""
    made = KubeletPod(Pod(own_node, own_node.client(), make_manifest(own_node)))
    made.pod.pod.annotations.pop("VirtletCloudInitUserDataScript")
    made.make()
    yield made
    for path in (made.volume("empty-dir", "m"), own_node.directory / "srv"):
        subprocess.run(["umount", path], check=True)


_AS_USERS = """
for id in 1000 1001; do echo "user$id:x:$id:$id::/:/bin/sh" >>/etc/passwd; done
echo user1002:x:1002:2000::/:/bin/sh >>/etc/passwd
echo volume:x:2000:user1000 >>/etc/group
su user1001 -c 'touch /e/by-other 2>/dev/null || echo refused'
for id in 1000 1002; do
    su user$id -c 'echo written >/e/by-user && stat -c %u:%g /e/by-user && rm /e/by-user'
done
su user1000 -c 'echo written >/e/by-user'
"""
"""What users of the guest do in /e: the first one is in the volume's group, the second is not, the
third has it as its primary one, of which kernels before 6.3 tell virtiofsd too."""

_UNTIL_CHANGED = 'until [ "$(cat /etc/sec/key)" = changed ]; do sleep 0.2; done; '


def _run(pod: Pod, script: str, timeout: int = 90) -> str:
    argv = ["/bin/sh", "-c", script]
    command = cri.ExecSyncRequest(container_id=pod.vm, cmd=argv, timeout=timeout)
    reply = pod.client.call("ExecSync", command, timeout=timeout + 10)
    assert reply.exit_code == 0, reply.stderr
    return bytes(reply.stdout).decode()


def _mounted(pod: Pod) -> dict[str, bool | None]:
    """What a verbose status says of shares."""
    request = cri.ContainerStatusRequest(container_id=pod.vm, verbose=True)
    shares = json.loads(pod.client.call("ContainerStatus", request).info["info"])["shares"]
    return {share["guestPath"]: share["mounted"] for share in shares}


def _with_another_manager(pod: Pod) -> Pod:
    pod.node.stop()
    pod.node.start()
    return evolve(pod, client=pod.node.client())


@contextmanager
def _telling_of_mounts(pod: Pod, *parts: str) -> Iterator[None]:
    """What fails says which mounts the node has, and which the emulator has in its jail."""
    try:
        yield
    except (AssertionError, TimeoutError) as error:
        for whose in ("self", str(pod.emulator)):
            lines = Path(f"/proc/{whose}/mountinfo").read_text().splitlines()
            found = [line for line in lines if any(part in line for part in parts)]
            error.add_note("\n".join([f"mounts of {whose}:", *found]))
        raise


def _rebooted_without_a_manager(pod: Pod, share: Path) -> Pod:
    """Have the guest boot again while no manager runs; a file in a share of it is the sign."""
    _run(pod, "(until [ -e /e/go ]; do sleep 0.2; done; rm /e/go; reboot -f) >/dev/null 2>&1 &")
    pod.node.stop()
    console = Paths(pod.node.data_dir).console(pod.vm).with_suffix(".out")
    logins = console.read_bytes().count(b"login:")
    (share / "go").touch()
    until(lambda: console.read_bytes().count(b"login:") > logins, "a reboot", BOOT_TIMEOUT)
    pod.node.start()
    return evolve(pod, client=pod.node.client())


def _renew_token(pod: Pod, account: Path) -> None:
    """Renew the token of the pod's service account as the old one ends, and have the guest go on
    asking an API server."""
    with ExitStack() as stack:
        server = netns.inside(
            pod.node.netns, lambda: stack.enter_context(image_server(address=GATEWAY))
        )
        answer = Resource(b"pods", authorization="Bearer token")
        server.resources["/api"] = answer
        header = f'"Authorization: Bearer $(cat {SERVICE_ACCOUNT}/token)"'
        ask = f"wget -q -O - --header {header} {server.url}/api 2>/dev/null"
        assert _run(pod, ask) == "pods"
        answer.authorization = "Bearer renewed"
        assert _run(pod, f"{ask} || echo unauthorized") == "unauthorized\n"
        write_account(account, "renewed", second=1)
        assert _run(pod, f"until {ask}; do sleep 0.5; done") == "pods"


def test_a_guest_writes_into_the_volumes_that_a_kubelet_keeps_closed(
    own_node: Playground, kubelet_pod: KubeletPod
) -> None:
    """Of both kinds of emptyDir, over a restart of the manager, and a reboot while there is none;
    nothing of it stays mounted.

    A Secret that changes meanwhile reaches the guest, also after each reboot, and with a renewed
    token the guest still reaches an API server that knows the old one no more.
    """
    pod = kubelet_pod.pod.up()
    _run(pod, UNTIL_UP + "for at in /e /m; do echo written in the guest >$at/file; done")
    for name in ("e", "m"):
        file = kubelet_pod.volume("empty-dir", name) / "file"
        assert file.read_text() == "written in the guest\n"
    assert _run(pod, _AS_USERS).split() == ["refused", "1000:2000", "1002:2000"]
    by_user = kubelet_pod.volume("empty-dir", "e") / "by-user"
    assert (by_user.stat().st_uid, by_user.stat().st_gid) == (1000, 2000)
    by_user.unlink()
    assert _run(pod, "cat /h/of-the-node") == "on the node"
    until(lambda: _mounted(pod) == {"/e": True, "/m": True, "/h": True}, "a look at the shares")
    later = own_node.directory / "srv/later"
    later.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "none", later], check=True)
    (later / "file").write_text("mounted later")
    with _telling_of_mounts(pod, "/srv", "/volume-"):
        until(lambda: _run(pod, "cat /h/later/file") == "mounted later", "a later mount")
    subprocess.run(["umount", later], check=True)
    later.rmdir()

    seen = _run(pod, f"stat -L -c '%a %u:%g %n' {SERVICE_ACCOUNT}/namespace /etc/sec/key")
    assert seen.splitlines() == [
        f"644 0:0 {SERVICE_ACCOUNT}/namespace",
        "440 0:2000 /etc/sec/key",
    ]

    write_atomic(kubelet_pod.volume("secret", "sec"), {"key": (b"changed", 0o400, 0)}, second=1)
    (account,) = kubelet_pod.directory.glob("volumes/kubernetes.io~projected/*")
    _renew_token(pod, account)
    changed = _run(pod, _UNTIL_CHANGED + "stat -L -c '%a %u:%g' /etc/sec/key; ls -A /etc/sec")
    assert changed.split() == ["400", "0:0", "..2026_11_27_10_00_01.1", "..data", "key"]

    boot = "cat /proc/sys/kernel/random/boot_id"
    before = _run(pod, boot)
    _run(pod, "(sleep 1; reboot -f) >/dev/null 2>&1 &")
    # Its root is in memory: the seed's old file is there again, until it is given the new one.
    # What is asked in the moment of the reset is never answered.
    until(lambda: _run(pod, boot, 5) != before, "a reboot", BOOT_TIMEOUT, ignore=(CallFailed,))
    _run(pod, _UNTIL_CHANGED)
    # What it had mounted before counts no more; virtiofsd has it open as before.
    mounted = {"/e": True, "/m": True, "/h": True}
    until(lambda: _mounted(pod) == mounted, "a look after the reboot", BOOT_TIMEOUT)

    pod = _with_another_manager(pod)
    _run(pod, UNTIL_UP + "echo and again >>/m/file")
    assert "and again" in (kubelet_pod.volume("empty-dir", "m") / "file").read_text()
    assert "has not mounted" not in Path(pod.status.log_path).read_text()

    pod = _rebooted_without_a_manager(pod, kubelet_pod.volume("empty-dir", "e"))
    _run(pod, UNTIL_UP + "echo once more >>/m/file; cat /h/of-the-node")
    assert "once more" in (kubelet_pod.volume("empty-dir", "m") / "file").read_text()
    _run(pod, _UNTIL_CHANGED)
    assert len(at_or_below(own_node.data_dir / "volumes" / pod.vm)) == 3
    pod.client.stop(pod.vm, 0)
    # A kubelet unmounts the volumes now, and removes the container later.
    assert at_or_below(own_node.data_dir / "volumes" / pod.vm) == []
    pod.down()
    assert own_node.settled_leftovers() == []
    for name in ("e", "m"):
        assert [path.name for path in kubelet_pod.volume("empty-dir", name).iterdir()] == ["file"]
    assert kubelet_pod.volume("empty-dir", "m").is_mount()
    assert stat.S_IMODE(own_node.kubelet_dir.stat().st_mode) == 0o750


def test_a_share_that_the_guest_cannot_mount_is_told_in_the_pods_log(
    own_node: Playground, kubelet_pod: KubeletPod
) -> None:
    """As in a guest whose kernel has no 9p."""
    pod = kubelet_pod.pod
    pod.pod.annotations["VirtletShareDriver"] = "9p"
    pod.pod.annotations["VirtletCloudInitUserData"] = (
        "bootcmd: ['rm -rf /lib/modules/*/kernel/fs/9p /lib/modules/*/kernel/net/9p']"
    )
    pod.manifest.container.command.append("/bin/sh")
    pod.manifest.container.args.append("-c")
    pod.manifest.container.working_dir = "/srv"
    pod = pod.up()

    def notices(words: str) -> list[str]:
        lines = Path(pod.status.log_path).read_text().splitlines()
        return [line for line in lines if " stderr F [virtlet: " in line and words in line]

    assert len(notices("command, args and workingDir of container guest have no effect")) == 1
    unmounted = "the guest has not mounted /e (9p, tag volume-"
    until(lambda: bool(notices(unmounted)), "a notice of the share", BOOT_TIMEOUT)
    (told,) = notices(unmounted)
    assert "knows no 9p file system" in told
    assert _mounted(pod) == {"/e": False, "/m": False, "/h": False}
    pod.down()
    assert own_node.settled_leftovers() == []
