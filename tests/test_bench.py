"""The benchmark runs."""

import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]


def test_a_quick_measurement_makes_a_table_and_a_file_of_every_figure(tmp_path: Path) -> None:
    file = tmp_path / "bench.json"
    argv = [sys.executable, "-m", "bench", "--only", "vmwrapper", "--quick", "--json", str(file)]
    # It ends with 1 when a bound is not kept, as may be on a busy machine.
    done = subprocess.run(argv, cwd=ROOT, capture_output=True, text=True, timeout=120)
    document = json.loads(file.read_text())
    assert document["failures"] == {}, done.stdout
    (row,) = document["rows"]
    assert row["name"] in done.stdout
    assert row["unit"] == "ms"
    assert len(row["samples"]["wrapped"]) == len(row["samples"]["bare"]) == 10
