"""Each VM gets a user that no other VM has had, and that nobody else on the node has."""

import grp
import os
import pwd
from pathlib import Path

import pytest
from attrs import evolve

from tests.fakes.model import NO_NETWORK, make_pod, make_vm
from virtlet.core.config.options import VM_USERS
from virtlet.core.paths import Paths
from virtlet.core.store.records import PodPhase, PodRecord, VmPhase, VmRecord
from virtlet.core.store.store import Store
from virtlet.core.vm_users import VmUsers
from virtlet.errors import FailedPrecondition, ResourceExhausted

IDS = VM_USERS.kind.parse("2000000000-2000000002")


class World:
    """A database and directories, which outlive the one who gives users out."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.paths = Paths(root)
        self.paths.make()
        self.store = Store(root / "db")
        self.store.put_pod(PodRecord(make_pod(), PodPhase.READY, NO_NETWORK))

    def users(self, ids: "range | None" = IDS) -> VmUsers:
        return VmUsers(ids, self.store, self.paths)

    def add(self, name: str, user: int | None) -> None:
        vm = evolve(make_vm(self.paths.vm(name)), id=name * 32, uid=user, gid=user)
        self.store.put_vm(VmRecord(vm, VmPhase.CREATED))

    def reopen(self) -> None:
        self.store.close()
        self.store = Store(self.root / "db")


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


def test_a_user_is_given_again_only_when_all_have_been(world: World) -> None:
    """Also by the next manager, and whether the VM was made or not."""
    assert IDS is not None
    assert world.users().take() == IDS[0]
    world.reopen()
    assert world.users().take() == IDS[1]
    assert [world.users().take() for _ in range(2)] == [IDS[2], IDS[0]]


def test_a_user_of_a_vm_that_is_there_is_not_given_again(world: World) -> None:
    """However often the range was gone through."""
    assert IDS is not None
    world.add("b", IDS[1])
    world.reopen()
    users = world.users()
    assert [users.take() for _ in range(3)] == [IDS[0], IDS[2], IDS[0]]
    assert world.store.vms["b" * 32].vm.uid == IDS[1]


def test_a_user_whose_files_are_there_is_not_given_again(world: World) -> None:
    """A directory that could not be removed, of a VM that nobody knows any more."""
    assert IDS is not None
    for place, user in ((world.paths.vms, IDS[0]), (world.paths.vm_runtimes, IDS[1])):
        (place / "left").mkdir()
        os.chown(place / "left", 0, user)
    users = world.users()
    assert [users.take() for _ in range(2)] == [IDS[2], IDS[2]]


def test_a_user_of_a_program_that_serves_a_vm_is_not_given_again(world: World) -> None:
    assert IDS is not None
    own = world.paths.backends("a" * 32) / "server"
    own.mkdir(parents=True)
    os.chown(own, -1, IDS[0])
    assert [world.users().take() for _ in range(3)] == [IDS[1], IDS[2], IDS[1]]


def test_without_a_free_user_the_message_says_what_to_do(world: World) -> None:
    assert IDS is not None
    for name, user in zip("bcd", IDS, strict=True):
        world.add(name, user)
    with pytest.raises(ResourceExhausted, match="vmUsers 2000000000-2000000002 have VMs: remove"):
        world.users().take()


def test_with_a_shared_user_nobody_gets_one(world: World) -> None:
    assert VM_USERS.kind.parse("shared") is None
    assert world.users(None).take() is None


def test_a_range_that_somebody_has_is_refused_by_name(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At the manager's start, before anything runs."""
    user = pwd.struct_passwd(("ann", "x", 2000000001, 100, "", "/", "/bin/sh"))
    monkeypatch.setattr(pwd, "getpwall", lambda: [user])
    with pytest.raises(FailedPrecondition, match=r"--vm-users 2000000000-2000000002: user ann"):
        world.users()
    monkeypatch.setattr(pwd, "getpwall", list)
    group = grp.struct_group(("staff", "x", 2000000002, []))
    monkeypatch.setattr(grp, "getgrall", lambda: [group])
    with pytest.raises(FailedPrecondition, match="group staff"):
        world.users()


def test_a_user_that_got_a_name_meanwhile_is_passed_over(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a directory service knows more than it lists."""
    assert IDS is not None
    known = pwd.struct_passwd(("ann", "x", IDS[0], 100, "", "/", "/bin/sh"))

    def look_up(number: int) -> pwd.struct_passwd:
        if number == IDS[0]:
            return known
        raise KeyError(number)

    users = world.users()
    monkeypatch.setattr(pwd, "getpwuid", look_up)
    assert users.take() == IDS[1]


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "neither FIRST-LAST nor shared"),
        ("5", "neither FIRST-LAST nor shared"),
        ("70000-69999", "neither FIRST-LAST nor shared"),
        ("0-100000", "from 65536"),
        ("1000-2000", "from 65536"),
        ("70000-4294967295", "to 2147483647"),
    ],
)
def test_a_range_that_cannot_be_is_refused(text: str, why: str) -> None:
    """Root's, and those of the system and of people, first of all."""
    with pytest.raises(ValueError, match=why):
        VM_USERS.kind.parse(text)
