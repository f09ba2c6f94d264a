"""RestorePod with real guests, on the same node and on another one."""

import mmap
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest
from attrs import evolve, frozen

from tests.e2e.conftest import AS_THE_UNIT, TINY, Pod, make_manifest
from tests.e2e.crash_points import CrashPoints
from tests.polling import until
from virtlet.cli.client import CallFailed, NoRuntime
from virtlet.cli.playground import Playground
from virtlet.cri import api_pb2 as cri

COUNT = "n=0; while :; do n=$((n+1)); echo $n >/run/count; sleep 0.1; done"


@frozen
class Taken:
    """A checkpoint of a pod that is gone."""

    pod: Pod
    points: CrashPoints
    directory: Path
    counted: int
    """How far a process of the guest had counted just before."""
    machine_id: str
    address: str

    def restored(self, pod: Pod | None = None, **options: str) -> Pod:
        """The pod again, not started; on another node as a kubelet there has it."""
        pod = pod or self.pod
        pod_id, vm_id = pod.client.restore_pod(
            str(self.directory), pod.pod, pod.config(), options=options
        )
        return evolve(pod, id=pod_id, vm=vm_id)

    def goes_on(self, pod: Pod, *, renewed: bool = False) -> None:
        """All is there that was at that moment, in memory and on the disk, and nothing else."""
        assert pod.exec("cat", "/run/before").stdout == "before\n"
        assert pod.exec("cat", "/root/kept").stdout == "kept\n"
        assert pod.exec("ls", "/run/after", "/root/after").exit_code != 0
        first = int(pod.exec("cat", "/run/count").stdout)
        assert first >= self.counted
        until(lambda: int(pod.exec("cat", "/run/count").stdout or 0) > first, "the guest's count")
        is_same = pod.exec("cat", "/etc/machine-id").stdout == self.machine_id
        assert is_same is not renewed

    def becomes_another_one_beside(self, source: Pod) -> None:
        """A copy has all that was at that moment, and an identity of its own."""
        before = _identity(source)
        copy = self.restored(
            Pod(source.node, source.client, make_manifest(source.node)), identity="new"
        )
        copy.client.start(copy.vm)
        name, *more = _identity(copy)
        assert name == copy.manifest.pod.metadata.name
        assert not {name, *more} & set(before)
        assert _identity(source)[:-1] == before[:-1]
        assert name in copy.wait_for_answer()
        assert source.manifest.pod.metadata.name in source.wait_for_answer()
        self.goes_on(copy, renewed=True)
        assert abs(float(copy.exec("date", "+%s").stdout) - time.time()) < 5
        copy.down()


IDENTITY = """
hostname; cat /etc/machine-id /sys/class/net/eth0/address
dropbearkey -y -f /run/tiny/host_key | grep ^ssh | cut -d ' ' -f 2; head -c 32 /dev/urandom | base64
"""


def _identity(pod: Pod) -> list[str]:
    """Name, machine-id, MAC, SSH host key, VM generation id, address; and random bytes."""
    said: list[str] = []

    def has_all() -> bool:
        """A copy's key of SSH is made as it goes on."""
        said[:] = pod.exec("sh", "-c", IDENTITY).stdout.splitlines()
        return len(said) == 5

    until(has_all, "the guest's identity")
    words = " ".join(pod.command_line)
    (generation,) = re.findall(r'vmgenid[^ ]*guid[=":]+([0-9a-f-]{36})', words)
    return [*said[:4], generation, pod.address, said[4]]


@pytest.fixture(scope="module")
def taken(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Taken]:
    points = CrashPoints(tmp_path_factory.mktemp("points"))
    with (
        Playground(
            {"tiny": TINY},
            subnet="10.143.0.0/16",
            environment=points.environment,
            wrapper=AS_THE_UNIT,
        ) as node,
        node.client() as client,
    ):
        pod = Pod(node, client, make_manifest(node)).up()
        pod.wait_for_answer()
        pod.exec("sh", "-c", f"({COUNT}) >/dev/null 2>&1 </dev/null &")
        pod.exec("sh", "-c", "echo before >/run/before; echo kept >/root/kept; sync")
        # A tiny guest that boots has none.
        pod.exec("sh", "-c", "tr -d - </proc/sys/kernel/random/uuid >/etc/machine-id")
        until(lambda: pod.exec("cat", "/run/count").stdout, "the guest's count")
        counted = int(pod.exec("cat", "/run/count").stdout)
        machine_id, address = pod.exec("cat", "/etc/machine-id").stdout, pod.address
        assert len(machine_id) == 33
        directory = tmp_path_factory.mktemp("checkpoint")
        client.checkpoint_pod(pod.id, [pod.vm], str(directory), 120)
        pod.exec("sh", "-c", "echo after >/run/after; echo after >/root/after; sync")
        made = Taken(pod, points, directory, counted, machine_id, address)
        # It would be the same machine twice in one network.
        other = make_manifest(node)
        with pytest.raises(CallFailed, match="is up and has a MAC address"):
            client.restore_pod(str(directory), other.pod, pod.config())
        assert [each.id for each in client.pods()] == [pod.id]
        pod.down()
        yield made


def test_a_vm_goes_on_where_it_stood_with_its_clock_right_and_in_its_new_network(
    taken: Taken,
) -> None:
    """Nothing of it runs before it is started, and another restore is refused."""
    pod = taken.restored()
    assert pod.status.state == cri.CONTAINER_CREATED
    assert [path.name for path in taken.directory.iterdir()] == ["vm.tar"]
    assert (pod.directory / "saved" / "memory").stat().st_mode & 0o777 == 0o600
    with pytest.raises(ValueError, match="unpack"):
        assert pod.emulator
    with pytest.raises(CallFailed, match="exists: remove pod"):
        taken.restored()

    pod.client.start(pod.vm)
    assert pod.status.state == cri.CONTAINER_RUNNING
    taken.goes_on(pod)
    assert abs(float(pod.exec("date", "+%s").stdout) - time.time()) < 5
    assert pod.address != taken.address
    assert pod.address in pod.exec("ip", "-o", "addr", "show", "dev", "eth0").stdout
    assert pod.manifest.pod.metadata.name in pod.wait_for_answer()
    # By the VM generation id its kernel knows that it has been copied.
    assert "virtual machine fork" in pod.exec("dmesg").stdout
    assert not (pod.directory / "saved").exists()
    assert "could not be set right" not in pod.console()

    taken.becomes_another_one_beside(pod)
    pod.down()
    assert list((pod.node.data_dir / "volumes").iterdir()) == []


def test_the_command_line_restores_a_manifests_pod_also_encrypted(
    taken: Taken, tmp_path: Path
) -> None:
    """Its name is another one: only what the guest was booted with has to be alike."""
    manifest = tmp_path / "pod.yaml"
    manifest.write_text((Path(__file__).parents[2] / "examples/pods/tiny.yaml").read_text())
    node = taken.pod.node

    def run(*words: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "virtlet.cli.main", *words, "--socket", str(node.socket)]
        return subprocess.run(command, capture_output=True, text=True)

    logs = ("--log-root", str(node.log_root))
    refused = run("restore", str(tmp_path), str(manifest), *logs)
    assert refused.returncode != 0
    assert "vm.tar cannot be read" in refused.stderr
    done = run("restore", str(taken.directory), str(manifest), *logs)
    assert "goes on at 10.143." in done.stdout, done.stderr

    # What goes on can be checkpointed, too.
    key, other, again = tmp_path / "key", tmp_path / "other", tmp_path / "again"
    for path in (key, other):
        path.write_bytes(os.urandom(32))
        path.chmod(0o600)
    again.mkdir()
    keyed = ("--key-file", str(key))
    assert "make an empty one" in run("checkpoint", "tiny", str(tmp_path / "file"), *keyed).stderr
    done = run("checkpoint", "tiny", str(again), *keyed)
    assert done.returncode == 0, done.stderr
    (archive,) = again.iterdir()
    assert archive.name == "vm.tar.encrypted"
    assert archive.stat().st_mode & 0o777 == 0o600
    assert _says(taken.directory / "vm.tar", taken.machine_id)
    assert not _says(archive, taken.machine_id)
    assert run("rm", "--grace", "0", "tiny").returncode == 0

    def refuses(why: str, *words: str, directory: Path = again) -> None:
        done = run("restore", str(directory), str(manifest), *words, *logs)
        assert done.returncode != 0
        assert why in done.stderr
        assert taken.pod.client.pods() == []

    refuses("is encrypted: give its key file")
    refuses("is not of this key", "--key-file", str(other))
    refuses("is not encrypted: restore it without", *keyed, directory=taken.directory)
    broken = tmp_path / "broken"
    broken.mkdir()
    for change in (_cut, _swap):
        shutil.copy(archive, broken)
        change(broken / archive.name)
        refuses("changed", *keyed, directory=broken)
    done = run("restore", str(again), str(manifest), *keyed, *logs)
    assert done.returncode == 0, done.stderr
    with node.client() as client:
        (pod,), (vm,) = client.pods(), client.containers()
    taken.goes_on(evolve(taken.pod, id=pod.id, vm=vm.id))
    assert run("rm", "--grace", "0", "tiny").returncode == 0
    assert list((node.data_dir / "volumes").iterdir()) == []


def _says(path: Path, word: str) -> bool:
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as whole:
        return whole.find(word.encode()) >= 0


def _cut(path: Path) -> None:
    """The last chunk is gone, which has nothing but the archive's size."""
    os.truncate(path, path.stat().st_size - 29)


def _swap(path: Path) -> None:
    """Two chunks of the same size change places."""
    at, before = 24, 0
    with path.open("r+b") as file:
        while (size := 5 + int.from_bytes(os.pread(file.fileno(), 4, at))) != before:
            at, before = at + size, size
        one, two = (os.pread(file.fileno(), size, place) for place in (at - size, at))
        os.pwrite(file.fileno(), two + one, at - size)


def test_it_goes_on_on_another_node_with_the_same_image(taken: Taken) -> None:
    with (
        Playground({"tiny": TINY}, subnet="10.144.0.0/16", wrapper=AS_THE_UNIT) as node,
        node.client() as client,
    ):
        name = taken.pod.manifest.pod.metadata.name
        pod = Pod(node, client, make_manifest(node, name))
        without = pod.manifest.attempt(0, "sha256:" + "0" * 64)
        with pytest.raises(CallFailed, match="has to be in the store"):
            client.restore_pod(str(taken.directory), pod.pod, without)
        assert client.pods() == []
        client.pull(pod.image, pod.pod)
        pod = taken.restored(pod)
        client.start(pod.vm)
        taken.goes_on(pod)
        assert pod.address.startswith("10.144.")
        assert pod.wait_for_answer()
        pod.down()


def _is_gone(path: Path) -> bool:
    return not path.exists()


PLACES = "running:applied", "saved:told"
"""Where the manager dies while it starts what goes on; the fake node has every place."""


def test_a_manager_that_is_killed_leaves_all_or_nothing(taken: Taken) -> None:
    """A guest that was let go on too early goes on once more from the same moment."""
    node, client = taken.pod.node, taken.pod.client

    def killed(point: str, call: Callable[[], object]) -> None:
        taken.points.die_at(point)
        with pytest.raises((CallFailed, NoRuntime)):
            call()
        assert node.process is not None
        node.process.wait(30)
        node.start()

    killed("saved:applied", taken.restored)
    until(lambda: not client.pods(), "nothing left of the pod")
    assert list((node.data_dir / "volumes").iterdir()) == []
    for point in PLACES:
        pod = taken.restored()
        killed(point, partial(client.start, pod.vm))
        client.start(pod.vm)
        taken.goes_on(pod)
        until(partial(_is_gone, pod.directory / "saved"), f"copies gone after {point}")
        pod.down()
