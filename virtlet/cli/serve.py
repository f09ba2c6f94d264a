"""`virtlet serve`: the manager."""

import functools
import os
import sys
import threading
from pathlib import Path
from typing import Any

import click

from virtlet.core.config.options import CORE_OPTIONS, LOG_LEVEL
from virtlet.core.hooks.facade import Hooks
from virtlet.core.hooks.registry import discover
from virtlet.model.option import BOOLEAN, Option

GRPC_EXPERIMENTS = "-event_engine_listener"
"""gRPC's older listener hands a call on between fewer threads: a call to the manager takes a tenth
less. Names are those of gRPC's experiments.yaml, where a minus turns one off."""


class _ServeCommand(click.Command):
    """Learns the plugins' options only when it is really called, or its help is asked for."""

    def get_params(self, ctx: click.Context) -> list[click.Parameter]:
        """The fixed parameters and one flag per option of the core and the plugins."""
        if "registry" not in ctx.meta:
            ctx.meta["registry"] = discover()
            declared = [*CORE_OPTIONS, *(o for _, o in Hooks(ctx.meta["registry"]).options())]
            ctx.meta["flags"] = [_flag(option) for option in declared]
        return [*super().get_params(ctx), *ctx.meta["flags"]]


def _flag(option: Option[Any]) -> click.Option:
    shown = option.default or '""'
    help_text = f"{option.help}  [{option.env}; default: {shown}]"
    if option.kind is BOOLEAN:
        # A bare flag means true; `--flag=false` overrides a file that says true.
        return click.Option(
            [option.flag, option.field], help=help_text, is_flag=False, flag_value="true"
        )
    return click.Option([option.flag, option.field], help=help_text, metavar=option.kind.name)


@click.command("serve", cls=_ServeCommand)
@click.option(
    "--config",
    "file",
    type=click.Path(path_type=Path, dir_okay=False),
    help="YAML file of settings by field name, with a `handlers` section.",
)
@click.option(
    "--check",
    is_flag=True,
    help="Say what a start would do and fail at, and change nothing; exit code 1 for a fault.",
)
@click.option("--v", "verbosity", hidden=True, help="The original's name of --log-level.")
def serve(file: Path | None, check: bool, verbosity: str | None, **flags: str | None) -> None:
    """Run the manager until SIGTERM; VMs go on running after it.

    Settings are taken from defaults, then the file, then the environment, then flags.
    """
    # gRPC reads it when it is imported, as the manager's modules do.
    os.environ.setdefault("GRPC_EXPERIMENTS", GRPC_EXPERIMENTS)
    from virtlet.core import daemon

    given = {name: value for name, value in flags.items() if value is not None}
    if verbosity is not None:
        given.setdefault(LOG_LEVEL.field, verbosity)
    registry = click.get_current_context().meta["registry"]
    if check:
        from virtlet.cli.findings import show
        from virtlet.cli.start_checks import check_start

        read = functools.partial(daemon.settings, registry, file, os.environ, given)
        sys.exit(0 if show(check_start(registry, read)) else 1)
    daemon.serve(registry, file, os.environ, given)
    _leave()


def _leave() -> None:
    """End the process, also while a call is under way that did not end in its grace.

    The interpreter would wait for its thread: for a guest's whole grace period, say. What it was
    doing is in the journal, as after a crash.
    """
    others = {*threading.enumerate()} - {threading.main_thread()}
    if any(not thread.daemon for thread in others):
        sys.stderr.flush()
        os._exit(0)
