"""The `virtlet` command as a whole."""

import subprocess
import sys

import click

from virtlet.cli.main import COMMANDS, group

_SCRIPT = """
import sys
from virtlet.cli import main

main.group.main(["--help"], standalone_mode=False)
print(sorted(name for name in sys.modules if name.startswith("virtlet.c")))
"""


def test_the_help_imports_no_command_and_every_command_is_there() -> None:
    said = subprocess.run(
        [sys.executable, "-c", _SCRIPT], capture_output=True, text=True, check=True
    )
    *text, imported = said.stdout.splitlines()
    assert imported == "['virtlet.cli', 'virtlet.cli.ending', 'virtlet.cli.main']"
    for name in COMMANDS:
        assert any(line.startswith(f"  {name} ") for line in text)
        command = group.get_command(click.Context(group), name)
        assert command is not None
        assert command.name == name
