"""The documentation says what the code says."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from virtlet import hookspecs

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = [*ROOT.glob("*.md"), *DOCS.rglob("*.md"), *ROOT.glob("examples/*/*.md")]
OURS = "virtlet|vmwrapper|criproxy|tests|docs|examples|hack|bench|images|deploy"
TESTS = "".join(path.read_text() for path in Path(__file__).parent.rglob("test_*.py"))


@pytest.mark.parametrize("hook", hookspecs.HOOKS)
def test_every_hook_has_a_test_that_names_it(hook: str) -> None:
    assert f"def test_hook_{hook.removeprefix('virtlet_')}" in TESTS


def test_the_settings_page_is_what_the_declarations_say() -> None:
    argv = [sys.executable, str(ROOT / "hack" / "document_settings.py")]
    made = subprocess.run(argv, check=True, capture_output=True, text=True).stdout
    assert made == (DOCS / "settings.md").read_text(), "run `make docs`"


def test_the_flavors_page_is_what_the_tables_say() -> None:
    argv = [sys.executable, str(ROOT / "hack" / "document_flavors.py")]
    made = subprocess.run(argv, check=True, capture_output=True, text=True).stdout
    assert made == (DOCS / "flavors.md").read_text(), "run `make docs`"


def test_changelog_fragments_say_what_kind_of_change_they_are() -> None:
    fragments = {path.name for path in (ROOT / "changelog.d").iterdir()}
    kinds = re.compile(r"[a-z0-9-]+\.(feature|fix)\.md")
    assert {name for name in fragments if not kinds.fullmatch(name)} <= {".gitkeep"}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_and_paths_lead_somewhere(page: Path) -> None:
    """Anchors are made from titles, as GitHub makes them."""
    text = page.read_text()
    links = [link.partition("#") for link in re.findall(r"\]\((?!\w+:)([^)\s]+)\)", text)]
    targets = [(page.parent / path if path else page, anchor) for path, _, anchor in links]
    targets += [(ROOT / path, "") for path in re.findall(rf"`((?:{OURS})/[\w./-]+)`", text)]
    assert [str(path) for path, _ in targets if not path.exists()] == []
    pages = [(path, anchor) for path, anchor in targets if anchor and path.suffix == ".md"]
    assert [anchor for path, anchor in pages if anchor not in _anchors(path)] == []


def _anchors(page: Path) -> set[str]:
    titles = re.findall(r"^#+ (.*)$", page.read_text(), re.M)
    return {re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in titles}


def test_every_promise_of_the_security_page_names_a_test_that_exists() -> None:
    page = (DOCS / "security.md").read_text()
    named = re.findall(r"`(tests/[\w/]+\.py)::(?:\w+::)?(\w+)`", page)
    assert [test for test in named if f"def {test[1]}(" not in (ROOT / test[0]).read_text()] == []
    tables = page.partition("\n## Guest\n")[2].partition("\n## What is not promised")[0]
    promises = re.findall(r"^\| (?!promise|-)(.*)$", tables.replace("|---", "|-"), re.M)
    assert len(promises) > 20
    assert [promise for promise in promises if "::test_" not in promise] == []


def test_the_index_of_decisions_names_each_with_its_title() -> None:
    records = sorted((DOCS / "decisions").glob("0*.md"))
    titles = {path.name: path.read_text().partition("\n")[0].removeprefix("# ") for path in records}
    index = (DOCS / "decisions" / "README.md").read_text()
    listed = re.findall(r"^- \[(.+)\]\((.+)\)$", index, re.M)
    assert [(title, name) for name, title in titles.items()] == listed
    assert all(title.startswith(f"{int(name[:4])}. ") for name, title in titles.items())
