"""The manager's places on disk, the page that tells of them, and the user it shares them with."""

import fcntl
import pwd
import re
from pathlib import Path

import pytest

from virtlet.core.config.options import CORE_OPTIONS
from virtlet.core.daemon import emulator_user
from virtlet.core.paths import LONGEST_SOCKET, Paths, lock
from virtlet.errors import FailedPrecondition
from virtlet.testing import make_settings

ROOT = Path(__file__).parents[2]
SECTION = (ROOT / "docs" / "architecture.md").read_text().split("## Below the data directory")[1]
SECTION = SECTION.split("\n## ")[0]


def _told() -> dict[str, str]:
    """Every path of the class, below the data directory, to what its docstring says."""
    paths, told = Paths(Path("/data")), {}
    for name, member in vars(Paths).items():
        if name.startswith("_") or name in ("data_dir", "make"):
            continue
        made = getattr(paths, name)
        path = (
            made if isinstance(member, property) else made(member.__code__.co_varnames[1].upper())
        )
        told[str(path.relative_to("/data"))] = member.__doc__ or ""
    return told


def test_the_page_says_what_is_on_disk() -> None:
    rows = re.findall(r"^\| `([^`]+)` \| ([^|`][^|]*|`[^`]*`[^|]+) \|$", SECTION, re.MULTILINE)
    assert dict(rows) == _told()


def test_the_page_says_which_settings_have_a_path_there() -> None:
    rows = re.findall(r"^\| `([^`]+)` \| `(\w+)` \|", SECTION, re.MULTILINE)
    beginning = "{data_dir}/"
    assert dict(rows) == {
        option.default.removeprefix(beginning): option.field
        for option in CORE_OPTIONS
        if option.default.startswith(beginning)
    }


def test_nobody_else_in_the_core_makes_a_path_below_the_data_directory() -> None:
    sources = [*(ROOT / "virtlet" / "core").rglob("*.py"), *(ROOT / "virtlet/launch").rglob("*.py")]
    joins = {path.name for path in sources if re.search(r"(data|run)_dir\)? / ", path.read_text())}
    assert joins == {"paths.py"}


def test_the_longest_path_that_is_taken_has_room_for_every_socket(tmp_path: Path) -> None:
    room = LONGEST_SOCKET - len("/run/vm/0123456789ab/agent.sock")
    fits = tmp_path / ("d" * (room - len(str(tmp_path)) - 1))
    Paths(fits).make()
    assert len(str(Paths(fits).agent_socket("0" * 32))) == LONGEST_SOCKET
    with pytest.raises(FailedPrecondition, match=f"a path of at most {room} bytes"):
        Paths(fits.with_name(f"{fits.name}d")).make()


def test_a_directory_is_one_managers(tmp_path: Path) -> None:
    with (
        lock(tmp_path, "--data-dir"),
        pytest.raises(FailedPrecondition, match="another manager works on .* another --data-dir"),
    ):
        lock(tmp_path, "--data-dir")
    with lock(tmp_path, "--data-dir") as file:
        fcntl.flock(file, fcntl.LOCK_UN)


def test_a_missing_user_of_the_emulator_is_an_error_and_never_root(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Also the default one."""

    def nobody(name: str) -> pwd.struct_passwd:
        raise KeyError(name)

    monkeypatch.setattr(pwd, "getpwnam", nobody)
    with pytest.raises(FailedPrecondition, match="'libvirt-qemu': .*does not run as root instead"):
        emulator_user(make_settings(CORE_OPTIONS, Path("/")))


def test_root_is_no_user_of_the_emulator() -> None:
    """Nor is a user of another name with its number."""
    with pytest.raises(FailedPrecondition, match="--emulator-user 'root': that is root"):
        emulator_user(make_settings(CORE_OPTIONS, Path("/"), emulatorUser="root"))
