"""The `virtlet` command: the manager, and a small CRI client beside it."""

import importlib
import sys
from collections.abc import Mapping
from typing import Any

import click

import virtlet
from virtlet.cli.ending import CommandFailed, Ended
from virtlet.errors import VirtletError

COMMANDS = {
    "attach": ("guest_commands:attach", "Attach to the serial console of a pod's VM."),
    "checkpoint": ("pod_commands:checkpoint", "Write a pod's running VM to a file."),
    "csi": ("csi:csi_command", "Serve the CSI driver virtlet.cloud."),
    "demo": ("demo:demo", "Run a VM pod on a throwaway node, from manifest to nothing left."),
    "diag": ("diag:diag", "Collect what a report of trouble needs, without secrets."),
    "doctor": ("doctor:doctor", "Say what this node lacks to run VMs, and what helps."),
    "events": ("view_commands:events", "Show what happens to pods and VMs, until Ctrl-C."),
    "exec": ("guest_commands:exec_command", "Run a command in a pod's VM."),
    "hibernate": ("pod_commands:hibernate", "Put a VM's memory on disk, and keep its pod."),
    "images": ("image_commands:images", "List the images of the store."),
    "info": ("view_commands:info", "Show versions, conditions, handlers and space of images."),
    "inspect": ("view_commands:inspect", "Show all that is known of a pod and its VMs."),
    "logs": ("view_commands:logs", "Show the console of a pod's VM."),
    "plugins": ("plugins:plugins", "List and check plugins, and begin one of your own."),
    "ps": ("view_commands:ps", "List pods and their VMs."),
    "pull": ("image_commands:pull", "Pull an image into the store."),
    "restore": ("pod_commands:restore", "Have a pod go on from a checkpoint."),
    "resume": ("pod_commands:resume", "Have a hibernated VM go on."),
    "rm": ("pod_commands:rm", "Stop and remove pods with all they left."),
    "rmi": ("image_commands:rmi", "Remove images from the store."),
    "run": ("pod_commands:run", "Bring up the VM pod of a manifest, as a kubelet would."),
    "serve": ("serve:serve", "Run the manager until SIGTERM; VMs go on running after it."),
    "stats": ("view_commands:stats", "Show what each VM consumes."),
    "stop": ("pod_commands:stop", "Stop pods: power the guest off, then take the network away."),
    "templates": ("template_commands:templates", "List and remove what VMs start warm from."),
}
"""Command to the module of this package with its function, and its line in the help."""


class Commands(click.Group):
    """Imports a command when it is asked for: the manager carries nothing of the client.

    Args:
        table: command to the module of a package with its function, and its line in the help.
        package: the package's name.
    """

    def __init__(
        self, *, table: Mapping[str, tuple[str, str]], package: str, **attributes: Any
    ) -> None:
        super().__init__(**attributes)
        self._table = table
        self._package = package

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Names of all commands."""
        return list(self._table)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """The command of a name, if there is one."""
        if cmd_name not in self._table:
            return None
        module, _, function = self._table[cmd_name][0].partition(":")
        command: click.Command = getattr(
            importlib.import_module(f"{self._package}.{module}"), function
        )
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the list of commands, for which none of them is imported: that takes a second."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, line) for name, (_, line) in self._table.items()])


@click.group(
    cls=Commands,
    table=COMMANDS,
    package="virtlet.cli",
    context_settings={"help_option_names": ["-h", "--help"]},
)
@click.version_option(virtlet.__version__, prog_name="virtlet")
def group() -> None:
    """Virtual machines as ordinary Kubernetes pods.

    `virtlet serve` is the manager that a kubelet speaks CRI to. The other commands are a small
    CRI client: they speak to the manager's socket, as the kubelet does.
    """


def main() -> None:
    """Entry point."""
    run(group, "virtlet")


def run(command: click.Command, name: str) -> None:
    """Run a program: errors become one line and exit code 1, signal N exit code 128 + N.

    Args:
        command: what it does.
        name: how messages and shells call it.
    """
    try:
        command.main(prog_name=name, standalone_mode=False)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except (click.Abort, KeyboardInterrupt):
        click.echo("interrupted", err=True)
        sys.exit(130)
    except Ended as ended:
        click.echo(f"ended by {ended}", err=True)
        sys.exit(128 + ended.signal)
    except BrokenPipeError:
        sys.exit(141)
    except (VirtletError, CommandFailed, OSError) as error:
        click.echo(f"{name}: {error}", err=True)
        sys.exit(1)


if __name__ == "__main__":
    main()
