"""`kubectl virtlet ui`: the web console of a person, in a browser of the same machine.

In a cluster (deploy/console) it stands behind a proxy that knows the person, for all of them.
"""

import asyncio
import secrets
import shutil
import signal
import subprocess
import tempfile
import webbrowser
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from urllib.parse import urlsplit

import click

from virtlet.cli.ending import CommandFailed
from virtlet.kubectl.cluster import NO_KUBECTL, Kubectl, with_cluster
from virtlet.kubectl.webconsole.api import KubectlProxy, OwnCluster
from virtlet.kubectl.webconsole.assets import NOVNC, XTERM, Assets
from virtlet.kubectl.webconsole.gate import OwnGate, ProxiedGate
from virtlet.kubectl.webconsole.server import Shown, WebConsole

_SECONDS = 30.0
"""For kubectl proxy to listen."""


def _checked_address(ctx: click.Context, param: click.Parameter, address: str) -> str:
    parts = urlsplit(address)
    if address and (parts.scheme not in ("http", "https") or not parts.netloc):
        raise click.BadParameter("it is no address such as https://console.example.org")
    if address and address != f"{parts.scheme}://{parts.netloc}":
        raise click.BadParameter("it is to be without a path: the console is all of its host")
    return address


_directory = click.Path(path_type=Path, file_okay=False)


@click.command()
@click.option("-A", "--all-namespaces", "everywhere", is_flag=True, help="Of all namespaces.")
@click.option("--port", type=click.IntRange(0, 65535), default=0, help="To listen on; 0 for any.")
@click.option("--no-browser", is_flag=True, help="Print the address, and open no browser.")
@click.option(
    "--behind",
    metavar="ADDRESS",
    default="",
    callback=_checked_address,
    help="Serve the users of an authenticating proxy in the same pod, which passes on the bearer "
    "token of each; browsers see the console at this address. See deploy/console.",
)
@click.option("--novnc", type=_directory, default=NOVNC, show_default=True, help="noVNC.")
@click.option("--xterm", type=_directory, default=XTERM, show_default=True, help="xterm.js.")
@with_cluster
def ui(
    kubectl: Kubectl,
    everywhere: bool,
    port: int,
    no_browser: bool,
    behind: str,
    novnc: Path,
    xterm: Path,
) -> None:
    """Show VM pods in a browser: state, figures, log, events, console, screen.

    It serves this machine alone, with your own rights, until Ctrl-C.
    """
    assets = Assets.find(novnc, xterm)
    if behind:
        # kubectl has nobody's rights here.
        shown = Shown("" if everywhere else kubectl.given_namespace, ())
        console = WebConsole(OwnCluster.find(), shown, lambda _: ProxiedGate(behind), assets)
        asyncio.run(_serve_users(console, port))
        return
    shown = Shown("" if everywhere else kubectl.namespace, tuple(sorted(kubectl.vm_classes)))
    asyncio.run(_serve(kubectl, shown, port, assets, browser=not no_browser))


def _stop_signal() -> asyncio.Event:
    """Set by the signals that end the console."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        loop.add_signal_handler(number, stop.set)
    return stop


async def _serve(
    kubectl: Kubectl, shown: Shown, port: int, assets: Assets, *, browser: bool
) -> None:
    stop = _stop_signal()
    async with kubectl_proxy(kubectl) as (proxy, ended):
        gate = partial(OwnGate, secret=secrets.token_urlsafe(32))
        async with _listening(WebConsole(KubectlProxy(proxy), shown, gate, assets), port) as at:
            click.echo(at)
            if browser and not webbrowser.open(at):
                click.echo("no browser was found: open the address in one", err=True)
            stopped = asyncio.create_task(stop.wait())
            await asyncio.wait((stopped, ended), return_when=asyncio.FIRST_COMPLETED)
            if not stop.is_set():
                raise CommandFailed("kubectl proxy has ended by itself: start the console again")


async def _serve_users(console: WebConsole, port: int) -> None:
    stop = _stop_signal()
    async with _listening(console, port) as address:
        host, at = console.listens
        click.echo(f"{address}, by a proxy to {host}:{at}")
        await stop.wait()


@asynccontextmanager
async def _listening(console: WebConsole, port: int) -> AsyncIterator[str]:
    """A console that serves; yields its address."""
    try:
        address = await console.start(port)
    except OSError as error:
        raise CommandFailed(
            f"port {port} of 127.0.0.1: {error.strerror}; choose another by --port"
        ) from None
    try:
        yield address
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
