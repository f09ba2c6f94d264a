"""`virtlet templates`: what VMs that start warm start from; see docs/snapshots.md."""

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from virtlet.cli.attended import AttendedClient
from virtlet.cli.output import output_option, print_document, print_table, unfolded
from virtlet.cli.targets import socket_option
from virtlet.cri import api_pb2 as cri
from virtlet.errors import VirtletError
from virtlet.host.files import remove_tree

_MIB = 1 << 20
_TITLES = ("TEMPLATE", "IMAGE", "NAMESPACE", "HANDLER", "MACHINE", "STATE", "DISK", "VMS", "USED")


@click.group(invoke_without_command=True)
@click.option("-q", "--quiet", is_flag=True, help="Show the names of those that are ready alone.")
@output_option
@socket_option
@click.pass_context
def templates(ctx: click.Context, quiet: bool, output: str, socket: str) -> None:
    """List the templates that VMs start from, and why there is none of an image.

    MACHINE is the guest's memory and vCPUs, USED how long ago a VM started from it.
    """
    if ctx.invoked_subcommand:
        return
    found = _templates(socket)
    if quiet:
        for one in found:
            if one["state"] == "ready":
                click.echo(one["key"])
    elif output != "table":
        print_document({"templates": found}, output)
    else:
        print_table(_TITLES, map(_row, found))
        for one in found:
            if one["reason"]:
                click.echo(f"\n{one['key'][:12]}: {one['reason']}")


@templates.command()
@click.argument("templates", nargs=-1, required=True)
@socket_option
def rm(templates: tuple[str, ...], socket: str) -> None:
    """Remove templates, by the beginning of their names; VMs that run from one go on.

    The next VM of its kind boots, and another one is made.
    """
    found = _templates(socket)
    for chosen in [_chosen(found, text) for text in templates]:
        directory = Path(chosen["directory"])
        gone = directory.with_suffix(".gone")
        try:
            # In one step: no VM finds half of it.
            directory.rename(gone)
            remove_tree(gone)
        except FileNotFoundError:
            pass  # It made way meanwhile.
        except (OSError, VirtletError) as error:
            raise click.ClickException(
                f"template {chosen['key']}: {error}: run this as root on the node, in the "
                "manager's mount namespace"
            ) from None
        click.echo(chosen["key"])


def _templates(socket: str) -> list[dict[str, Any]]:
    with AttendedClient(socket) as client:
        status = client.call("Status", cri.StatusRequest(verbose=True))
    found: list[dict[str, Any]] = unfolded(status.info).get("templates", [])
    return found


def _chosen(found: Sequence[dict[str, Any]], text: str) -> dict[str, Any]:
    """The template whose name begins with a text.

    Raises:
        click.ClickException: there is none that could be removed, or more than one.
    """
    begun = [one for one in found if one["key"].startswith(text)]
    if len(begun) != 1:
        how = "more than one template's name begins" if begun else "no template's name begins"
        raise click.ClickException(f"{how} with {text!r}: see `virtlet templates`")
    if begun[0]["state"] != "ready":
        raise click.ClickException(
            f"template {begun[0]['key']} is not there: its state is {begun[0]['state']}"
        )
    return begun[0]


def _row(one: dict[str, Any]) -> list[str]:
    ready = one["state"] == "ready"
    machine = f"{one.get('memory', 0) // _MIB}Mi {one.get('vcpus', '?')} CPU"
    return [
        one["key"][:12],
        str(one.get("image", "")),
        str(one.get("namespace", "")),
        str(one.get("handler", "")),
        machine,
        one["state"],
        f"{one['disk'] // _MIB}Mi" if ready else "",
        str(len(one["vms"])) if ready else "",
        f"{max(0, int(time.time()) - one['usedAt'])} s" if ready else "",
    ]
