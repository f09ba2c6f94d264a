"""A run of the tests that is interrupted leaves nothing on the machine."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.e2e.conftest import BOOT_TIMEOUT, ROOT
from tests.fakes import interrupted
from tests.polling import until

Interrupt = Callable[[subprocess.Popen[str]], None]


def _as_a_terminal(run: subprocess.Popen[str]) -> None:
    """Ctrl-C reaches every process of the foreground, and people press it twice."""
    os.killpg(run.pid, signal.SIGINT)
    os.killpg(run.pid, signal.SIGINT)


def _as_a_service(run: subprocess.Popen[str]) -> None:
    """`timeout` and a CI's cancel reach the first process alone."""
    run.terminate()


@pytest.mark.parametrize(
    ("workers", "interrupt"),
    [("-n2", _as_a_terminal), ("-n2", _as_a_service), ("-n0", _as_a_service)],
)
def test_an_interrupted_run_takes_its_node_and_vm_away(
    tmp_path: Path, workers: str, interrupt: Interrupt
) -> None:
    file = tmp_path / "node"
    # As from a terminal, also where this run was started in the background, which ignores SIGINT.
    argv = ["env", "--default-signal=INT", sys.executable]
    argv += ["-m", "pytest", "-q", "-p", "no:cacheprovider", workers]
    with subprocess.Popen(
        [*argv, interrupted.__file__],
        cwd=ROOT,
        env={**os.environ, interrupted.FILE: str(file), "PYTEST_ADDOPTS": ""},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    ) as run:
        try:
            until(lambda: file.exists() or run.poll() is not None, "the VM", BOOT_TIMEOUT)
            assert file.exists(), run.communicate()[0]
            node = Path(file.read_text())
            assert _left(node) != []
            interrupt(run)
            said, _ = run.communicate(timeout=120)
        finally:
            if run.poll() is None:
                os.killpg(run.pid, signal.SIGKILL)
    assert _left(node) == [], said
    assert run.returncode == pytest.ExitCode.INTERRUPTED, said


def _left(node: Path) -> list[str]:
    """What is on the machine of a node: processes, mounts, its directory."""
    found = [str(node)] if node.exists() else []
    mounts = Path("/proc/self/mounts").read_text().splitlines()
    found += [line for line in mounts if str(node) in line]
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            command = (entry / "cmdline").read_bytes()
        except OSError:
            continue
        if os.fsencode(node) in command:
            found.append(f"{entry.name} {command[:100]!r}")
    return found
