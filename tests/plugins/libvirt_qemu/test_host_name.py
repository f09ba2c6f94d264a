"""A node whose own name does not resolve."""

import json
import subprocess
import sys
from pathlib import Path

from tests.plugins.libvirt_qemu.rig import open_directory
from tests.plugins.libvirt_qemu.unresolved import NAME

ROOT = Path(__file__).parents[3]


def test_no_start_of_a_vm_asks_dns_and_a_daemons_operator_is_told_that_its_starts_do() -> None:
    with open_directory() as directory:
        command = [sys.executable, "-m", "tests.plugins.libvirt_qemu.unresolved", str(directory)]
        done = subprocess.run(
            ["unshare", "--mount", "--net", "--uts", "--propagation", "private", *command],
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
