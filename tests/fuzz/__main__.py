"""Fuzzes all targets, or those that are named: `python -m tests.fuzz MINUTES [TARGET...]`.

What is found is in build/fuzz/TARGET/found; each such input becomes a file of the corpus, with what
mends it. With KEEP=1 short inputs that reach new code are added to the corpus.
"""

import hashlib
import json
import os
import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

from tests.fuzz.targets import CORPUS, TARGETS

ROOT = Path(__file__).parents[2]
SHORT = 512
"""Bytes of an input that may be added to the corpus."""
_COUNT = re.compile(rb"stat::number_of_executed_units: +(\d+)")
MOST = 60
"""Inputs of one target in the corpus."""


def fuzz(name: str, seconds: float) -> bool:
    """Fuzz one target and print a line; whether nothing was found."""
    place = ROOT / "build" / "fuzz" / name
    place.mkdir(parents=True, exist_ok=True)
    note = place / "note.json"
    note.unlink(missing_ok=True)
    argv = [sys.executable, "-m", "tests.fuzz.one", name, str(seconds), str(place)]
    with (place / "log").open("wb") as log:
        ended = subprocess.run(argv, cwd=ROOT, stdout=log, stderr=log, check=False)
    cost = json.loads(note.read_text()) if note.exists() else {}
    # libFuzzer ends the process without a word to Python, so it has the last count itself.
    if counted := _COUNT.search((place / "log").read_bytes()):
        cost["inputs"] = int(counted[1])
    good = ended.returncode == 0
    print(  # noqa: T201
        f"{name:14} {cost.get('inputs', 0):>10} inputs, slowest {cost.get('slowest', 0):.3f} s, "
        f"{cost.get('memory', 0)} MiB: {'fine' if good else f'see {place}'}",
        flush=True,
    )
    if os.environ.get("KEEP") and good:
        keep(name, place / "corpus")
    return good


def keep(name: str, grown: Path) -> None:
    """Add short inputs that reach new code to the corpus."""
    room = MOST - len(list((CORPUS / name).iterdir()))
    short = sorted((p for p in grown.iterdir() if p.stat().st_size <= SHORT), key=_size)
    for path in short[: max(0, room)]:
        data = path.read_bytes()
        (CORPUS / name / hashlib.sha1(data).hexdigest()[:12]).write_bytes(data)


def _size(path: Path) -> int:
    return path.stat().st_size


def main(minutes: str, *names: str) -> int:
    """Fuzz two targets at a time, so that all together take the given minutes."""
    chosen = names or tuple(TARGETS)
    seconds = max(5.0, float(minutes) * 60 * 2 / len(chosen))
    with ThreadPoolExecutor(2) as pool:
        good = list(pool.map(partial(fuzz, seconds=seconds), chosen))
    return 0 if all(good) else 1


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
