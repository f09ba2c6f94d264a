"""The kit shows an author why a guest did not come up, although the node is gone by then."""

import os
import subprocess
import sys
from pathlib import Path

from tests.e2e.conftest import TINY

PROJECT = """\
[project]
name = "failing-plugin"
version = "1.0"

[project.entry-points.virtlet]
failing_plugin = "failing_plugin:Plugin"

[tool.pytest.ini_options]
addopts = "-p virtlet.testing"
"""
PLUGIN = """\
from virtlet.api import Pod, hookimpl


class Plugin:
    VIRTLET_HOOK_API = 1

    @hookimpl
    def virtlet_admit_pod(self, pod: Pod) -> None:
        raise RuntimeError("the ledger is closed")
"""
TEST = """\
def test_a_guest_boots(virtlet_guest):
    virtlet_guest()
"""


def test_the_managers_complaints_stand_below_the_failure(tmp_path: Path) -> None:
    """With the text that the plugin raised."""
    (tmp_path / "pyproject.toml").write_text(PROJECT)
    (tmp_path / "failing_plugin.py").write_text(PLUGIN)
    (tmp_path / "test_failing_plugin.py").write_text(TEST)
    argv = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider"]
    env = {**os.environ, "VIRTLET_TEST_IMAGE": str(TINY)}
    done = subprocess.run(argv, cwd=tmp_path, env=env, capture_output=True, text=True)
    said = done.stdout.partition("Captured stdout teardown")[2]
    assert "manager: plugin raised" in said
    assert "RuntimeError: the ledger is closed" in said
    assert "failing_plugin.py" in said
