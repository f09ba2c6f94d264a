"""A manager killed at any instruction leaves a log that goes on without a gap or a repeat."""

import json
import subprocess
import sys
from pathlib import Path

import pytest


def killed_writer(*arguments: str) -> dict[str, int]:
    """Run the program beside this file in a process of its own, which may fork."""
    program = [sys.executable, "-m", "tests.console.killed_writer", *arguments]
    run = subprocess.run(program, capture_output=True, timeout=240, check=False)
    assert run.returncode == 0, run.stderr.decode()
    result: dict[str, int] = json.loads(run.stdout)
    return result


@pytest.mark.parametrize(("event", "stride", "offset"), [("line", 11, 3), ("opcode", 101, 7)])
def test_killed_at_points_of_a_whole_run(
    tmp_path: Path, event: str, stride: int, offset: int
) -> None:
    """Follow, rotate, reopen, finish: killed at every n-th point, the log torn, then run again."""
    result = killed_writer("points", str(tmp_path), event, str(stride), str(offset))
    assert result["wrong"] == 0
    assert result["kills"] > 50


def test_killed_at_random_while_a_guest_prints(tmp_path: Path) -> None:
    """Dozens of kills and rotations under load; in the end all that was printed is there, once."""
    result = killed_writer("storm", str(tmp_path), "60", "7")
    assert result["wrong"] == 0
    assert result["bytes"] > 500_000
