"""Control groups, version 1, 2 or both at once.

Sources: cgroup-v2.rst and cgroup-v1/ of the Linux documentation; systemd.slice(5) for the path
that a slice's name stands for.
"""

import contextlib
import errno
import time
from collections.abc import Mapping
from pathlib import Path

from attrs import frozen

from virtlet.errors import FailedPrecondition
from virtlet.model.resources import DEFAULT_PERIOD, Resources

MOUNTS = Path("/proc/self/mounts")
_WANTED = ("cpu", "cpuset", "memory", "pids", "io")
"""Controllers a VM's group should have, where the pod's has them."""
_LEAVING = 0.5
"""Seconds that processes get to leave a group that is removed."""


@frozen
class Hierarchy:
    """A mounted hierarchy of groups."""

    mount: Path
    unified: bool
    """True for version 2."""


def hierarchies(mounts: Path = MOUNTS) -> tuple[Hierarchy, ...]:
    """The hierarchies mounted on this node; version 1 has several."""
    found: dict[Path, Hierarchy] = {}
    for line in mounts.read_text().splitlines():
        _, target, kind, *_ = line.split()
        if kind in ("cgroup", "cgroup2"):
            found[Path(target)] = Hierarchy(Path(target), kind == "cgroup2")
    return tuple(found.values())


def expand(parent: str) -> Path:
    """The path below a hierarchy's root that a pod's `cgroup_parent` stands for.

    A slice's name holds its ancestors: `a-b.slice` lies in `a.slice`.
    """
    if not parent.endswith(".slice") or "/" in parent.strip("/"):
        return Path(parent.strip("/"))
    parts = parent.strip("/").removesuffix(".slice").split("-")
    return Path(*(f"{'-'.join(parts[:n])}.slice" for n in range(1, len(parts) + 1)))


def group_of(parent: str) -> Path | None:
    """Where a pod's group is below each hierarchy's root; None for a pod without one."""
    return expand(parent) if parent.strip("/") else None


def create(parent: str, name: str, mounts: Path = MOUNTS) -> tuple[Path, ...]:
    """Make a group below a pod's in every hierarchy that has the pod's; idempotent.

    Returns:
        The groups made; none when the pod has no group here.
    """
    made = []
    for hierarchy in hierarchies(mounts):
        above = hierarchy.mount / expand(parent)
        if not parent.strip("/") or not above.is_dir():
            continue
        if hierarchy.unified:
            _delegate(above)
        group = above / name
        group.mkdir(exist_ok=True)
        # Version 1's cpuset starts empty, and takes no process until it is filled.
        for file in ("cpuset.cpus", "cpuset.mems"):
            with contextlib.suppress(OSError):
                if not (group / file).read_text().strip():
                    (group / file).write_text((above / file).read_text())
        if not hierarchy.unified and _takes_nobody(group):
            group.rmdir()
            continue
        made.append(group)
    return tuple(made)


def find(parent: str, name: str, mounts: Path = MOUNTS) -> tuple[Path, ...]:
    """The groups that `create` made."""
    below = expand(parent) / name
    paths = (hierarchy.mount / below for hierarchy in hierarchies(mounts))
    return tuple(path for path in paths if parent.strip("/") and path.is_dir())


def remove(parent: str, name: str, mounts: Path = MOUNTS) -> None:
    """Remove what `create` made. What is left in it is killed (version 2). Idempotent.

    Raises:
        OSError: a process is still in it.
    """
    deadline = time.monotonic() + _LEAVING
    groups = find(parent, name, mounts)
    for group in groups:
        # Also what is started meanwhile; since Linux 5.14.
        if (group / "cgroup.kill").exists():
            (group / "cgroup.kill").write_text("1")
    for group in groups:
        while True:
            try:
                group.rmdir()
            except FileNotFoundError:
                pass
            except OSError as error:
                # A process that has just ended leaves its group a moment later.
                if error.errno == errno.EBUSY and time.monotonic() < deadline:
                    time.sleep(0.02)
                    continue
                raise
            break


def limit(groups: tuple[Path, ...], resources: Resources) -> Mapping[str, str]:
    """Put CPU limits on groups, as far as that goes; unset ones stay as they are.

    Memory is left to the pod's own group: the emulator needs some beside the guest's.

    Returns:
        File to the reason, for each that could not be written.
    """
    failed = {}
    for group in groups:
        for file, reason in _write(_settings(group, resources)).items():
            failed[str(file)] = reason
    return failed


def bound_tasks(groups: tuple[Path, ...], most: int) -> Mapping[str, str]:
    """Let groups have that many threads.

    Returns:
        File to the reason, for each that could not be written.
    """
    files = (group / "pids.max" for group in groups)
    failed = _write({file: str(most) for file in files if file.exists()})
    return {str(file): reason for file, reason in failed.items()}


def held(groups: tuple[Path, ...], resources: Resources) -> Mapping[str, str]:
    """What the files hold that `change_limits` would write: give it to `put_back` to undo that."""
    return {
        str(file): file.read_text().strip()
        for group in groups
        for file in _settings(group, resources)
    }


def change_limits(groups: tuple[Path, ...], resources: Resources) -> None:
    """Put CPU limits on groups, all of them or none; unset ones stay as they are.

    Raises:
        FailedPrecondition: the kernel refuses one: it is more than the pod's own, as a rule.
    """
    before = held(groups, resources)
    for group in groups:
        settings = _settings(group, resources)
        failed = _write(settings)
        if failed:
            _write({Path(file): value for file, value in before.items()})
            raise _refusal(settings, failed)


def put_back(before: Mapping[str, str]) -> None:
    """Write into files what they held; those that are gone with their group are left out.

    Raises:
        FailedPrecondition: the kernel refuses some now; the others are written.
    """
    settings = {Path(file): value for file, value in before.items() if Path(file).exists()}
    failed = _write(settings)
    if failed:
        raise _refusal(settings, failed)


def _refusal(settings: Mapping[Path, str], failed: Mapping[Path, str]) -> FailedPrecondition:
    refused = (f"{file} does not take {settings[file]!r}: {why}" for file, why in failed.items())
    return FailedPrecondition(f"{'; '.join(refused)}; the pod's own limits may be in the way")


def unenforced(groups: tuple[Path, ...], resources: Resources) -> tuple[str, ...]:
    """The limits of `resources` that none of the groups can hold, in words for people."""
    held = {file.name for group in groups for file in _settings(group, resources)}
    wanted = {
        "CPU quota": (bool(resources.cpu_quota), {"cpu.max", "cpu.cfs_quota_us"}),
        "CPU shares": (bool(resources.cpu_shares), {"cpu.weight", "cpu.shares"}),
        "CPUs": (bool(resources.cpuset_cpus), {"cpuset.cpus"}),
        "memory nodes": (bool(resources.cpuset_mems), {"cpuset.mems"}),
    }
    return tuple(what for what, (asked, files) in wanted.items() if asked and not files & held)


def _write(settings: Mapping[Path, str]) -> dict[Path, str]:
    """Write files, and try those again that others stood in the way of.

    Version 1 checks a quota and a period each by itself against the group above, so that which
    has to come first depends on the values.

    Returns:
        File to the reason, for each that could not be written.
    """
    left, failed = dict(settings), dict[Path, str]()
    while left:
        failed = {}
        for file, value in left.items():
            try:
                # Nothing at all would not reach the kernel.
                file.write_text(value or "\n")
            except OSError as error:
                failed[file] = error.strerror or "refused"
        if len(failed) == len(left):
            break
        left = {file: left[file] for file in failed}
    return failed


def _settings(group: Path, resources: Resources) -> dict[Path, str]:
    """What to write into the files that a group has."""
    period = resources.cpu_period or DEFAULT_PERIOD
    wanted = {}
    if resources.cpu_quota:
        quota = max(resources.cpu_quota, -1)
        wanted["cpu.max"] = f"{'max' if quota < 0 else quota} {period}"
        wanted["cpu.cfs_period_us"] = str(period)
        wanted["cpu.cfs_quota_us"] = str(quota)
    if resources.cpu_shares:
        shares = min(max(resources.cpu_shares, 2), 262_144)
        # The mapping of the OCI runtimes: 2 … 262144 shares to a weight of 1 … 10000.
        wanted["cpu.weight"] = str(1 + (shares - 2) * 9999 // 262_142)
        wanted["cpu.shares"] = str(shares)
    if resources.cpuset_cpus:
        wanted["cpuset.cpus"] = resources.cpuset_cpus
    if resources.cpuset_mems:
        wanted["cpuset.mems"] = resources.cpuset_mems
    return {group / file: value for file, value in wanted.items() if (group / file).exists()}


def _takes_nobody(group: Path) -> bool:
    """Whether it is a cpuset of version 1 that stayed empty because the pod's is."""
    try:
        return not (group / "cpuset.cpus").read_text().strip()
    except FileNotFoundError:
        return False


def _delegate(group: Path) -> None:
    """Let a group's children have its controllers (version 2)."""
    try:
        available = (group / "cgroup.controllers").read_text().split()
    except FileNotFoundError:
        return
    for controller in sorted(set(available) & set(_WANTED)):
        # Each by itself: one that cannot be handed on must not keep the others back.
        with contextlib.suppress(OSError):
            (group / "cgroup.subtree_control").write_text(f"+{controller}")
