"""`virtlet plugins`: what is installed and serves, checking a plugin, and starting one."""

import json
import os
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path

import click
from attrs import asdict
from rich.console import Console as Terminal
from rich.table import Table

from virtlet import HOOK_API
from virtlet.cli.inventory import SERVED, Found, Handler, Inventory, take_inventory
from virtlet.cli.scaffold import KINDS, write_package
from virtlet.core.hooks.plugin_package import check as run_check
from virtlet.core.hooks.plugin_package import read_module, read_package

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
