"""Guest and emulator live within the memory that a kubelet gives their pod."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.e2e.conftest import Pod, PodFactory
from tests.fakes.pod_cgroup import pod_cgroup
from tests.polling import until
from virtlet.cli.client import CallFailed
from virtlet.cri import api_pb2 as cri
from virtlet.host import cgroups

MIB = 1 << 20
_LIMITS = ("memory.max", "memory.limit_in_bytes")
"""A control group's limit, of version 2 and of version 1."""
_LOAD = """
for n in 1 2 3 4 5 6; do
	ls -laR /usr /etc | awk '{n += length($0)} END {print n}' | sha256sum
	head -c 400000 /bin/busybox | gzip -c | gunzip -c | sha512sum
	ps | sort -r | sed 's/a/b/g' | md5sum; df; ip addr; mount
done >/dev/null 2>&1
half=$(awk '/MemAvailable/ {print int($2 / 2048)}' /proc/meminfo)
dd if=/dev/zero of=/tmp/half bs=1M count=$half 2>/dev/null
rm /tmp/half
free -m | awk '/Mem/ {print $2}'
"""
"""Programs of many kinds, then a file of half of what memory is left; says MiB of RAM."""


@contextmanager
def _kubelets_group(pod: Pod, limit: int, overhead: int) -> Iterator[Path]:
    """Give a pod that is not up yet its group, limits and overhead as a kubelet does.

    Yields:
        The file with the group's memory limit.
    """
    with pod_cgroup() as parent:
        groups = (h.mount / parent.strip("/") for h in cgroups.hierarchies())
        files = [group / name for group in groups for name in _LIMITS if (group / name).exists()]
        if not files:
            pytest.skip("no writable memory control group here")
        files[0].write_text(str(limit + overhead))
        pod.pod.linux.cgroup_parent = parent
        pod.pod.linux.overhead.memory_limit_in_bytes = overhead
        pod.pod.linux.resources.memory_limit_in_bytes = limit
        pod.manifest.container.linux.resources.memory_limit_in_bytes = limit
        yield files[0]


def _run(pod: Pod, script: str, timeout: int = 120) -> str:
    """What a script in the guest says."""
    request = cri.ExecSyncRequest(container_id=pod.vm, cmd=["sh", "-c", script], timeout=timeout)
    said: bytes = pod.client.call("ExecSync", request, timeout=timeout + 10.0).stdout
    return said.decode()


def _work_and_reboot(pod: Pod) -> None:
    """Have the guest work, boot again and work again; the VM lives through it."""
    pod.wait_for_console("login:")
    _run(pod, _LOAD)
    pod.reboot()
    _run(pod, _LOAD)
    assert (pod.status.state, pod.status.reason) == (cri.CONTAINER_RUNNING, "")


def test_the_example_runs_where_its_runtime_class_declares_no_overhead(
    new_pod: PodFactory,
) -> None:
    """The guest gets what its emulator leaves of the limit, and the pod's log says so."""
    pod = new_pod()
    limit = pod.manifest.container.linux.resources.memory_limit_in_bytes
    with _kubelets_group(pod, limit, 0):
        pod = pod.up()
        _work_and_reboot(pod)
        log = Path(pod.status.log_path).read_text()
        assert f"of RAM, not the {limit // MIB}Mi of its memory limit" in log
        assert "deploy/cluster/runtimeclass.yaml" in log
        pod.down()


def test_a_machine_that_can_grow_stays_within_its_pods_memory(new_pod: PodFactory) -> None:
    """With an overhead that is too small, so that guest and emulator fill the group."""
    pod = new_pod()
    pod.pod.annotations.update({"VirtletMaxMemory": "512Mi", "VirtletMaxVCPUCount": "3"})
    with _kubelets_group(pod, 320 * MIB, 64 * MIB) as group_limit:
        pod = pod.up()
        _work_and_reboot(pod)
        before = int(_run(pod, _LOAD))
        # A resize in place: the kubelet raises the pod's limit first.
        group_limit.write_text(str((480 + 64) * MIB))
        resources = cri.LinuxContainerResources(
            cpu_period=100_000, cpu_quota=200_000, memory_limit_in_bytes=480 * MIB
        )
        request = cri.UpdateContainerResourcesRequest(container_id=pod.vm, linux=resources)
        pod.client.call("UpdateContainerResources", request)
        until(lambda: int(_run(pod, "free -m | awk '/Mem/ {print $2}'")) > before, "RAM", 30)
        assert int(_run(pod, _LOAD)) >= before + 120
        assert pod.status.state == cri.CONTAINER_RUNNING
        assert "given 2 vCPUs while it runs" in Path(pod.status.log_path).read_text()
        pod.down()


def test_a_pod_that_cannot_hold_guest_and_emulator_is_refused(new_pod: PodFactory) -> None:
    """Before anything is made, with what to write."""
    pod = new_pod()
    said = "INVALID_ARGUMENT.* limit of 64Mi .* overhead of 16Mi"
    with _kubelets_group(pod, 64 * MIB, 16 * MIB), pytest.raises(CallFailed, match=said):
        pod.run().create()
