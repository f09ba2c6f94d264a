"""What every measurement is given: how thorough to be, and where to show that it goes on."""

from collections.abc import Callable
from typing import Any, TypeVar

from rich.console import Console as Terminal
from rich.status import Status

T = TypeVar("T")


class Bench:
    """One run of the benchmark.

    Args:
        quick: fewer repetitions: enough to see that everything works, too few to trust.
        terminal: where progress is shown.
        held: seconds for which many idle guests run, while calls are timed.
    """

    def __init__(self, *, quick: bool, terminal: Terminal, held: float = 60.0) -> None:
        self.quick = quick
        self.held = held
        self._terminal = terminal
        self._status: Status | None = None
        self._title = ""
        self._results: dict[Callable[..., Any], Any] = {}

    def begin(self, title: str) -> None:
        """Say which measurement starts."""
        self._title = title
        if self._terminal.is_terminal:
            self._status = self._terminal.status(title)
            self._status.start()
        else:
            self._terminal.print(f"{title} …")

    def step(self, text: str) -> None:
        """Show how far the measurement is."""
        if self._status is not None:
            self._status.update(f"{self._title}: {text}")

    def end(self) -> None:
        """The measurement is over."""
        if self._status is not None:
            self._status.stop()
            self._status = None

    def times(self, thorough: int, quick: int) -> int:
        """How often to repeat."""
        return quick if self.quick else thorough

    def once(self, measure: "Callable[[Bench], T]") -> T:
        """What `measure` found, which several rows share: it runs once."""
        if measure not in self._results:
            self._results[measure] = measure(self)
        found: T = self._results[measure]
        return found
