"""Programs that read what others write, run with no more than they need.

The programs of util-linux do it, each by one exec: setpriv(1) for the user and capabilities,
choom(1) for the OOM killer. Code of ours between fork and exec would not be safe beside threads.
"""

import os
import pwd
from collections.abc import Sequence

from attrs import frozen

from virtlet.host.processes import HELPER_OOM_SCORE


@frozen
class Confinement:
    """Another user, without any capability and without a way to get one."""

    uid: int
    gid: int
    groups: tuple[int, ...] = ()
    """Further groups."""

    def wrap(self, argv: Sequence[str]) -> list[str]:
        """The command line that runs a program confined.

        A process that is not root has nothing to give up: the user is left as it is.
        """
        score = ["choom", "-n", str(HELPER_OOM_SCORE), "--"]
        if os.geteuid() != 0:
            return [*score, *argv]
        groups = ",".join(map(str, self.groups))
        return [
            *score,
            *("setpriv", f"--reuid={self.uid}", f"--regid={self.gid}"),
            f"--groups={groups}" if groups else "--clear-groups",
            *("--no-new-privs", "--inh-caps=-all", "--bounding-set=-all", "--ambient-caps=-all"),
            "--",
            *argv,
        ]


def as_user(uid: int, gid: int) -> Confinement:
    """A user with the groups that it has by the node's files, as libvirt starts its emulator."""
    try:
        groups = os.getgrouplist(pwd.getpwuid(uid).pw_name, gid)
    except KeyError:
        groups = [gid]
    return Confinement(uid, gid, tuple(groups))
