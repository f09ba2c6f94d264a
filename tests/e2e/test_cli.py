"""The command line client, as a person uses it."""

import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from tests.e2e.conftest import MANIFEST
from virtlet.cli.playground import Playground


@pytest.fixture
def manifest(tmp_path: Path) -> Path:
    """The tiny guest's manifest under a name of its own."""
    document = yaml.safe_load(MANIFEST.read_text())
    document["metadata"]["name"] = "by-hand"
    document["spec"]["terminationGracePeriodSeconds"] = 61
    path = tmp_path / "pod.yaml"
    path.write_text(yaml.safe_dump(document))
    return path


@pytest.fixture
def data_dir() -> Iterator[Path]:
    """A data directory that the emulator's user reaches, as it does not reach `tmp_path`."""
    with tempfile.TemporaryDirectory(prefix="vt-", dir="/var/tmp") as name:
        Path(name).chmod(0o711)
        yield Path(name)


def _virtlet(node: Playground, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "virtlet.cli.main", *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ, "VIRTLET_CRI_SOCKET_PATH": str(node.socket)},
    )


def test_a_pod_is_run_listed_read_stopped_and_removed_by_hand(
    node: Playground, manifest: Path
) -> None:
    ran = _virtlet(node, "run", manifest, "--log-root", node.log_root)
    assert ran.returncode == 0, ran.stderr
    for step in ("RunPodSandbox", "PullImage", "CreateContainer", "StartContainer"):
        assert step in ran.stdout

    listed = _virtlet(node, "ps").stdout
    row = next(line for line in listed.splitlines() if "default/by-hand" in line)
    assert "READY" in row
    assert "RUNNING" in row

    assert "tiny" in _virtlet(node, "images").stdout
    stopped = _virtlet(node, "stop", "by-hand")
    assert stopped.returncode == 0, stopped.stderr
    assert "grace 61 s" in stopped.stdout
    assert re.search(r"EXITED +Completed \(0\)", _virtlet(node, "ps").stdout)
    logs = _virtlet(node, "logs", "-f", "by-hand")
    assert "Linux version" in logs.stdout
    removed = _virtlet(node, "rm", "by-hand")
    assert removed.returncode == 0, removed.stderr
    assert "by-hand" not in _virtlet(node, "ps").stdout


def test_running_the_same_manifest_again_finds_the_same_pod(
    node: Playground, manifest: Path
) -> None:
    first = _virtlet(node, "run", manifest, "--log-root", node.log_root)
    second = _virtlet(node, "run", manifest, "--log-root", node.log_root)
    assert second.returncode == 0, second.stderr
    assert first.stdout.splitlines()[-2:] == second.stdout.splitlines()[-2:]
    assert _virtlet(node, "rm", "--grace", "0", "by-hand").returncode == 0


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("kind: Service", "expected one object of kind Pod"),
        ("kind: Pod\nmetadata: {name: x}", "'spec' is missing"),
        ("kind: Pod\nmetadata: {}\nspec: {containers: [{name: a, image: b}]}", "'name' is missing"),
        ("kind: [", "no valid YAML"),
        (
            "kind: Pod\nmetadata: {name: x}\nspec: {containers: [{}, {}]}",
            "exactly one container",
        ),
        (
            "kind: Pod\nmetadata: {name: x}\nspec:\n  containers:\n  - {name: a, image: b, "
            "resources: {limits: {memory: lots}}}",
            "'lots' is no quantity",
        ),
    ],
)
def test_a_wrong_manifest_is_refused_with_its_name_and_exit_code_1(
    node: Playground, tmp_path: Path, text: str, problem: str
) -> None:
    path = tmp_path / "wrong.yaml"
    path.write_text(text)
    ran = _virtlet(node, "run", path)
    assert ran.returncode == 1
    assert problem in ran.stderr
    assert "Traceback" not in ran.stderr


def test_a_missing_socket_is_named_and_what_to_do_is_said(tmp_path: Path) -> None:
    ran = subprocess.run(
        [sys.executable, "-m", "virtlet.cli.main", "ps", "--socket", str(tmp_path / "none.sock")],
        capture_output=True,
        text=True,
    )
    assert ran.returncode == 1
    assert str(tmp_path / "none.sock") in ran.stderr
    assert "virtlet serve" in ran.stderr


def test_an_unknown_pod_is_said_to_be_unknown(node: Playground) -> None:
    ran = _virtlet(node, "logs", "nobody")
    assert ran.returncode == 1
    assert "no pod is called 'nobody'" in ran.stderr


def test_a_second_manager_on_one_data_directory_is_refused(node: Playground) -> None:
    ran = _virtlet(node, "serve", "--data-dir", node.data_dir)
    assert ran.returncode == 1
    assert "another manager works on" in ran.stderr


def test_a_second_manager_on_one_image_directory_is_refused_and_changes_nothing_there(
    node: Playground, data_dir: Path
) -> None:
    images = node.data_dir / "images"
    assert _virtlet(node, "pull", "virtlet.cloud/tiny").returncode == 0
    before = _owners_and_modes(images)
    own = ["--data-dir", str(data_dir), "--emulator-user", "nobody"]
    ran = _virtlet(node, "serve", *own, "--image-dir", images)
    assert ran.returncode == 1
    assert "another manager works on" in ran.stderr
    assert "use another --image-dir" in ran.stderr
    assert _owners_and_modes(images) == before


def _owners_and_modes(directory: Path) -> dict[str, tuple[int, int, int]]:
    """Of all that is below it; this user is not the emulator's, which has to read the images."""
    stats = {str(path): path.lstat() for path in directory.rglob("*")}
    return {path: (s.st_uid, s.st_gid, s.st_mode) for path, s in stats.items()}


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (["--data-dir", "relative"], "is no absolute path"),
        (["--stream-port", "99999"], "flag --stream-port"),
        (["--data-dir", "/tmp/" + "x" * 100], "is too long for the unix sockets"),
        (["--config", "/nonexistent.yaml"], "/nonexistent.yaml"),
        (["--emulator-user", "nobody-here"], "there is no such user"),
        (
            ["--libvirt-uri", "qemu://system"],
            "only qemu:///system and qemu:///embed",
        ),
        (["--image-dir", "/proc/x"], "--image-dir /proc/x"),
        (["--emulator-user", "root"], "root, as which no emulator runs"),
        (["--vm-users", "0-70000"], "flag --vm-users"),
    ],
)
def test_a_manager_that_cannot_start_says_why_in_one_line(
    arguments: list[str], problem: str, data_dir: Path
) -> None:
    if "--data-dir" not in arguments:
        arguments = [*arguments, "--data-dir", str(data_dir)]
    ran = subprocess.run(
        [sys.executable, "-m", "virtlet.cli.main", "serve", *arguments],
        capture_output=True,
        text=True,
        timeout=30,
    )
    assert ran.returncode == 1
    assert problem in ran.stderr
    assert "Traceback" not in ran.stderr
