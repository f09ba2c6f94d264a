"""virtiofsd, which is root: what it keeps, and what one that its guest took over reaches."""

import ctypes
import errno
import json
import os
import socket
import stat
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from attrs import evolve, frozen

from tests.core.lifecycle.test_backends import programs
from tests.fakes.manager import Manager, Node
from tests.fakes.models import machine as make_machine
from tests.polling import until
from virtlet.model.disk import Share
from virtlet.plugins.volumes import virtiofs

NEWNS = 0x00020000  # <linux/sched.h>
OPEN_BY_HANDLE_AT = 304 if os.uname().machine == "x86_64" else 265
SERVING = "00000000000000db"
"""chown, dac_override, fowner, fsetid, setgid and setuid, in <linux/capability.h>."""
_libc = ctypes.CDLL(None, use_errno=True)


@frozen
class Served:
    """A share, and the process that serves it."""

    directory: Path
    pid: int
    socket: Path

    def status(self) -> dict[str, str]:
        lines = Path(f"/proc/{self.pid}/status").read_text().splitlines()
        return {name: value.strip() for name, _, value in (line.partition(":") for line in lines)}


@pytest.fixture
def served(tmp_path: Path) -> Iterator[Served]:
    """A writable share with one file, served by the program that the plugin describes."""
    directory = tmp_path / "share"
    directory.mkdir()
    (directory / "file").write_text("of the share")
    (directory / "link").symlink_to("/etc/hostname")
    share = Share(host_path=directory, guest_path="/data", tag="volume-0", driver="virtiofs")
    machine = make_machine(tmp_path)
    (backend,) = virtiofs.launch_part(evolve(machine, volumes=(share,))).backends
    node = Node(tmp_path / "node")
    node.root.mkdir()
    node.backends = (evolve(backend, socket=tmp_path / "fs"),)
    manager = Manager(node)
    vm_id = manager.create(manager.run())
    manager.start(vm_id)
    # The first one waits for the second, which is in the sandbox.
    until(lambda: bool(_inner(programs(vm_id))), "the sandbox", ignore=(OSError,))
    (inner,) = _inner(programs(vm_id))
    found = Served(directory, inner, tmp_path / "fs")
    yield found
    manager.stop(vm_id)
    assert programs(vm_id) == []
    manager.close()


def _inner(pids: list[int]) -> list[int]:
    """The one that another one has started, once it is all in its sandbox."""
    texts = {pid: Path(f"/proc/{pid}/status").read_text() for pid in pids}
    return [p for p, text in texts.items() if "Seccomp:\t2" in text]


def test_it_keeps_what_serving_files_of_several_owners_takes(served: Served) -> None:
    # It gives up its last capability some moments after its filter is in force.
    until(lambda: served.status()["CapPrm"] == SERVING, "it has what serving takes")
    status = served.status()
    assert (status["CapPrm"], status["CapEff"]) == (SERVING, SERVING)
    assert (status["CapInh"], status["CapBnd"], status["CapAmb"]) == ("0" * 16,) * 3
    assert (status["NoNewPrivs"], status["Seccomp"], status["Groups"]) == ("1", "2", "")
    for kind in ("mnt", "pid", "net", "ipc"):
        assert os.readlink(f"/proc/{served.pid}/ns/{kind}") != os.readlink(f"/proc/self/ns/{kind}")


def test_none_of_its_descriptors_leads_out_of_the_share(served: Served) -> None:
    """Neither a directory of the node nor any of its own, from which `..` would go on."""
    descriptors = Path(f"/proc/{served.pid}/fd")
    for path in descriptors.iterdir():
        if path.is_dir():
            names = set(os.listdir(path / "../../../.."))
            assert names <= {"file", "link"} or all(name.isdecimal() for name in names)
    files = {os.readlink(path) for path in descriptors.iterdir() if path.is_file()}
    assert {Path(file).name.split()[0] for file in files} <= {"memfd:output", "mountinfo"}


def _inside(pid: int, attack: Callable[[], object]) -> dict[str, object]:
    """What code finds in the root of a process, with the capabilities that it serves with."""
    reader, writer = os.pipe()
    child = os.fork()
    if not child:
        namespace = os.open(f"/proc/{pid}/ns/mnt", os.O_RDONLY)
        _libc.setns(namespace, NEWNS)
        # struct __user_cap_header_struct, version 3, and data of its two words.
        header = (ctypes.c_uint32 * 2)(0x20080522, 0)
        bits = int(SERVING, 16)
        data = (ctypes.c_uint32 * 6)(bits, bits, 0, 0, 0, 0)
        _libc.capset(header, data)
        os.write(writer, json.dumps(attack()).encode())
        os._exit(0)
    os.close(writer)
    with os.fdopen(reader, "rb") as answer:
        found = json.loads(answer.read())
    os.waitpid(child, 0)
    assert isinstance(found, dict)
    return found


def _errno(call: Callable[[], object]) -> int:
    try:
        call()
    except OSError as error:
        return error.errno or -1
    return 0


def test_one_that_its_guest_took_over_reaches_nothing_but_the_share(served: Served) -> None:
    handle = (ctypes.c_uint8 * 136)()
    ctypes.memmove(handle, (ctypes.c_uint32 * 2)(128, 1), 8)

    def attack() -> dict[str, object]:
        root = os.open("/", os.O_RDONLY | os.O_DIRECTORY)
        ctypes.set_errno(0)
        _libc.syscall(OPEN_BY_HANDLE_AT, root, handle, os.O_RDONLY)
        return {
            "root": sorted(os.listdir("/")),
            "above": sorted(os.listdir("/../../..")),
            "by a link": _errno(lambda: os.open("/link", os.O_RDONLY)),
            "a device": _errno(lambda: os.mknod("/disk", stat.S_IFBLK | 0o600, os.makedev(7, 0))),
            "a handle": ctypes.get_errno(),
            "a mount": 0 if _libc.mount(b"none", b"/", b"tmpfs", 0, None) == 0 else 1,
            "another root": _errno(lambda: os.chroot("/")),
            "owner": _errno(lambda: os.chown("/file", 1234, 1234)),
        }

    assert _inside(served.pid, attack) == {
        "root": ["file", "link"],
        "above": ["file", "link"],
        "by a link": errno.ENOENT,
        "a device": errno.EPERM,
        "a handle": errno.EPERM,
        "a mount": 1,
        "another root": errno.EPERM,
        "owner": 0,
    }
    assert (served.directory / "file").stat().st_uid == 1234


def test_nonsense_on_its_socket_ends_it_and_nothing_else(served: Served) -> None:
    """A guest that took its emulator over speaks to it as it likes."""
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(str(served.socket))
        client.sendall(os.urandom(1 << 16))
        client.shutdown(socket.SHUT_WR)
        until(lambda: not Path(f"/proc/{served.pid}").exists(), "its end")
    assert (served.directory / "file").read_text() == "of the share"


def test_a_read_only_share_is_served_so(tmp_path: Path) -> None:
    share = Share(
        host_path=tmp_path, guest_path="/d", tag="volume-0", driver="virtiofs", readonly=True
    )
    part = virtiofs.launch_part(evolve(make_machine(tmp_path), volumes=(share,)))
    assert "--readonly" in part.backends[0].argv
    (socket_of_it,) = part.visible
    assert socket_of_it.path == part.backends[0].socket


def test_its_options_are_those_of_the_program_that_is_installed() -> None:
    said = subprocess.run([virtiofs.program(), "--help"], capture_output=True, text=True).stdout
    for option in ("--fd", "--modcaps", "--inode-file-handles", "--rlimit-nofile", "--readonly"):
        assert option in said
