"""Plugins that fail when the manager starts."""

import threading
from typing import Any

from tests.fakes.models import untyped
from tests.fakes.plugins import Current
from virtlet import hookimpl
from virtlet.core.config.options import LISTEN
from virtlet.errors import InvalidArgument
from virtlet.model.option import MAPPING, TEXT, Option, integer


class ExitsWhenMade:
    """Wants the process to end."""

    def __init__(self) -> None:
        raise SystemExit(3)


class ByValue(Current):
    """Is equal to its like."""

    def __eq__(self, other: object) -> bool:
        return isinstance(other, ByValue)


class RaisesWhenSeen:
    """Does not want to be looked at."""

    @property
    def VIRTLET_HOOK_API(self) -> int:  # noqa: N802 (the API's name)
        raise RuntimeError("look away")


class RaisesAtOptions(Current):
    """Cannot say what it is set with."""

    @hookimpl
    def virtlet_options(self) -> Any:
        raise ValueError("no\ncolour")


class ExitsAtOptions(Current):
    """Wants the process to end."""

    @hookimpl
    def virtlet_options(self) -> Any:
        raise SystemExit(3)


class RaisesAtConfigure(Current):
    """Does not take its settings."""

    @hookimpl
    def virtlet_configure(self, settings: object, node: object) -> None:
        raise ValueError("no\ncolour")


class RefusesSettings(Current):
    """Says what is wrong with its settings."""

    @hookimpl
    def virtlet_configure(self, settings: object, node: object) -> None:
        raise InvalidArgument("colour: red is sold out")


class HangsAtConfigure(Current):
    """Waits for something that does not come."""

    release = threading.Event()

    @hookimpl
    def virtlet_configure(self, settings: object, node: object) -> None:
        self.release.wait()


class RaisesAtReconcile(Current):
    """Cannot look after what it keeps."""

    @hookimpl
    def virtlet_reconcile(self, pods: object, vms: object) -> None:
        raise ValueError("hunter2")


class Configured(Current):
    """Remembers that it was configured."""

    def __init__(self) -> None:
        self.heard = 0

    @hookimpl
    def virtlet_configure(self, settings: object, node: object) -> None:
        self.heard += 1

    @hookimpl
    def virtlet_reconcile(self, pods: object, vms: object) -> None:
        self.heard += 1


def options_of(option: Any) -> type:
    """A plugin class that declares an option."""

    class Declares(Current):
        @hookimpl
        def virtlet_options(self) -> Any:
            return (option,)

    return Declares


CoreTwin = options_of(LISTEN)
FlagTwin = options_of(
    Option(field="mine", flag="--config", env="MINE", kind=TEXT, default="", help="of the test")
)
BadName = options_of(
    Option(field="my-own", flag="--my-own", env="MINE", kind=TEXT, default="", help="of the test")
)
BadDefault = options_of(
    Option(
        field="mine", flag="--mine", env="MINE", kind=integer(1, 2), default="3", help="of the test"
    )
)
Braces = options_of(
    Option(field="mine", flag="--mine", env="MINE", kind=MAPPING, default="{}", help="of the test")
)


class NoKind(Current):
    """Declares an option with a text for its kind."""

    @hookimpl
    def virtlet_options(self) -> Any:
        kind = untyped("text")
        return [Option(field="mine", flag="--mine", env="MINE", kind=kind, default="", help="")]
