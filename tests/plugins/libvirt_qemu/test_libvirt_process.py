"""What libvirt needs of the process that it is loaded into: a reaper, and a host name."""

import json
import subprocess
import sys
import textwrap

from tests.plugins.libvirt_qemu.other_managers import NAME, ROOT, command
from tests.plugins.libvirt_qemu.rig import open_directory

_START = """
import os, subprocess, sys, time
from virtlet.plugins.libvirt_qemu.libvirt_process import adopt_orphans
adopt_orphans(patience=float(sys.argv[1]))

def gone(pid, within=5):
    deadline = time.monotonic() + within
    while os.path.exists(f"/proc/{pid}"):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.01)
    return True

def orphan(session):
    script = "sleep 0.2 >/dev/null & echo $!"
    return int(subprocess.run(
        [*session, "sh", "-c", script], stdout=subprocess.PIPE, check=True
    ).stdout)
"""


def run(script: str, patience: float = 60) -> None:
    """In a process of its own: being a subreaper is for life."""
    done = subprocess.run(
        [sys.executable, "-c", _START + textwrap.dedent(script), str(patience)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr


def test_a_daemons_end_is_seen_at_once() -> None:
    """As libvirt starts emulators: in a session whose leader is gone."""
    run("""
        assert gone(orphan(["setsid"]), within=1)
    """)


def test_an_orphan_of_our_session_goes_too() -> None:
    """After the time a child would be waited for."""
    run(
        """
        assert gone(orphan([]), within=5)
    """,
        patience=0.5,
    )


def test_children_keep_their_exit_codes() -> None:
    """The thread that started them may wait at any time, also while daemons come and go."""
    run("""
        for new_session in (False, True):
            child = subprocess.Popen(["sh", "-c", "exit 7"], start_new_session=new_session)
            assert gone(orphan(["setsid"]), within=1)
            assert child.wait() == 7
    """)


def test_many_daemons_and_children_at_once() -> None:
    """Every process is waited for by the right one."""
    run("""
        children = [subprocess.Popen(["sh", "-c", f"sleep 0.0{i % 10}; exit {i}"])
                    for i in range(20)]
        daemons = [orphan(["setsid"]) for _ in range(10)]
        assert [child.wait() for child in children] == list(range(20))
        assert all(gone(pid) for pid in daemons)
    """)


def test_no_start_of_a_vm_asks_dns_and_a_daemons_operator_is_told_that_its_starts_do() -> None:
    with open_directory() as directory:
        done = subprocess.run(
            [
                "unshare",
                "--mount",
                "--net",
                "--uts",
                "--propagation",
                "private",
                *command("unresolved", directory),
            ],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            timeout=120,
            check=True,
        )
    report = json.loads(done.stdout)
    assert report["vm"] == 0
    # The resolver was there, and is asked by who does not know better.
    assert report["name"] > 0
    assert report["host"] == NAME
    (said,) = report["said"]
    assert f"127.0.1.1 {NAME}" in said
