"""CheckpointContainer of a real guest, also by a manager that is killed all the time."""

import json
import re
import subprocess
import sys
import tarfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from attrs import frozen

from tests.e2e.conftest import AS_THE_UNIT, TINY, Pod, make_manifest
from tests.e2e.crash_points import CrashPoints
from tests.fakes.pod_cgroup import pod_cgroup
from tests.polling import until
from virtlet.cli.client import CallFailed, NoRuntime
from virtlet.cli.playground import Playground
from virtlet.cri import api_pb2 as cri


@frozen
class Source:
    """A VM that runs, and a directory for its checkpoints."""

    pod: Pod
    points: CrashPoints
    directory: Path

    def counts_on(self) -> None:
        """The guest runs on: a process of it has counted once more."""
        before = self.pod.exec("cat", "/run/count").stdout
        until(lambda: self.pod.exec("cat", "/run/count").stdout != before, "the guest's count")


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Source]:
    points = CrashPoints(tmp_path_factory.mktemp("points"))
    with (
        pod_cgroup() as parent,
        Playground(
            {"tiny": TINY},
            subnet="10.141.0.0/16",
            wrapper=AS_THE_UNIT,
            environment=points.environment,
        ) as node,
        node.client() as client,
    ):
        manifest = make_manifest(node)
        manifest.pod.linux.cgroup_parent = parent
        pod = Pod(node, client, manifest).up()
        pod.wait_for_answer()
        count = "n=0; while :; do n=$((n+1)); echo $n >/run/count; sleep 0.1; done"
        pod.exec("sh", "-c", f"({count}) >/dev/null 2>&1 </dev/null &")
        yield Source(pod, points, tmp_path_factory.mktemp("checkpoints"))
        pod.down()


def test_a_vm_is_written_to_one_file_and_runs_on(source: Source) -> None:
    """Its disk is sound, the manifest says what it fits, and root alone can read it."""
    path = source.directory / "first.tar"
    emulator = source.pod.emulator
    source.pod.client.checkpoint(source.pod.vm, str(path))
    source.counts_on()
    assert source.pod.emulator == emulator
    assert source.pod.status.state == 1
    assert path.stat().st_mode & 0o777 == 0o600
    # Memory that the guest has never used takes no space.
    assert path.stat().st_blocks * 512 < path.stat().st_size
    with tarfile.open(path) as archive:
        assert archive.getnames() == ["manifest.json", "memory", "disk.qcow2"]
        manifest = archive.extractfile("manifest.json")
        assert manifest is not None
        told = json.loads(manifest.read())
        archive.extract("disk.qcow2", source.directory, filter="data")
    assert told["pod"]["name"] == source.pod.manifest.pod.metadata.name
    assert source.pod.status.image_ref.endswith(told["image"]["id"])
    assert {"qemu", "libvirt", "accelerator", "cpu"} <= set(told["machine"]["basis"])
    assert len(told["nics"]) == 1
    check = ["qemu-img", "check", "-q", str(source.directory / "disk.qcow2")]
    subprocess.run(check, check=True)

    with pytest.raises(CallFailed, match="first.tar exists"):
        source.pod.client.checkpoint(source.pod.vm, str(path))


def test_a_pod_is_written_to_an_empty_directory_and_runs_on(source: Source) -> None:
    """Once: the second finds it full, and changes nothing."""
    directory = source.directory / "pod"
    directory.mkdir()
    pod, client = source.pod, source.pod.client
    client.checkpoint_pod(pod.id, [pod.vm], str(directory), 120)
    source.counts_on()
    (archive,) = directory.iterdir()
    assert directory.stat().st_mode & 0o777 == 0o700
    assert archive.stat().st_mode & 0o777 == 0o600
    written = archive.stat().st_mtime_ns
    with pytest.raises(CallFailed, match="is not empty"):
        client.checkpoint_pod(pod.id, [pod.vm], str(directory), 120)
    with pytest.raises(CallFailed, match="not one of pod"):
        client.checkpoint_pod(pod.id, ["f" * 32], str(directory), 120)
    assert archive.stat().st_mtime_ns == written


@pytest.mark.timeout(600)
def test_a_manager_that_is_killed_anywhere_leaves_a_guest_that_runs_on(source: Source) -> None:
    """No half file is there, and the next checkpoint is taken."""
    pod, node = source.pod, source.pod.node

    def take(name: str) -> Path:
        path = source.directory / name
        pod.client.checkpoint(pod.vm, str(path))
        return path

    points = source.points.passed_in(lambda: take("traced"))
    assert [point for point in points if point.endswith(("intended", "applied", "settled"))]
    emulator = pod.emulator
    for number, point in enumerate(points):
        source.points.die_at(point)
        with pytest.raises((CallFailed, NoRuntime)):
            take(f"killed{number}")
        assert node.process is not None
        node.process.wait(30)
        node.start()
        assert not (source.directory / f"killed{number}").exists(), point
        source.counts_on()
        assert pod.emulator == emulator, point
    assert take("last").exists()
    source.counts_on()


def _command(pod: Pod, *words: str) -> str:
    """What a command of the node's says."""
    argv = [sys.executable, "-m", "virtlet.cli.main", *words, pod.manifest.pod.metadata.name]
    socket = ("--socket", f"unix://{pod.node.socket}")
    said = subprocess.run([*argv, *socket], capture_output=True, text=True, timeout=120)
    assert said.returncode == 0, said.stderr
    return said.stdout


def _memory_of(pod: Pod) -> int:
    reply = pod.client.call("ContainerStats", cri.ContainerStatsRequest(container_id=pod.vm))
    return int(reply.stats.memory.working_set_bytes.value)


def test_a_vm_is_hibernated_over_a_restart_and_goes_on_where_it_stood(source: Source) -> None:
    """Its memory is in no process meanwhile, and its disk and address are those it had."""
    pod, node = source.pod, source.pod.node
    pod.exec("sh", "-c", "echo kept >/run/kept; echo written >/written; sync")
    before, address = pod.status, pod.address
    emulator = pod.emulator
    first = pod.console()
    assert _memory_of(pod) > 0

    assert "virtlet resume" in _command(pod, "hibernate")
    # Its parent may reap it later.
    until(lambda: not Path(f"/proc/{emulator}").exists(), "the emulator's end")
    status = pod.status
    assert status.state == before.state
    assert status.started_at == before.started_at
    assert status.reason == "Hibernated"
    assert pod.address == address
    (file,) = (pod.directory / "hibernated").iterdir()
    assert file.stat().st_mode & 0o777 == 0o600
    assert "hibernated" in _command(pod, "inspect")
    # What was measured last may be some seconds old.
    until(lambda: _memory_of(pod) == 0, "statistics without the guest's memory")
    with pytest.raises(CallFailed, match="virtlet resume"):
        pod.exec("true")
    assert node.stop() == 0
    node.start()
    assert pod.status.reason == "Hibernated"

    assert "goes on" in _command(pod, "resume")
    assert pod.status == before
    assert pod.emulator != emulator
    assert not file.parent.exists()
    assert pod.exec("cat", "/run/kept", "/written").stdout == "kept\nwritten\n"
    source.counts_on()
    assert pod.address == address
    assert pod.wait_for_answer()
    now = int(pod.exec("date", "+%s").stdout)
    assert abs(now - time.time()) < 60
    pod.exec("sh", "-c", "echo after-it-went-on >/dev/console")
    pod.wait_for_console("after-it-went-on")
    assert pod.console().startswith(first)
    # And once more, as a kubelet that knows of none of it.
    source.pod.client.checkpoint(pod.vm, str(source.directory / "resumed.tar"))
    source.counts_on()


@pytest.mark.parametrize(
    ("command", "point", "reason"),
    [
        ("hibernate", "vm-hibernated:before-commit", ""),
        ("hibernate", "vm-hibernated:committed", "Hibernated"),
        ("resume", "vm-resumed:before-commit", ""),
    ],
)
def test_a_manager_that_is_killed_at_a_turn_has_a_vm_that_runs_or_is_hibernated(
    source: Source, command: str, point: str, reason: str
) -> None:
    """Its guest stood still with its memory written, or went on already; it is lost in neither."""
    pod, node = source.pod, source.pod.node
    if command == "resume":
        pod.client.hibernate(pod.vm, on=True)
    source.points.die_at(point)
    with pytest.raises((CallFailed, NoRuntime)):
        pod.client.hibernate(pod.vm, on=command == "hibernate")
    assert node.process is not None
    node.process.wait(30)
    node.start()
    until(lambda: pod.status.reason == reason, f"reason {reason!r}")
    saved = pod.directory / "hibernated"
    if reason:
        assert saved.exists()
        pod.client.hibernate(pod.vm, on=False)
    until(lambda: not saved.exists(), "its memory's end")
    source.counts_on()


def test_a_vm_that_is_resized_meanwhile_has_both(source: Source) -> None:
    """Neither breaks the other: each archive is whole, and the last resize holds."""
    pod = source.pod
    problems: list[Exception] = []

    def resize() -> None:
        for quota in (60_000, 90_000) * 4:
            resources = cri.LinuxContainerResources(cpu_quota=quota, cpu_period=100_000)
            request = cri.UpdateContainerResourcesRequest(container_id=pod.vm, linux=resources)
            try:
                pod.client.call("UpdateContainerResources", request)
            except CallFailed as error:
                problems.append(error)

    thread = threading.Thread(target=resize)
    thread.start()
    for number in range(3):
        _take_whole(source, f"resized{number}")
    thread.join()
    assert not problems
    assert pod.status.resources.linux.cpu_quota == 90_000
    source.counts_on()


@pytest.mark.timeout(600)
def test_a_guest_that_reboots_meanwhile_is_taken_as_it_is_and_comes_up(source: Source) -> None:
    """In whatever state its firmware, boot loader or kernel is."""
    pod = source.pod
    logins = pod.console().count("login:")
    pod.leave("reboot")
    until(lambda: "reboot: Restarting system" in pod.console(), "the guest's end", 30)
    taken = 0
    while pod.console().count("login:") == logins:
        assert taken < 100
        _take_whole(source, f"rebooting{taken}")
        taken += 1
    assert taken >= 1
    pod.wait_for_answer()
    _take_whole(source, "rebooted")


def test_a_guest_that_panics_has_none(source: Source) -> None:
    """It is refused by name once the guest has ended, and a file that was begun is gone."""
    pod = source.pod
    pod.leave("echo 1 >/proc/sys/kernel/sysrq; echo c >/proc/sysrq-trigger")
    with pytest.raises(CallFailed) as caught:
        for number in range(100):
            _take_whole(source, f"panicking{number}")
    assert re.search("does not run, but is exited|was not checkpointed: ", caught.value.details)
    assert not list(source.directory.glob("panicking*"))
    until(lambda: pod.status.message == "the guest's kernel panicked", "the guest's end")
    with pytest.raises(CallFailed, match="does not run, but is exited"):
        _take_whole(source, "panicked")


def _take_whole(source: Source, name: str) -> None:
    """Take a checkpoint, whose disk is sound, and remove it."""
    path, disk = source.directory / f"{name}.tar", source.directory / "disk.qcow2"
    source.pod.client.checkpoint(source.pod.vm, str(path))
    with tarfile.open(path) as archive:
        assert archive.getnames() == ["manifest.json", "memory", "disk.qcow2"]
        archive.extract("disk.qcow2", source.directory, filter="data")
    subprocess.run(["qemu-img", "check", "-q", str(disk)], check=True)
    path.unlink()
