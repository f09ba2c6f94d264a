"""`virtlet plugins`: what is installed and serves, checking a plugin, and starting one.

A template is a whole plugin named `new_plugin`, in the directory of its kind; what all kinds have
is in `common`. Its name is written in the forms that `_forms` replaces.
"""

import ast
import importlib.util
import json
import keyword
import os
import re
import sys
from collections.abc import Iterable, Mapping
from importlib.metadata import entry_points
from pathlib import Path

import click
from attrs import asdict
from rich.console import Console as Terminal
from rich.table import Table

from virtlet import HOOK_API, PROJECT
from virtlet.cli.inventory import SERVED, Found, Handler, Inventory, take_inventory
from virtlet.core.hooks.plugin_package import check as run_check
from virtlet.core.hooks.plugin_package import read_module, read_package
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

CONFIG = Path("/etc/virtlet/virtlet.yaml")
"""The file that deploy/virtlet.service names."""


@click.group(invoke_without_command=True)
@click.option(
    "--config",
    "file",
    type=click.Path(path_type=Path, dir_okay=False),
    help=f"The manager's configuration file.  [default: {CONFIG} where it exists]",
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.pass_context
def plugins(ctx: click.Context, file: Path | None, as_json: bool) -> None:
    """List the installed plugins, and the order in which each handler calls them.

    No manager has to run. What a plugin fails at when it gets its settings, only the log of the
    manager's start tells.
    """
    if ctx.invoked_subcommand:
        return
    file = file or (CONFIG if CONFIG.exists() else None)
    inventory = take_inventory(file, os.environ)
    if as_json:
        click.echo(json.dumps({"hook_api": HOOK_API, **asdict(inventory)}, indent=2))
        return
    _show(inventory)


def _show(inventory: Inventory) -> None:
    terminal = Terminal(width=None if sys.stdout.isatty() else 200, highlight=False)
    everywhere = {handler.name for handler in inventory.handlers if not handler.problem}
    rows = [
        (found.name, found.version, found.package, _state(found, everywhere), found.path)
        for found in inventory.plugins
    ]
    terminal.print(_table(("PLUGIN", "VERSION", "PACKAGE", "STATE", "PATH"), rows))
    for found in inventory.plugins:
        if found.state != SERVED:
            terminal.print(f"\n{found.name} is {found.state}: {found.reason}", markup=False)
    declared = [
        (found.name, what, one.name, one.default or '""', one.kind)
        for found in inventory.plugins
        for what, ones in (("option", found.options), ("annotation", found.annotations))
        for one in ones
    ]
    terminal.print()
    terminal.print(_table(("PLUGIN", "DECLARES", "NAME", "DEFAULT", "TYPE"), declared))
    terminal.print("\nthe manager calls")
    terminal.print(_orders(inventory.manager))
    for handler in inventory.handlers:
        terminal.print(f"\nhandler {handler.name!r}", markup=False, end="")
        _show_order(terminal, handler, inventory.handlers[0])
    terminal.print(f"\nconfiguration: {inventory.config or 'no file, all defaults'}", markup=False)


def _show_order(terminal: Terminal, handler: Handler, first: Handler) -> None:
    """The plugins of each hook as called; after the first handler, where they differ from it."""
    if handler.problem:
        terminal.print(f" cannot be served: {handler.problem}", markup=False)
        return
    same = first.hooks if handler is not first else {}
    other = {
        hook: order
        for hook in {**handler.hooks, **same}
        if (order := handler.hooks.get(hook, ())) != same.get(hook)
    }
    how = " calls" if handler is first else f" calls as handler {first.name!r}"
    terminal.print(f"{how}{', but' if same and other else ''}", markup=False)
    if other:
        terminal.print(_orders(other))


def _orders(hooks: Mapping[str, tuple[str, ...]]) -> Table:
    rows = [(hook, ", ".join(order) or "none") for hook, order in hooks.items()]
    return _table(("HOOK", "PLUGINS IN ORDER"), rows)


def _state(found: Found, everywhere: set[str]) -> str:
    if found.state != SERVED:
        return found.state
    if set(found.handlers) == everywhere:
        return "serves every handler"
    return "serves " + ", ".join(map(repr, found.handlers))


def _table(titles: Iterable[str], rows: Iterable[Iterable[str]]) -> Table:
    table = Table(box=None, pad_edge=False)
    for title in titles:
        table.add_column(title, overflow="fold")
    for row in rows:
        table.add_row(*(text.replace("[", "\\[") for text in row))
    return table


@plugins.command()
@click.argument("path", type=click.Path(path_type=Path, exists=True))
def check(path: Path) -> None:
    """Check the plugins of a package's directory, or of a Python file.

    Nothing has to be installed. The exit code is 1 where the manager would refuse a plugin.
    """
    package = read_package(path) if path.is_dir() else read_module(path)
    sys.path[:0] = map(str, package.import_paths)
    refused = False
    for name, findings in run_check(package.entry_points()).items():
        refused = refused or bool(findings.flaws)
        verdict = "would be refused" if findings.flaws else "is fine"
        if findings.warnings and not findings.flaws:
            verdict = "would be served, with warnings"
        click.echo(f"{name} ({package.plugins[name]}) {verdict}")
        for flaw in findings.flaws:
            click.echo(f"  flaw: {flaw}")
        for warning in findings.warnings:
            click.echo(f"  warning: {warning}")
    if refused:
        sys.exit(1)


@plugins.command()
@click.argument("name")
@click.option(
    "--kind",
    "--hook",
    type=click.Choice(KINDS),
    required=True,
    help="What the plugin is about: the hook that its first version has.",
)
def new(name: str, kind: str) -> None:
    """Write a package to start a plugin from, into the directory NAME."""
    files = write_package(name, kind, Path.cwd())
    directory = files[0].parent.name
    module = directory.replace("-", "_")
    for file in files:
        click.echo(f"wrote {directory}/{file.name}")
    click.echo(
        f"""
What to do next:
  cd {directory}
  pip install -e .              # where the manager is installed
  virtlet plugins check .
  pytest                        # needs pytest: pip install 'virtlet[testing]'
and in the manager's configuration file, before it is restarted:
  handlers:
    {directory}:
      plugins: [{module}]"""
    )


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
