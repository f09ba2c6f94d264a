"""`virtlet doctor`: what this node lacks to run VMs, each with the remedy."""

import functools
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import click

from virtlet.cli import kubelet_checks, node_checks
from virtlet.cli.findings import Finding, guarded, show
from virtlet.cli.node_checks import Node
from virtlet.cli.plugins import CONFIG
from virtlet.cli.start_checks import check_start
from virtlet.core.daemon import emulator_user, settings
from virtlet.core.hooks.plugin_package import quiet
from virtlet.core.hooks.registry import Registry, discover
from virtlet.errors import VirtletError

CHECKS = (*node_checks.CHECKS, *kubelet_checks.CHECKS)


@click.command()
@click.option(
    "--config",
    "file",
    type=click.Path(path_type=Path, dir_okay=False),
    help=f"The manager's configuration file.  [default: {CONFIG} where it exists]",
)
@click.option("-o", "--output", type=click.Choice(["text", "json"]), default="text")
def doctor(file: Path | None, output: str) -> None:
    """Say what this node lacks to run VMs, and what helps; change nothing.

    The exit code is 1 for a fault. Run it as root: others cannot look at all of it.
    """
    file = file or (CONFIG if CONFIG.exists() else None)
    with quiet():
        registry = discover()
    found = check_node(registry, file)
    sys.exit(0 if show(found, as_json=output == "json") else 1)


def check_node(registry: Registry, file: Path | None) -> Iterator[Finding]:
    """All that is checked: what a start depends on, then the node.

    Where the settings cannot be read, the node is looked at with the defaults.
    """
    read = functools.partial(settings, registry, file, os.environ, {})
    yield from check_start(registry, read)
    try:
        config = read()
    except VirtletError:
        config = settings(registry, None, {}, {})
    try:
        user = emulator_user(config)
    except VirtletError:
        user = None
    node = Node(config=config, user=user)
    for name, check in CHECKS:
        yield from guarded(name, functools.partial(check, node))
