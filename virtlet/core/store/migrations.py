"""How a database of an earlier release becomes one of today: the one table of its versions.

The file has the version of its tables, and every row the version of its JSON document.
"""

import json
import sqlite3
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

from attrs import frozen

from virtlet.errors import FailedPrecondition

Change = Callable[[Any], None]
"""Changes a JSON document in place."""


@frozen
class Migration:
    """What takes a database and the documents in it one version further."""

    tables: str = ""
    """SQL statements. All migrations' are run before documents are changed."""
    pod: Change | None = None
    """For every document of a pod."""
    vm: Change | None = None
    """For every document of a VM."""
    effects: Mapping[str, Change] = MappingProxyType({})
    """For the record of every effect of a kind."""


def _name_nics(network: Any) -> None:
    """What a network has was called interfaces, and of one that is a tap, its name `tap`.

    Only where a network stands: labels and annotations of pods may have any keys.
    """
    if network is not None:
        network["nics"] = [
            {key: item for key, item in nic.items() if key != "tap"}
            | {"kind": "tap", "device": nic["tap"]}
            for nic in network.pop("interfaces")
        ]


def _name_nics_of_vm(record: Any) -> None:
    _name_nics(record["vm"]["network"])
    if record["machine"] is not None:
        _name_nics(record["machine"]["vm"]["network"])


def _neutral_machine(record: Any) -> None:
    """A console had the path that both its files begin with, a whole `<cpu>` element had a field of
    its own, and vmwrapper and the agent's socket had the names of what is behind them."""
    if (machine := record["machine"]) is not None:
        pipe = machine["console"]["pipe"]
        machine["console"] = {"output": f"{pipe}.out", "input": f"{pipe}.in"}
        machine["vmwrapper"] = machine.pop("emulator")
        machine["agent_socket"] = machine.pop("guest_agent")
        if cpu := machine["flavor"].pop("cpu_xml"):
            machine["flavor"]["extras"]["domain_cpu"] = cpu


def _recognising_profile(record: Any) -> None:
    """The core itself recognised images, which is up to a plugin of the handler now; asked last."""
    plugins = record["pod"]["profile"]["plugins"]
    if "image_formats" not in plugins:
        plugins.insert(0, "image_formats")


def _recognising_profile_of_vm(record: Any) -> None:
    _recognising_profile(record["vm"])
    if record["machine"] is not None:
        _recognising_profile(record["machine"]["vm"])


def _kind_of_disk(volume: Any) -> None:
    """What a disk has as its kind was called its device."""
    if volume is not None and "device" in volume:
        volume["kind"] = volume.pop("device")


def _kinds_of_disks(record: Any) -> None:
    if (machine := record["machine"]) is not None:
        for volume in (machine["root"], machine["seed"], *machine["volumes"]):
            _kind_of_disk(volume)


def _resources_in_force(record: Any) -> None:
    """What is in force was written only where it was not what had been asked for."""
    record["resources"] = record.get("resources") or record["vm"]["config"]["resources"]


def _refer(record: Any) -> None:
    """A VM had copies of its pod and the pod's network, and its machine one of all that."""
    del record["vm"]["pod"], record["vm"]["network"]
    if (machine := record["machine"]) is not None:
        machine["resources"] = machine.pop("vm")["config"]["resources"]


def _resizing_in_journal(record: Any) -> None:
    """What control groups had held before a resize is a row of the journal now."""
    record["resizing"] = (record.get("resizing") or {}).get("change")


def _users(record: Any) -> None:
    """Every VM had the node's one user for emulators."""
    record["vm"] |= {"uid": None, "gid": None}


MIGRATIONS: tuple[Migration, ...] = (
    Migration(
        tables="""
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
        """
    ),
    Migration(
        pod=lambda record: _name_nics(record["network"]),
        vm=_name_nics_of_vm,
        effects={"network": _name_nics},
    ),
    Migration(vm=_neutral_machine),
    Migration(pod=_recognising_profile, vm=_recognising_profile_of_vm),
    Migration(vm=_kinds_of_disks, effects={"disk": _kind_of_disk}),
    Migration(vm=_resources_in_force),
    Migration(
        tables="""
            ALTER TABLE pods RENAME TO old_pods;
            ALTER TABLE vms RENAME TO old_vms;
            CREATE TABLE pods (
                id TEXT PRIMARY KEY,
                version INTEGER NOT NULL,
                record TEXT NOT NULL
            );
            CREATE TABLE vms (
                id TEXT PRIMARY KEY,
                pod TEXT NOT NULL REFERENCES pods (id),
                version INTEGER NOT NULL,
                record TEXT NOT NULL
            );
            INSERT INTO pods SELECT id, user_version, record FROM old_pods, pragma_user_version;
            INSERT INTO vms
                SELECT id, coalesce(json_extract(record, '$.vm.pod.id'), ''), user_version, record
                FROM old_vms, pragma_user_version;
            DROP TABLE old_pods;
            DROP TABLE old_vms;
            ALTER TABLE effects ADD COLUMN version INTEGER NOT NULL DEFAULT 0;
            UPDATE effects SET version = (SELECT user_version FROM pragma_user_version)
        """,
        vm=_refer,
    ),
    Migration(
        tables="""
            INSERT INTO effects (owner, kind, plugin, role, version, record)
                SELECT id, 'resize-limits', 'core', '', 8, json_extract(record, '$.resizing.limits')
                FROM vms WHERE json_extract(record, '$.resizing.limits') IS NOT NULL;
            INSERT INTO effects (owner, kind, plugin, role, version)
                SELECT id, 'resize-definition', json_extract(record, '$.hypervisor'), '', 8
                FROM vms WHERE json_extract(record, '$.resizing.limits') IS NOT NULL
        """,
        vm=_resizing_in_journal,
    ),
    Migration(vm=_users),
)
"""Each takes file and documents one version further; never edit one that was released."""

VERSION = len(MIGRATIONS)
"""Of the tables and of every document that is written."""


def migrate(connection: sqlite3.Connection, path: Path) -> None:
    """Make a database of an earlier release, or an empty file, one of today's, whole or not at all.

    Args:
        connection: to the file, without foreign keys enforced.
        path: the file's, for messages.

    Raises:
        FailedPrecondition: a newer release wrote it, or a document is not what it should be.
    """
    connection.execute("BEGIN IMMEDIATE")
    try:
        (version,) = connection.execute("PRAGMA user_version").fetchone()
        _refuse_newer(path, version)
        for migration in MIGRATIONS[version:]:
            for statement in migration.tables.split(";"):
                connection.execute(statement)
        _change_documents(connection, path, "pods", "id", "''", lambda step, _: step.pod)
        _change_documents(connection, path, "vms", "id", "''", lambda step, _: step.vm)
        _change_documents(
            connection, path, "effects", "seq", "kind", lambda step, kind: step.effects.get(kind)
        )
        if version < VERSION:
            _refuse_lost_vms(connection, path)
            connection.execute(f"PRAGMA user_version = {VERSION}")
        connection.execute("COMMIT")
    finally:
        if connection.in_transaction:
            connection.execute("ROLLBACK")


def _change_documents(
    connection: sqlite3.Connection,
    path: Path,
    table: str,
    key: str,
    kind: str,
    change_of: Callable[[Migration, str], Change | None],
) -> None:
    """Take the documents of a table that are of another version to today's."""
    rows = connection.execute(
        f"SELECT {key}, {kind}, version, record FROM {table} WHERE version != {VERSION}"
    ).fetchall()
    for which, kind_of_row, version, text in rows:
        _refuse_newer(path, version)
        number = version
        try:
            record = json.loads(text or "null")
            for number in range(version, VERSION):
                change = change_of(MIGRATIONS[number], kind_of_row)
                if change is not None and record is not None:
                    change(record)
        except (LookupError, TypeError, ValueError, AttributeError) as error:
            raise FailedPrecondition(
                f"{path} cannot be taken from version {number} to {number + 1} "
                f"({type(error).__name__} in a record): move it away, or install the release "
                "again that wrote it"
            ) from error
        new = None if record is None else json.dumps(record, separators=(",", ":"))
        connection.execute(
            f"UPDATE {table} SET version = {VERSION}, record = ? WHERE {key} = ?", (new, which)
        )


def _refuse_newer(path: Path, version: int) -> None:
    if version > VERSION:
        raise FailedPrecondition(
            f"{path} has schema version {version}, written by a newer Virtlet; this one knows "
            f"{VERSION}: install the newer release again, or, if the VMs in it are known to be "
            f"gone, move {path} away"
        )


def _refuse_lost_vms(connection: sqlite3.Connection, path: Path) -> None:
    if connection.execute("PRAGMA foreign_key_check").fetchone():
        raise FailedPrecondition(
            f"{path} has a VM whose pod it does not have: if its VMs are known to be gone, move "
            f"{path} away"
        )
