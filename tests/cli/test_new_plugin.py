"""`virtlet plugins new` and `check`, as a plugin's author calls them."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from virtlet.cli.plugins import KINDS, write_package

BIN = Path(sys.executable).parent
NO_IMAGE = {**os.environ, "VIRTLET_TEST_IMAGE": ""}


def virtlet(*argv: str, cwd: Path) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-m", "virtlet.cli.main", "plugins", *argv]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=120)


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with a package of each kind."""
    directory = tmp_path_factory.mktemp("written")
    for kind in KINDS:
        write_package(f"my-{kind}", kind, directory)
    return directory


@pytest.mark.parametrize("kind", KINDS)
def test_a_new_package_passes_its_own_tests(written: Path, kind: str) -> None:
    """The contract check among them."""
    argv = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"]
    package = written / f"my-{kind}"
    tested = subprocess.run(argv, cwd=package, env=NO_IMAGE, capture_output=True, text=True)
    assert tested.returncode == 0, tested.stdout


def test_a_new_package_passes_the_check(tmp_path: Path) -> None:
    """As written by the command, which says what to do next."""
    made = virtlet("new", "my_disks", "--kind", "disk", cwd=tmp_path)
    assert (made.returncode, made.stderr) == (0, "")
    assert "plugins: [my_disks]" in made.stdout
    checked = virtlet("check", ".", cwd=tmp_path / "my-disks")
    assert (checked.returncode, checked.stdout) == (0, "my_disks (my_disks:Plugin) is fine\n")


def test_new_packages_are_strictly_typed(written: Path) -> None:
    """mypy finds Virtlet's types where it is installed, be it in editable mode."""
    files = [str(path) for path in sorted(written.glob("my-*/*.py"))]
    assert len(files) == 2 * len(KINDS)
    argv = [str(BIN / "mypy"), "--strict", "--cache-dir", str(written / "cache"), *files]
    done = subprocess.run(argv, cwd=written, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


def test_no_placeholder_is_left(written: Path) -> None:
    for path in written.glob("my-*/*"):
        if path.is_file():
            text = path.read_text().replace("_", "").replace("-", "").lower()
            assert "newplugin" not in text, path


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("My-Disk", "lower-case letters and digits"),
        ("../disk", "lower-case letters and digits"),
        ("class", "no keyword of Python"),
        ("volumes", "a plugin named volumes is installed already"),
        ("json", "a Python module named json is there already"),
        ("taken", "taken exists already"),
    ],
)
def test_a_name_that_cannot_be_is_refused(tmp_path: Path, name: str, said: str) -> None:
    (tmp_path / "taken").mkdir()
    done = virtlet("new", name, "--kind", "disk", cwd=tmp_path)
    assert done.returncode == 1
    assert said in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["taken"]


FLAWED = """\
from virtlet.api import Disk, Vm, hookimpl


class Plugin:
    VIRTLET_HOOK_API = 1

    @hookimpl
    def virtlet_root_disk(self, vm: Vm, {argument}: object) -> Disk | None:
        return None
"""


def test_a_flaw_is_told_with_exit_code_1(tmp_path: Path) -> None:
    file = tmp_path / "my_flawed.py"
    file.write_text(FLAWED.format(argument="flavour"))
    done = virtlet("check", str(file), cwd=tmp_path)
    assert done.returncode == 1
    assert "my_flawed.Plugin (my_flawed:Plugin) would be refused" in done.stdout
    assert "flaw: virtlet_root_disk takes the argument flavour" in done.stdout


def test_a_doubt_alone_is_a_warning_with_exit_code_0(tmp_path: Path) -> None:
    file = tmp_path / "my_doubtful.py"
    file.write_text(FLAWED.format(argument="flavor"))
    done = virtlet("check", str(file), cwd=tmp_path)
    assert done.returncode == 0
    assert "would be served, with warnings" in done.stdout
    assert "warning: virtlet_root_disk has no inverse" in done.stdout


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "has no class with VIRTLET_HOOK_API"),
        ("raise RuntimeError('first line')", "importing it raised RuntimeError: first line"),
        ("def (", "importing it raised SyntaxError"),
    ],
)
def test_a_file_without_a_plugin_is_an_error(tmp_path: Path, text: str, said: str) -> None:
    (tmp_path / "odd.py").write_text(text)
    done = virtlet("check", "odd.py", cwd=tmp_path)
    assert done.returncode == 1
    assert said in done.stderr
    assert "Traceback" not in done.stderr


def test_a_package_that_cannot_be_imported_is_refused(tmp_path: Path) -> None:
    (tmp_path / "pyproject.toml").write_text(
        '[project]\nname = "odd"\n[project.entry-points.virtlet]\nodd = "odd:Plugin"\n'
    )
    (tmp_path / "odd.py").write_text("import no_such_module_at_all\n")
    done = virtlet("check", ".", cwd=tmp_path)
    assert done.returncode == 1
    assert "odd (odd:Plugin) would be refused" in done.stdout
    assert "ModuleNotFoundError" in done.stdout
