"""The kit in the hands of an author: a package of its own, with pytest started in it."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from virtlet.core.hooks.plugin_package import pretend_installed, read_package
from virtlet.errors import InvalidArgument

PACKAGE = """\
[project]
name = "my-plugin"
version = "1.2"

[project.entry-points.virtlet]
my_plugin = "my_plugin:Plugin"

[tool.pytest.ini_options]
addopts = "-p virtlet.testing"
"""
GUEST_TEST = """\
def test_a_guest_boots(virtlet_guest):
    virtlet_guest()
"""


@pytest.fixture
def package(tmp_path: Path) -> Path:
    """An author's package, not installed."""
    directory = tmp_path / "my-plugin"
    directory.mkdir()
    (directory / "pyproject.toml").write_text(PACKAGE)
    (directory / "my_plugin.py").write_text("class Plugin:\n    VIRTLET_HOOK_API = 1\n")
    (directory / "test_my_plugin.py").write_text(GUEST_TEST)
    return directory


def run_pytest(package: Path, image: str, **environment: str) -> str:
    argv = [sys.executable, "-m", "pytest", "-rs", "-p", "no:cacheprovider"]
    env = {**os.environ, "VIRTLET_TEST_IMAGE": image, **environment}
    done = subprocess.run(argv, cwd=package, env=env, capture_output=True, text=True)
    return " ".join(done.stdout.split())


def test_without_an_image_the_guest_s_test_is_skipped_and_says_how_to_name_one(
    package: Path,
) -> None:
    said = run_pytest(package, "")
    assert "1 skipped" in said
    assert "no guest image: name a disk image" in said
    assert "VIRTLET_TEST_IMAGE" in said


def test_an_image_that_is_not_there_fails_the_test(package: Path) -> None:
    said = run_pytest(package, "/nowhere.qcow2")
    assert "1 error" in said
    assert "the guest image /nowhere.qcow2 is not there" in said


def test_what_the_machine_lacks_is_named(package: Path, tmp_path: Path) -> None:
    (tmp_path / "disk.qcow2").touch()
    (tmp_path / "bin").mkdir()
    said = run_pytest(package, str(tmp_path / "disk.qcow2"), PATH=str(tmp_path / "bin"))
    assert "a node takes" in said
    assert "the Debian package qemu-system-x86" in said


def test_the_kit_is_loaded_by_those_alone_who_ask_for_it(tmp_path: Path) -> None:
    """Nothing of Virtlet is imported in the test runs of other packages."""
    (tmp_path / "test_other.py").write_text(
        "import sys\ndef test_other():\n    assert 'virtlet' not in sys.modules\n"
    )
    argv = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"]
    done = subprocess.run(argv, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


def test_a_package_is_found_by_its_entry_point_without_being_installed(
    package: Path, tmp_path: Path
) -> None:
    paths = pretend_installed([read_package(package)], tmp_path / "pretended")
    code = (
        "from importlib.metadata import entry_points\n"
        "(entry,) = [e for e in entry_points(group='virtlet') if e.name == 'my_plugin']\n"
        "print(entry.dist.name, entry.dist.version, entry.load().__module__)"
    )
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, paths))}
    argv = [sys.executable, "-c", code]
    done = subprocess.run(argv, env=env, cwd=tmp_path, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["my-plugin", "1.2", "my_plugin"]


@pytest.mark.parametrize(
    ("files", "said"),
    [
        ({}, "no package with a plugin"),
        ({"pyproject.toml": "[project]\nname = 'a'"}, "project.entry-points.virtlet"),
        ({"pyproject.toml": "[project"}, "pyproject.toml: cannot be read"),
        ({"setup.cfg": "name"}, "setup.cfg: cannot be read"),
    ],
)
def test_a_directory_without_a_plugin_is_refused(
    tmp_path: Path, files: dict[str, str], said: str
) -> None:
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    with pytest.raises(InvalidArgument, match=said):
        read_package(tmp_path)


def test_a_setup_cfg_is_read_too(tmp_path: Path) -> None:
    (tmp_path / "setup.cfg").write_text(
        "[metadata]\nname = old\nversion = 3\n"
        "[options.entry_points]\nvirtlet =\n    first = old:One\n    second = old:Two\n"
    )
    package = read_package(tmp_path)
    assert (package.name, package.version) == ("old", "3")
    assert package.plugins == {"first": "old:One", "second": "old:Two"}
