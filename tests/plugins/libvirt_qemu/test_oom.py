"""An emulator that the kernel killed for memory is told from one that died otherwise."""

import os
import subprocess
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.plugins.libvirt_qemu.rig import Rig
from virtlet.host import cgroups
from virtlet.model.hypervisor import DomainState
from virtlet.model.launch import LaunchPart

_MARGIN = 8 << 20
_EAT = """
import sys
open(sys.argv[1], "w").write(str(__import__("os").getpid()))
open("/proc/self/oom_score_adj", "w").write("0")
memory = []
while True:
    memory.append(bytearray(1 << 20))
    for i in range(0, 1 << 20, 4096):
        memory[-1][i] = 1
"""


@pytest.fixture
def group() -> Iterator[Path]:
    """A memory cgroup of the test's own; its limit file says which version it is of."""
    for hierarchy in cgroups.hierarchies():
        path = hierarchy.mount / f"virtlet-test-{uuid.uuid4().hex[:8]}"
        try:
            path.mkdir()
        except OSError:
            continue
        if any((path / name).exists() for name in ("memory.max", "memory.limit_in_bytes")):
            yield path
            path.rmdir()
            return
        path.rmdir()
    pytest.skip("this host has no memory cgroup that can be made")


def test_running_out_of_memory_is_told(rig: Rig, group: Path) -> None:
    """The kernel's counter of the emulator's cgroup tells."""
    unified = (group / "memory.max").exists()
    limit = group / ("memory.max" if unified else "memory.limit_in_bytes")
    usage = group / ("memory.current" if unified else "memory.usage_in_bytes")
    with rig.running(LaunchPart(cgroups=(group,))) as machine:
        rig.wait_to_hear(machine, DomainState.RUNNING)
        pid = rig.pid(machine)
        assert str(pid) in (group / "cgroup.procs").read_text().split()
        Path(f"/proc/{pid}/oom_score_adj").write_text("1000")
        limit.write_text(str(int(usage.read_text()) + _MARGIN))
        # Something else in the cgroup asks for more; the kernel takes the emulator for it.
        eater = subprocess.Popen([sys.executable, "-c", _EAT, str(group / "cgroup.procs")])
        try:
            ended = rig.wait_to_hear(machine, DomainState.STOPPED).exit
        finally:
            eater.kill()
            eater.wait()
        assert ended is not None
        assert (ended.exit_code, ended.reason) == (137, "OOMKilled")


def test_a_kill_without_a_shortage_is_no_shortage(rig: Rig, group: Path) -> None:
    """The same cgroup, and a signal from somebody."""
    with rig.running(LaunchPart(cgroups=(group,))) as machine:
        os.kill(rig.pid(machine), 9)
        ended = rig.wait_for_end(machine)
        assert ended.reason == "Error"
