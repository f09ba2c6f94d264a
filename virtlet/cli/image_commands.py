"""The commands for images: images, pull, rmi."""

import click
from rich.console import Console as Terminal

from virtlet.cli.attended import AttendedClient
from virtlet.cli.output import output_option, print_list, print_table
from virtlet.cli.pull_progress import progress_bar
from virtlet.cli.steps import TerminalReporter
from virtlet.cli.targets import image_id, socket_option
from virtlet.cri import api_pb2 as cri


@click.command()
@click.option("-q", "--quiet", is_flag=True, help="Show ids alone.")
@output_option
@socket_option
def images(quiet: bool, output: str, socket: str) -> None:
    """List the images of the store."""
    with AttendedClient(socket) as client:
        found = list(client.call("ListImages", cri.ListImagesRequest()).images)
    if quiet:
        for image in found:
            click.echo(image.id)
        return
    print_list(
        found,
        output,
        "images",
        lambda: print_table(
            ("IMAGE", "ID", "SIZE"),
            (
                (", ".join(i.repo_tags) or "<none>", i.id[7:19], f"{i.size / 1e6:.1f} MB")
                for i in found
            ),
        ),
    )


@click.command()
@click.argument("image")
@click.option("--handler", default="", help="Pull with the plugins of this runtime handler.")
@socket_option
def pull(image: str, handler: str, socket: str) -> None:
    """Pull an image into the store."""
    terminal = Terminal(highlight=False, soft_wrap=True)
    title = f"PullImage        {image}"
    report = TerminalReporter(terminal)
    with (
        AttendedClient(socket) as client,
        report.step(title, spinner=False),
        progress_bar(client, image, terminal),
    ):
        pulled = client.pull(image, handler=handler)
    click.echo(pulled)


@click.command()
@click.argument("images", nargs=-1, required=True)
@socket_option
def rmi(images: tuple[str, ...], socket: str) -> None:
    """Remove images from the store, by name or the beginning of an id.

    VMs that run on one keep it until they are gone.
    """
    with AttendedClient(socket) as client:
        found = list(client.call("ListImages", cri.ListImagesRequest()).images)
        for chosen in [image_id(found, text) for text in images]:
            spec = cri.ImageSpec(image=chosen)
            client.call("RemoveImage", cri.RemoveImageRequest(image=spec))
            click.echo(chosen)
