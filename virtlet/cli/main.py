"""The `virtlet` command: the manager, and a small CRI client beside it."""

import importlib
import sys

import click

import virtlet
from virtlet.cli.ending import CommandFailed, Ended
from virtlet.errors import VirtletError

COMMANDS = {
    "csi": "csi",
    "demo": "demo",
    "doctor": "doctor",
    "images": "pod_commands",
    "logs": "pod_commands",
    "plugins": "plugins",
    "ps": "pod_commands",
    "pull": "pod_commands",
    "rm": "pod_commands",
    "run": "pod_commands",
    "serve": "serve",
    "stop": "pod_commands",
}
"""Command to the module of this package that has a function of its name."""
FUNCTIONS = {"csi": "csi_command"}
"""Those whose function has another name."""


class _Commands(click.Group):
    """Imports a command when it is asked for: the manager carries nothing of the client."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Names of all commands."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """The command of a name, if there is one."""
        if cmd_name not in COMMANDS:
            return None
        module = importlib.import_module(f"virtlet.cli.{COMMANDS[cmd_name]}")
        command: click.Command = getattr(module, FUNCTIONS.get(cmd_name, cmd_name))
        return command


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(virtlet.__version__, prog_name="virtlet")
def group() -> None:
    """Virtual machines as ordinary Kubernetes pods.

    `virtlet serve` is the manager that a kubelet speaks CRI to. The other commands are a small
    CRI client: they speak to the manager's socket, as the kubelet does.
    """


def main() -> None:
    """Entry point: errors become one line and exit code 1, signal N exit code 128 + N."""
    try:
        group.main(standalone_mode=False)
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
        click.echo(f"virtlet: {error}", err=True)
        sys.exit(1)


if __name__ == "__main__":
    main()
