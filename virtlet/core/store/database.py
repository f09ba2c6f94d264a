"""The SQLite file: opened, migrated, and single statements.

Write-ahead log with `synchronous=NORMAL`: whatever is committed survives a killed manager. After
a power cut the last commits may be missing, and start-up removes what they had made.
"""

import os
import sqlite3
import threading
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from virtlet.core.store.migrations import migrate
from virtlet.errors import FailedPrecondition, ResourceExhausted, Unavailable, VirtletError


class Database:
    """One connection, used by one thread at a time."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock = threading.Lock()
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            # Pods carry user-data: only root reads the file.
            os.close(os.open(path, os.O_RDWR | os.O_CREAT, 0o600))
            self._connection = sqlite3.connect(path, check_same_thread=False, isolation_level=None)
            # Closes the file, too, if the object is collected without `close`.
            weakref.finalize(self, self._connection.close)
            self._connection.execute("PRAGMA journal_mode = WAL")
            self._connection.execute("PRAGMA synchronous = NORMAL")
            # A secret is gone with its row.
            self._connection.execute("PRAGMA secure_delete = ON")
            migrate(self._connection, path)
            # Only now, as a migration may make a table again that others refer to.
            self._connection.execute("PRAGMA foreign_keys = ON")
        except (OSError, sqlite3.DatabaseError) as error:
            raise FailedPrecondition(
                f"{path} cannot be used as the database ({error}): move it away or name another "
                "with --database-path"
            ) from None

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
                    # A failed commit and some errors leave the transaction open.
                    if self._connection.in_transaction:
                        self._connection.execute("ROLLBACK")
            except sqlite3.Error as error:
                raise self._refusal(error) from error

    def _refusal(self, error: sqlite3.Error) -> VirtletError:
        if getattr(error, "sqlite_errorcode", None) == sqlite3.SQLITE_FULL:
            return ResourceExhausted(f"{self._path}: the disk is full: free some of its space")
        return Unavailable(f"the database {self._path} cannot be used now: {error}")

    def flush(self) -> None:
        """Sync what is committed to the disk, so that it survives a power cut.

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
