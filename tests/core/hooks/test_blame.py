"""Objects that plugins hand over, and what is said when they fail."""

import json
import logging
import sys
from concurrent.futures import ThreadPoolExecutor
from typing import Protocol

import pytest

from tests.fakes.models import untyped
from virtlet.core.hooks.blame import Blamed
from virtlet.errors import NotFound, PluginError


class Wanted(Protocol):
    """What is asked of it."""

    def works(self, number: int) -> int: ...

    def lies(self) -> tuple[str, ...]: ...

    def chats(self) -> None: ...


class Thing:
    """Somebody's hypervisor, or session."""

    def works(self, number: int) -> int:
        return number + 1

    def refuses(self) -> None:
        raise NotFound("not here")

    def breaks(self) -> None:
        raise ZeroDivisionError("hunter2")

    def parses(self) -> None:
        json.loads("{")

    def exits(self) -> None:
        sys.exit(3)

    def interrupts(self) -> None:
        raise KeyboardInterrupt

    def lies(self) -> tuple[str, ...]:
        answer: tuple[str, ...] = untyped((1,))
        return answer

    def chats(self) -> str:
        return "done"


@pytest.fixture
def thing() -> Blamed:
    return Blamed("acme", "virtlet_hypervisor", Wanted, Thing())


def test_what_works_and_what_is_refused_passes_through(thing: Blamed) -> None:
    assert thing.works(1) == 2
    with pytest.raises(NotFound, match="not here"):
        thing.refuses()


def test_whatever_else_is_raised_names_plugin_hook_and_method(
    thing: Blamed, caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(PluginError) as caught:
        thing.breaks()
    assert (caught.value.plugin, caught.value.hook) == ("acme", "virtlet_hypervisor")
    assert "breaks raised ZeroDivisionError" in str(caught.value)
    assert "hunter2" not in str(caught.value)
    assert [r.levelno for r in caplog.records] == [logging.ERROR]


@pytest.mark.parametrize("deed", ["exits", "interrupts"])
def test_what_would_end_the_process_is_an_error_as_any_other(thing: Blamed, deed: str) -> None:
    with ThreadPoolExecutor(1) as worker:
        error = worker.submit(getattr(thing, deed)).exception()
    assert isinstance(error, PluginError)
    assert f"{deed} raised" in str(error)


def test_the_operator_s_own_interrupt_on_the_main_thread_is_left_alone(thing: Blamed) -> None:
    with pytest.raises(KeyboardInterrupt):
        thing.interrupts()


def test_an_answer_of_another_type_than_the_protocol_s_is_refused(thing: Blamed) -> None:
    with pytest.raises(
        PluginError, match=r"'acme'.*lies returned a tuple whose item \[0\] is an int"
    ):
        thing.lies()


def test_an_answer_where_none_is_wanted_harms_nobody(thing: Blamed) -> None:
    assert thing.chats() == "done"


def test_the_place_is_the_plugins_own_code_and_not_pythons(thing: Blamed) -> None:
    """An author mends the line that called the library."""
    with pytest.raises(PluginError, match=r"raised JSONDecodeError \(test_blame\.py, line \d+\)"):
        thing.parses()
