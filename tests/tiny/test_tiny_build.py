"""images/tiny/build.sh: what it says and leaves when it does not simply build."""

import hashlib
import os
import resource
import signal
import subprocess
from pathlib import Path

import pytest

from tests.tiny.tiny_guest import BUILD


def _used() -> float:
    """Processor seconds of the programs that have run and ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def build(*arguments: str | Path, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [BUILD, *arguments],
        env=os.environ | environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


@pytest.fixture
def cache(tiny_image: Path) -> Path:
    """The packages that the image was built from, so that nothing is fetched again."""
    return tiny_image.parent / "tiny-cache"


def test_help_names_every_argument() -> None:
    """--help tells what can be given and what the host needs."""
    done = build("--help")
    assert done.returncode == 0
    for word in ("OUTPUT.qcow2", "CACHE_DIR", "--force", "mtools"):
        assert word in done.stdout


@pytest.mark.parametrize("arguments", [[], ["a", "b", "c"], ["--fast", "a"]])
def test_wrong_arguments_are_refused(arguments: list[str]) -> None:
    """Too few, too many or unknown arguments end with usage and reason, and build nothing."""
    done = build(*arguments)
    assert done.returncode == 1
    assert "Usage:" in done.stderr
    assert "error: " in done.stderr


def test_an_image_newer_than_its_inputs_costs_nothing(tiny_image: Path) -> None:
    """Nothing is done, within a second of processor time, where nothing has changed."""
    before = tiny_image.stat().st_mtime_ns
    used = _used()
    done = build(tiny_image)
    assert _used() - used < 1
    assert (done.returncode, done.stderr) == (0, "")
    assert "is up to date" in done.stdout
    assert tiny_image.stat().st_mtime_ns == before


def test_the_image_is_small(tiny_image: Path) -> None:
    """Below 30 MB, so that everybody can afford to fetch and keep it."""
    assert 0 < tiny_image.stat().st_size < 30_000_000


def test_missing_tools_are_named_by_package(tmp_path: Path) -> None:
    """A host without the tools learns what to install, before anything is fetched."""
    for tool in ("bash", "dirname", "realpath", "find"):
        (tmp_path / tool).symlink_to(f"/usr/bin/{tool}")
    script = ["/bin/bash", "-c", f"PATH={tmp_path}; set -- {tmp_path}/out.qcow2; . {BUILD}"]
    done = subprocess.run(script, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "apt-get install" in done.stderr
    assert "mtools" in done.stderr


def test_a_damaged_package_is_dropped_from_the_cache(tmp_path: Path, cache: Path) -> None:
    """A package that does not unpack is named and removed, so that the next run repairs it."""
    copies = tmp_path / "cache"
    copies.mkdir()
    for package in cache.iterdir():
        (copies / package.name).symlink_to(package)
    (damaged,) = copies.glob("busybox-static_*")
    damaged.unlink()
    damaged.write_bytes(b"no package")
    done = build(tmp_path / "out.qcow2", copies)
    assert done.returncode == 1
    assert damaged.name in done.stderr.splitlines()[-1]
    assert not damaged.exists()
    assert list(tmp_path.iterdir()) == [copies]


def interrupt_when_packing(output: Path, cache: Path, **environment: str) -> tuple[int, str]:
    """Its status and what it had printed when it got SIGTERM, all packages being there."""
    with subprocess.Popen(
        [BUILD, output, cache],
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | environment,
        start_new_session=True,
    ) as process:
        assert process.stdout is not None
        printed = ""
        for line in process.stdout:
            printed += line
            if "packing" in line:
                os.killpg(process.pid, signal.SIGTERM)
                break
        return process.wait(60), printed


def test_an_interrupted_build_leaves_nothing(tmp_path: Path, cache: Path) -> None:
    """SIGTERM in the middle: no image, no half of one, no directory of work."""
    status, _ = interrupt_when_packing(tmp_path / "out.qcow2", cache)
    assert status == 130
    assert list(tmp_path.iterdir()) == []


def serve_packages(cache: Path, repository: Path) -> None:
    """A Debian repository with the packages of a cache, and with the kernel's metapackage."""
    stanzas = []
    for package in cache.glob("*.deb"):
        if "-cloud-" in package.name:  # The guest's kernel of former versions of it.
            continue
        fields = ["dpkg-deb", "--field", str(package), "Package", "Version", "Architecture"]
        about = subprocess.run(fields, capture_output=True, text=True, check=True).stdout
        content = package.read_bytes()
        (repository / package.name).write_bytes(content)
        stanzas.append(
            f"{about}Filename: ./{package.name}\nSize: {len(content)}\n"
            f"SHA256: {hashlib.sha256(content).hexdigest()}\n"
        )
        if package.name.startswith("linux-image-"):
            kernel = package.name.split("_")[0]
            stanzas.append(
                "Package: linux-image-amd64\nVersion: 1\nArchitecture: amd64\n"
                f"Depends: {kernel}\nFilename: ./none.deb\nSize: 1\nSHA256: {'0' * 64}\n"
            )
    (repository / "Packages").write_text("\n".join(stanzas))


def own_apt(directory: Path, repository: Path) -> str:
    """Configuration of an apt that has one repository and has not read what is in it."""
    for name in ("lists/partial", "archives/partial"):
        (directory / name).mkdir(parents=True)
    (directory / "status").touch()
    (directory / "sources.list").write_text(f"deb [trusted=yes] file:{repository} ./\n")
    configuration = directory / "apt.conf"
    configuration.write_text(
        f"""
        Dir::State::lists "{directory}/lists";
        Dir::State::status "{directory}/status";
        Dir::Cache "{directory}";
        Dir::Etc::sourcelist "{directory}/sources.list";
        Dir::Etc::sourceparts "/dev/null";
        APT::Sandbox::User "root";
        """
    )
    return str(configuration)


@pytest.mark.skipif(os.getuid() != 0, reason="apt's lists are root's")
def test_empty_lists_of_apt_are_updated_once(tmp_path: Path, cache: Path) -> None:
    """As on a fresh system, where all tools are there and no list is."""
    for name in ("apt", "repository", "out"):
        (tmp_path / name).mkdir()
    serve_packages(cache, tmp_path / "repository")
    configuration = own_apt(tmp_path / "apt", tmp_path / "repository")
    status, printed = interrupt_when_packing(
        tmp_path / "out" / "tiny.qcow2", tmp_path / "cache", APT_CONFIG=configuration
    )
    assert status == 130, printed
    assert printed.count("updating apt's lists") == 1
    packages = {p.name for p in cache.iterdir() if "-cloud-" not in p.name}
    assert {p.name for p in (tmp_path / "cache").iterdir()} == packages


@pytest.mark.skipif(os.getuid() != 0, reason="apt's lists are root's")
def test_what_no_list_of_apt_has_is_said_after_one_update(tmp_path: Path) -> None:
    """A repository without the packages ends the build with the reason and the advice."""
    for name in ("apt", "repository"):
        (tmp_path / name).mkdir()
    (tmp_path / "repository" / "Packages").touch()
    configuration = own_apt(tmp_path / "apt", tmp_path / "repository")
    done = build(tmp_path / "out.qcow2", tmp_path / "cache", APT_CONFIG=configuration)
    assert done.returncode == 1
    assert done.stdout.count("updating apt's lists") == 1
    assert "apt does not know all packages" in done.stderr
    assert "try: apt-get update" in done.stderr
