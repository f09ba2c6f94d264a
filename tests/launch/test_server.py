"""The launch server, asked as a wrapper asks it and as it should not be asked."""

import contextlib
import logging
import os
import pwd
import resource
import socket
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.polling import until
from virtlet.errors import FailedPrecondition, PluginError
from virtlet.launch.server import LaunchDoor, LaunchServer
from virtlet.model.launch import LaunchFd, LaunchPart

VM = "0123456789abcdef0123456789abcdef"


@pytest.fixture
def server(tmp_path: Path) -> Iterator[LaunchServer]:
    server = LaunchServer(tmp_path / "s", os.getuid(), os.getgid())
    server.start()
    yield server
    server.stop()


def ask(path: Path, request: bytes, *, at_once: bool = False) -> tuple[list[str], list[int]]:
    """Send a request, and say nothing more if it is to be answered at once.

    Returns:
        The records of the answer (none when there was none) and descriptors.
    """
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(5)
        client.connect(str(path))
        text, fds = b"", []
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            client.sendall(request)
            if at_once:
                client.shutdown(socket.SHUT_WR)
            while True:
                chunk, received, _, _ = socket.recv_fds(client, 65536, 253)
                fds += received
                if not chunk:
                    break
                text += chunk
    return text.decode().split("\0")[:-1], fds


def request(vm_id: str, token: str) -> bytes:
    return f"{vm_id}\0{token}\0".encode()


def refused(path: Path, request: bytes) -> str:
    """Why a request was refused."""
    records, fds = ask(path, request)
    assert not fds
    assert len(records) == 1
    assert records[0].startswith("!")
    return records[0]


def _is_open(descriptor: int) -> bool:
    try:
        os.fstat(descriptor)
    except OSError:
        return False
    return True


def _part() -> tuple[LaunchPart, int]:
    descriptor = os.open("/dev/null", os.O_RDONLY)
    return LaunchPart(arguments=("-a",), fds=(LaunchFd(name="null", fd=descriptor),)), descriptor


def test_only_the_emulators_user_reaches_the_socket(tmp_path: Path) -> None:
    """It belongs to that user and is closed to everybody else."""
    emulator, other = pwd.getpwnam("libvirt-qemu"), pwd.getpwnam("nobody")
    tmp_path.chmod(0o755)
    server = LaunchServer(tmp_path / "s", emulator.pw_uid, emulator.pw_gid)
    server.start()
    try:
        info = (tmp_path / "s").stat()
        assert (info.st_uid, info.st_gid) == (emulator.pw_uid, emulator.pw_gid)
        assert stat.S_IMODE(info.st_mode) == 0o600
        connect = f"import socket; socket.socket(socket.AF_UNIX).connect({str(tmp_path / 's')!r})"
        done = subprocess.run(
            ["/usr/bin/python3", "-IS", "-c", connect],
            user=other.pw_uid,
            group=emulator.pw_gid,
            extra_groups=[],
            capture_output=True,
            text=True,
            check=False,
        )
        assert "PermissionError" in done.stderr
    finally:
        server.stop()


def test_the_launch_is_handed_over_once_and_its_descriptors_are_let_go(
    server: LaunchServer, tmp_path: Path
) -> None:
    """The emulator has its own copies then."""
    part, descriptor = _part()
    server.arm(VM, "token", [("test", part)])
    reply, fds = ask(tmp_path / "s", request(VM, "token"))
    assert reply == ["fnull", "a-a", "."]
    assert os.readlink(f"/proc/self/fd/{fds[0]}") == "/dev/null"
    os.close(fds[0])
    until(lambda: not _is_open(descriptor))
    assert "no longer" in refused(tmp_path / "s", request(VM, "token"))


def test_a_wrong_token_or_vm_gets_nothing_and_uses_nothing_up(
    server: LaunchServer, tmp_path: Path
) -> None:
    """The answer does not tell which of the two was wrong."""
    part, descriptor = _part()
    server.arm(VM, "token", [("test", part)])
    one = refused(tmp_path / "s", request(VM, "tokem"))
    two = refused(tmp_path / "s", request("f" * 32, "token"))
    assert one == two
    assert _is_open(descriptor)
    reply, fds = ask(tmp_path / "s", request(VM, "token"))
    assert "a-a" in reply
    for received in fds:
        os.close(received)


def test_disarming_closes_the_descriptors_and_is_idempotent(
    server: LaunchServer, tmp_path: Path
) -> None:
    """A start that failed before the wrapper came leaks nothing."""
    part, descriptor = _part()
    server.arm(VM, "token", [("test", part)])
    server.disarm(VM)
    server.disarm(VM)
    assert not _is_open(descriptor)
    refused(tmp_path / "s", request(VM, "token"))


def test_arming_again_drops_the_older_launch(server: LaunchServer) -> None:
    """The last one counts."""
    part, descriptor = _part()
    server.arm(VM, "token", [("test", part)])
    server.arm(VM, "token2", [])
    assert not _is_open(descriptor)


def test_stopping_drops_every_launch_and_the_socket(tmp_path: Path) -> None:
    """It can be stopped twice, and started again at the same place."""
    server = LaunchServer(tmp_path / "s", os.getuid(), os.getgid())
    server.start()
    part, descriptor = _part()
    server.arm(VM, "token", [("test", part)])
    server.stop()
    server.stop()
    assert not _is_open(descriptor)
    assert not (tmp_path / "s").exists()
    server.start()
    server.stop()


def test_a_socket_left_by_a_dead_manager_is_replaced(tmp_path: Path) -> None:
    """SIGKILL leaves it behind."""
    with socket.socket(socket.AF_UNIX) as stale:
        stale.bind(str(tmp_path / "s"))
    server = LaunchServer(tmp_path / "s", os.getuid(), os.getgid())
    server.start()
    refused(tmp_path / "s", request(VM, "x"))
    server.stop()


def test_a_socket_that_cannot_be_made_is_a_clear_error(tmp_path: Path) -> None:
    """It names the path and the setting."""
    server = LaunchServer(tmp_path / "no" / "such" / "place", os.getuid(), os.getgid())
    with pytest.raises(FailedPrecondition, match=r"place.*fdServerSocketPath"):
        server.start()


def test_parts_that_clash_are_told_when_arming(server: LaunchServer) -> None:
    """Before anything is started."""
    parts = [("one", LaunchPart(emulator=Path("/a"))), ("two", LaunchPart(emulator=Path("/b")))]
    with pytest.raises(PluginError, match="one and two"):
        server.arm(VM, "token", parts)


def test_a_peer_that_cannot_join_its_cgroups_gets_no_launch(
    server: LaunchServer, tmp_path: Path
) -> None:
    """It is told which, and the setting; its descriptors are let go."""
    part, descriptor = _part()
    missing = tmp_path / "missing"
    server.arm(VM, "token", [("test", part), ("core", LaunchPart(cgroups=(missing,)))])
    why = refused(tmp_path / "s", request(VM, "token"))
    assert f"{missing} (No such file or directory)" in why
    assert "set vmCgroup to optional" in why
    deadline = time.monotonic() + 30
    while _is_open(descriptor) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not _is_open(descriptor)


def test_the_peer_is_put_into_the_cgroups_before_it_is_answered(
    server: LaunchServer, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Where that is optional, those it cannot join are logged and do not stop it."""
    server.cgroup_required = False
    group = tmp_path / "group"
    group.mkdir()
    (group / "cgroup.procs").touch()
    missing = tmp_path / "missing"
    server.arm(VM, "token", [("test", LaunchPart(cgroups=(group, missing)))])
    with caplog.at_level(logging.WARNING):
        reply, _ = ask(tmp_path / "s", request(VM, "token"))
    assert reply == ["."]
    assert (group / "cgroup.procs").read_text() == f"{os.getpid()}\n"
    assert [r.path for r in caplog.records if hasattr(r, "path")] == [str(missing)]


@pytest.mark.parametrize(
    "text",
    [b"\0\0\0", b"hello\0", b"", b"\xff\xfe\0x\0", b"x" * 10000, b"x\0y\0z\0"],
)
def test_nonsense_gets_no_answer_and_harms_nobody(
    server: LaunchServer, tmp_path: Path, text: bytes
) -> None:
    """The next wrapper is served."""
    assert ask(tmp_path / "s", text, at_once=True)[0] == []
    server.arm(VM, "token", [])
    assert ask(tmp_path / "s", request(VM, "token"))[0] == ["."]


def test_silent_peers_hold_up_nobody(server: LaunchServer, tmp_path: Path) -> None:
    """Any emulator may connect and say nothing."""
    idle = []
    for _ in range(30):
        client = socket.socket(socket.AF_UNIX)
        client.connect(str(tmp_path / "s"))
        idle.append(client)
    server.arm(VM, "token", [])
    before = time.monotonic()
    assert ask(tmp_path / "s", request(VM, "token"))[0] == ["."]
    assert time.monotonic() - before < 8, "each is waited for for ten seconds otherwise"
    for client in idle:
        client.close()


def test_a_vm_with_a_user_of_its_own_has_a_socket_of_its_own(
    server: LaunchServer, tmp_path: Path
) -> None:
    """As long as it is armed; its launch is to be had nowhere else."""
    door = LaunchDoor(tmp_path / "own", os.getuid(), os.getgid())
    server.arm(VM, "token", [], door)
    assert stat.S_IMODE(door.path.stat().st_mode) == 0o600
    assert "no launch waits" in refused(tmp_path / "s", request(VM, "token"))
    assert ask(door.path, request(VM, "token"))[0] == ["."]
    assert "no longer" in refused(door.path, request(VM, "token"))
    server.disarm(VM)
    assert not door.path.exists()
    server.arm(VM, "token", [], door)
    server.stop()
    assert not door.path.exists()


def test_a_socket_of_one_vm_serves_its_user_alone(server: LaunchServer, tmp_path: Path) -> None:
    """Neither root, which gets through to every socket, nor the launch of another VM."""
    door = LaunchDoor(tmp_path / "own", 2_000_000_000, 2_000_000_001)
    server.arm(VM, "token", [], door)
    info = door.path.stat()
    assert (info.st_uid, info.st_gid) == (door.uid, door.gid)
    assert f"user {os.getuid()} is not" in refused(door.path, request(VM, "token"))
    other = "f" * 32
    server.arm(other, "token", [], LaunchDoor(tmp_path / "other", os.getuid(), os.getgid()))
    assert "no launch waits" in refused(tmp_path / "other", request(VM, "token"))
    assert ask(tmp_path / "other", request(other, "token"))[0] == ["."]


def test_peers_of_one_vm_hold_up_no_other(server: LaunchServer, tmp_path: Path) -> None:
    """However many there are, and although they say nothing."""
    doors = [LaunchDoor(tmp_path / name, os.getuid(), os.getgid()) for name in ("one", "two")]
    for number, door in enumerate(doors):
        server.arm(str(number) * 32, "token", [], door)
    with contextlib.ExitStack() as clients:
        for _ in range(100):
            client = clients.enter_context(socket.socket(socket.AF_UNIX))
            client.connect(str(doors[0].path))
        assert ask(doors[1].path, request("1" * 32, "token"))[0] == ["."]
        # Of its own, four are served at a time.
        client = clients.enter_context(socket.socket(socket.AF_UNIX))
        client.settimeout(30)
        client.connect(str(doors[0].path))
        assert client.recv(1) == b""


def test_a_killed_wrapper_costs_the_launch_only(server: LaunchServer, tmp_path: Path) -> None:
    """It asked and went: the descriptors are closed, the next launch works."""
    part, descriptor = _part()
    server.arm(VM, "token", [("test", part)])
    code = (
        "import os, signal, socket; s = socket.socket(socket.AF_UNIX); "
        f"s.connect({str(tmp_path / 's')!r}); s.sendall({request(VM, 'token')!r}); "
        "os.kill(os.getpid(), signal.SIGKILL)"
    )
    subprocess.run([sys.executable, "-IS", "-c", code], check=False)
    until(lambda: not _is_open(descriptor))
    server.arm(VM, "token", [])
    assert ask(tmp_path / "s", request(VM, "token"))[0] == ["."]


def test_a_manager_out_of_descriptors_serves_again_once_it_has_some(
    server: LaunchServer, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The wrapper that came meanwhile is not lost."""
    server.arm(VM, "token", [])
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(30)
        lowest_free = os.dup(client.fileno())
        os.close(lowest_free)
        resource.setrlimit(resource.RLIMIT_NOFILE, (lowest_free, before[1]))
        try:
            client.connect(str(tmp_path / "s"))
            until(lambda: "launches wait" in caplog.text)
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, before)
        client.sendall(request(VM, "token"))
        assert client.recv(100) == b".\0"


def test_a_manager_out_of_threads_lets_go_of_the_peer_and_serves_the_next(
    server: LaunchServer, tmp_path: Path
) -> None:
    """However many came meanwhile."""
    before = threading.stack_size(1 << 50)  # more than there is address space
    try:
        for _ in range(65):
            assert ask(tmp_path / "s", request(VM, "token")) == ([], [])
    finally:
        threading.stack_size(before)
    server.arm(VM, "token", [])
    assert ask(tmp_path / "s", request(VM, "token"))[0] == ["."]
