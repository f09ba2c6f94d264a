"""No effect without an intent and a record; undoing goes backwards and carries on past errors."""

from pathlib import Path
from typing import Any, ClassVar

import pytest
from attrs import frozen

from virtlet.core.lifecycle.journal import Journal
from virtlet.core.store.records import EffectRow
from virtlet.core.store.store import Store
from virtlet.errors import Unavailable, UndoIncomplete


@frozen
class Step:
    """Writes down what is done to it."""

    trace: list[str]
    role: str
    fails: tuple[str, ...] = ()
    declines: bool = False
    owner: str = "pod"
    plugin: str = "test"
    kind: ClassVar[str] = "step"
    record_type: ClassVar[Any] = str

    def apply(self) -> str | None:
        self.trace.append(f"apply {self.role}")
        if f"apply {self.role}" in self.fails:
            raise Unavailable("no luck")
        return None if self.declines else f"record of {self.role}"

    def revert(self, record: str | None) -> None:
        self.trace.append(f"revert {self.role} with {record}")
        if f"revert {self.role}" in self.fails:
            raise Unavailable("still no luck")


class World:
    """A journal over steps."""

    def __init__(self, path: Path, *fails: str) -> None:
        self.trace: list[str] = []
        self.points: list[str] = []
        self.fails = fails
        self.store = Store(path)
        self.journal = Journal(self.store, self.restore, self.points.append)

    def step(self, role: str, *, declines: bool = False) -> Step:
        return Step(self.trace, role, self.fails, declines)

    def restore(self, row: EffectRow) -> Step:
        return self.step(row.role)


def test_undoing_reverts_the_last_effect_first_with_its_record(tmp_path: Path) -> None:
    world = World(tmp_path / "db")
    world.journal.perform(world.step("one"))
    world.journal.perform(world.step("two"))
    world.journal.undo("pod")
    assert world.trace == [
        "apply one",
        "apply two",
        "revert two with record of two",
        "revert one with record of one",
    ]
    assert world.store.effects("pod") == []


def test_an_effect_that_failed_midway_is_reverted_without_a_record(tmp_path: Path) -> None:
    world = World(tmp_path / "db", "apply two")
    gone: list[str] = []
    with (
        pytest.raises(Unavailable, match="no luck"),
        world.journal.undone_on_error("pod", lambda: gone.append("pod")),
    ):
        world.journal.perform(world.step("one"))
        world.journal.perform(world.step("two"))
    assert world.trace[2:] == ["revert two with None", "revert one with record of one"]
    assert gone == ["pod"]


def test_undoing_carries_on_past_an_error_and_keeps_what_is_left(tmp_path: Path) -> None:
    world = World(tmp_path / "db", "revert two")
    for role in ("one", "two", "three"):
        world.journal.perform(world.step(role))
    with pytest.raises(UndoIncomplete, match=r"step\[two\] by plugin 'test': still no luck"):
        world.journal.undo("pod")
    assert [row.role for row in world.store.effects("pod")] == ["two"]
    world.fails = ()
    world.journal.undo("pod")
    assert world.store.effects("pod") == []


def test_when_undoing_fails_too_the_first_error_is_raised_with_the_rest_noted(
    tmp_path: Path,
) -> None:
    world = World(tmp_path / "db", "apply two", "revert one")
    with (
        pytest.raises(Unavailable) as caught,
        world.journal.undone_on_error("pod", lambda: pytest.fail("something is left")),
    ):
        world.journal.perform(world.step("one"))
        world.journal.perform(world.step("two"))
    assert str(caught.value) == "no luck"
    assert "step[one]" in caught.value.__notes__[0]


def test_a_declined_effect_leaves_nothing_in_the_journal(tmp_path: Path) -> None:
    world = World(tmp_path / "db")
    assert world.journal.perform(world.step("one", declines=True)) is None
    assert world.store.effects("pod") == []


def test_there_is_a_point_on_both_sides_of_every_write_and_every_effect(tmp_path: Path) -> None:
    world = World(tmp_path / "db")
    world.journal.perform(world.step("one"))
    world.journal.undo("pod")
    assert world.points == [
        f"step[one]:{moment}"
        for moment in (
            "before-intent",
            "intended",
            "applied",
            "recorded",
            "before-revert",
            "reverted",
            "forgotten",
        )
    ]
