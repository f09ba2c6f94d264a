"""The `criproxy` command."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import sys
from typing import Any

import click
import uvloop
from attrs import evolve

from criproxy.config import (
    Config,
    ConfigError,
    address,
    cannot_listen,
    check,
    directory_path,
    duration,
    socket_path,
)
from criproxy.config_file import build, parse_connect, read_file
from criproxy.log_lines import FORMS, LEVELS, set_up
from criproxy.proxy import Proxy
from virtlet.service_manager import READY, STOPPING, ServiceManager
from virtlet.traces import Traces, TracesUnusable, from_environment

log = logging.getLogger("criproxy")

#: Exit codes of sysexits.h, besides click's own for wrong usage. The unit restarts after all of
#: them except EXIT_CONFIG.
EXIT_CONFIG = 78
EXIT_CANNOT_LISTEN = 71


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option(
    "--listen", metavar="SOCKET", help="Socket to serve the CRI on; the kubelet connects to it."
)
@click.option(
    "--connect",
    metavar="SOCKET,NAME:SOCKET[,…]",
    help="Sockets of the runtimes. The first is the primary, which gets every pod that does not "
    "ask for another; the others go by name, as in virtlet.cloud:/run/virtlet.sock.",
)
@click.option(
    "--config",
    "config_file",
    metavar="FILE",
    help="YAML file with the same and more; options given here win over it.",
)
@click.option(
    "--http",
    metavar="HOST:PORT",
    help="Serve /healthz, /readyz and /metrics there. Off by default.",
)
@click.option(
    "--grace",
    metavar="TIME",
    help="Serve the last known pods of a runtime that is away for this long, then fail lists: "
    "a duration such as 30s or 10m (default 10m), or 'forever'.",
)
@click.option(
    "--state-dir",
    metavar="DIR",
    help="Where the last known pods are kept over restarts (default /var/lib/criproxy); "
    "empty keeps none.",
)
@click.option("--check", "only_check", is_flag=True, help="Check the configuration and exit.")
@click.option(
    "--log-level",
    type=click.Choice(list(LEVELS)),
    help="What to log: 'info' has every change, 'debug' every call (default info).",
)
@click.option(
    "--log-format",
    type=click.Choice(FORMS),
    help="A JSON object for each line, or text (default json).",
)
@click.option("-v", "--verbose", is_flag=True, help="The same as --log-level debug.")
def main(
    listen: str | None,
    connect: str | None,
    config_file: str | None,
    http: str | None,
    grace: str | None,
    state_dir: str | None,
    only_check: bool,
    log_level: str | None,
    log_format: str | None,
    verbose: bool,
) -> None:
    """Serve several CRI runtimes on one socket.

    A pod goes to the runtime that its RuntimeClass handler or its annotation
    kubernetes.io/target-runtime names, else to the primary. Everything else follows the pod.

    \b
    Example:
      criproxy --listen /run/criproxy/criproxy.sock \\
        --connect /run/containerd/containerd.sock,virtlet.cloud:/run/virtlet.sock

    Exit codes: 0 after SIGTERM or Ctrl-C, 2 for wrong usage, 71 when a socket or address cannot be
    listened on, 78 for a configuration that cannot work.
    """
    try:
        config = _config(listen, connect, config_file, http, grace, state_dir)
        if log_level or verbose:
            config = evolve(config, log_level=log_level or "debug")
        if log_format:
            config = evolve(config, log_format=log_format)
        set_up(config.log_level, config.log_format)
        check(config)
        traces = from_environment("criproxy", os.environ)
    except (ConfigError, TracesUnusable) as error:
        click.echo(f"criproxy: {error}", err=True)
        sys.exit(EXIT_CONFIG)
    obstacle = cannot_listen(config.listen)
    if only_check:
        if obstacle is not None:
            click.echo(f"criproxy: note: at this moment it {obstacle}", err=True)
        click.echo(f"{len(config.runtimes)} runtimes; the configuration can work")
        return
    if obstacle is not None:
        click.echo(f"criproxy: {obstacle}", err=True)
        sys.exit(EXIT_CANNOT_LISTEN)
    try:
        uvloop.run(_serve(config, traces))
    except OSError as error:
        click.echo(f"criproxy: cannot listen: {error}", err=True)
        sys.exit(EXIT_CANNOT_LISTEN)


def _config(
    listen: str | None,
    connect: str | None,
    config_file: str | None,
    http: str | None,
    grace: str | None,
    state_dir: str | None,
) -> Config:
    values: dict[str, Any] = read_file(config_file) if config_file else {}
    if listen is not None:
        values["listen"] = socket_path(listen, "--listen")
    if connect is not None:
        values["runtimes"] = parse_connect(connect)
    if http is not None:
        values["http"] = address(http, "--http")
    if grace is not None:
        values["grace"] = duration(grace, "--grace", forever=True)
    if state_dir is not None:
        values["state_dir"] = directory_path(state_dir, "--state-dir") if state_dir else None
    return build(values)


async def _serve(config: Config, traces: Traces) -> None:
    stop, service = asyncio.Event(), ServiceManager()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    proxy = Proxy(config, traces)
    try:
        await proxy.start()
        log.info(
            "listening on %s for %s",
            config.listen,
            ", ".join(f"{r.name} ({r.socket})" for r in config.runtimes),
        )
        if proxy.http_address is not None:
            log.info("health and metrics on http://%s:%d", *proxy.http_address)
        service.tell(READY)
        await stop.wait()
        service.tell(STOPPING)
        log.info("stopping")
    finally:
        await proxy.stop()
        await asyncio.to_thread(traces.close)


if __name__ == "__main__":
    main()
