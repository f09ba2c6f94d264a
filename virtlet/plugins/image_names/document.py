"""Reading a YAML document strictly, with the line of whatever is wrong in it."""

from collections.abc import Collection
from pathlib import Path

import yaml

from virtlet.errors import FailedPrecondition
from virtlet.model.plain import yaml_problem

LARGEST = 1 << 20
"""Bytes of the largest translation file."""


class Malformed(FailedPrecondition):
    """A translation file is not as it should be; the message names file and line."""

    def __init__(self, path: Path, problem: str, node: yaml.Node | None = None) -> None:
        line = f":{node.start_mark.line + 1}" if node is not None else ""
        super().__init__(f"image translation file {path}{line}: {problem}")


class Document:
    """Readers for one file's nodes; each raises Malformed."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def compose(self, content: bytes) -> yaml.Node | None:
        """The root node; None when the file is empty."""
        if len(content) > LARGEST:
            raise Malformed(self.path, f"larger than {LARGEST} bytes")
        try:
            root: yaml.Node | None = yaml.compose(content, Loader=yaml.SafeLoader)
        except yaml.YAMLError as error:
            raise Malformed(self.path, yaml_problem(error)) from None
        except (RecursionError, UnicodeDecodeError, ValueError):
            raise Malformed(self.path, "no valid YAML") from None
        return root

    def fail(self, node: yaml.Node, problem: str) -> Malformed:
        """The error for a node."""
        return Malformed(self.path, problem, node)

    def mapping(
        self, node: yaml.Node | None, what: str, fields: Collection[str] | None = None
    ) -> dict[str, yaml.Node]:
        """The values of a mapping by key, nothing for an absent node; other keys are errors."""
        if node is None or self._is_null(node):
            return {}
        if not isinstance(node, yaml.MappingNode):
            raise self.fail(node, f"{what} must be a mapping")
        found: dict[str, yaml.Node] = {}
        for key, value in node.value:
            name = self.text(key, f"a key of {what}")
            if fields is not None and name not in fields:
                raise self.fail(
                    key, f"{what} has no field {name!r}; its fields are {', '.join(fields)}"
                )
            if name in found:
                raise self.fail(key, f"{what} has {name!r} twice")
            found[name] = value
        return found

    def items(self, node: yaml.Node | None, what: str) -> list[yaml.Node]:
        """The items of a list, none for an absent node."""
        if node is None or self._is_null(node):
            return []
        if not isinstance(node, yaml.SequenceNode):
            raise self.fail(node, f"{what} must be a list")
        return list(node.value)

    def text(self, node: yaml.Node | None, what: str) -> str:
        """A text, "" for an absent node; a number counts as the text it is written as."""
        if node is None or self._is_null(node):
            return ""
        if not isinstance(node, yaml.ScalarNode):
            raise self.fail(node, f"{what} must be a text")
        return str(node.value)

    def number(self, node: yaml.Node | None, what: str, default: int, highest: int) -> int:
        """A whole number from 0 to `highest`."""
        if node is None:
            return default
        text = self.text(node, what)
        if not (text.isascii() and text.isdigit() and len(text) < 16 and int(text) <= highest):
            raise self.fail(node, f"{what} must be a whole number from 0 to {highest}")
        return int(text)

    def boolean(self, node: yaml.Node | None, what: str) -> bool:
        """true or false; false for an absent node."""
        if node is None:
            return False
        text = self.text(node, what).lower()
        if text not in ("true", "false"):
            raise self.fail(node, f"{what} must be true or false")
        return text == "true"

    def _is_null(self, node: yaml.Node) -> bool:
        return bool(node.tag == "tag:yaml.org,2002:null")
