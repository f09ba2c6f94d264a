"""No effect without an intent and a record; undoing goes backwards and carries on past errors."""

from pathlib import Path

import pytest

from virtlet.core.lifecycle.journal import Journal
from virtlet.core.store.records import EffectRow, decode
from virtlet.core.store.store import Store
from virtlet.errors import Unavailable, UndoIncomplete


class World:
    """A journal over steps that write down what is done to them."""

    def __init__(self, path: Path, *fails: str) -> None:
        self.trace: list[str] = []
        self.points: list[str] = []
        self.fails = fails
        self.store = Store(path)
        self.journal = Journal(self.store, self.revert, self.points.append)

    def perform(
        self,
        role: str,
        *,
        declines: bool = False,
        before: str | None = None,
        unchanged: tuple[type[Exception], ...] = (),
    ) -> str | None:
        """A step of the pod."""

        def apply() -> str | None:
            self.note(f"apply {role}")
            return None if declines else f"record of {role}"

        return self.journal.perform(
            "pod",
            "step",
            apply,
            plugin="test",
            role=role,
            record=str,
            before=before,
            unchanged=unchanged,
        )

    def revert(self, row: EffectRow) -> None:
        """Its inverse."""
        record = decode(row.record, str) if row.record else None
        self.note(f"revert {row.role}", f" with {record}")

    def note(self, what: str, more: str = "") -> None:
        """Do it, or fail."""
        self.trace.append(what + more)
        if what in self.fails:
            raise Unavailable("no luck" if what.startswith("apply") else "still no luck")


def test_undoing_reverts_the_last_effect_first_with_its_record(tmp_path: Path) -> None:
    world = World(tmp_path / "db")
    world.perform("one")
    world.perform("two")
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
        world.perform("one")
        world.perform("two")
    assert world.trace[2:] == ["revert two with None", "revert one with record of one"]
    assert gone == ["pod"]


def test_what_undoes_an_effect_is_there_from_the_start_when_it_is_known_before(
    tmp_path: Path,
) -> None:
    world = World(tmp_path / "db", "apply two")
    with pytest.raises(Unavailable, match="no luck"), world.journal.undone_on_error("pod"):
        world.perform("one", declines=True, before="what was")
        world.perform("two", before="what was, too")
    assert world.trace[2:] == ["revert two with what was, too", "revert one with what was"]


def test_an_effect_that_says_that_it_did_nothing_is_not_undone(tmp_path: Path) -> None:
    world = World(tmp_path / "db", "apply two")
    with pytest.raises(Unavailable, match="no luck"), world.journal.undone_on_error("pod"):
        world.perform("one")
        world.perform("two", unchanged=(Unavailable,))
    assert world.trace[2:] == ["revert one with record of one"]
    assert world.store.effects("pod") == []


def test_undoing_carries_on_past_an_error_and_keeps_what_is_left(tmp_path: Path) -> None:
    world = World(tmp_path / "db", "revert two")
    for role in ("one", "two", "three"):
        world.perform(role)
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
        world.perform("one")
        world.perform("two")
    assert str(caught.value) == "no luck"
    assert "step[one]" in caught.value.__notes__[0]


def test_only_what_the_block_did_is_undone(tmp_path: Path) -> None:
    world = World(tmp_path / "db", "apply three")
    world.perform("one")
    with pytest.raises(Unavailable, match="no luck"), world.journal.undone_on_error("pod"):
        world.perform("two")
        world.perform("three")
    assert world.trace[3:] == ["revert three with None", "revert two with record of two"]
    assert [row.role for row in world.store.effects("pod")] == ["one"]


def test_a_declined_effect_leaves_nothing_in_the_journal(tmp_path: Path) -> None:
    world = World(tmp_path / "db")
    assert world.perform("one", declines=True) is None
    assert world.store.effects("pod") == []


def test_there_is_a_point_on_both_sides_of_every_write_and_every_effect(tmp_path: Path) -> None:
    world = World(tmp_path / "db")
    world.perform("one")
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
