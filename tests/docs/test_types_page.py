"""docs/types.md is what the code says of all that plugins import."""

import re
import subprocess
import sys

from tests.docs.page import ROOT
from virtlet import api

PAGE = (ROOT / "docs" / "types.md").read_text()


def test_the_page_is_what_the_code_says() -> None:
    """Fields, defaults, methods and words."""
    script = ROOT / "hack" / "document_types.py"
    made = subprocess.run([sys.executable, script], check=True, capture_output=True, text=True)
    assert made.stdout == PAGE, "run `make docs`"


def test_every_name_of_the_door_is_on_the_page() -> None:
    """Names without a section of their own are named in one."""
    titles = set(re.findall(r"^### (\w+)$", PAGE, re.M))
    elsewhere = {"HOOK_API", "evolve", "hookimpl"}
    missing = set(api.__all__) - titles - elsewhere
    assert {name for name in missing if f"`{name}`" not in PAGE} == set()
