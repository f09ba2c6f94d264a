"""Write the man pages of the commands and their completion for bash.

Usage: python debian/pages.py MAN_DIRECTORY COMPLETION_DIRECTORY
"""

import sys
from pathlib import Path

import click
from click.shell_completion import BashComplete
from click_man.core import write_man_pages

import virtlet
from criproxy.__main__ import main as criproxy
from criproxy.node_setup import main as criproxy_setup
from virtlet.cli.main import group

COMMANDS: dict[str, click.Command] = {
    "virtlet": group,
    "criproxy": criproxy,
    "criproxy-setup": criproxy_setup,
}


def whole(command: click.Command, ctx: click.Context) -> click.Command:
    """A command that has all its subcommands and options, as those of ours find theirs late."""
    if isinstance(command, click.Group):
        found = {name: command.get_command(ctx, name) for name in command.list_commands(ctx)}
        subcommands = {
            name: whole(sub, click.Context(sub, info_name=name, parent=ctx))
            for name, sub in found.items()
            if sub is not None
        }
        return click.Group(
            command.name, commands=subcommands, params=command.params, help=command.help
        )
    params = [p for p in command.get_params(ctx) if p.name != "help"]
    return click.Command(command.name, params=params, help=command.help)


def main() -> None:
    """Write them."""
    manual, completion = map(Path, sys.argv[1:])
    for name, command in COMMANDS.items():
        ctx = click.Context(command, info_name=name)
        write_man_pages(
            name, whole(command, ctx), version=virtlet.__version__, target_dir=str(manual)
        )
        variable = f"_{name.replace('-', '_').upper()}_COMPLETE"
        source = BashComplete(command, {}, name, variable).source()
        (completion / name).write_text(source)


if __name__ == "__main__":
    main()
