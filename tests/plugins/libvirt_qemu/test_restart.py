"""The manager is killed, its VMs are not, and the next manager finds them."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

from tests.plugins.libvirt_qemu.other_managers import ROOT, command, probes
from tests.plugins.libvirt_qemu.rig import open_directory
from tests.polling import until


def test_vms_survive_the_manager_and_are_found_again() -> None:
    """One goes on, one was killed meanwhile, one powered off meanwhile, one never ran."""
    with open_directory() as directory:
        first = subprocess.Popen(
            command("survive", directory),
            cwd=ROOT,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert first.stdout is not None
        lines = [line.split() for line in iter(first.stdout.readline, "\n")]
        first.kill()
        first.wait()
        first.stdout.close()
        stays, dies, ends, idle = (line[0] for line in lines)
        for *_, pid in lines[:3]:
            assert Path(f"/proc/{pid}").exists(), "the emulator died with the manager"
        os.kill(int(lines[1][3]), signal.SIGKILL)
        Path(lines[2][2]).write_bytes(b"o")
        out = Path(lines[0][1])
        Path(lines[0][2]).write_bytes(b"x")
        # What the guest prints without a manager is not lost.
        until(lambda: out.read_bytes().endswith(b"x"), "an echo without a manager")

        second = subprocess.run(
            command("succeed", directory, stays),
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=60,
            check=True,
        )
        told = [json.loads(line) for line in second.stdout.splitlines()]
        seen = {t["vm"]: (t["state"], t["reason"]) for t in told if t["what"] == "list"}
        assert seen == {
            stays: ("running", None),
            dies: ("stopped", "Error"),
            ends: ("stopped", "Completed"),
            idle: ("defined", None),
        }
        heard = [(t["vm"], t["state"], t["reason"]) for t in told if t["what"] == "heard"]
        ends_heard = [item for item in heard if item[1] == "stopped"]
        assert sorted(ends_heard[:2]) == sorted(
            [(dies, "stopped", "Error"), (ends, "stopped", "Completed")]
        ), "what ended meanwhile is told without asking"
        assert ends_heard[2:] == [(stays, "stopped", "Completed")]
        assert not [t for t in told if t["what"] == "left"]


def test_a_probe_that_a_killed_manager_left_is_ended_by_the_next() -> None:
    """libvirt does not end the QEMU that it asked."""
    with open_directory() as directory:
        done = subprocess.run(command("die", directory), cwd=ROOT, timeout=60, check=False)
        assert done.returncode == -signal.SIGKILL
        assert probes(directory)
        script = (
            "import sys; from pathlib import Path; "
            "from tests.plugins.libvirt_qemu.rig import Rig, make_open_node; "
            "rig = Rig(make_open_node(Path(sys.argv[1])), 'qemu:///embed'); rig.open(); rig.close()"
        )
        subprocess.run(
            [sys.executable, "-c", script, str(directory)], cwd=ROOT, timeout=60, check=True
        )
        assert not probes(directory)
        assert not list((directory / "libvirt/lib/qemu").glob("qmp-*"))
