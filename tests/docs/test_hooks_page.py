"""docs/hooks.md has a section for every hook, in one form, and says what the code says."""

import ast
import inspect
import re
import sys

import pytest

from tests.docs.page import PAGE, ROOT, sections
from virtlet import hookspecs
from virtlet.core.hooks.registry import discover

FIELDS = ("When", "Thread", "May be slow", "Journalled", "Used by")
USERS = "".join(
    path.read_text()
    for folder in ("virtlet/plugins", "examples")
    for path in (ROOT / folder).rglob("*.py")
)
every_hook = pytest.mark.parametrize("hook", hookspecs.HOOKS)


def _signature(hook: str) -> str:
    text = str(inspect.signature(getattr(hookspecs, hook)))
    # Only the types' own names: the page says where they come from.
    short = re.sub(r"(?:\w+\.)+", "", text)
    return hook + short.replace("Disk | Share | GuestFiles | Unneeded", "Volume")


def _guide(title: str) -> str:
    return PAGE.partition(f"\n## {title}\n")[2].partition("\n## ")[0]


def _inverse(hook: str) -> str:
    """The hook that undoes another, as the specification names it."""
    found = re.search(r"Inverse: (virtlet_\w+)", getattr(hookspecs, hook).__doc__)
    return found[1] if found else ""


def test_there_is_a_section_for_every_hook_and_for_nothing_else() -> None:
    """The page is the API."""
    assert set(sections()) == set(hookspecs.HOOKS)


@every_hook
def test_a_section_starts_with_the_exact_signature_and_the_mode(hook: str) -> None:
    """As hookspecs.py declares it."""
    assert sections()[hook].heading == f"`{_signature(hook)}` ({hookspecs.HOOKS[hook]})"


@every_hook
def test_a_section_has_all_fields_and_some_words(hook: str) -> None:
    """In one order, so that a reader finds them."""
    section = sections()[hook]
    assert tuple(section.fields) == FIELDS
    assert all(section.fields.values())
    assert section.prose


@every_hook
def test_threads_and_durations_are_words_that_the_guide_explains(hook: str) -> None:
    """The words come first, what is special after them."""
    fields, guide = sections()[hook].fields, _guide("How hooks are called")
    thread, slow = (re.split(r"[,;]", fields[name])[0] for name in ("Thread", "May be slow"))
    assert f"| {thread} | " in guide
    assert f"**{slow}**" in guide


@every_hook
def test_effects_name_their_inverse_and_inverses_their_effect(hook: str) -> None:
    """As the specification pairs them."""
    journalled = sections()[hook].fields["Journalled"]
    if hookspecs.HOOKS[hook] == "inverse":
        (effect,) = (other for other in hookspecs.HOOKS if _inverse(other) == hook)
        assert journalled == f"undoes `{effect}`"
    elif _inverse(hook):
        assert journalled == f"yes; inverse: `{_inverse(hook)}`"
    else:
        assert journalled.split(";")[0] == "no"


@every_hook
def test_a_section_has_an_example_that_implements_the_hook(hook: str) -> None:
    """That of an inverse is its effect's, as one plugin has both."""
    section = sections()[hook]
    if hookspecs.HOOKS[hook] == "inverse":
        effect = section.fields["Journalled"].split("`")[1]
        assert f"The example of [{effect}](#{effect}) has it." in " ".join(section.prose.split())
        section = sections()[effect]
    assert re.search(rf"^    def {hook}\(\s*self\b", section.example, re.M)
    assert "    VIRTLET_HOOK_API = 1\n" in section.example
    assert section.example.startswith('"""')


@every_hook
def test_examples_import_the_one_door_and_the_standard_library(hook: str) -> None:
    """Nothing else is promised."""
    tree = ast.parse(sections()[hook].example)
    names = {n.module for n in ast.walk(tree) if isinstance(n, ast.ImportFrom)} | {
        alias.name for n in ast.walk(tree) if isinstance(n, ast.Import) for alias in n.names
    }
    foreign = {name for name in names if str(name).split(".")[0] not in sys.stdlib_module_names}
    assert foreign <= {"virtlet.api"}


@every_hook
def test_the_guide_says_when_each_hook_is_called(hook: str) -> None:
    """One table shows all of a pod's life."""
    words = re.findall(r"\w+", _guide("When hooks are called"))
    assert hook.removeprefix("virtlet_") in words


@every_hook
def test_a_section_names_the_built_in_plugins_that_use_the_hook(hook: str) -> None:
    """Their code shows how it is done; remarks stand in brackets or after a semicolon."""
    registry = discover()
    implementations = getattr(registry.manager.hook, hook).get_hookimpls()
    used_by = re.sub(r"\(.*?\)", "", sections()[hook].fields["Used by"].partition(";")[0])
    builtin = {impl.plugin_name for impl in implementations} & set(registry.builtin)
    assert {name.strip() for name in used_by.split(",")} == (builtin or {"no built-in plugin"})


@every_hook
def test_every_hook_has_a_real_plugin_that_uses_it(hook: str) -> None:
    """A hook that nobody needs is none."""
    assert f"def {hook}(" in USERS


def test_the_table_of_hooks_is_complete() -> None:
    """The table beside the hooks says how each is called."""
    declared = {name for name in vars(hookspecs) if name.startswith("virtlet_")}
    assert declared == set(hookspecs.HOOKS)
