"""Programs that run with no more than they need."""

import pwd
import sys
from pathlib import Path

from virtlet.host.commands import run
from virtlet.host.confinement import Confinement, as_user
from virtlet.host.seccomp import server_filter

NOBODY = 65534


def _status(confinement: Confinement) -> dict[str, list[str]]:
    said = run(confinement.wrap(["cat", "/proc/self/status"])).decode()
    lines = (line.partition(":") for line in said.splitlines())
    return {name: value.split() for name, _, value in lines}


def test_a_confined_program_is_another_user_without_any_capability() -> None:
    status = _status(Confinement(uid=NOBODY, gid=NOBODY, groups=(7,)))
    assert status["Uid"] == status["Gid"] == [str(NOBODY)] * 4
    assert status["Groups"] == ["7"]
    for name in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"):
        assert int(status[name][0], 16) == 0, name
    assert status["NoNewPrivs"] == ["1"]


def test_capabilities_that_it_needs_are_all_that_it_has() -> None:
    net_admin = 1 << 12
    status = _status(Confinement(uid=NOBODY, gid=NOBODY, capabilities=("net_admin",)))
    for name in ("CapPrm", "CapEff", "CapBnd"):
        assert int(status[name][0], 16) == net_admin, name
    # What starts as root can get no others either.
    as_root = _status(Confinement(uid=0, gid=0, capabilities=("net_admin",)))
    assert int(as_root["CapEff"][0], 16) == net_admin


def test_it_has_no_group_of_the_managers() -> None:
    assert _status(Confinement(uid=NOBODY, gid=NOBODY))["Groups"] == []


def test_it_is_not_spared_as_the_manager_is() -> None:
    own = Path("/proc/self/oom_score_adj")
    before = own.read_text()
    own.write_text("300")
    try:
        assert run(Confinement(uid=NOBODY, gid=NOBODY).wrap(["cat", str(own)])) == b"0\n"
    finally:
        own.write_text(before)


def test_a_user_has_its_groups_of_the_nodes_files() -> None:
    user = pwd.getpwnam("libvirt-qemu")
    confinement = as_user(user.pw_uid, user.pw_gid)
    assert user.pw_gid in confinement.groups
    assert as_user(NOBODY - 7, 12).groups == (12,)


_TRIES = """
import ctypes, os, signal, socket
def tried(what):
    try:
        what()
    except OSError as error:
        return error.strerror
libc = ctypes.CDLL(None, use_errno=True)
def new_namespace():
    if libc.unshare(0x1000_0000):
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
def keep():
    libc.prctl(8, 1, 0, 0, 0)
    os.setuid(65534)
    line = next(l for l in open("/proc/self/status") if l.startswith("CapPrm"))
    print(int(line.split()[1], 16))
for what in (
    lambda: os.kill(os.getppid(), 0),
    lambda: os.posix_spawn("/bin/true", ["true"], {}),
    lambda: socket.socket(socket.AF_PACKET, socket.SOCK_RAW),
    lambda: os.kill(0, 0),
    lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM),
):
    print(tried(what))
keep()
print(tried(new_namespace))
"""


def test_a_server_under_its_filter_keeps_no_capability_and_reaches_no_process(
    tmp_path: Path,
) -> None:
    program = server_filter()
    assert program is not None
    file = tmp_path / "filter"
    file.write_bytes(program)
    argv = [sys.executable, "-c", _TRIES]

    def said(filter_: Path | None) -> list[str]:
        capabilities = ("setuid", "net_admin", "net_raw", "kill")
        confined = Confinement(uid=0, gid=0, capabilities=capabilities, filter=filter_)
        # In a session of its own, of which it is all that it may signal.
        return run(["setsid", "--wait", *confined.wrap(argv)]).decode().splitlines()

    refused, none = "Operation not permitted", "None"
    walled = [refused, refused, refused, none, none, "0", refused]
    assert said(file) == walled
    without = said(None)
    assert without[0] == without[2] == without[-1] == none, "the walls are the filter's"
    assert int(without[-2]) == 1 << 12 | 1 << 13 | 1 << 5 | 1 << 7
