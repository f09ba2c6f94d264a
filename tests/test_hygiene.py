"""What is checked in is whole and tidy, also where no linter looks."""

import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]
# Pieces, so that this file has none itself.
_CONFLICT = re.compile("^(" + "<" * 7 + "|" + ">" * 7 + r")( |$)", re.MULTILINE)
_OTHERS = ("tests/fuzz/corpus/", "tests/golden/", "proto/", "virtlet/cri/")
"""Bytes for parsers, what programs wrote, and what others wrote."""


def texts() -> Iterator[tuple[str, str]]:
    """Name and content of every text that is checked in, but those of `_OTHERS`."""
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, check=True, capture_output=True)
    for name in listed.stdout.decode().split("\0"):
        path = ROOT / name
        if name and path.is_file() and not path.is_symlink() and not name.startswith(_OTHERS):
            content = path.read_bytes()
            if b"\0" not in content:
                yield name, content.decode()


def test_no_text_has_the_marks_of_a_merge() -> None:
    """A conflict that was committed is one in a page or a script as well."""
    found = list(texts())
    assert len(found) > 500
    assert [name for name, text in found if _CONFLICT.search(text)] == []


def test_every_text_ends_with_one_line_end_of_unix() -> None:
    """A tool that appends to it, or compares it, would find a line that nobody wrote."""
    wrong = [name for name, text in texts() if text and (not text.endswith("\n") or "\r\n" in text)]
    assert wrong == []
