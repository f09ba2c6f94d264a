"""Each wall of the jail is shown to matter: a vmwrapper without it lets the try behind it succeed.

Walls that several tries of tests/plugins/libvirt_qemu/attack.py stand behind are shown there.
"""

import ctypes
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from textwrap import dedent, indent

import pytest

from tests.vmwrapper.test_wrapper import TOKEN, VM, Setup, setup
from virtlet.errors import FailedPrecondition
from virtlet.launch.jail import make_jail
from virtlet.model.launch import LaunchPart, Visible

__all__ = ["setup"]

_TRY = """#!/usr/bin/python3 -IS
import _socket, ctypes, os, resource
libc = ctypes.CDLL(None, use_errno=True)

def {name}():
{body}

try:
    print({name}())
except OSError:
    print("refused")
"""
_TRIES = {
    "listen": """
        server = _socket.socket(_socket.AF_INET, _socket.SOCK_STREAM)
        server.bind(("0.0.0.0", 0))
        return "bound"
    """,
    "nest": """
        if libc.unshare(0x10000000) != 0:
            raise OSError("refused")
        return "nested"
    """,
    "name": """
        return os.readlink("/proc/self/ns/uts")
    """,
    "place": """
        os.mkdir("/planted")
        return "planted"
    """,
    "capable": """
        said = [line.split() for line in open("/proc/self/status")]
        if not any(int(line[1], 16) for line in said if line[0] in ("CapBnd:", "CapEff:")):
            raise OSError("refused")
        return "capable"
    """,
    "start": """
        if os.fork() == 0:
            os._exit(0)
        os.wait()
        return "started"
    """,
    "crowd": """
        if 0 < resource.getrlimit(resource.RLIMIT_NPROC)[1] <= 2048:
            raise OSError("refused")
        return "unbounded"
    """,
    "dump": """
        if resource.getrlimit(resource.RLIMIT_CORE)[1] in (0, 1):
            raise OSError("refused")
        return "dumped"
    """,
}
"""What is tried, as the body of a function that raises OSError where it is refused."""
_SECCOMP = ('self.done("seccomp", self.libc.prctl(', '(lambda *_: None)("seccomp", (')
_LANDLOCK = ("if abi > 0:", "if False:")
_WALLS = {
    "Landlock": ("listen", [], _LANDLOCK, "bound"),
    "no user namespaces": ("nest", [_SECCOMP], ('file.write("0")', "pass"), "nested"),
    "the filter of system calls": ("nest", [('file.write("0")', "pass")], _SECCOMP, "nested"),
    "the UTS namespace": ("name", [], (" | self.NEWUTS", ""), os.readlink("/proc/self/ns/uts")),
    "the read-only root": (
        "place",
        [_LANDLOCK],
        ('self.done("read-only root", libc.mount(', '(lambda *_: None)("", ('),
        "planted",
    ),
    "the bounding set": ("capable", [], ("range(64)", "range(0)"), "capable"),
    "no processes": ("start", [], _SECCOMP, "started"),
    "bounded threads": ("crowd", [], ("self.bound_threads()", "pass"), "unbounded"),
    "no core dumps": ("dump", [], ("self.resource.setrlimit(", "(lambda *_: None)("), "dumped"),
}
"""What is tried, other walls that have to be away for that, the wall, and what comes without it."""


def _landlock() -> int:
    """Version of the kernel's Landlock; 0 or less where it has none."""
    create, version = 444, 1
    call = ctypes.CDLL(None).syscall
    return int(call(create, None, ctypes.c_size_t(0), version))


def _try(setup: Setup, what: str, without: list[tuple[str, str]]) -> str:
    """Try something in the jail of a vmwrapper that lacks some of its walls."""
    program = setup.emulator.parent / "try"
    body = indent(dedent(_TRIES[what]), "    ")
    program.write_text(_TRY.format(name=what, body=body))
    program.chmod(0o755)
    text = setup.path.read_text()
    for there, instead in without:
        assert there in text, f"vmwrapper has no {there!r} any more"
        text = text.replace(there, instead)
    setup.path.write_text(text)
    system = ("/usr", "/bin", "/lib", "/lib64")
    visible = tuple(Visible(path=Path(path), optional=True) for path in system)
    part = LaunchPart(emulator=program, jail=True, alone=True, visible=visible)
    setup.server.arm(VM, TOKEN, [("test", part)])
    done = setup.launch()
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.mark.parametrize("wall", _WALLS)
def test_each_wall_matters(setup: Setup, wall: str) -> None:
    """With it the try is refused, or shows something of its own; without it, it succeeds."""
    if wall == "Landlock" and _landlock() < 4:
        pytest.skip("this kernel's Landlock knows nothing of TCP (Linux 6.7)")
    what, others, away, result = _WALLS[wall]
    whole = setup.path.read_text()
    assert _try(setup, what, others) != result
    setup.path.write_text(whole)
    assert _try(setup, what, [*others, away]) == result


class _Swapped(type(Path())):  # type: ignore[misc]
    """A path in whose place a link is put when it is looked at for the nth time."""

    looks: Iterator[int]
    when: int
    secret: str

    def __fspath__(self) -> str:
        path = str(self)
        if next(self.looks) == self.when:
            os.unlink(path)
            os.symlink(self.secret, path)
        return path


@pytest.mark.parametrize("writable", [False, True])
def test_a_link_that_comes_meanwhile_is_not_followed(tmp_path: Path, writable: bool) -> None:
    """Whenever it is put in the place of what a jail shows."""
    secret = tmp_path / "secret"
    secret.write_text("another VM's")
    links = 0
    for when in range(8):
        shown = _Swapped(tmp_path / "shown")
        shown.looks, shown.when, shown.secret = iter(range(100)), when, str(secret)
        Path(str(shown)).unlink(missing_ok=True)
        Path(str(shown)).write_text("its own")
        try:
            jail = make_jail((Visible(path=shown, writable=writable),), os.getpid())
        except FailedPrecondition:
            continue
        seen = [os.fstat(descriptor) for descriptor in jail.mounts.values()]
        jail.close()
        assert secret.stat().st_ino not in {item.st_ino for item in seen}
        links += any(stat.S_ISLNK(item.st_mode) for item in seen)
    # The jail shows the link itself, which leads to what is in the jail at most.
    assert links
