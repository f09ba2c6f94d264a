"""How commands show what they found: a table for people, JSON and YAML for programs."""

import json
import sys
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import click
import yaml
from google.protobuf.json_format import MessageToDict
from google.protobuf.message import Message
from rich.console import Console as Terminal
from rich.table import Table

output_option = click.option(
    "-o",
    "--output",
    type=click.Choice(["table", "json", "yaml"]),
    default="table",
    show_default=True,
    help="How it is shown; the names in JSON and YAML are those of CRI.",
)
document_option = click.option(
    "-o",
    "--output",
    type=click.Choice(["json", "yaml"]),
    default="yaml",
    show_default=True,
    help="How it is shown; the names are those of CRI.",
)


def plain(message: Message) -> dict[str, Any]:
    """A message of CRI as plain values, zeros and empty ones too; 64-bit numbers are text."""
    return MessageToDict(message, always_print_fields_with_no_presence=True)


def unfolded(info: dict[str, str]) -> dict[str, Any]:
    """What a verbose status has beside its fields: each value is JSON as text."""
    return {name: json.loads(text) for name, text in info.items()}


def print_document(value: Any, output: str) -> None:
    """Print plain values."""
    if output == "json":
        click.echo(json.dumps(value, indent=2))
    else:
        click.echo(yaml.safe_dump(value, sort_keys=False), nl=False)


def print_table(titles: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Print rows below their titles; not cut off where it is no terminal."""
    table = Table(box=None, pad_edge=False)
    for title in titles:
        table.add_column(title, no_wrap=True)
    for row in rows:
        table.add_row(*row)
    Terminal(width=None if sys.stdout.isatty() else 200, highlight=False).print(table)


def print_list(
    messages: Sequence[Message], output: str, key: str, table: Callable[[], None]
) -> None:
    """Print a list of CRI below a key, as its own answers have it, or as a table."""
    if output == "table":
        table()
    else:
        print_document({key: [plain(message) for message in messages]}, output)
