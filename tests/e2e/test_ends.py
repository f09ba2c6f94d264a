"""How VMs end, as the kubelet hears of it."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import grpc
import pytest

from tests.e2e.conftest import Pod, PodFactory
from tests.fakes.pod_cgroup import pod_cgroup
from tests.polling import until
from virtlet.cli.client import CallFailed
from virtlet.cri import api_pb2 as cri
from virtlet.host import cgroups

_MARGIN = 16 << 20
_MEMORY = (("memory.max", "memory.current"), ("memory.limit_in_bytes", "memory.usage_in_bytes"))
"""Files of a control group's limit and use, of version 2 and of version 1."""
_EAT = """
import sys
open("/proc/self/oom_score_adj", "w").write("0")
open(sys.argv[1], "w").write("0")
held = bytearray()
while True:
    held += bytes(1 << 20)
"""


def _end(pod: Pod) -> cri.ContainerStatus:
    """The status once the VM has ended."""
    until(lambda: pod.status.state == cri.CONTAINER_EXITED, "the end of the VM in its status", 60)
    status = pod.status
    assert status.started_at <= status.finished_at
    return status


def test_a_guest_that_panics_is_an_error(new_pod: PodFactory) -> None:
    pod = new_pod().up()
    pod.wait_for_console("login:")
    pod.leave("echo 1 >/proc/sys/kernel/sysrq; echo c >/proc/sysrq-trigger")
    status = _end(pod)
    assert (status.exit_code, status.reason) == (1, "Error")
    assert status.message == "the guest's kernel panicked"
    assert "Kernel panic" in pod.console()


def test_an_emulator_that_is_killed_is_an_error(new_pod: PodFactory) -> None:
    pod = new_pod().up()
    os.kill(pod.emulator, signal.SIGKILL)
    status = _end(pod)
    assert (status.exit_code, status.reason) == (137, "Error")
    assert status.message == "the emulator died under the running guest"


@pytest.mark.parametrize("limited", ["vm", "pod"])
def test_an_emulator_that_the_kernel_kills_for_its_memory_is_oom_killed(
    new_pod: PodFactory, limited: str
) -> None:
    """By a limit of the VM's own control group, and by one of the pod's, as a kubelet sets it."""
    with pod_cgroup() as parent:
        pod = new_pod()
        pod.pod.linux.cgroup_parent = parent
        pod.manifest.container.linux.resources.oom_score_adj = 1000
        pod = pod.up()
        pod.wait_for_console("login:")
        groups = cgroups.find(parent, pod.vm)
        found = [(g, m, u) for g in groups for m, u in _MEMORY if (g / m).exists()]
        if not found:
            pytest.skip("no writable memory control group here")
        ((group, limit, usage),) = found
        tight = group if limited == "vm" else group.parent
        (tight / limit).write_text(str(int((tight / usage).read_text()) + _MARGIN))
        # Something else in the group asks for more; the kernel takes the emulator for it.
        eater = subprocess.Popen([sys.executable, "-c", _EAT, str(group / "cgroup.procs")])
        try:
            status = _end(pod)
        finally:
            eater.kill()
            eater.wait()
        assert (status.exit_code, status.reason) == (137, "OOMKilled")
        pod.down()


def test_an_emulator_that_does_not_start_is_a_start_error_and_the_next_attempt_is_free(
    new_pod: PodFactory,
) -> None:
    pod = new_pod().run().create()
    disk = pod.node.data_dir / "volumes" / pod.vm / "root.qcow2"
    disk.rename(disk.with_name("elsewhere"))
    with pytest.raises(CallFailed, match="did not start: .*root.qcow2") as caught:
        pod.client.start(pod.vm)
    assert caught.value.code is grpc.StatusCode.FAILED_PRECONDITION
    status = pod.status
    assert status.state == cri.CONTAINER_EXITED
    assert (status.exit_code, status.reason) == (128, "StartError")
    assert "root.qcow2" in status.message
    again = pod.up(attempt=1)
    assert again.status.state == cri.CONTAINER_RUNNING
    assert Path(f"/proc/{again.emulator}").exists()
