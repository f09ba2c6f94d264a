"""What a built package holds."""

import configparser
import shutil
import subprocess
import sys
import sysconfig
import venv
import zipfile
from collections.abc import Mapping
from email.parser import Parser
from pathlib import Path

import pytest
from packaging.requirements import Requirement

import virtlet
from tests.cluster_install.manifests import rendered
from virtlet.cli.plugins import KINDS

ROOT = Path(__file__).parents[1]
PACKAGES = ("virtlet", "vmwrapper", "criproxy")
METADATA = ("pyproject.toml", "setup.cfg", "README.md", "LICENSE")


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A package built from a copy of what the tree has for it."""
    directory = tmp_path_factory.mktemp("package")
    source = directory / "source"
    for name in PACKAGES:
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in METADATA:
        shutil.copy(ROOT / name, source)
    argv = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation"]
    subprocess.run([*argv, "--wheel-dir", str(directory), str(source)], check=True)
    (path,) = directory.glob("*.whl")
    return path


@pytest.fixture
def wheel(built: Path) -> Mapping[str, bytes]:
    """What is in it, by name."""
    with zipfile.ZipFile(built) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def test_it_has_every_file_of_the_code(wheel: Mapping[str, bytes]) -> None:
    """But for the assembly that the KVM probe's bytes are made of."""
    files = (path for name in PACKAGES for path in (ROOT / name).rglob("*") if path.is_file())
    names = {str(path.relative_to(ROOT)) for path in files if path.suffix not in (".pyc", ".S")}
    assert names - wheel.keys() == set()


def test_its_commands_run_with_nothing_of_the_tree(built: Path, tmp_path: Path) -> None:
    """A virtual environment with the dependencies that the tests have."""
    place = tmp_path / "env"
    venv.create(place, symlinks=True, with_pip=False)
    (site,) = place.glob("lib/python*/site-packages")
    for path in Path(sysconfig.get_path("purelib")).iterdir():
        if not path.name.startswith(("__editable__", "virtlet")) and path.suffix != ".pth":
            (site / path.name).symlink_to(path)
    python = place / "bin" / "python"
    pip = [sys.executable, "-m", "pip", "--quiet", "--python", str(python), "install"]
    subprocess.run([*pip, "--no-deps", "--no-index", str(built)], check=True)

    def said(command: str, *arguments: str) -> str:
        argv = [str(place / "bin" / command), *arguments]
        return subprocess.run(
            argv, check=True, capture_output=True, text=True, timeout=60, cwd=tmp_path
        ).stdout

    assert virtlet.__version__ in said("virtlet", "--version")
    assert "--libvirt-uri" in said("virtlet", "serve", "--help"), "a plugin's option"
    assert "--listen" in said("criproxy", "--help")
    assert "--undo" in said("criproxy-setup", "--help")
    where = said("python", "-c", "import virtlet; print(virtlet.__file__)")
    assert Path(where).is_relative_to(place)


def test_the_licence_that_the_metadata_names_is_shipped(wheel: Mapping[str, bytes]) -> None:
    (metadata,) = (text for name, text in wheel.items() if name.endswith("/METADATA"))
    headers = Parser().parsestr(metadata.decode())
    assert headers["License"] == "Apache-2.0"
    assert headers.get_all("License-File") == ["LICENSE"]
    (shipped,) = (text for name, text in wheel.items() if name.endswith("/LICENSE"))
    assert shipped == (ROOT / "LICENSE").read_bytes()
    assert b"END OF TERMS AND CONDITIONS" in shipped


def test_the_templates_of_plugins_are_shipped(wheel: Mapping[str, bytes]) -> None:
    for kind in KINDS:
        assert f"virtlet/cli/templates/{kind}/new_plugin.py" in wheel
        assert f"virtlet/cli/templates/{kind}/test_new_plugin.py" in wheel
    assert "virtlet/cli/templates/common/pyproject.toml" in wheel


def test_the_clusters_manifests_are_shipped(wheel: Mapping[str, bytes]) -> None:
    """`kubectl virtlet gen` has them without a checkout."""
    shipped = wheel["virtlet/kubectl/manifests/cluster.yaml"]
    assert shipped.decode() == rendered()


def test_the_development_version_meets_what_plugins_require() -> None:
    """Authors write `virtlet>=2.0`, and so do the examples."""
    for file in (ROOT / "examples").glob("plugin-*/setup.cfg"):
        setup = configparser.ConfigParser()
        setup.read(file)
        requirement = Requirement(setup["options"]["install_requires"].strip())
        assert str(requirement) == "virtlet>=2.0"
        assert requirement.specifier.contains(virtlet.__version__, prereleases=False)


def test_the_metadata_s_version_is_the_module_s() -> None:
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    assert setup["metadata"]["version"] == virtlet.__version__


def test_the_steps_of_a_release_agree_on_its_version(tmp_path: Path) -> None:
    """As CONTRIBUTING.md has them, on a copy."""
    names = ("setup.cfg", "virtlet/__init__.py", "deploy/cluster/kustomization.yaml")
    for name in (*names, "hack/assemble_changelog.py", "CHANGELOG.md", "CONTRIBUTING.md"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, tmp_path / name)
    shutil.copytree(ROOT / "changelog.d", tmp_path / "changelog.d")
    fragments = {path.name: path.read_text() for path in (ROOT / "changelog.d").glob("*.md")}
    page = (ROOT / "CONTRIBUTING.md").read_text().partition("## A release")[2]
    steps = page.split("```console\n")[1].partition("```")[0]
    subprocess.run(
        ["bash", "-e"],
        input=f"ln -s {sys.prefix} .venv\n{steps}",
        text=True,
        check=True,
        cwd=tmp_path,
    )

    version = virtlet.__version__.partition("+")[0]
    assert f"\nversion = {version}\n" in (tmp_path / names[0]).read_text()
    assert f'__version__ = "{version}"\n' in (tmp_path / names[1]).read_text()
    assert f"newTag: {version}\n" in (tmp_path / names[2]).read_text()
    changelog = (tmp_path / "CHANGELOG.md").read_text()
    newest = changelog.split("\n## ")[1]
    assert newest.startswith(f"{version} (")
    for name, text in fragments.items():
        assert text.split("\n")[0] in newest, f"changelog.d/{name} is of no known kind"
    assert list((tmp_path / "changelog.d").glob("*.md")) == []
