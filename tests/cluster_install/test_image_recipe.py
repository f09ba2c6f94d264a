"""The recipe of the node's container image."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[2]
REQUIRED = frozenset({"mount"})
"""Of priority "required": in every Debian."""


def _asked_for() -> Iterator[str]:
    """Debian's packages that the manager names where one of their programs is missing."""
    for path in (ROOT / "virtlet").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if not isinstance(node, ast.Call):
                continue
            named = [each.value for each in node.keywords if each.arg == "package"]
            if isinstance(node.func, ast.Name) and node.func.id == "find_program":
                named += node.args[1:2]
            for each in named:
                text = each.value if isinstance(each, ast.Constant) else None
                if isinstance(text, str) and not text.startswith("virtlet"):
                    yield from text.split(" and ")


def test_the_image_has_every_package_that_the_manager_asks_for() -> None:
    lines = (ROOT / "images" / "node" / "packages.list").read_text().splitlines()
    there = {line for line in lines if re.fullmatch(r"[a-z0-9][a-z0-9.+-]+", line)}
    asked_for = set(_asked_for())
    assert {"qemu-utils", "qemu-block-extra", "e2fsprogs", "dnsmasq-base"} <= asked_for
    assert asked_for - REQUIRED - there == set()
