"""Fuzzes one target for some seconds: `python -m tests.fuzz.one TARGET SECONDS DIRECTORY`.

Guided by coverage with atheris, where it is installed; else the corpus is changed at random.
"""

import json
import random
import resource
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

STALL = 0.5
"""Seconds of CPU for an input, of at most LONGEST bytes; the watched code is some times slower."""
LONGEST = 1 << 16
MEMORY = 512
"""MiB of the process, the fuzzer included."""


class Measured:
    """Runs a target, and notes what the worst input cost.

    Args:
        target: what takes the input.
        note: file for a JSON object with `inputs`, `slowest` (seconds) and `memory` (MiB).
    """

    def __init__(self, target: Callable[[bytes], None], note: Path) -> None:
        self._target = target
        self._note = note
        self._inputs = 0
        self._slowest = 0.0

    def __call__(self, data: bytes) -> None:
        began = time.thread_time()
        self._target(data)
        spent = time.thread_time() - began
        self._inputs += 1
        if spent > self._slowest or self._inputs % 4096 == 0:
            self._slowest = max(spent, self._slowest)
            self.write()
        if spent > STALL:
            raise AssertionError(f"an input of {len(data)} bytes took {spent:.2f} s")

    def write(self) -> None:
        """Write the note: libFuzzer ends the process without a word to Python."""
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
        note = {"inputs": self._inputs, "slowest": round(self._slowest, 4), "memory": peak}
        self._note.write_text(json.dumps(note))


def mutations(seeds: Sequence[bytes], chance: random.Random) -> Callable[[], bytes]:
    """Inputs made of others by cutting, doubling, changing and joining."""

    def next_input() -> bytes:
        data = bytearray(chance.choice(seeds))
        for _ in range(chance.randint(1, 6)):
            at = chance.randint(0, len(data))
            end = min(len(data), at + chance.randint(1, 16))
            match chance.randint(0, 4):
                case 0:
                    del data[at:end]
                case 1:
                    data[at:at] = data[at:end] * chance.randint(1, 8)
                case 2:
                    data[at:end] = chance.randbytes(end - at)
                case 3:
                    other = chance.choice(seeds)
                    data[at:end] = other[at : at + chance.randint(1, 64)]
                case 4 if data:
                    data[at % len(data)] ^= 1 << chance.randint(0, 7)
        return bytes(data[:LONGEST])

    return next_input


def _at_random(measured: Measured, seeds: Sequence[bytes], seconds: float, found: Path) -> None:
    make, end = mutations(seeds, random.Random()), time.monotonic() + seconds
    while time.monotonic() < end:
        data = make()
        try:
            measured(data)
        except Exception:
            (found / f"crash-{hash(data) & 0xFFFFFFFF:08x}").write_bytes(data)
            raise
    measured.write()


def main(name: str, seconds: str, directory: str) -> None:
    """See the module; findings are in DIRECTORY/found, new inputs in DIRECTORY/corpus."""
    place = Path(directory)
    grown, found = place / "corpus", place / "found"
    for path in (grown, found):
        path.mkdir(parents=True, exist_ok=True)
    try:
        import atheris
    except ImportError:
        from tests.fuzz.targets import CORPUS, TARGETS

        seeds = [path.read_bytes() for path in (CORPUS / name).iterdir()]
        measured = Measured(TARGETS[name], place / "note.json")
        _at_random(measured, seeds, float(seconds), found)
        return
    # Not what tests import besides: to watch the whole of the core takes a minute at each start.
    ours = (
        "model",
        "plugins",
        "streaming",
        "console",
        "launch",
        "core.cri.requests",
        "core.read_checkpoint",
        "image_servers",
    )
    watched = [*(f"virtlet.{part}" for part in ours), "criproxy.http2", "vmwrapper"]
    watched += ["wsproto", "hyperframe", "hpack", "yaml"]
    with atheris.instrument_imports(include=watched):
        from tests.fuzz.targets import CORPUS, TARGETS
    measured = Measured(TARGETS[name], place / "note.json")
    options = [
        f"-max_total_time={int(float(seconds))}",
        f"-max_len={LONGEST}",
        f"-rss_limit_mb={MEMORY}",
        "-timeout=10",
        "-print_final_stats=1",
        f"-artifact_prefix={found}/",
    ]
    atheris.Setup([sys.argv[0], *options, str(grown), str(CORPUS / name)], measured)
    atheris.Fuzz()


if __name__ == "__main__":
    main(*sys.argv[1:])
