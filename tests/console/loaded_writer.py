"""Measures a log writer in a process of its own; prints one line of JSON.

DIRECTORY GUESTS BYTES_PER_SECOND SECONDS
"""

import json
import os
import resource
import sys
import time
from pathlib import Path

from tests.console.support import console_files, printed
from virtlet.console.console_files import ConsoleFiles
from virtlet.console.log_writer import ConsoleLogs

LINE = b"[   12.345678] something happened on the console of this guest: number %07d\r\n"
BEAT = 0.01


def print_all(consoles: list[ConsoleFiles], rate: int, seconds: float) -> None:
    """Be all the guests: each prints at this rate, in many small writes."""
    raws = [os.open(files.raw, os.O_WRONLY | os.O_APPEND) for files in consoles]
    lines = max(1, int(rate * BEAT / len(LINE % 0)))
    started, number = time.monotonic(), 0
    while time.monotonic() - started < seconds:
        piece = b"".join(LINE % (number + line) for line in range(lines))
        number += lines
        for raw in raws:
            os.write(raw, piece)
        time.sleep(max(0.0, started + number / lines * BEAT - time.monotonic()))
    os._exit(0)


def cpu_seconds() -> float:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


def main(directory: Path, guests: int, rate: int, seconds: float) -> dict[str, float]:
    consoles = [console_files(directory, f"vm-{number}") for number in range(guests)]
    logs = ConsoleLogs()
    logs.start()
    for files in consoles:
        logs.prepare(files)
    logs.stop()
    child = 0
    if rate:
        child = os.fork()
        if child == 0:
            print_all(consoles, rate, seconds)
    logs.start()
    for files in consoles:
        logs.add(files)
    before, started = cpu_seconds(), time.monotonic()
    memory = 0
    while time.monotonic() - started < seconds:
        time.sleep(0.1)
        memory = max(memory, *(files.raw.stat().st_blocks * 512 for files in consoles))
    if child:
        os.waitpid(child, 0)
    cores = (cpu_seconds() - before) / (time.monotonic() - started)
    written, lost = 0, 0
    for files in consoles:
        logs.finish(files)
        written += files.raw.stat().st_size
        lost += len(printed(files)) != files.raw.stat().st_size
    logs.stop()
    return {
        "cores": cores,
        "bytes_per_second": written / seconds,
        "wrong_logs": lost,
        "largest_raw_bytes": memory,
        "peak_rss_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
    }


if __name__ == "__main__":
    where, count, speed, duration = sys.argv[1:]
    print(json.dumps(main(Path(where), int(count), int(speed), float(duration))))  # noqa: T201
