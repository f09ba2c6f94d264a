"""docs/hooks.md in parts, and its examples as plugins."""

import re
from collections.abc import Mapping
from functools import cache
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

from attrs import frozen

from tests.fakes.model import make_config, make_node
from virtlet.core.hooks.facade import Hooks
from virtlet.core.hooks.plugin_package import Findings, check
from virtlet.core.hooks.registry import discover
from virtlet.model.pod import Profile

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "hooks.md").read_text()
NAME = "example"
"""The plugin's name, whichever example it is."""
PROFILE = Profile(handler="", plugins=(NAME,))


@frozen
class Section:
    """What the page says of one hook."""

    hook: str
    heading: str
    """The line below the title: signature and mode."""
    fields: Mapping[str, str]
    """Name to text of the list that follows, in its order."""
    prose: str
    example: str
    """A plugin module, or "" where another section has it."""

    @property
    def module(self) -> str:
        """What the example is called as a module."""
        return f"example_of_{self.hook}"

    def write(self, directory: Path) -> None:
        """Write the example into a file of its module's name."""
        (directory / f"{self.module}.py").write_text(self.example)


@cache
def sections() -> Mapping[str, Section]:
    """Hook to its section, in the order of the page."""
    found = re.findall(r"^### (virtlet_\w+)\n(.*?)(?=^##|\Z)", _fenced(PAGE), re.M | re.S)
    return {hook: _section(hook, text.replace("\0", "#")) for hook, text in found}


def _fenced(text: str) -> str:
    """The page with # masked in its code, where it starts no title."""
    return re.sub(r"^```.*?^```$", lambda m: m[0].replace("#", "\0"), text, flags=re.M | re.S)


def _section(hook: str, text: str) -> Section:
    heading, listed, prose = re.fullmatch(  # type: ignore[union-attr]
        r"\n(.*?)\n\n((?:- .*?\n(?:  .*?\n)*)*)(.*)", text, re.S
    ).groups()
    fields = re.findall(r"^- \*\*(.*?):\*\* (.*?)(?=^- |\Z)", listed, re.M | re.S)
    examples = re.findall(r"^```python\n(.*?)^```$", prose, re.M | re.S)
    return Section(
        hook=hook,
        heading=heading,
        fields={name: " ".join(value.split()) for name, value in fields},
        prose=re.sub(r"^```.*?^```$", "", prose, flags=re.M | re.S).strip(),
        example=examples[0] if len(examples) == 1 else "",
    )


class Example:
    """The plugin of a hook's section, on a node of its own, called as the core calls it."""

    def __init__(self, hook: str, root: Path) -> None:
        section = sections()[hook]
        self.entry = EntryPoint(NAME, f"{section.module}:Plugin", "virtlet")
        assert check([self.entry]) == {NAME: Findings()}
        self.hooks = Hooks(discover([self.entry]))
        self.node = make_node(root)

    def configure(self, **values: str) -> None:
        """Start up, with these settings and the defaults of the others."""
        options: list[Any] = [option for _, option in self.hooks.options()]
        self.hooks.configure(make_config(options, **values), self.node)
