"""images/debian/build.sh: what it says and leaves when it does not build."""

import os
import subprocess
from pathlib import Path

import pytest

BUILD = Path(__file__).parents[2] / "images" / "debian" / "build.sh"


def build(*arguments: str | Path, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [BUILD, *arguments],
        env=os.environ | environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def test_help_names_every_argument() -> None:
    """--help tells what can be given and what the host needs."""
    done = build("--help")
    assert done.returncode == 0
    for word in ("OUTPUT.qcow2", "CACHE_DIR", "--force", "mmdebstrap", "SOURCE_DATE_EPOCH"):
        assert word in done.stdout


@pytest.mark.parametrize("arguments", [[], ["a", "b", "c"], ["--fast", "a"]])
def test_wrong_arguments_are_refused(arguments: list[str]) -> None:
    """Too few, too many or unknown arguments end with usage and reason, and build nothing."""
    done = build(*arguments)
    assert done.returncode == 1
    assert "Usage:" in done.stderr
    assert "error: " in done.stderr


def test_an_image_of_another_recipe_is_built_again_with_tools_that_are_named(
    tmp_path: Path,
) -> None:
    """A host without the tools learns which packages to install, before anything is fetched."""
    image = tmp_path / "debian.qcow2"
    image.touch()
    Path(f"{image}.recipe").write_text("another\n")
    tools = tmp_path / "tools"
    tools.mkdir()
    for tool in ("bash", "cat", "cut", "dirname", "find", "realpath", "sha256sum", "sort", "xargs"):
        (tools / tool).symlink_to(f"/usr/bin/{tool}")
    script = f"PATH={tools}; set -- {image}; . {BUILD}"
    done = subprocess.run(["/bin/bash", "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "apt-get install" in done.stderr
    for package in ("mmdebstrap", "mtools", "qemu-utils"):
        assert package in done.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "debian.qcow2",
        "debian.qcow2.recipe",
        "tools",
    ]


@pytest.mark.skipif(os.getuid() != 0, reason="apt's lists are root's")
def test_sources_without_debians_mirrors_are_an_error_that_leaves_nothing(tmp_path: Path) -> None:
    """Sources of other origin are passed over, after one update of the lists."""
    (tmp_path / "repository").mkdir()
    (tmp_path / "repository" / "Packages").touch()
    for name in ("lists/partial", "archives/partial"):
        (tmp_path / "apt" / name).mkdir(parents=True)
    (tmp_path / "apt" / "status").touch()
    (tmp_path / "apt" / "sources.list").write_text(
        f"deb [trusted=yes] file:{tmp_path}/repository ./\n"
    )
    configuration = tmp_path / "apt" / "apt.conf"
    configuration.write_text(
        f"""
        Dir::State::lists "{tmp_path}/apt/lists";
        Dir::State::status "{tmp_path}/apt/status";
        Dir::Cache "{tmp_path}/apt";
        Dir::Etc::sourcelist "{tmp_path}/apt/sources.list";
        Dir::Etc::sourceparts "/dev/null";
        APT::Sandbox::User "root";
        """
    )
    done = build(tmp_path / "out" / "debian.qcow2", APT_CONFIG=str(configuration))
    assert done.returncode == 1
    assert done.stdout.count("updating apt's lists") == 1
    assert "no mirror of Debian 13 (trixie); try: apt-get update" in done.stderr
    assert list((tmp_path / "out").iterdir()) == []
