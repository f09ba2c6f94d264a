"""A VM pod from manifest to nothing left."""

import json
import time
from pathlib import Path

import grpc
import pytest

from tests.e2e.conftest import Pod, PodFactory
from tests.fakes.pod_cgroup import pod_cgroup
from tests.polling import until
from virtlet.cli.client import CallFailed
from virtlet.cli.playground import Playground
from virtlet.core.lifecycle.effects import MOST_THREADS
from virtlet.cri import api_pb2 as cri
from virtlet.host import cgroups


def _exited(pod: Pod) -> bool:
    return pod.status.state == cri.CONTAINER_EXITED


def test_a_manifest_becomes_a_machine_that_answers_and_goes_away_without_a_trace(
    node: Playground, new_pod: PodFactory
) -> None:
    before = node.leftovers()
    pod = new_pod().up()
    pod.wait_for_console("login:")
    assert pod.manifest.pod.metadata.name in pod.wait_for_answer()
    pod.wait_for_console("hello from the user-data of examples/pods/tiny.yaml")

    status = pod.status
    assert status.state == cri.CONTAINER_RUNNING
    assert status.started_at >= status.created_at > 0
    assert "tiny@sha256:" in status.image_ref
    assert status.image_id.startswith("sha256:")
    assert status.resources.linux.memory_limit_in_bytes == 320 << 20

    pod.client.stop(pod.vm, 30)
    status = pod.status
    assert (status.state, status.exit_code, status.reason) == (cri.CONTAINER_EXITED, 0, "Completed")
    assert status.finished_at >= status.started_at
    pod.down()
    assert node.settled_leftovers(before) == []
    assert pod.id not in {p.id for p in pod.client.pods()}


def test_a_guest_that_powers_off_is_completed_and_a_new_attempt_has_a_disk_of_its_own(
    node: Playground, new_pod: PodFactory
) -> None:
    pod = new_pod().up()
    pod.wait_for_console("login:")
    first = pod.vm
    address = pod.address
    pod.client.stop(pod.vm, 30)
    assert pod.status.reason == "Completed"

    second = pod.up(attempt=1)
    assert second.vm != first
    assert second.id == pod.id
    assert second.address == address
    second.wait_for_console("login:")
    volumes = node.data_dir / "volumes"
    assert (volumes / first / "root.qcow2").exists()
    assert (volumes / second.vm / "root.qcow2").exists()
    pod.client.remove(first)
    assert not (volumes / first).exists()
    assert second.wait_for_answer()
    pod.down()


def test_a_guest_that_ignores_the_power_button_is_ended_after_its_grace(
    new_pod: PodFactory,
) -> None:
    pod = new_pod().up()  # the firmware does not hear the button
    started = time.monotonic()
    pod.client.stop(pod.vm, 1)
    assert 0.9 <= time.monotonic() - started < 20
    status = pod.status
    assert (status.state, status.exit_code) == (cri.CONTAINER_EXITED, 137)
    assert status.reason == "Error"


def test_a_retried_call_never_makes_a_second_pod_or_machine(new_pod: PodFactory) -> None:
    pod = new_pod().run()
    assert pod.run().id == pod.id
    pod = pod.create()
    assert pod.create().vm == pod.vm
    pod.client.start(pod.vm)
    pod.client.start(pod.vm)
    assert len(pod.client.containers(pod.id)) == 1


def test_the_calls_that_end_things_succeed_again_and_on_what_is_unknown(
    new_pod: PodFactory,
) -> None:
    pod = new_pod().up()
    for _ in range(2):
        pod.client.stop(pod.vm, 0)
    for _ in range(2):
        pod.client.remove(pod.vm)
    for _ in range(2):
        pod.client.stop_pod(pod.id)
    for _ in range(2):
        pod.client.remove_pod(pod.id)
    pod.client.stop("0" * 32, 0)
    pod.client.remove("0" * 32)
    pod.client.stop_pod("0" * 32)
    pod.client.remove_pod("0" * 32)


def test_a_second_running_container_in_a_pod_is_refused_with_a_clear_message(
    new_pod: PodFactory,
) -> None:
    pod = new_pod().up()
    with pytest.raises(CallFailed, match="a VM pod runs one container") as caught:
        pod.client.create(pod.id, pod.config(name="sidecar"), pod.pod)
    assert caught.value.code is grpc.StatusCode.FAILED_PRECONDITION
    assert pod.status.state == cri.CONTAINER_RUNNING


def test_stopping_a_pod_stops_its_machine_and_frees_its_address(
    node: Playground, new_pod: PodFactory
) -> None:
    pod = new_pod().up()
    address = pod.address
    pod.client.stop_pod(pod.id)
    assert _exited(pod)
    assert pod.client.pod_status(pod.id).state == cri.SANDBOX_NOTREADY
    assert not (node.directory / "ipam" / "playground" / address).exists()
    with pytest.raises(CallFailed, match="is stopped"):
        pod.client.create(pod.id, pod.config(attempt=1), pod.pod)


def test_lists_honour_every_filter(new_pod: PodFactory) -> None:
    pod = new_pod("filtered")
    pod.pod.labels["colour"] = "red"
    pod = pod.run().create()
    call = pod.client.call

    def sandboxes(**fields: object) -> set[str]:
        wanted = cri.PodSandboxFilter(**fields)  # type: ignore[arg-type]
        reply = call("ListPodSandbox", cri.ListPodSandboxRequest(filter=wanted))
        return {item.id for item in reply.items}

    def containers(**fields: object) -> set[str]:
        wanted = cri.ContainerFilter(**fields)  # type: ignore[arg-type]
        reply = call("ListContainers", cri.ListContainersRequest(filter=wanted))
        return {item.id for item in reply.containers}

    assert sandboxes(id=pod.id) == {pod.id}
    assert sandboxes(label_selector={"colour": "red"}) == {pod.id}
    assert sandboxes(label_selector={"colour": "blue"}) == set()
    not_ready = cri.PodSandboxStateValue(state=cri.SANDBOX_NOTREADY)
    assert pod.id not in sandboxes(state=not_ready)
    assert containers(id=pod.vm) == {pod.vm}
    assert containers(pod_sandbox_id=pod.id) == {pod.vm}
    assert containers(label_selector={"io.kubernetes.pod.name": "filtered"}) == {pod.vm}
    running = cri.ContainerStateValue(state=cri.CONTAINER_RUNNING)
    assert pod.vm not in containers(state=running)


def test_ids_as_crictl_prints_them_are_understood_by_every_call_and_filter(
    new_pod: PodFactory,
) -> None:
    pod = new_pod().run().create()
    sandbox, container = pod.id[:13], pod.vm[:13]
    call = pod.client.call

    def ids(method: str, items: str, **fields: object) -> list[str]:
        request = getattr(cri, f"{method}Request")(filter=fields)
        return [getattr(i, "attributes", i).id for i in getattr(call(method, request), items)]

    status = call("PodSandboxStatus", cri.PodSandboxStatusRequest(pod_sandbox_id=sandbox))
    assert status.status.id == pod.id
    assert pod.client.status(container).id == pod.vm
    stats = call("ContainerStats", cri.ContainerStatsRequest(container_id=container))
    assert stats.stats.attributes.id == pod.vm
    stats = call("PodSandboxStats", cri.PodSandboxStatsRequest(pod_sandbox_id=sandbox))
    assert stats.stats.attributes.id == pod.id
    assert ids("ListPodSandbox", "items", id=sandbox) == [pod.id]
    assert ids("ListContainers", "containers", id=container) == [pod.vm]
    assert ids("ListContainers", "containers", pod_sandbox_id=sandbox) == [pod.vm]
    assert ids("ListPodSandboxStats", "stats", id=sandbox) == [pod.id]
    assert ids("ListContainerStats", "stats", pod_sandbox_id=sandbox) == []

    image = pod.status.image_id
    for short in (image.removeprefix("sha256:")[:13], image[:20]):
        spec = cri.ImageSpec(image=short)
        found = call("ImageStatus", cri.ImageStatusRequest(image=spec)).image
        assert found.id == image
    again = pod.config(attempt=1)
    again.image.image = image.removeprefix("sha256:")[:13]
    pod.client.remove(container)
    with pytest.raises(CallFailed, match=f"no container {pod.vm}"):
        pod.client.status(pod.vm)
    assert pod.client.status(pod.client.create(sandbox, again, pod.pod)).image_id == image
    pod.client.stop_pod(sandbox)
    pod.client.remove_pod(sandbox)
    assert pod.id not in {p.id for p in pod.client.pods()}


def test_every_change_is_a_line_of_the_managers_log_with_ids_and_names(
    node: Playground, new_pod: PodFactory
) -> None:
    before = len(node.log_file.read_text().splitlines())
    pod = new_pod("logged").run().create()
    pod.client.start(pod.vm)
    image = pod.status.image_id
    with pytest.raises(CallFailed):
        pod.client.create(pod.id, pod.config(attempt=1, name="second"), pod.pod)
    pod.client.stop(pod.vm[:13], 0)
    pod.down()
    until(lambda: "RemovePodSandbox" in node.tail(3), "the last call's line", 10)
    texts = node.log_file.read_text().splitlines()[before:]
    lines = [json.loads(text) for text in texts if text.startswith("{")]
    calls = {line["call"]: line for line in lines if "code" in line}
    metadata = pod.manifest.pod.metadata
    name = f"{metadata.namespace}/{metadata.name}"
    about_pod = ("RunPodSandbox", "StopPodSandbox", "RemovePodSandbox")
    about_vm = ("StartContainer", "StopContainer")
    for call in (*about_pod, *about_vm):
        assert (calls[call]["level"], calls[call]["code"]) == ("info", "OK")
        assert (calls[call]["pod"], calls[call]["pod_name"]) == (pod.id, name)
    for call in about_vm:
        assert (calls[call]["vm"], calls[call]["vm_name"]) == (pod.vm, "guest")
        assert calls[call]["image_id"] == image
    assert calls["PullImage"]["image"].startswith(pod.manifest.container.image.image)
    assert calls["PullImage"]["image_id"] == image
    refused = calls["CreateContainer"]
    assert (refused["level"], refused["code"]) == ("warning", "FAILED_PRECONDITION")
    assert (refused["pod_name"], refused["vm_name"]) == (name, "second")
    ended = next(line for line in lines if line["message"] == "VM ended")
    assert (ended["vm"], ended["pod_name"]) == (pod.vm, name)


def test_a_reopened_log_goes_on_in_a_new_file_without_losing_a_byte(new_pod: PodFactory) -> None:
    pod = new_pod().up()
    log = Path(pod.pod.log_directory) / "guest" / "0.log"
    until(log.exists, "the log", 10)
    pod.wait_for_console("Linux version")
    rotated = log.with_suffix(".rotated")
    log.rename(rotated)
    request = cri.ReopenContainerLogRequest(container_id=pod.vm)
    pod.client.call("ReopenContainerLog", request)
    pod.wait_for_console("login:")
    assert "Linux version" in rotated.read_text(errors="replace")
    assert "Linux version" not in log.read_text(errors="replace")


def test_the_emulator_lives_in_a_group_below_the_pods_with_the_pods_limits(
    new_pod: PodFactory,
) -> None:
    """In every hierarchy of version 1 that the pod has a group in, or in the one of version 2."""
    with pod_cgroup() as parent:
        groups = [h.mount / parent.strip("/") for h in cgroups.hierarchies()]
        groups = [group for group in groups if group.is_dir()]
        if not groups:
            pytest.skip("no control group of this node is writable")
        pod = new_pod()
        pod.pod.linux.cgroup_parent = parent
        pod = pod.up()
        (emulator,) = {pid for g in groups for pid in _emulators(g / pod.vm)}
        arguments = Path(f"/proc/{emulator}/cmdline").read_bytes().split(b"\0")
        drives = [json.loads(word) for word in arguments if word.startswith(b'{"driver":"file"')]
        unlocked = {Path(f["filename"]).parent.name for f in drives if f.get("locking") == "off"}
        assert unlocked == {pod.vm}, "the image and the seed"
        assert len([f for f in drives if f.get("locking") == "off"]) == 2
        # Nothing was asked for: it is not spared as the manager may be.
        assert Path(f"/proc/{emulator}/oom_score_adj").read_text() == "0\n"
        for group in groups:
            assert any(name.startswith("qemu-system") for name in _commands(group / pod.vm))
        files = ("cpu.max", "cpu.cfs_quota_us")
        quotas = [path for group in groups for path in (group / pod.vm / f for f in files)]
        assert {p.read_text().split()[0] for p in quotas if p.exists()} <= {"100000"}
        counting = [path for group in groups for path in [group / pod.vm / "pids.max"]]
        assert {int(p.read_text()) for p in counting if p.exists()} <= {MOST_THREADS + 1}
        pod.client.remove_pod(pod.id)
        assert not any((group / pod.vm).exists() for group in groups)


def _emulators(group: Path) -> list[str]:
    """Process ids of the emulators that run in a control group."""
    pids = (group / "cgroup.procs").read_text().split()
    comm = {pid: Path(f"/proc/{pid}/comm").read_text() for pid in pids}
    return [pid for pid, name in comm.items() if name.startswith("qemu-system")]


def _commands(group: Path) -> list[str]:
    """Names of the programs that run in a control group."""
    pids = (group / "cgroup.procs").read_text().split()
    return [Path(f"/proc/{pid}/comm").read_text().strip() for pid in pids]


def test_a_guest_that_powers_itself_off_is_completed(new_pod: PodFactory) -> None:
    pod = new_pod().up()
    pod.wait_for_console("login:")
    pod.leave("poweroff")
    until(lambda: _exited(pod), "the end of the VM", 60)
    status = pod.status
    assert (status.exit_code, status.reason) == (0, "Completed")
    assert status.finished_at >= status.started_at


def test_a_pods_sysctls_are_set_in_the_guest_and_not_on_the_node(new_pod: PodFactory) -> None:
    pod = new_pod()
    del pod.pod.annotations["VirtletCloudInitUserDataScript"]
    pod.pod.linux.sysctls["net.ipv4.ip_local_port_range"] = "20000 30000"
    pod = pod.up()
    pod.wait_for_console("user-data finished with exit status 0")
    command = ["cat", "/proc/sys/net/ipv4/ip_local_port_range"]
    request = cri.ExecSyncRequest(container_id=pod.vm, cmd=command, timeout=30)
    assert pod.client.call("ExecSync", request).stdout.split() == [b"20000", b"30000"]
    ours = Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()
    assert ours != ["20000", "30000"]


def test_sysctls_that_would_not_reach_the_guest_are_refused(new_pod: PodFactory) -> None:
    pod = new_pod()
    pod.pod.linux.sysctls["net.ipv4.ip_forward"] = "1"
    with pytest.raises(CallFailed, match="sysctls are set by cloud-init") as caught:
        pod.run()
    assert caught.value.code.name == "INVALID_ARGUMENT"


def test_no_secret_of_a_pod_is_in_a_log_of_the_node(node: Playground, new_pod: PodFactory) -> None:
    pod = new_pod()
    pod.pod.annotations["VirtletCloudInitUserDataScript"] = "#!/bin/sh\n: hunter2-user-data\n"
    pod.manifest.container.envs.add(key="PASSWORD", value=b"hunter2-environment")
    pod = pod.up()
    pod.client.stop(pod.vm, 0)
    texts = [node.log_file.read_text()]
    texts += [path.read_text() for path in (node.data_dir / "libvirt" / "log").rglob("*.log")]
    assert all("hunter2" not in text for text in texts)
