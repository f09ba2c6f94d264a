"""`virtlet plugins`, as an operator calls it, without a manager."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from virtlet.core.hooks.plugin_package import pretend_installed, read_package

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "examples"
BROKEN = """\
[project]
name = "broken"
version = "0.1"

[project.entry-points.virtlet]
misspelt = "tests.fakes.checked_plugins:Misspelt"
"""


@pytest.fixture
def installed(tmp_path: Path) -> dict[str, str]:
    """An environment with two examples and a broken plugin."""
    broken = tmp_path / "broken"
    broken.mkdir()
    (broken / "pyproject.toml").write_text(BROKEN)
    directories = [EXAMPLES / "plugin-disk", EXAMPLES / "plugin-events", broken]
    paths = pretend_installed(map(read_package, directories), tmp_path / "installed")
    return {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, [*paths, ROOT]))}


@pytest.fixture
def config(tmp_path: Path) -> Path:
    file = tmp_path / "virtlet.yaml"
    file.write_text(
        f"dataDir: {tmp_path}\n"
        "handlers:\n"
        "  copy: {plugins: [example_disk]}\n"
        "  quiet: {without: [guest_agent]}\n"
        "  broken: {plugins: [misspelt]}\n"
    )
    return file


def virtlet(*argv: str, **how: Any) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-m", "virtlet.cli.main", "plugins", *argv]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, **how)


def test_what_is_found_served_off_and_refused(installed: dict[str, str], config: Path) -> None:
    done = virtlet("--config", str(config), "--json", env=installed)
    assert (done.returncode, done.stderr) == (0, "")
    said = json.loads(done.stdout)
    plugins = {plugin["name"]: plugin for plugin in said["plugins"]}
    disk, events, misspelt = (plugins[n] for n in ("example_disk", "example_events", "misspelt"))
    assert (disk["package"], disk["version"]) == ("virtlet-example-disk", "1.0")
    assert disk["path"] == str(EXAMPLES / "plugin-disk" / "virtlet_example_disk.py")
    assert (disk["state"], disk["handlers"], disk["built_in"]) == ("served", ["copy"], False)
    assert "virtlet_release_root_disk" in disk["hooks"]
    assert (events["state"], events["reason"]) == ("off", "no handler names it in its `plugins`")
    assert [option["name"] for option in events["options"]] == ["exampleAuditFile"]
    assert misspelt["state"] == "refused"
    assert "virtlet_rot_disk" in misspelt["reason"]
    assert plugins["guest_agent"]["handlers"] == ["", "copy"]
    names = [annotation["name"] for annotation in plugins["flavors"]["annotations"]]
    assert "VirtletVCPUCount" in names


def test_the_order_is_that_of_the_calls(installed: dict[str, str], config: Path) -> None:
    """A first hook asks third-party plugins before the built-in ones; others come after them."""
    said = json.loads(virtlet("--config", str(config), "--json", env=installed).stdout)
    handlers = {handler["name"]: handler for handler in said["handlers"]}
    assert handlers["copy"]["hooks"]["virtlet_root_disk"] == [
        "example_disk",
        "volumes",
        "image_oci",
        "disk_qcow2",
    ]
    assert handlers[""]["hooks"]["virtlet_root_disk"] == ["volumes", "image_oci", "disk_qcow2"]
    assert "virtlet_guest_exec" not in handlers["quiet"]["hooks"]
    assert "flavors" in said["manager"]["virtlet_annotations"]
    assert said["manager"]["virtlet_configure"][-2:] == ["example_disk", "example_events"]
    assert "misspelt" in handlers["broken"]["problem"]


def test_the_table_says_the_same(installed: dict[str, str], config: Path) -> None:
    said = virtlet("--config", str(config), env=installed).stdout
    words = " ".join(said.split())
    assert "example_disk 1.0 virtlet-example-disk serves 'copy'" in words
    assert "misspelt is refused: " in words
    assert "handler 'copy' calls as handler '', but" in words
    assert "virtlet_root_disk example_disk, volumes, image_oci, disk_qcow2" in words
    assert f"configuration: {config}" in words


def test_what_a_start_refuses_in_the_plugins_section_is_an_error(tmp_path: Path) -> None:
    file = tmp_path / "virtlet.yaml"
    file.write_text(f"dataDir: {tmp_path}\nplugins: {{clodinit: {{onFailure: log}}}}\n")
    done = virtlet("--config", str(file))
    assert done.returncode == 1
    assert done.stderr == (
        "virtlet: configuration: plugins: 'clodinit' is not installed; did you mean 'cloudinit'?\n"
    )


def test_a_configuration_file_that_is_wrong_is_an_error(tmp_path: Path) -> None:
    done = virtlet("--config", str(tmp_path / "none.yaml"))
    assert done.returncode == 1
    assert done.stderr == f"virtlet: {tmp_path / 'none.yaml'}: No such file or directory\n"
