"""Programs of the node: what a bounded one is given."""

from pathlib import Path
from typing import Any

import pytest

from virtlet.host.commands import CommandError, CommandLimits, run
from virtlet.host.confinement import NOBODY, Confinement

_SAY = "echo $(ulimit -v) $(ulimit -t) $MALLOC_ARENA_MAX $OWN"


@pytest.mark.parametrize(
    ("env", "own"), [(None, ""), ({"OWN": "value", "PATH": "/usr/bin:/bin"}, " value")]
)
def test_a_bounded_program_gets_one_arena_beside_its_environment(
    env: dict[str, str] | None, own: str
) -> None:
    said = run(["sh", "-c", _SAY], env=env, limits=CommandLimits(cpu_seconds=7, memory=1 << 28))
    assert said.decode() == f"262144 7 1{own}\n"


@pytest.mark.parametrize(
    "how",
    [{"limits": CommandLimits()}, {"confinement": Confinement(uid=NOBODY, gid=NOBODY)}],
    ids=str,
)
def test_a_program_that_is_bounded_or_confined_has_nothing_of_our_environment(
    monkeypatch: pytest.MonkeyPatch, how: dict[str, Any]
) -> None:
    """Which may hold secrets."""
    monkeypatch.setenv("VIRTLET_SECRET", "hunter2")
    names = {line.partition("=")[0] for line in run(["env"], **how).decode().splitlines()}
    assert names - {"MALLOC_ARENA_MAX"} == {"PATH", "LC_ALL"}
    assert "VIRTLET_SECRET" in run(["env"]).decode()


def test_an_unbounded_program_has_its_environment_alone() -> None:
    said = run(["/bin/sh", "-c", _SAY], env={"OWN": "value"})
    assert said.decode().split()[2:] == ["value"]


def test_a_bounded_program_is_not_spared_as_the_manager_is() -> None:
    own = Path("/proc/self/oom_score_adj")
    before = own.read_text()
    own.write_text("300")
    try:
        assert run(["cat", str(own)], limits=CommandLimits()) == b"0\n"
    finally:
        own.write_text(before)


def test_a_bounded_program_prints_a_bounded_text() -> None:
    limits = CommandLimits(output=1 << 16)
    assert run(["head", "-c", "65535", "/dev/zero"], limits=limits) == bytes(65535)
    for size in ("65536", "65537", "1000000"):
        with pytest.raises(CommandError, match="printed more than|ended with status"):
            run(["head", "-c", size, "/dev/zero"], limits=limits)
    with pytest.raises(CommandError):
        run(["cat", "/dev/zero"], limits=limits)


def test_the_bounds_hold() -> None:
    with pytest.raises(CommandError, match="ended with status"):
        run(["sh", "-c", "while :; do :; done"], limits=CommandLimits(cpu_seconds=1))
