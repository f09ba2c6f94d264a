"""hack/setup.sh, which every task of the Makefile begins with."""

import subprocess
import time
from pathlib import Path

SET_UP = Path(__file__).parents[1] / "hack" / "setup.sh"


def test_set_up_does_nothing_and_takes_no_time_when_nothing_is_missing() -> None:
    subprocess.run([SET_UP], check=True)
    started = time.monotonic()
    said = subprocess.run([SET_UP], check=True, capture_output=True, text=True).stdout
    # A second; the bound leaves room for a busy machine.
    assert time.monotonic() - started < 5
    assert "==>" not in said
