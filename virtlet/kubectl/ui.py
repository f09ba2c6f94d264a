"""`kubectl virtlet ui`: the web console of a person, in a browser of the same machine."""

import asyncio
import secrets
import shutil
import signal
import subprocess
import tempfile
import webbrowser
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import click

from virtlet.cli.ending import CommandFailed
from virtlet.kubectl.cluster import NO_KUBECTL, Kubectl, with_cluster
from virtlet.kubectl.webconsole.assets import NOVNC, XTERM, Assets
from virtlet.kubectl.webconsole.server import Shown, WebConsole

_SECONDS = 30.0
"""For kubectl proxy to listen."""
_directory = click.Path(path_type=Path, file_okay=False)


@click.command()
@click.option("-A", "--all-namespaces", "everywhere", is_flag=True, help="Of all namespaces.")
@click.option("--port", type=click.IntRange(0, 65535), default=0, help="To listen on; 0 for any.")
@click.option("--no-browser", is_flag=True, help="Print the address, and open no browser.")
@click.option("--novnc", type=_directory, default=NOVNC, show_default=True, help="noVNC.")
@click.option("--xterm", type=_directory, default=XTERM, show_default=True, help="xterm.js.")
@with_cluster
def ui(
    kubectl: Kubectl, everywhere: bool, port: int, no_browser: bool, novnc: Path, xterm: Path
) -> None:
    """Show VM pods in a browser: state, figures, log, events, console, screen.

    It serves this machine alone, with your own rights, until Ctrl-C.
    """
    assets = Assets.find(novnc, xterm)
    shown = Shown("" if everywhere else kubectl.namespace, tuple(sorted(kubectl.vm_classes)))
    asyncio.run(_serve(kubectl, shown, port, assets, browser=not no_browser))


async def _serve(
    kubectl: Kubectl, shown: Shown, port: int, assets: Assets, *, browser: bool
) -> None:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        loop.add_signal_handler(number, stop.set)
    async with kubectl_proxy(kubectl) as (api, ended):
        console = WebConsole(api, shown, secrets.token_urlsafe(32), assets)
        try:
            address = await console.start(port)
        except OSError as error:
            raise CommandFailed(
                f"port {port} of 127.0.0.1: {error.strerror}; choose another by --port"
            ) from None
        try:
            click.echo(address)
            if browser and not webbrowser.open(address):
                click.echo("no browser was found: open the address in one", err=True)
            stopped = asyncio.create_task(stop.wait())
            await asyncio.wait((stopped, ended), return_when=asyncio.FIRST_COMPLETED)
            if not stop.is_set():
                raise CommandFailed("kubectl proxy has ended by itself: start the console again")
        finally:
            await console.stop()


@asynccontextmanager
async def kubectl_proxy(
    kubectl: Kubectl,
) -> AsyncIterator[tuple[Path, "asyncio.Task[int]"]]:
    """A way to the API server with the user's credentials.

    Yields:
        Its unix socket, which no other user reaches, and what is done when it has ended.

    Raises:
        CommandFailed: there is no kubectl, or it does not serve.
    """
    with tempfile.TemporaryDirectory(prefix="virtlet-") as directory:
        path, said = Path(directory) / "api", Path(directory) / "stderr"
        # It refuses sessions unless it is told otherwise; the console's gate chooses the paths.
        words = ("proxy", f"--unix-socket={path}", "--reject-paths=^$")
        with said.open("wb") as stderr:
            try:
                process = await asyncio.create_subprocess_exec(
                    *_ending_with_us(kubectl.argv(*words)),
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.PIPE,
                    stderr=stderr,
                    # Ctrl-C is the console's to hear: its sessions end before the proxy.
                    start_new_session=True,
                )
            except FileNotFoundError:
                raise CommandFailed(NO_KUBECTL) from None
        try:
            await _until_it_listens(process, said)
            yield path, asyncio.create_task(process.wait())
        finally:
            if process.returncode is None:
                process.terminate()
            await process.wait()


def _ending_with_us(argv: list[str]) -> list[str]:
    """A command that ends also when we are killed, where setpriv (util-linux) is.

    Raises:
        FileNotFoundError: there is no such command.
    """
    if shutil.which(argv[0]) is None:
        raise FileNotFoundError(argv[0])
    setpriv = shutil.which("setpriv")
    return [setpriv, "--pdeathsig=TERM", "--", *argv] if setpriv else argv


async def _until_it_listens(process: asyncio.subprocess.Process, said: Path) -> None:
    assert process.stdout is not None
    try:
        async with asyncio.timeout(_SECONDS):
            line = await process.stdout.readline()
    except TimeoutError:
        raise CommandFailed(f"kubectl proxy does not listen after {_SECONDS:g} seconds") from None
    if not line:
        raise CommandFailed(f"kubectl proxy: {said.read_text(errors='replace').strip()}")
