"""Disks that are full, read-only, or cannot punch holes; real ones, mounted where nobody sees."""

import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.parametrize("kind", ["full", "overfull", "read-only", "holeless", "unbounded"])
def test_on_a_disk_that_is(tmp_path: Path, kind: str) -> None:
    """See the functions of odd_disks.py; the mounts vanish with the process."""
    program = [sys.executable, "-m", "tests.console.odd_disks", kind, str(tmp_path)]
    run = subprocess.run(
        ["unshare", "--mount", *program], capture_output=True, timeout=60, check=False
    )
    assert run.returncode == 0, run.stderr.decode()
