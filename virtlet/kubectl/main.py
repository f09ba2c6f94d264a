"""The `kubectl virtlet` command, which is `virtletctl` too."""

import sys
from pathlib import Path

import click

import virtlet
from virtlet.cli.main import Commands, run

COMMANDS = {
    "console": ("sessions:console", "Attach to the serial console of a VM."),
    "diag": ("diag:diag", "Collect what a report of trouble needs, without secrets."),
    "flavors": ("views:flavors", "List the machines with names."),
    "gen": ("generate:gen", "Write the manifest of a VM pod, or those of the cluster."),
    "image": ("image_check:image", "Say whether a node would take an image."),
    "screenshot": ("screens:screenshot", "Write what is on the screen of a VM to a PNG file."),
    "snapshot": ("snapshot:snapshot", "Write a running VM to an archive on its node."),
    "ssh": ("sessions:ssh", "Log in to a VM by SSH, through the API server."),
    "top": ("views:top", "Show what VMs consume."),
    "ui": ("ui:ui", "Show VM pods in a browser: state, figures, log, console, screen."),
    "validate": ("validate:validate", "Say what a node would refuse of pods, offline."),
    "version": ("views:version", "Show the versions of this client, the cluster and its nodes."),
    "virsh": ("screens:virsh", "Say what does a command of virsh, which reaches no VM."),
    "vms": ("views:vms", "List VM pods."),
    "vnc": ("screens:vnc", "Show the screen of a VM in a viewer of this machine."),
}
"""Command to the module of this package with its function, and its line in the help."""


@click.group(
    cls=Commands,
    table=COMMANDS,
    package="virtlet.kubectl",
    context_settings={"help_option_names": ["-h", "--help"]},
)
@click.version_option(virtlet.__version__, prog_name="kubectl virtlet")
def group() -> None:
    """Virtual machines as ordinary Kubernetes pods.

    Nothing of it goes to a node: what asks a cluster does so over its API, with your own rights.
    """


def main() -> None:
    """Entry point."""
    name = Path(sys.argv[0]).name
    run(group, "virtletctl" if name == "virtletctl" else "kubectl virtlet")


if __name__ == "__main__":
    main()
