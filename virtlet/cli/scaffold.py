"""`virtlet plugins new`: a package to start a plugin from.

A template is a whole plugin named `new_plugin`, in the directory of its kind; what all kinds have
is in `common`. Its name is written in the forms that `_forms` replaces.
"""

import ast
import importlib.util
import keyword
import re
from importlib.metadata import entry_points
from pathlib import Path

from virtlet import PROJECT
from virtlet.errors import AlreadyExists, InvalidArgument

TEMPLATES = Path(__file__).parent / "templates"
KINDS = (
    "image",
    "network",
    "disk",
    "volume",
    "domain",
    "launch",
    "hypervisor",
    "flavor",
    "cloud-init",
    "event",
)
_NAME = re.compile(r"[a-z][a-z0-9]*(?:[-_][a-z0-9]+)*")
_PLACEHOLDER = "new-plugin"


def write_package(name: str, kind: str, parent: Path) -> list[Path]:
    """Write a package into a directory of its name.

    Args:
        name: of the package; its plugin has it with underscores.
        kind: one of KINDS.
        parent: where the directory is made.

    Returns:
        The files.

    Raises:
        InvalidArgument: the name cannot be one.
        AlreadyExists: something is called so already.
    """
    if not _NAME.fullmatch(name) or keyword.iskeyword(name):
        raise InvalidArgument(
            f"{name!r} cannot name a package: wanted are lower-case letters and digits, in words "
            "joined by -, such as my-disks, and no keyword of Python"
        )
    name = name.replace("_", "-")
    module = name.replace("-", "_")
    directory = parent / name
    if directory.exists():
        raise AlreadyExists(f"{directory} exists already: remove it, or take another name")
    if any(entry.name == module for entry in entry_points(group=PROJECT)):
        raise AlreadyExists(f"a plugin named {module} is installed already: take another name")
    if importlib.util.find_spec(module) is not None:
        raise AlreadyExists(f"a Python module named {module} is there already: take another name")
    directory.mkdir()
    return [
        _write(source, directory, name, kind)
        for folder in ("common", kind)
        for source in sorted((TEMPLATES / folder).iterdir())
        if source.is_file()
    ]


def _write(source: Path, directory: Path, name: str, kind: str) -> Path:
    text = source.read_text().replace("{summary}", _summary(kind))
    target = source.name
    for form, mine in zip(_forms(_PLACEHOLDER), _forms(name), strict=True):
        text, target = text.replace(form, mine), target.replace(form, mine)
    (directory / target).write_text(text)
    return directory / target


def _forms(name: str) -> tuple[str, ...]:
    """A name as a package, a module, an environment variable, a class and an option."""
    words = name.split("-")
    title = "".join(word.capitalize() for word in words)
    return (
        name,
        "_".join(words),
        "_".join(words).upper(),
        title,
        words[0] + "".join(word.capitalize() for word in words[1:]),
    )


def _summary(kind: str) -> str:
    """What a template's module says of itself."""
    tree = ast.parse((TEMPLATES / kind / "new_plugin.py").read_text())
    return ast.get_docstring(tree) or ""
