"""Programs that read what others write, run with no more than they need.

The programs of util-linux do it, each by one exec: setpriv(1) for the user and capabilities,
unshare(1) for namespaces, choom(1) for the OOM killer. Code of ours between fork and exec would not
be safe beside threads.
"""

import ctypes
import os
import pwd
from collections.abc import Sequence
from pathlib import Path

from attrs import frozen

from virtlet.host.processes import HELPER_OOM_SCORE
from virtlet.model.typed import typed

NOBODY = 65534


@frozen(kw_only=True, field_transformer=typed)
class Confinement:
    """A user with the capabilities named, as a rule none, and without a way to get others."""

    uid: int
    gid: int
    groups: tuple[int, ...] = ()
    """Further groups."""
    capabilities: tuple[str, ...] = ()
    """Those that it has, or may use where it is root; in setpriv's words."""
    network: bool = True
    """Whether it stays in the network, and among the System V objects, of its caller."""
    oom_score_adj: int | None = HELPER_OOM_SCORE
    """How the node's OOM killer sees it; None leaves it as its caller is seen."""
    filter: Path | None = None
    """A file with a program for seccomp(2), an array of struct sock_filter."""

    def wrap(self, argv: Sequence[str]) -> list[str]:
        """The command line that runs a program confined.

        A process that is not root has nothing to give up: the user is left as it is.
        """
        score = ["choom", "-n", str(self.oom_score_adj), "--"]
        if self.oom_score_adj is None:
            score = []
        if os.geteuid() != 0:
            return [*score, *argv]
        groups = ",".join(map(str, self.groups))
        kept = ",".join(["-all", *(f"+{name}" for name in self.capabilities)])
        # What is root has those of its bounding set; others have those that are ambient.
        lent = kept if self.uid else "-all"
        return [
            *score,
            *(() if self.network else ("unshare", "--net", "--ipc", "--")),
            *("setpriv", f"--reuid={self.uid}", f"--regid={self.gid}"),
            f"--groups={groups}" if groups else "--clear-groups",
            *("--no-new-privs", f"--bounding-set={kept}"),
            *(f"--inh-caps={lent}", f"--ambient-caps={lent}"),
            *([] if self.filter is None else [f"--seccomp-filter={self.filter}"]),
            "--",
            *argv,
        ]


def as_user(uid: int, gid: int) -> Confinement:
    """A user with the groups that it has by the node's files, as emulators are started."""
    try:
        groups = os.getgrouplist(pwd.getpwuid(uid).pw_name, gid)
    except KeyError:
        groups = [gid]
    return Confinement(uid=uid, gid=gid, groups=tuple(groups))


def landlock() -> int:
    """Which version of Landlock the kernel offers; 0 where it has none, or has it switched off."""
    create_ruleset, version = 444, 1  # the same number on every architecture; <linux/landlock.h>
    call = ctypes.CDLL(None).syscall
    call.restype = ctypes.c_long
    return max(0, int(call(ctypes.c_long(create_ruleset), None, ctypes.c_size_t(0), version)))
