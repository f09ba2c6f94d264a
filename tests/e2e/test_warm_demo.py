"""`make demo WARM=1`, with fewer pods."""

import re
import subprocess

from tests.e2e.conftest import ROOT
from tests.e2e.test_demo import DEMO


def test_pods_that_boot_and_that_do_not_are_shown_side_by_side() -> None:
    """Each with its time and memory; nothing is left."""
    argv = [*DEMO, "--pods", "2"]
    done = subprocess.run(
        ["env", "WARM=1", *argv], cwd=ROOT, capture_output=True, text=True, timeout=400
    )
    assert done.returncode == 0, done.stdout + done.stderr
    shown = done.stdout
    assert "✓ start 2 pods that boot" in shown
    assert "✓ start 2 pods from the template" in shown
    for line in ("pod 1", "pod 2", "median to the answer"):
        assert re.search(rf"^  {line} +\d+\.\d\d s +\d+\.\d\d s", shown, re.M), line
    for line in ("memory of a VM", "memory of all"):
        assert re.search(rf"^  {line} +\d+ MiB +\d+ MiB  ×\d\.\d\d$", shown, re.M), line
    assert "✓ nothing is left" in shown
    assert done.stderr == ""
