"""Measure everything, print the table and write it as JSON."""

import importlib
import json
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import click
from rich.console import Console as Terminal

from bench import table
from bench.bench import Bench
from bench.row import Row

MEASUREMENTS = {
    "vmwrapper": "cost of vmwrapper",
    "startup": "start-up of the manager",
    "start": "start of pods",
    "stop": "stop and removal of pods",
    "memory": "memory of the manager",
    "lists": "lists and statuses with 50 pods",
    "stats": "statistics of 50 VMs",
    "stored": "lists and statuses with 500 stored pods",
    "execsync": "ExecSync",
    "forward": "port-forward",
    "network": "network of guests",
    "images": "images",
    "virtiofs": "shared directories",
    "console": "loud consoles",
    "loud": "loud guests",
    "warm": "starts from a template",
    "warm_debian": "starts of Debian from a template",
    "containerdisk": "pull of a containerDisk",
    "criproxy": "CRI proxy",
}
"""Module of this package to what it measures, in the order of measuring."""


@click.command()
@click.option(
    "--only",
    multiple=True,
    type=click.Choice(list(MEASUREMENTS)),
    help="Measure only this; can be given several times.",
)
@click.option(
    "--json",
    "file",
    type=click.Path(path_type=Path, dir_okay=False),
    default="build/bench.json",
    show_default=True,
    help="Where to write every single figure.",
)
@click.option(
    "--held",
    default=1.0,
    show_default=True,
    type=click.FloatRange(min=0),
    help="Minutes for which 110 idle clones are held while calls are timed.",
)
@click.option("--quick", is_flag=True, help="Few repetitions: a check of the benchmark itself.")
def main(only: Sequence[str], file: Path, held: float, quick: bool) -> None:
    """Measure what Virtlet costs. Needs root and what `make setup` installs.

    Exits with 0 when everything was measured and every bound is kept, with 1 otherwise.
    """
    terminal = Terminal(highlight=False, width=None if sys.stdout.isatty() else 200)
    bench = Bench(quick=quick, terminal=terminal, held=60 * held)
    rows: list[Row] = []
    failures: dict[str, str] = {}
    began, before = time.time(), os.getloadavg()
    for name, title in MEASUREMENTS.items():
        if only and name not in only:
            continue
        bench.begin(title)
        try:
            rows += importlib.import_module(f"bench.{name}").measure(bench)
        except Exception as error:
            failures[title] = f"{type(error).__name__}: {error}"
            if not isinstance(error, OSError):
                terminal.print_exception()
        finally:
            bench.end()
    table.show(rows, failures, terminal)
    if quick:
        terminal.print("These figures are of few repetitions (--quick): do not judge by them.")
    document = {
        "at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(began)),
        "seconds": time.time() - began,
        "cpus": os.cpu_count(),
        "load": {"before": before, "after": os.getloadavg()},
        "kernel": os.uname().release,
        "python": sys.version.split()[0],
        "quick": quick,
        "rows": [row.as_json() for row in rows],
        "failures": failures,
    }
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(document, indent=1, ensure_ascii=False) + "\n")
    terminal.print(
        f"load of the machine: {before[0]:.1f} before, {os.getloadavg()[0]:.1f} at the end; "
        f"every figure: {file}"
    )
    sys.exit(0 if not failures and all(row.passed for row in rows) else 1)


if __name__ == "__main__":
    main()
