"""Which database a data directory belongs to.

Start-up removes what is in the data directory and unknown to the database, so it must be the right
one. A file in the data directory names the database's instance. With another database, or none, the
manager refuses to start and changes nothing.
"""

import os
from collections.abc import Iterator
from pathlib import Path

from virtlet.core.paths import Paths
from virtlet.core.store.store import Store
from virtlet.errors import FailedPrecondition
from virtlet.host.files import write_atomically


def open_store(database: Path, paths: Paths) -> Store:
    """Open the database of a data directory; the first use ties them to each other.

    A directory without the file (a new one, one of an earlier release, or one whose first start
    was interrupted) is tied to the database if it is empty, or has something that the database
    knows. An empty directory is tied to it in any case: nothing can be lost.

    Raises:
        FailedPrecondition: the database cannot be used, or is not that of the data directory.
    """
    refuse_lost(database, paths)
    store = Store(database)
    try:
        if refuse_others(store, database, paths) != store.instance:
            _write(paths.instance, store)
    except BaseException:
        store.close()
        raise
    return store


def refuse_lost(database: Path, paths: Paths) -> None:
    """Refuse to begin a new database for a data directory that has pods.

    Raises:
        FailedPrecondition: it has, and the database does not exist.
    """
    if not database.exists() and any(_names(paths)):
        missing = f"{database} does not exist"
        raise FailedPrecondition(_refusal(paths, _read(paths.instance), missing))


def refuse_others(store: Store, database: Path, paths: Paths) -> str:
    """Refuse a store that is not that of the data directory; nothing is written.

    Args:
        store: of the database, or of a copy of it.
        database: the database, for messages.
        paths: the data directory's.

    Returns:
        The instance that the directory belongs to; "" where it has none yet.

    Raises:
        FailedPrecondition: it belongs to another.
    """
    owner = _read(paths.instance)
    _refuse_pods_of_others(store, database, paths)
    if owner != store.instance and not _may_adopt(store, paths, owner):
        found = f"{database} is the database of instance {store.instance}"
        raise FailedPrecondition(_refusal(paths, owner, found))
    return owner


def _names(paths: Paths) -> Iterator[str]:
    """Names of everything that start-up removes if the database does not know it."""
    for directory in (paths.pods, paths.vms, paths.vm_runtimes):
        if directory.is_dir():
            yield from (path.name for path in directory.iterdir())


def _may_adopt(store: Store, paths: Paths, owner: str) -> bool:
    found = set(_names(paths))
    known = {*store.pods, *store.vms, *(paths.vm_runtime(vm_id).name for vm_id in store.vms)}
    return not found or (not owner and bool(found & known))


def _refuse_pods_of_others(store: Store, database: Path, paths: Paths) -> None:
    """Records hold paths: in another data directory, VMs that run would seem lost."""
    for record in store.pods.values():
        theirs = record.pod.directory.parent
        if theirs.resolve() != paths.pods.resolve():
            raise FailedPrecondition(
                f"the database {database} has pods in the data directory {theirs.parent}, not in "
                f"{paths.data_dir}: use --data-dir {theirs.parent}, or another --database-path; if "
                f"the VMs of {theirs.parent} are known to be gone, move {database} away"
            )


def _refusal(paths: Paths, owner: str, found: str) -> str:
    data_dir = paths.data_dir
    belongs = f"belongs to instance {owner}" if owner else "has pods or VMs of another instance"
    return (
        f"the data directory {data_dir} {belongs} ({paths.instance}), but {found}: starting would "
        "remove the disks of its VMs. Put its own database back, or name it with --database-path. "
        f"If that is lost, and the VMs of {data_dir} are known to be gone, move {data_dir} away"
    )


def _read(file: Path) -> str:
    """The instance that the file names; "" when it is missing, or empty after a power cut."""
    try:
        return file.read_text(errors="replace").strip()
    except FileNotFoundError:
        return ""
    except OSError as error:
        raise FailedPrecondition(f"cannot read {file}: {error.strerror}") from None


def _write(file: Path, store: Store) -> None:
    # A power cut must not leave one of the two without the other.
    store.flush()
    try:
        write_atomically(file, f"{store.instance}\n".encode())
        for path in (file, file.parent):
            descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
    except OSError as error:
        raise FailedPrecondition(f"cannot write {file}: {error.strerror}") from None
