"""What following costs; limits are generous, as the machine may be busy with other things."""

import json
import subprocess
import sys
from pathlib import Path


def measure(directory: Path, guests: int, rate: int, seconds: float) -> dict[str, float]:
    numbers = [str(number) for number in (guests, rate, seconds)]
    program = [sys.executable, "-m", "tests.console.loaded_writer", str(directory), *numbers]
    run = subprocess.run(program, capture_output=True, timeout=120, check=False)
    assert run.returncode == 0, run.stderr.decode()
    result: dict[str, float] = json.loads(run.stdout)
    return result


def test_twenty_loud_guests_take_less_than_a_core(tmp_path: Path) -> None:
    """1 MB/s each; nothing is lost and the raw files stay small."""
    result = measure(tmp_path, 20, 1_000_000, 3)
    assert result["wrong_logs"] == 0
    assert result["bytes_per_second"] > 10_000_000
    assert result["cores"] < 0.8
    assert result["largest_raw_bytes"] < 8_000_000


def test_fifty_quiet_guests_take_nothing(tmp_path: Path) -> None:
    assert measure(tmp_path, 50, 0, 2)["cores"] < 0.05
