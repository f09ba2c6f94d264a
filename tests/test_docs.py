"""The documentation says what the code says."""

import inspect
import re
import subprocess
import sys
from pathlib import Path

import pytest

from virtlet import hookspecs
from virtlet.core.hooks.registry import discover

DOCS = Path(__file__).parents[1] / "docs"
HOOKS = (DOCS / "hooks.md").read_text()
TESTS = "".join(path.read_text() for path in Path(__file__).parent.rglob("test_*.py"))
USERS = "".join(
    path.read_text()
    for folder in ("virtlet/plugins", "examples")
    for path in (DOCS.parent / folder).rglob("*.py")
)


def _signature(hook: str) -> str:
    text = str(inspect.signature(getattr(hookspecs, hook)))
    # Only the types' own names: the page says where they come from.
    short = re.sub(r"(?:\w+\.)+", "", text)
    return hook + short.replace("Disk | Share | GuestFiles | Unneeded", "Volume")


@pytest.mark.parametrize("hook", hookspecs.HOOKS)
def test_every_hook_stands_in_the_docs_with_its_exact_signature_and_mode(hook: str) -> None:
    assert f"### {hook}\n\n`{_signature(hook)}` ({hookspecs.HOOKS[hook]})\n" in HOOKS


def test_the_docs_name_no_hook_that_does_not_exist() -> None:
    assert set(re.findall(r"^### (virtlet_\w+)", HOOKS, re.M)) == set(hookspecs.HOOKS)


def test_the_table_of_hooks_is_complete() -> None:
    declared = {name for name in vars(hookspecs) if name.startswith("virtlet_")}
    assert declared == set(hookspecs.HOOKS)


@pytest.mark.parametrize("hook", hookspecs.HOOKS)
def test_every_hook_has_a_real_plugin_that_uses_it(hook: str) -> None:
    assert f"def {hook}(" in USERS


@pytest.mark.parametrize("hook", hookspecs.HOOKS)
def test_the_docs_name_the_built_in_plugins_that_use_a_hook(hook: str) -> None:
    registry = discover()
    implementations = getattr(registry.manager.hook, hook).get_hookimpls()
    section = HOOKS.partition(f"### {hook}\n")[2].partition("\n### ")[0]
    used_by = re.search(r"Used\s+by:\s([^.;]*)", section)
    named = re.sub(r"\(.*?\)", "", used_by[1], flags=re.S) if used_by else ""
    builtin = {impl.plugin_name for impl in implementations} & set(registry.builtin)
    assert {name.strip() for name in named.split(",") if name.strip()} == builtin


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
