"""The map of threads in docs/architecture.md names every thread and pool of the manager."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]


def _started() -> Iterator[tuple[str, str]]:
    """(name, module) of whatever the manager starts threads with; "" for what has no name."""
    for path in sorted((ROOT / "virtlet").rglob("*.py")):
        module = path.relative_to(ROOT)
        if module.parts[1] in ("cli", "testing"):
            continue  # of commands and of tests
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and (name := _name(node)) is not None:
                yield name, str(module)


def _name(call: ast.Call) -> str | None:
    """The constant part of a thread's name; None for what starts none, or is named elsewhere."""
    function = call.func
    called = function.attr if isinstance(function, ast.Attribute) else getattr(function, "id", "")
    named = [keyword.value for keyword in call.keywords if keyword.arg == "name"]
    if called == "Timer":
        return "Timer"
    if called in ("ThreadPoolExecutor", "Worker"):
        named += call.args[:2]
    elif called != "Thread" and not (called == "__init__" and named):
        return None
    for value in named:
        first = value.values[0] if isinstance(value, ast.JoinedStr) else value
        if isinstance(first, ast.Constant) and isinstance(first.value, str):
            return first.value.rstrip("-")
    return None if named else ""


def test_every_thread_is_on_the_map_and_nothing_else() -> None:
    section = (ROOT / "docs" / "architecture.md").read_text().partition("\n## Threads\n")[2]
    rows = re.findall(r"^\| `([^`]+)` .*\| `([^`]+)` \|$", section.partition("\n## ")[0], re.M)
    assert sorted(rows) == sorted(set(_started()))
