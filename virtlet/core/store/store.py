"""The store: every read is answered from memory, every write reaches the file first."""

import secrets
import threading
from collections.abc import Callable, Collection, Mapping
from itertools import chain
from pathlib import Path
from types import MappingProxyType
from typing import Any

from virtlet.core.store.database import Database
from virtlet.core.store.migrations import VERSION
from virtlet.core.store.records import (
    EffectRow,
    PodRecord,
    VmRecord,
    decode,
    decode_vm,
    encode,
    encode_vm,
)
from virtlet.errors import NotFound
from virtlet.model.pod import PodMetadata


class Store:
    """Pods, VMs and effects of this manager. Thread-safe; reads never wait for writes.

    A write raises ResourceExhausted when the disk is full, Unavailable when the file cannot be
    written for another reason; nothing has changed then.

    Raises:
        FailedPrecondition: the database file cannot be used.
    """

    def __init__(self, path: Path) -> None:
        self._database = Database(path)
        self._lock = threading.RLock()
        with self._database.transaction() as tx:
            pods = [decode(text, PodRecord) for (text,) in tx.execute("SELECT record FROM pods")]
            by_id = {record.pod.id: record for record in pods}
            rows = tx.execute("SELECT pod, record FROM vms")
            vms = [decode_vm(text, by_id[pod_id]) for pod_id, text in rows]
            tx.execute("INSERT OR IGNORE INTO meta VALUES ('instance', ?)", (secrets.token_hex(8),))
            row = tx.execute("SELECT value FROM meta WHERE key = 'instance'").fetchone()
        self.instance: str = row[0]
        """Tells this manager's domains from those of others."""
        # Replaced as a whole on every write, so that readers iterate without a lock.
        self._pods = {r.pod.id: r for r in sorted(pods, key=lambda r: r.pod.created_at)}
        self._vms = {r.vm.id: r for r in sorted(vms, key=lambda r: r.vm.created_at)}
        self.version = 0
        """Grows with every change of a pod or VM."""

    # Pods and VMs

    @property
    def pods(self) -> Mapping[str, PodRecord]:
        """All pods by id, oldest first: a snapshot."""
        return MappingProxyType(self._pods)

    @property
    def vms(self) -> Mapping[str, VmRecord]:
        """All VMs by id, oldest first: a snapshot."""
        return MappingProxyType(self._vms)

    def known_pod(self, pod_id: str) -> PodRecord:
        """A pod that the kubelet may know of.

        Raises:
            NotFound: there is none.
        """
        record = self._pods.get(pod_id)
        if record is None or not record.visible:
            raise NotFound(f"there is no pod sandbox {pod_id}")
        return record

    def known_vm(self, vm_id: str) -> VmRecord:
        """A VM that the kubelet may know of.

        Raises:
            NotFound: there is none.
        """
        record = self._vms.get(vm_id)
        if record is None or not record.visible:
            raise NotFound(f"there is no container {vm_id}")
        return record

    def pod_of(self, metadata: PodMetadata) -> PodRecord | None:
        """The pod with this metadata."""
        for record in self._pods.values():
            if record.pod.config.metadata == metadata:
                return record
        return None

    def vms_of(self, pod_id: str) -> list[VmRecord]:
        """The VMs of a pod, oldest first."""
        return [r for r in self._vms.values() if r.vm.pod.id == pod_id]

    def put_pod(self, record: PodRecord) -> None:
        """Insert or replace a pod."""
        with self._lock:
            with self._database.transaction() as tx:
                tx.execute(
                    "INSERT INTO pods (id, version, record) VALUES (?, ?, ?) "
                    "ON CONFLICT (id) DO UPDATE SET record = excluded.record",
                    (record.pod.id, VERSION, encode(record, PodRecord)),
                )
            self._pods = {**self._pods, record.pod.id: record}
            self.version += 1

    def put_vm(self, record: VmRecord, struck_out: Collection[str] = ()) -> None:
        """Insert or replace a VM; its pod is stored.

        Args:
            record: the VM.
            struck_out: kinds of effects of it that are not to be undone any more.
        """
        with self._lock:
            with self._database.transaction() as tx:
                tx.execute(
                    "INSERT INTO vms (id, pod, version, record) VALUES (?, ?, ?, ?) "
                    "ON CONFLICT (id) DO UPDATE SET record = excluded.record",
                    (record.vm.id, record.vm.pod.id, VERSION, encode_vm(record)),
                )
                for kind in struck_out:
                    tx.execute(
                        "DELETE FROM effects WHERE owner = ? AND kind = ?", (record.vm.id, kind)
                    )
            self._vms = {**self._vms, record.vm.id: record}
            self.version += 1

    def change_vm(
        self,
        vm_id: str,
        change: Callable[[VmRecord], VmRecord | None],
        struck_out: Collection[str] = (),
    ) -> VmRecord | None:
        """Change a VM in one step; do nothing if it is gone or `change` returns None.

        Args:
            vm_id: which VM.
            change: makes the new record of the present one.
            struck_out: kinds of effects of it that are not to be undone any more.

        Returns:
            The new record, or None when nothing changed.
        """
        with self._lock:
            record = self._vms.get(vm_id)
            new = change(record) if record else None
            if new is not None:
                self.put_vm(new, struck_out)
            return new

    def delete_pod(self, pod_id: str) -> None:
        """Forget a pod; its effects must be undone by then."""
        with self._lock:
            with self._database.transaction() as tx:
                tx.execute("DELETE FROM pods WHERE id = ?", (pod_id,))
            self._pods = {k: v for k, v in self._pods.items() if k != pod_id}
            self.version += 1

    def delete_vm(self, vm_id: str) -> None:
        """Forget a VM; its effects must be undone by then."""
        with self._lock:
            with self._database.transaction() as tx:
                tx.execute("DELETE FROM vms WHERE id = ?", (vm_id,))
            self._vms = {k: v for k, v in self._vms.items() if k != vm_id}
            self.version += 1

    def next_user(self, ids: range, is_taken: Callable[[int], bool]) -> int | None:
        """The first id behind the one that was given last, in a circle; it is given with that.

        Args:
            ids: the circle.
            is_taken: whether an id is to be left out.

        Returns:
            The id; None when all are taken.
        """
        with self._lock, self._database.transaction() as tx:
            row = tx.execute("SELECT value FROM meta WHERE key = 'last-user'").fetchone()
            last = int(row[0]) if row else -1
            start = ids.index(last) + 1 if last in ids else 0
            circle = chain(ids[start:], ids[:start])
            number = next((number for number in circle if not is_taken(number)), None)
            if number is not None:
                tx.execute("INSERT OR REPLACE INTO meta VALUES ('last-user', ?)", (str(number),))
            return number

    # Effects

    def intend(
        self, owner: str, kind: str, plugin: str, role: str, record: str | None = None
    ) -> int:
        """Store the intent of an effect, with its record if that is known already.

        Returns:
            Its sequence number.
        """
        with self._database.transaction() as tx:
            cursor = tx.execute(
                "INSERT INTO effects (owner, kind, plugin, role, version, record) "
                "VALUES (?, ?, ?, ?, ?, ?)",
                (owner, kind, plugin, role, VERSION, record),
            )
        assert cursor.lastrowid is not None
        return cursor.lastrowid

    def record(self, seq: int, value: Any, kind: Any) -> None:
        """Store what an effect returned."""
        with self._database.transaction() as tx:
            tx.execute("UPDATE effects SET record = ? WHERE seq = ?", (encode(value, kind), seq))

    def forget(self, seq: int) -> None:
        """Delete an effect that was undone or declined."""
        with self._database.transaction() as tx:
            tx.execute("DELETE FROM effects WHERE seq = ?", (seq,))

    def effects(self, owner: str) -> list[EffectRow]:
        """Effects of a pod or VM, oldest first."""
        with self._database.transaction() as tx:
            rows = tx.execute(
                "SELECT seq, owner, kind, plugin, role, record FROM effects "
                "WHERE owner = ? ORDER BY seq",
                (owner,),
            ).fetchall()
        return [EffectRow(*row) for row in rows]

    def open_effects(self) -> int:
        """How many effects have an intent and no record."""
        with self._database.transaction() as tx:
            row = tx.execute("SELECT count(*) FROM effects WHERE record IS NULL").fetchone()
        count: int = row[0]
        return count

    def flush(self) -> None:
        """Sync what was written to the disk, so that it survives a power cut."""
        self._database.flush()

    def close(self) -> None:
        """Close the file."""
        self._database.close()
