"""What a check found: the lines and documents of `virtlet serve --check` and `virtlet doctor`."""

import json
from collections.abc import Callable, Iterable, Iterator

import click
from attrs import asdict, frozen

OK, NOTE, FAULT = "ok", "note", "fault"


@frozen
class Finding:
    """One thing that was looked at."""

    check: str
    """What was looked at, in one word."""
    level: str
    """`ok`; `note`: works, and somebody may want to know; `fault`: something does not work."""
    found: str
    remedy: str = ""
    """What to do; "" where `found` says it, or there is nothing to do."""


def guarded(name: str, check: Callable[[], Iterable[Finding]]) -> Iterator[Finding]:
    """What a check finds; a check that fails itself is a note, so that the others go on."""
    try:
        yield from check()
    except OSError as error:
        yield Finding(name, NOTE, f"could not be looked at: {error}")
    except Exception as error:
        yield Finding(name, NOTE, f"could not be looked at: {type(error).__name__}: {error}")


def show(findings: Iterable[Finding], *, as_json: bool = False) -> bool:
    """Print findings as they come.

    Args:
        findings: all of them.
        as_json: print one JSON object instead, with `faults` (how many) and `findings`.

    Returns:
        Whether there is no fault.
    """
    shown = []
    for finding in findings:
        shown.append(finding)
        if not as_json:
            click.echo(f"{finding.level:5} {finding.check}: {finding.found}")
            if finding.remedy:
                click.echo(f"      -> {finding.remedy}")
    faults = sum(finding.level == FAULT for finding in shown)
    if as_json:
        document = {"faults": faults, "findings": [asdict(finding) for finding in shown]}
        click.echo(json.dumps(document, indent=2))
    else:
        what = {0: "no fault", 1: "1 fault"}.get(faults, f"{faults} faults")
        click.echo(f"{what} in {len(shown)} findings; nothing was changed")
    return not faults
