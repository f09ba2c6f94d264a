"""What a built package holds."""

import configparser
import shutil
import subprocess
import sys
import zipfile
from email.parser import Parser
from pathlib import Path

import pytest
from packaging.requirements import Requirement

import virtlet
from virtlet.cli.plugins import KINDS

ROOT = Path(__file__).parents[1]
METADATA = ("pyproject.toml", "setup.cfg", "README.md", "LICENSE")


@pytest.fixture
def wheel(tmp_path: Path) -> dict[str, str]:
    """The texts of a package built from a copy, by their names."""
    source = tmp_path / "source"
    (source / "virtlet").mkdir(parents=True)
    for name in METADATA:
        if (ROOT / name).exists():
            shutil.copy(ROOT / name, source)
    shutil.copy(ROOT / "virtlet" / "__init__.py", source / "virtlet")
    shutil.copytree(ROOT / "virtlet" / "cli", source / "virtlet" / "cli")
    argv = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation"]
    subprocess.run([*argv, "--wheel-dir", str(tmp_path), str(source)], check=True)
    (path,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(path) as archive:
        names = [name for name in archive.namelist() if not name.endswith(".pyc")]
        return {name: archive.read(name).decode() for name in names}


def test_the_licence_that_the_metadata_names_is_shipped(wheel: dict[str, str]) -> None:
    (metadata,) = (text for name, text in wheel.items() if name.endswith("/METADATA"))
    headers = Parser().parsestr(metadata)
    assert headers["License"] == "Apache-2.0"
    assert headers.get_all("License-File") == ["LICENSE"]
    (shipped,) = (text for name, text in wheel.items() if name.endswith("/LICENSE"))
    assert shipped == (ROOT / "LICENSE").read_text()
    assert "END OF TERMS AND CONDITIONS" in shipped


def test_the_templates_of_plugins_are_shipped(wheel: dict[str, str]) -> None:
    for kind in KINDS:
        assert f"virtlet/cli/templates/{kind}/new_plugin.py" in wheel
        assert f"virtlet/cli/templates/{kind}/test_new_plugin.py" in wheel
    assert "virtlet/cli/templates/common/pyproject.toml" in wheel


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
