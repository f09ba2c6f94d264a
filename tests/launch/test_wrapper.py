"""The wrapper is put where the emulator's user can execute it, and only when it changed."""

import os
import pwd
import stat
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from virtlet.errors import FailedPrecondition
from virtlet.launch.wrapper import emulator_problem, install_wrapper

QEMU = Path("/usr/bin/qemu-system-x86_64")
USER = pwd.getpwnam("libvirt-qemu")


@pytest.fixture
def data_dir() -> Iterator[Path]:
    """A data directory that others can pass through, as pytest's own are not."""
    with tempfile.TemporaryDirectory(prefix="vt-", dir="/var/tmp") as directory:
        path = Path(directory)
        path.chmod(0o711)
        yield path


def install(data_dir: Path, emulator: Path = QEMU) -> Path:
    return install_wrapper(data_dir / "bin" / "vmwrapper", emulator, USER.pw_uid, USER.pw_gid)


def test_the_emulators_user_can_execute_it(data_dir: Path) -> None:
    """It becomes the real emulator, although the sources may lie in root's home."""
    path = install(data_dir)
    done = subprocess.run(
        [str(path), "--version"],
        user=USER.pw_uid,
        group=USER.pw_gid,
        extra_groups=[],
        env={},
        capture_output=True,
        text=True,
        check=True,
    )
    assert "QEMU emulator version" in done.stdout


def test_it_is_written_only_when_it_changes(data_dir: Path) -> None:
    """libvirt asks for the capabilities again whenever the file does."""
    path = install(data_dir)
    before = path.stat()
    assert install(data_dir) == path
    after = path.stat()
    assert (after.st_ino, after.st_ctime_ns) == (before.st_ino, before.st_ctime_ns)


def test_an_upgraded_emulator_changes_it(data_dir: Path) -> None:
    """Or libvirt would go on with what it knew of the old one."""
    emulator = data_dir / "qemu"
    emulator.write_text("#!/bin/sh\n")
    emulator.chmod(0o755)
    before = install(data_dir, emulator).read_bytes()
    os.utime(emulator, ns=(1, 1))
    assert install(data_dir, emulator).read_bytes() != before


def test_damage_is_mended(data_dir: Path) -> None:
    """Content and mode."""
    path = install(data_dir)
    good = path.read_bytes()
    path.write_bytes(b"#!/bin/false\n")
    path.chmod(0o700)
    install(data_dir)
    assert path.read_bytes() == good
    assert stat.S_IMODE(path.stat().st_mode) == 0o755


def test_a_data_directory_that_is_closed_to_the_user_is_named(data_dir: Path) -> None:
    """Before libvirt fails with less of a hint."""
    closed = data_dir / "closed"
    closed.mkdir(mode=0o700)
    with pytest.raises(FailedPrecondition, match=f"{closed} is closed to it"):
        install(closed)


def test_a_missing_emulator_is_named(data_dir: Path) -> None:
    """With the setting that chooses it."""
    problem = emulator_problem(Path("/nowhere/qemu"), USER.pw_uid, USER.pw_gid)
    assert problem == (
        "emulator /nowhere/qemu: No such file or directory: install QEMU (package qemu-system-x86) "
        "or set `emulator`, then restart the manager"
    )


def test_one_for_a_missing_emulator_changes_once_the_emulator_is_there(data_dir: Path) -> None:
    """Or libvirt would go on with what it knew of none."""
    emulator = data_dir / "qemu"
    before = install(data_dir, emulator).read_bytes()
    emulator.write_text("#!/bin/sh\n")
    emulator.chmod(0o755)
    assert install(data_dir, emulator).read_bytes() != before
    assert emulator_problem(emulator, USER.pw_uid, USER.pw_gid) == ""


def test_an_emulator_the_user_cannot_execute_is_named(data_dir: Path) -> None:
    """Its own mode counts too."""
    emulator = data_dir / "qemu"
    emulator.write_text("#!/bin/sh\n")
    emulator.chmod(0o700)
    assert "cannot execute" in emulator_problem(emulator, USER.pw_uid, USER.pw_gid)
