"""The SQLite file: schema, migrations, and single statements.

Write-ahead log with `synchronous=NORMAL`: whatever is committed survives a killed manager. After
a power cut the last commits may be missing, and start-up removes what they had made.
"""

import json
import os
import sqlite3
import threading
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from virtlet.errors import FailedPrecondition, ResourceExhausted, Unavailable, VirtletError


def _name_nics(connection: sqlite3.Connection) -> None:
    """What a network has was called interfaces, and of one that is a tap, its name `tap`.

    Only where a network stands: labels and annotations of pods may have any keys.
    """

    def rename(network: Any) -> None:
        if network is not None:
            network["nics"] = [
                {key: item for key, item in nic.items() if key != "tap"}
                | {"kind": "tap", "device": nic["tap"]}
                for nic in network.pop("interfaces")
            ]

    def in_vm(record: Any) -> None:
        rename(record["vm"]["network"])
        if record["machine"] is not None:
            rename(record["machine"]["vm"]["network"])

    _rewrite(connection, "pods", "id", lambda record: rename(record["network"]))
    _rewrite(connection, "vms", "id", in_vm)
    _rewrite(connection, "effects", "seq", rename, "kind = 'network'")


def _neutral_machines(connection: sqlite3.Connection) -> None:
    """A console had the path that both its files begin with, a whole `<cpu>` element had a field of
    its own, and vmwrapper and the agent's socket had the names of what is behind them."""

    def change(record: Any) -> None:
        if (machine := record["machine"]) is not None:
            pipe = machine["console"]["pipe"]
            machine["console"] = {"output": f"{pipe}.out", "input": f"{pipe}.in"}
            machine["vmwrapper"] = machine.pop("emulator")
            machine["agent_socket"] = machine.pop("guest_agent")
            if cpu := machine["flavor"].pop("cpu_xml"):
                machine["flavor"]["extras"]["domain_cpu"] = cpu

    _rewrite(connection, "vms", "id", change)


def _recognising_profiles(connection: sqlite3.Connection) -> None:
    """The core itself recognised images, which is up to a plugin of the handler now; asked last."""

    def add(vm: Any) -> None:
        profile = vm["pod"]["profile"]
        if "image_formats" not in profile["plugins"]:
            profile["plugins"].insert(0, "image_formats")

    def in_vm(record: Any) -> None:
        add(record["vm"])
        if record["machine"] is not None:
            add(record["machine"]["vm"])

    _rewrite(connection, "pods", "id", add)
    _rewrite(connection, "vms", "id", in_vm)


def _kinds_of_disks(connection: sqlite3.Connection) -> None:
    """What a disk has as its kind was called its device."""

    def rename(volume: Any) -> None:
        if volume is not None and "device" in volume:
            volume["kind"] = volume.pop("device")

    def in_vm(record: Any) -> None:
        if (machine := record["machine"]) is not None:
            for volume in (machine["root"], machine["seed"], *machine["volumes"]):
                rename(volume)

    _rewrite(connection, "vms", "id", in_vm)
    _rewrite(connection, "effects", "seq", rename, "kind = 'disk'")


def _resources_in_force(connection: sqlite3.Connection) -> None:
    """What is in force was written only where it was not what had been asked for."""

    def fill(record: Any) -> None:
        record["resources"] = record.get("resources") or record["vm"]["config"]["resources"]

    _rewrite(connection, "vms", "id", fill)


def _rewrite(
    connection: sqlite3.Connection,
    table: str,
    key: str,
    change: Callable[[Any], None],
    where: str = "1",
) -> None:
    """Change the JSON documents of a table in place."""
    rows = connection.execute(
        f"SELECT {key}, record FROM {table} WHERE record IS NOT NULL AND {where}"
    ).fetchall()
    for which, text in rows:
        record = json.loads(text)
        change(record)
        new = json.dumps(record, separators=(",", ":"))
        connection.execute(f"UPDATE {table} SET record = ? WHERE {key} = ?", (new, which))


MIGRATIONS: tuple[str | Callable[[sqlite3.Connection], None], ...] = (
    """
    CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT NOT NULL);
    CREATE TABLE pods (id TEXT PRIMARY KEY, record TEXT NOT NULL);
    CREATE TABLE vms (id TEXT PRIMARY KEY, record TEXT NOT NULL);
    CREATE TABLE effects (
        seq INTEGER PRIMARY KEY AUTOINCREMENT,
        owner TEXT NOT NULL,
        kind TEXT NOT NULL,
        plugin TEXT NOT NULL,
        role TEXT NOT NULL,
        record TEXT
    );
    CREATE INDEX effects_by_owner ON effects (owner, seq);
    """,
    _name_nics,
    _neutral_machines,
    _recognising_profiles,
    _kinds_of_disks,
    _resources_in_force,
)
"""Each takes the file one version further; never edit one that was released."""


class Database:
    """One connection, used by one thread at a time."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock = threading.Lock()
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            # Pods carry user-data: nobody but us reads the file.
            os.close(os.open(path, os.O_RDWR | os.O_CREAT, 0o600))
            self._connection = sqlite3.connect(path, check_same_thread=False, isolation_level=None)
            # Closed by `close`, or at the latest when nobody has this object any more.
            weakref.finalize(self, self._connection.close)
            self._connection.execute("PRAGMA journal_mode = WAL")
            self._connection.execute("PRAGMA synchronous = NORMAL")
            self._migrate(path)
        except (OSError, sqlite3.DatabaseError) as error:
            raise FailedPrecondition(
                f"{path} cannot be used as the database ({error}): move it away or name another "
                "with --database-path"
            ) from None

    def _migrate(self, path: Path) -> None:
        version = self._connection.execute("PRAGMA user_version").fetchone()[0]
        if version > len(MIGRATIONS):
            raise FailedPrecondition(
                f"{path} has schema version {version}, written by a newer Virtlet; this one knows "
                f"{len(MIGRATIONS)}: install the newer release again"
            )
        for number, step in enumerate(MIGRATIONS[version:], version + 1):
            if callable(step):
                self._connection.execute("BEGIN IMMEDIATE")
                try:
                    step(self._connection)
                    self._connection.execute(f"PRAGMA user_version = {number}")
                    self._connection.execute("COMMIT")
                except (LookupError, TypeError, ValueError, AttributeError) as error:
                    raise FailedPrecondition(
                        f"{path} cannot be taken from version {number - 1} to {number} "
                        f"({type(error).__name__} in a record): move it away, or install the "
                        "release again that wrote it"
                    ) from error
                finally:
                    if self._connection.in_transaction:
                        self._connection.execute("ROLLBACK")
            else:
                self._connection.executescript(
                    f"BEGIN; {step}; PRAGMA user_version = {number}; COMMIT;"
                )

    @contextmanager
    def transaction(self) -> Iterator[sqlite3.Connection]:
        """A transaction: committed at the end, rolled back on an error.

        Raises:
            ResourceExhausted: the disk is full.
            Unavailable: the file cannot be read or written now.
        """
        with self._lock:
            try:
                self._connection.execute("BEGIN IMMEDIATE")
                try:
                    yield self._connection
                    self._connection.execute("COMMIT")
                finally:
                    # Some errors, and a commit that fails, leave it open; others have ended it.
                    if self._connection.in_transaction:
                        self._connection.execute("ROLLBACK")
            except sqlite3.Error as error:
                raise self._refusal(error) from error

    def _refusal(self, error: sqlite3.Error) -> VirtletError:
        if getattr(error, "sqlite_errorcode", None) == sqlite3.SQLITE_FULL:
            return ResourceExhausted(f"{self._path}: the disk is full: free some of its space")
        return Unavailable(f"the database {self._path} cannot be used now: {error}")

    def flush(self) -> None:
        """Have what is committed so far survive a power cut too.

        Raises:
            ResourceExhausted: the disk is full.
            Unavailable: the file cannot be written now.
        """
        with self._lock:
            try:
                self._connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
            except sqlite3.Error as error:
                raise self._refusal(error) from error

    def close(self) -> None:
        """Close the file."""
        with self._lock:
            self._connection.close()
