"""What `virtlet serve` would do at its start, and what it would fail at; changes nothing."""

import contextlib
import fcntl
import os
import shutil
import socket
import sqlite3
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

from virtlet.cli.findings import FAULT, NOTE, OK, Finding, guarded
from virtlet.core.config import options
from virtlet.core.daemon import emulator_user
from virtlet.core.hooks.facade import Hooks
from virtlet.core.hooks.profiles import Profiles
from virtlet.core.hooks.registry import Registry
from virtlet.core.paths import LOCK, Paths, refuse_long
from virtlet.core.serving import tls_context
from virtlet.core.store.migrations import VERSION
from virtlet.core.store.ownership import refuse_lost, refuse_others
from virtlet.core.store.store import Store
from virtlet.core.vm_users import others
from virtlet.errors import FailedPrecondition, VirtletError
from virtlet.launch.wrapper import emulator_problem, wrapper_problem
from virtlet.model.option import Settings
from virtlet.plugins.libvirt_qemu.plugin import LIBVIRT_URI
from virtlet.plugins.libvirt_qemu.qemu_conf import locate

LIBVIRT_TIMEOUT = 10.0
"""Seconds that a libvirt daemon has to say its version."""
_DRIVERS = "libvirt/connection-driver/libvirt_driver_qemu.so"
_ASK_LIBVIRT = """
import sys, libvirt
libvirt.registerErrorHandler(lambda *_: None, None)
try:
    print(libvirt.openReadOnly(sys.argv[1]).getLibVersion())
except libvirt.libvirtError as error:
    sys.exit(error.get_error_message())
"""


def check_start(registry: Registry, read: Callable[[], Settings]) -> Iterator[Finding]:
    """All that a start depends on, in its order; ends at settings that cannot be read.

    Args:
        registry: the plugins that were found.
        read: reads the settings; raises VirtletError.
    """
    yield from of_plugins(registry)
    try:
        config = read()
    except VirtletError as error:
        yield Finding("settings", FAULT, str(error))
        return
    yield Finding("settings", OK, "can be read")
    for name, check in (
        ("handlers", lambda: of_handlers(registry, config)),
        ("directories", lambda: of_directories(config)),
        ("database", lambda: of_database(config)),
        ("users", lambda: of_users(config)),
        ("emulator", lambda: of_emulator(config)),
        ("libvirt", lambda: of_libvirt(config)),
        ("sockets", lambda: of_sockets(config)),
    ):
        yield from guarded(name, check)


def of_plugins(registry: Registry) -> Iterator[Finding]:
    """Which plugins can be used."""
    for plugin, why in registry.refused.items():
        yield Finding("plugins", FAULT, f"{plugin!r} would be refused: {why}")
    yield Finding("plugins", OK, f"would be used: {', '.join(registry.everyone)}")


def of_handlers(registry: Registry, config: Settings) -> Iterator[Finding]:
    """Which handlers would be served, and what the settings say of plugins."""
    try:
        hooks = Hooks(registry)
        hooks.govern(config.sections.get("plugins", {}), config[options.DATA_DIR])
        profiles = Profiles(config.sections.get("handlers", {}), registry)
    except VirtletError as error:
        yield Finding("handlers", FAULT, str(error))
        return
    for handler, why in profiles.broken.items():
        yield Finding("handlers", FAULT, f"{handler!r} would not be served: {why}")
    served = ", ".join(repr(profile.handler) for profile in profiles.all)
    yield Finding("handlers", OK, f"would be served: {served}")


def of_directories(config: Settings) -> Iterator[Finding]:
    """Whether the data directory and the images' are there, or can be made."""
    try:
        refuse_long(Paths(config[options.DATA_DIR]))
    except VirtletError as error:
        yield Finding("directories", FAULT, str(error))
    for option in (options.DATA_DIR, options.IMAGE_DIR):
        directory = config[option]
        there = nearest(directory)
        if not there.is_dir():
            yield Finding(
                "directories",
                FAULT,
                f"{option.field} {directory}: {there} is no directory",
                f"move {there} away, or set {option.field} to another path",
            )
        elif not os.access(there, os.W_OK | os.X_OK):
            yield Finding(
                "directories",
                FAULT,
                f"{option.field} {directory}: {there} cannot be written",
                "run as root, on a file system that is mounted for writing",
            )
        elif there == directory:
            running = " (a manager works on it now)" if locked(directory) else ""
            yield Finding("directories", OK, f"{option.field} {directory} is there{running}")
        else:
            yield Finding("directories", NOTE, f"{option.field} {directory} would be made")


def of_database(config: Settings) -> Iterator[Finding]:
    """Whether the database can be used: it is opened, and migrated, as a copy."""
    database, paths = config[options.DATABASE], Paths(config[options.DATA_DIR])
    try:
        if not database.exists():
            refuse_lost(database, paths)
            yield Finding("database", NOTE, f"{database} would be made")
        else:
            yield _copied(database, paths)
    except VirtletError as error:
        yield Finding("database", FAULT, str(error))
    except sqlite3.DatabaseError as error:
        remedy = "move it away, or name another with --database-path"
        yield Finding("database", FAULT, f"{database} cannot be read: {error}", remedy)


def _copied(database: Path, paths: Paths) -> Finding:
    with tempfile.TemporaryDirectory(prefix="virtlet-check-") as directory:  # root's alone
        copy = Path(directory) / "virtlet.db"
        _copy(database, copy, in_use=locked(paths.data_dir))
        version = _version(copy)
        try:
            store = Store(copy)
        except FailedPrecondition as error:
            raise FailedPrecondition(str(error).replace(str(copy), str(database))) from None
        try:
            refuse_others(store, database, paths)
            what = f"{database}: {len(store.pods)} pods, {len(store.vms)} VMs, version {version}"
        finally:
            store.close()
    if version < VERSION:
        remedy = f"copy {database} first if you may want to go back (docs/guide/upgrade.md)"
        return Finding("database", NOTE, f"{what}; would be migrated to {VERSION}", remedy)
    return Finding("database", OK, what)


def _copy(database: Path, copy: Path, *, in_use: bool) -> None:
    if in_use:  # its files change; there is a reader's file, which opening would make otherwise
        with _open(database) as source, contextlib.closing(sqlite3.connect(copy)) as target:
            source.backup(target)
        return
    for suffix in ("", "-wal"):  # what was committed last may be in the second alone
        with contextlib.suppress(FileNotFoundError):
            shutil.copyfile(f"{database}{suffix}", f"{copy}{suffix}")


def _open(database: Path) -> "contextlib.closing[sqlite3.Connection]":
    uri = f"{database.absolute().as_uri()}?mode=ro"
    return contextlib.closing(sqlite3.connect(uri, uri=True))


def _version(database: Path) -> int:
    with _open(database) as connection:
        version: int = connection.execute("PRAGMA user_version").fetchone()[0]
    return version


def of_users(config: Settings) -> Iterator[Finding]:
    """Whom emulators would run as."""
    try:
        uid, _ = emulator_user(config)
        yield Finding("users", OK, f"emulatorUser {config[options.EMULATOR_USER]} is {uid}")
    except VirtletError as error:
        yield Finding("users", FAULT, str(error))
    ids = config[options.VM_USERS]
    if ids is None:
        text = "vmUsers is `shared`: all emulators run as one user"
        yield Finding("users", NOTE, text, "give a range of ids that nobody else on the node has")
        return
    found = tuple(others(ids))
    for who in found:
        remedy = f"set {options.VM_USERS.field} to a range that nobody uses"
        yield Finding("users", FAULT, f"vmUsers {ids[0]}-{ids[-1]}: {who}", remedy)
    if not found:
        yield Finding("users", OK, f"vmUsers {ids[0]}-{ids[-1]} are nobody else's")


def of_emulator(config: Settings) -> Iterator[Finding]:
    """Whether its user can run QEMU, and vmwrapper in the data directory."""
    try:
        user = emulator_user(config)
    except VirtletError:
        return  # said already
    emulator = config[options.EMULATOR]
    problems = (
        emulator_problem(emulator, *user),
        wrapper_problem(nearest(config[options.DATA_DIR]), *user),
    )
    for problem in filter(None, problems):
        yield Finding("emulator", FAULT, problem)
    if not any(problems):
        yield Finding("emulator", OK, f"{emulator} can be run by its user")


def of_libvirt(config: Settings) -> Iterator[Finding]:
    """Whether libvirt's driver is there, or its daemon answers."""
    uri = config[LIBVIRT_URI]
    try:
        place = locate(uri, config[options.DATA_DIR])
    except VirtletError as error:
        yield Finding("libvirt", FAULT, str(error))
        return
    if place.embedded:
        yield _driver(uri)
        return
    command = [sys.executable, "-c", _ASK_LIBVIRT, place.uri]
    remedy = (
        "start it (`systemctl start libvirtd`, or virtqemud), or set "
        f"{LIBVIRT_URI.field}: qemu:///embed"
    )
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=LIBVIRT_TIMEOUT, check=False
        )
    except subprocess.TimeoutExpired:
        yield Finding(
            "libvirt", FAULT, f"{uri} does not answer within {LIBVIRT_TIMEOUT:g} s", remedy
        )
        return
    if done.returncode:
        yield Finding("libvirt", FAULT, f"{uri}: {done.stderr.strip()[-300:]}", remedy)
        return
    yield Finding("libvirt", OK, f"{uri} answers, version {libvirt_version(int(done.stdout))}")


def _driver(uri: str) -> Finding:
    places = [*Path("/usr/lib").glob(f"*/{_DRIVERS}"), *Path("/usr/lib64").glob(_DRIVERS)]
    if not places:
        remedy = "install the package libvirt-daemon-driver-qemu"
        return Finding("libvirt", FAULT, f"{uri}: libvirt's driver for QEMU is missing", remedy)
    asked = "import libvirt; print(libvirt.getVersion())"
    done = subprocess.run(
        [sys.executable, "-c", asked], capture_output=True, text=True, timeout=30, check=False
    )
    if done.returncode:
        why = done.stderr.strip().rpartition("\n")[2]
        remedy = "install libvirt's Python binding again, for the libvirt of this node"
        return Finding("libvirt", FAULT, f"Python cannot load libvirt: {why}", remedy)
    return Finding("libvirt", OK, f"{uri} is libvirt {libvirt_version(int(done.stdout))} itself")


def libvirt_version(number: int) -> str:
    """A version as people write it."""
    return f"{number // 1_000_000}.{number // 1000 % 1000}.{number % 1000}"


def of_sockets(config: Settings) -> Iterator[Finding]:
    """Whether the sockets can be listened on, and the certificate be used."""
    running = locked(config[options.DATA_DIR])
    for option in (options.LISTEN, options.FD_SERVER_SOCKET):
        path = config[option]
        if path.exists() and not path.is_socket():
            remedy = f"move it away, or set {option.field} to another path"
            yield Finding("sockets", FAULT, f"{option.field} {path} is no socket", remedy)
        elif not running and _answers(path):
            remedy = f"stop that process, or set {option.field} to another path"
            text = f"{option.field} {path}: another process serves on it"
            yield Finding("sockets", FAULT, text, remedy)
        else:
            yield Finding("sockets", OK, f"would listen on {path}")
    yield from _stream_port(config, running)
    try:
        tls_context(config)
    except VirtletError as error:
        yield Finding("sockets", FAULT, str(error))


def _stream_port(config: Settings, running: bool) -> Iterator[Finding]:
    address, port = config[options.STREAM_ADDRESS], config[options.STREAM_PORT]
    if running and port:
        return  # it listens there
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    try:
        socket.create_server((address, port), family=family).close()
        yield Finding("sockets", OK, f"would stream on {address}, port {port or 'any'}")
    except OSError as error:
        yield Finding(
            "sockets",
            FAULT,
            f"the streaming server cannot listen on {address}, port {port}: {error.strerror}",
            f"set {options.STREAM_PORT.field} to a free port (containerd's is 10010 where its "
            "stream_server_port says so), or 0 for any",
        )


def _answers(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX) as probe:
        try:
            probe.connect(str(path))
        except OSError:
            return False
    return True


def nearest(path: Path) -> Path:
    """The path itself, or the nearest one above it that is there."""
    return next(step for step in (path, *path.parents) if step.exists())


def locked(directory: Path) -> bool:
    """Whether a manager works on a directory now."""
    try:
        with (directory / LOCK).open() as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        pass
    return False
