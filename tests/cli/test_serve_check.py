"""`virtlet serve --check`: what it says of a start, and that it changes nothing."""

import contextlib
import fcntl
import socket
import sqlite3
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner, Result

from virtlet.cli.main import group
from virtlet.cli.serve import GRPC_EXPERIMENTS
from virtlet.core.store.migrations import VERSION
from virtlet.core.store.store import Store

USER = "nobody"


@pytest.fixture
def node() -> Iterator[Path]:
    """A directory with a short path, for sockets, that the emulator's user may pass."""
    with tempfile.TemporaryDirectory(prefix="virtlet-", dir="/var/tmp") as directory:
        Path(directory).chmod(0o711)
        yield Path(directory)


def check(node: Path, **settings: object) -> Result:
    given: Mapping[str, Any] = {
        "dataDir": str(node / "data"),
        "emulatorUser": USER,
        "emulator": "/bin/true",
        "streamPort": 0,
        **settings,
    }
    file = node / "virtlet.yaml"
    file.write_text(yaml.safe_dump(dict(given)))
    environment = {"GRPC_EXPERIMENTS": GRPC_EXPERIMENTS}
    return CliRunner(env=environment).invoke(group, ["serve", "--check", "--config", str(file)])


def tree(node: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(node)): path.read_bytes() if path.is_file() else b""
        for path in node.rglob("*")
        if path.name != "virtlet.yaml"
    }


def test_a_new_node_is_told_what_would_be_made_and_nothing_is(node: Path) -> None:
    done = check(node, handlers={"large": {"flavor": {"vcpus": 4}}})
    assert done.exit_code == 0, done.output
    assert f"note  directories: dataDir {node}/data would be made\n" in done.output
    assert f"note  database: {node}/data/virtlet.db would be made\n" in done.output
    assert "ok    handlers: would be served: '', 'large'\n" in done.output
    assert "ok    libvirt: qemu:///embed is libvirt " in done.output
    assert f"ok    sockets: would listen on {node}/data/virtlet.sock\n" in done.output
    assert "no fault in " in done.output
    assert tree(node) == {}


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"handler": {}}, "settings: {file}: unknown setting 'handler'; did you mean 'handlers'?"),
        ({"streamPort": "x"}, "settings: {file}: streamPort: 'x' is no whole number"),
        ({"handlers": {"a": {"plugins": ["gone"]}}}, "handlers: 'a' would not be served: its plug"),
        ({"plugins": {"clodinit": {}}}, "handlers: configuration: plugins: 'clodinit' is not inst"),
        ({"dataDir": "{node}/file/data"}, "directories: dataDir {node}/file/data: {node}/file is "),
        ({"dataDir": "/" + "d" * 90}, "directories: --data-dir /ddd"),
        ({"imageDir": "{node}/file/a"}, "directories: imageDir {node}/file/a: {node}/file is no "),
        ({"emulatorUser": "no-one"}, "users: --emulator-user 'no-one': there is no such user"),
        ({"emulator": "/no/qemu"}, "emulator: emulator /no/qemu: No such file or directory: inst"),
        ({"libvirtURI": "xen:///"}, "libvirt: libvirtURI 'xen:///': only qemu:///system and"),
        ({"libvirtURI": "qemu:///system?socket={node}/no"}, "libvirt: qemu:///system?socket="),
        ({"criSocketPath": "{node}/file"}, "sockets: criSocketPath {node}/file is no socket"),
        ({"streamAddress": "192.0.2.1"}, "sockets: the streaming server cannot listen on 192.0.2"),
        ({"streamTLSCert": "{node}/no"}, "sockets: --stream-tls-cert {node}/no with"),
        ({"databasePath": "{node}/file"}, "database: {node}/file cannot be "),
    ],
    ids=str,
)
def test_what_a_start_would_fail_at_is_a_fault(
    node: Path, settings: dict[str, object], says: str
) -> None:
    (node / "file").write_text("this is neither a directory nor a database nor a socket" * 20)
    before = tree(node)
    places = {"node": node, "file": node / "virtlet.yaml"}
    given = {
        key: value.format(**places) if isinstance(value, str) else value
        for key, value in settings.items()
    }
    done = check(node, **given)
    assert done.exit_code == 1
    assert f"fault {says.format(**places)}" in done.output
    assert tree(node) == before


def test_a_socket_or_port_that_somebody_serves_is_a_fault(node: Path) -> None:
    with socket.socket(socket.AF_UNIX) as taken, socket.create_server(("127.0.0.1", 0)) as port:
        taken.bind(str(node / "taken"))
        taken.listen()
        number = port.getsockname()[1]
        done = check(node, criSocketPath=str(node / "taken"), streamPort=number)
    assert f"criSocketPath {node}/taken: another process serves on it" in done.output
    assert f"cannot listen on 127.0.0.1, port {number}: Address already in use" in done.output
    assert done.exit_code == 1


def _database(node: Path, version: int) -> Path:
    path = node / "data" / "virtlet.db"
    Store(path).close()
    with contextlib.closing(sqlite3.connect(path)) as connection, connection:
        connection.execute(f"PRAGMA user_version = {version}")
    return path


def test_an_older_database_would_be_migrated_and_is_as_it_was(node: Path) -> None:
    path = _database(node, VERSION - 1)
    before = tree(node)
    done = check(node)
    assert done.exit_code == 0, done.output
    expected = f"{path}: 0 pods, 0 VMs, version {VERSION - 1}; would be migrated to {VERSION}"
    assert f"note  database: {expected}\n" in done.output
    assert tree(node) == before


def test_what_is_only_in_the_write_ahead_log_counts(node: Path) -> None:
    path = _database(node, VERSION)
    with contextlib.closing(sqlite3.connect(path)) as connection:
        connection.execute("PRAGMA user_version = 99")
        connection.commit()
        assert path.with_name("virtlet.db-wal").stat().st_size
        done = check(node)
    assert done.exit_code == 1
    assert f"fault database: {path} has schema version 99, written by a newer" in done.output


def test_a_database_of_another_data_directory_is_refused(node: Path) -> None:
    _database(node, VERSION)
    (node / "data" / "pods" / "somebodys").mkdir(parents=True)
    done = check(node)
    assert done.exit_code == 1
    assert f"fault database: the data directory {node}/data has pods or VMs of an" in done.output


def test_where_a_manager_runs_what_it_holds_is_no_fault(node: Path) -> None:
    path = _database(node, VERSION)
    with (
        (node / "data" / "lock").open("w") as lock,
        socket.socket(socket.AF_UNIX) as served,
        contextlib.closing(sqlite3.connect(path)) as connection,
    ):
        fcntl.flock(lock, fcntl.LOCK_EX)
        served.bind(str(node / "data" / "virtlet.sock"))
        served.listen()
        connection.execute("SELECT * FROM pods").fetchall()
        done = check(node)
    assert done.exit_code == 0, done.output
    assert f"dataDir {node}/data is there (a manager works on it now)\n" in done.output
    assert f"database: {path}: 0 pods, 0 VMs, version {VERSION}\n" in done.output
