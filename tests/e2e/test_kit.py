"""The test kit with a plugin that leaves something on the node."""

import os
import subprocess
import sys
from pathlib import Path

from tests.e2e.conftest import TINY

PACKAGE = """\
[project]
name = "leaky"

[project.entry-points.virtlet]
leaky = "leaky:Plugin"
"""
PLUGIN = """\
from virtlet.api import Links, Network, Pod, hookimpl


class Plugin:
    VIRTLET_HOOK_API = 1

    @hookimpl
    def virtlet_setup_network(self, pod: Pod) -> Network:
        with Links() as links:
            links.add_tap("leak0")
        return Network(netns=None)
"""
TEST = """\
def test_leaky(virtlet_guest):
    virtlet_guest(start=False).run()
"""


def test_what_a_plugin_leaves_on_the_node_fails_the_test(tmp_path: Path) -> None:
    (tmp_path / "pyproject.toml").write_text(PACKAGE)
    (tmp_path / "leaky.py").write_text(PLUGIN)
    (tmp_path / "test_leaky.py").write_text(TEST)
    argv = [sys.executable, "-m", "pytest", "-p", "virtlet.testing", "-p", "no:cacheprovider"]
    env = {**os.environ, "VIRTLET_TEST_IMAGE": str(TINY)}
    done = subprocess.run(argv, cwd=tmp_path, env=env, capture_output=True, text=True)
    assert done.returncode == 1
    assert "1 passed, 1 error" in done.stdout
    assert "left on the node: interface leak0" in done.stdout
