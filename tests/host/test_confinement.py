"""Programs that run with no more than they need."""

import pwd
from pathlib import Path

from virtlet.host.commands import run
from virtlet.host.confinement import Confinement, as_user

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
