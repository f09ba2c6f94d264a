"""A user and group of its own for each VM, out of a range that nobody else on the node uses."""

import contextlib
import grp
import pwd
from collections.abc import Iterator
from pathlib import Path

from virtlet.core.config.options import VM_USERS
from virtlet.core.paths import Paths
from virtlet.core.store.store import Store
from virtlet.errors import FailedPrecondition, ResourceExhausted

_SUBORDINATE = (Path("/etc/subuid"), Path("/etc/subgid"))
"""Ids that users may take on in namespaces; subuid(5)."""


class VmUsers:
    """Gives out ids, each to one VM after the other has them all.

    The group has the number of the user. How far it came is in the store before an id is used, so
    that a crash leaves one out and never gives one twice.

    Args:
        ids: the range; None has all VMs run as the node's emulator user.
        store: has the VMs, and the id that was given last.
        paths: where files of VMs are.

    Raises:
        FailedPrecondition: somebody else has ids of the range.
    """

    def __init__(self, ids: range | None, store: Store, paths: Paths) -> None:
        self._ids = ids
        self._store = store
        self._paths = paths
        if ids is not None and (found := next(others(ids), "")):
            raise FailedPrecondition(
                f"{VM_USERS.flag} {ids[0]}-{ids[-1]}: {found}; choose a range that nobody uses, "
                "or `shared`"
            )

    def take(self) -> int | None:
        """The user of the next VM; None for the node's.

        Raises:
            ResourceExhausted: every id belongs to a VM.
        """
        if self._ids is None:
            return None
        taken = {record.vm.uid for record in self._store.vms.values()} | set(self._owners())
        number = self._store.next_user(self._ids, lambda n: n in taken or _is_known(n))
        if number is None:
            raise ResourceExhausted(
                f"all users of {VM_USERS.field} {self._ids[0]}-{self._ids[-1]} have VMs: remove "
                "pods, or make the range larger"
            )
        return number

    def _owners(self) -> Iterator[int]:
        """Groups of VMs' directories, which are there longer than the VM if removing one fails,
        and of those of programs with a user of their own."""
        runtimes = self._paths.vm_runtimes
        programs = runtimes.glob("*/backends/*")
        for entry in (*self._paths.vms.iterdir(), *runtimes.iterdir(), *programs):
            with contextlib.suppress(FileNotFoundError):
                yield entry.lstat().st_gid


def others(ids: range) -> Iterator[str]:
    """Who else may have ids of the range, each in words."""
    for user in pwd.getpwall():
        if user.pw_uid in ids or user.pw_gid in ids:
            yield f"user {user.pw_name} ({user.pw_uid}:{user.pw_gid}) is in it"
    for group in grp.getgrall():
        if group.gr_gid in ids:
            yield f"group {group.gr_name} ({group.gr_gid}) is in it"
    for file in _SUBORDINATE:
        with contextlib.suppress(OSError):
            for line in file.read_text(errors="replace").splitlines():
                name, first, count = [*line.split(":"), "", ""][:3]
                if first.isdecimal() and count.isdecimal():
                    theirs = range(int(first), int(first) + int(count))
                    if theirs and theirs[0] <= ids[-1] and ids[0] <= theirs[-1]:
                        yield f"{file} gives ids of it to {name}"
    for kind in ("uid", "gid"):
        # Inside a user namespace some ids are nobody's; user_namespaces(7).
        rows = Path(f"/proc/self/{kind}_map").read_text().splitlines()
        mapped = [range(int(r.split()[0]), sum(map(int, r.split()[::2]))) for r in rows]
        if not any(ids[0] in part and ids[-1] in part for part in mapped):
            yield "the manager's user namespace does not have it"


def _is_known(number: int) -> bool:
    """Whether the node gives an id a name, as a directory service may by now."""
    for look_up in (pwd.getpwuid, grp.getgrgid):
        with contextlib.suppress(KeyError):
            look_up(number)
            return True
    return False
