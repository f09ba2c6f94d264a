"""hack/setup.sh, which every task of the Makefile begins with."""

import resource
import subprocess
from pathlib import Path

SET_UP = Path(__file__).parents[1] / "hack" / "setup.sh"


def test_set_up_does_nothing_and_takes_no_time_when_nothing_is_missing() -> None:
    subprocess.run([SET_UP], check=True)
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    said = subprocess.run([SET_UP], check=True, capture_output=True, text=True).stdout
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    # Less than a second; processor time, since others may keep the machine busy.
    assert used.ru_utime + used.ru_stime - before.ru_utime - before.ru_stime < 3
    assert "==>" not in said
