"""The documentation says what the code says."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from virtlet import hookspecs

DOCS = Path(__file__).parents[1] / "docs"
TESTS = "".join(path.read_text() for path in Path(__file__).parent.rglob("test_*.py"))


@pytest.mark.parametrize("hook", hookspecs.HOOKS)
def test_every_hook_has_a_test_that_names_it(hook: str) -> None:
    assert f"def test_hook_{hook.removeprefix('virtlet_')}" in TESTS


def test_the_settings_page_is_what_the_declarations_say() -> None:
    argv = [sys.executable, str(DOCS.parent / "hack" / "document_settings.py")]
    made = subprocess.run(argv, check=True, capture_output=True, text=True).stdout
    assert made == (DOCS / "settings.md").read_text(), "run `make docs`"


def test_changelog_fragments_say_what_kind_of_change_they_are() -> None:
    fragments = {path.name for path in (DOCS.parent / "changelog.d").iterdir()}
    kinds = re.compile(r"[a-z0-9-]+\.(feature|fix)\.md")
    assert {name for name in fragments if not kinds.fullmatch(name)} <= {".gitkeep"}
