"""Programs that serve a VM's devices: with the VM they come and go, and their loss is told."""

import errno
import os
import re
import signal
import socket
import stat
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from attrs import evolve

from tests.core.lifecycle.conftest import Managers
from tests.fakes.manager import Killed, Manager, Node
from tests.polling import until
from virtlet.core.lifecycle.backend_watch import BackendWatch
from virtlet.core.lifecycle.backends import MARK, mounted_shares, set_score
from virtlet.core.store.records import VmPhase, VmRecord
from virtlet.errors import FailedPrecondition
from virtlet.host.processes import environment
from virtlet.model.event import EventKind
from virtlet.model.launch import Backend
from virtlet.model.vm import VmExit

SERVES = "import socket, time\nlistener = socket.socket(fileno={socket})\ntime.sleep(600)"
DONE = VmExit(exit_code=0, reason="Completed")


def programs(vm_id: str) -> list[int]:
    """The processes of all programs that serve a VM."""
    mark = f"{MARK}={vm_id}/".encode()
    pids = [int(name) for name in os.listdir("/proc") if name.isdecimal()]
    return [pid for pid in pids if any(text.startswith(mark) for text in environment(pid))]


def running(vm_id: str, name: str = "python") -> int:
    """The process of a VM's only program, once it is what it is to become."""

    def found() -> int:
        (pid,) = programs(vm_id)
        return pid if name in Path(f"/proc/{pid}/comm").read_text() else 0

    return until(found, "the program", ignore=(OSError, ValueError))


def backend(node: Node, program: str = SERVES, name: str = "server") -> Backend:
    return Backend(
        name=name,
        argv=(sys.executable, "-c", program),
        socket=node.root / name,
        files=256,
        loss="what it served is gone",
    )


@pytest.fixture
def vm(manager: Manager, node: Node) -> Iterator[str]:
    """A VM with one such program that is made and does not run."""
    node.backends = (backend(node),)
    vm_id = manager.create(manager.run())
    yield vm_id
    for pid in programs(vm_id):
        os.kill(pid, signal.SIGKILL)


def notices(manager: Manager) -> list[str]:
    return [e.reason for e in manager.told.events if e.kind is EventKind.VM_NOTICE]


def test_it_runs_as_long_as_the_vm_does(manager: Manager, node: Node, vm: str) -> None:
    assert programs(vm) == []
    manager.start(vm)
    assert running(vm)
    node.hypervisor.end(vm, DONE)
    assert programs(vm) == []
    manager.remove(vm)
    assert not any(vm[:12] in left for left in node.left)


def test_it_ends_with_a_vm_that_is_ended_by_force(manager: Manager, vm: str) -> None:
    manager.start(vm)
    manager.stop(vm)
    assert programs(vm) == []


def test_only_the_emulators_user_can_connect(manager: Manager, node: Node, vm: str) -> None:
    manager.start(vm)
    info = (node.root / "server").stat()
    assert stat.S_IMODE(info.st_mode) == 0o600
    assert info.st_uid == manager.context.node.emulator_uid
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(str(node.root / "server"))


def test_it_has_few_capabilities_its_own_network_and_as_many_files_as_it_asks_for(
    manager: Manager, node: Node, vm: str
) -> None:
    node.backends = (evolve(node.backends[0], capabilities=("chown",)),)
    manager.start(vm)
    pid = running(vm)
    status = Path(f"/proc/{pid}/status").read_text()
    for line in ("CapPrm:\t0000000000000001", "CapBnd:\t0000000000000001", "NoNewPrivs:\t1"):
        assert line in status
    for kind in ("net", "ipc"):
        assert os.readlink(f"/proc/{pid}/ns/{kind}") != os.readlink(f"/proc/self/ns/{kind}")
    assert "Max open files            256 " in Path(f"/proc/{pid}/limits").read_text()


@pytest.mark.parametrize("opened", [1, 2])
def test_a_share_is_mounted_once_its_program_has_its_root_open_twice(
    managers: Managers, node: Node, vm: str, opened: int
) -> None:
    """The next manager sees it too."""
    opens = "import os\nheld = [os.open('/', os.O_PATH) for _ in range({})]\n"
    ready = "open('/proc/self/comm', 'w').write('ready')\n"
    program = opens.format(opened) + ready + SERVES
    node.backends = (evolve(backend(node, program), share="volume-0"),)
    managers.now.start(vm)
    running(vm, "ready")
    context = managers.restart().context
    assert mounted_shares(context, vm) == {"volume-0": opened == 2}
    managers.now.stop(vm)
    assert mounted_shares(context, vm) == {}


def test_a_start_that_fails_leaves_none(manager: Manager, node: Node, vm: str) -> None:
    node.faults.once["start"] = FailedPrecondition("no emulator")
    with pytest.raises(FailedPrecondition, match="no emulator"):
        manager.start(vm)
    assert programs(vm) == []


def test_one_that_cannot_serve_is_named_with_its_last_words(
    manager: Manager, node: Node, vm: str
) -> None:
    node.backends = (backend(node, "import sys; sys.exit('no such share')"),)

    def fail(vm_id: str) -> None:
        until(lambda: "status 1" in manager.context.backends.words(vm_id), "its end")
        raise FailedPrecondition("the emulator ended")

    node.hypervisor.on_start = fail
    with pytest.raises(FailedPrecondition, match="server ended .status 1.: no such share; the em"):
        manager.start(vm)


@pytest.mark.parametrize("point", ["running:intended", "running:applied", "vm-running:committed"])
def test_a_crash_at_any_point_leaves_none_of_a_vm_that_does_not_run(
    managers: Managers, vm: str, point: str
) -> None:
    managers.now.at = {point: Killed()}
    with pytest.raises(Killed):
        managers.now.start(vm)
    manager = managers.restart()
    runs = manager.vm(vm).phase is VmPhase.RUNNING
    assert runs is (point == "vm-running:committed")
    if runs:
        assert running(vm)
    else:
        assert programs(vm) == []
    manager.stop(vm)
    assert programs(vm) == []


def test_the_next_manager_ends_it_with_the_vm(managers: Managers, node: Node, vm: str) -> None:
    managers.now.start(vm)
    before = running(vm)
    managers.restart()
    assert running(vm) == before
    node.hypervisor.end(vm, DONE)
    assert programs(vm) == []


def lose(vm: str) -> None:
    os.kill(running(vm), signal.SIGKILL)


def test_its_loss_is_told_to_the_owner(manager: Manager, vm: str) -> None:
    manager.context.backends = BackendWatch(soon=0.01)
    manager.start(vm)
    lose(vm)
    until(lambda: bool(notices(manager)), "a notice")
    assert notices(manager) == ["server has ended (signal 9): what it served is gone"]
    manager.stop(vm)


@pytest.mark.parametrize("when", ["while no manager runs", "later"])
def test_its_loss_is_told_by_the_next_manager_too(managers: Managers, vm: str, when: str) -> None:
    managers.now.start(vm)
    if when == "later":
        manager = managers.restart()
        lose(vm)
    else:
        managers.now.context.backends.close()
        lose(vm)
        manager = managers.restart()
    until(lambda: bool(notices(manager)), "a notice")
    assert notices(manager)[0].startswith("server has ended (")


def test_one_that_ends_with_its_vm_is_not_lost(manager: Manager, node: Node, vm: str) -> None:
    manager.context.backends = watch = BackendWatch(soon=0.01)
    manager.start(vm)
    manager.store.change_vm(vm, _stopping)
    lose(vm)
    until(lambda: not watch.words(vm), "its end to be dealt with")
    assert notices(manager) == []


def _stopping(record: VmRecord) -> VmRecord:
    return evolve(record, stopping=True)


def test_a_new_oom_score_is_its_own_too(manager: Manager, vm: str) -> None:
    manager.start(vm)
    pid = running(vm)
    set_score(manager.context, vm, 900)
    assert Path(f"/proc/{pid}/oom_score_adj").read_text() == "900\n"


def test_it_is_not_spared_by_the_kernel_as_the_manager_is(manager: Manager, vm: str) -> None:
    own = Path("/proc/self/oom_score_adj")
    before = own.read_text()
    own.write_text("300")
    try:
        manager.start(vm)
        assert Path(f"/proc/{running(vm)}/oom_score_adj").read_text() == "0\n"
    finally:
        own.write_text(before)


def in_network(node: Node, program: str = SERVES) -> None:
    """Have the VM's only program speak to servers."""
    documents = {"conf": b"of a server"}
    node.backends = (evolve(backend(node, program), network=True, documents=documents),)


def test_one_that_speaks_to_servers_has_a_user_of_its_own_and_no_way_to_others(
    manager: Manager, node: Node, vm: str
) -> None:
    manager.context.new_user = lambda: 2_000_000_000
    in_network(node)
    manager.start(vm)
    pid = running(vm)
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    status = {name: value.strip() for name, _, value in (line.partition(":") for line in lines)}
    assert status["Uid"].split() == status["Gid"].split() == ["2000000000"] * 4
    assert (status["Groups"], status["NoNewPrivs"], status["Seccomp"]) == ("", "1", "2")
    for name in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"):
        assert int(status[name], 16) == 0
    assert os.readlink(f"/proc/{pid}/ns/net") == os.readlink("/proc/self/ns/net")
    assert os.readlink(f"/proc/{pid}/ns/ipc") != os.readlink("/proc/self/ns/ipc")
    assert manager.context.paths.backends(vm).joinpath("server").stat().st_gid == 2_000_000_000


def test_without_users_to_give_it_is_nobody(manager: Manager, node: Node, vm: str) -> None:
    in_network(node)
    manager.start(vm)
    assert Path(f"/proc/{running(vm)}").stat().st_uid == 65534


def test_it_reads_its_documents_and_changes_none_and_starts_no_process(
    manager: Manager, node: Node, vm: str
) -> None:
    attempts = """\
import os, sys, threading
def failed(call):
    try:
        call()
    except OSError as error:
        return error.errno
    return 0
thread = threading.Thread(target=lambda: None)
thread.start()
thread.join()
path = "{document:conf}"
found = [open(path).read(), failed(lambda: os.write(os.open(path, os.O_RDWR), b"x"))]
found += [failed(os.fork), failed(lambda: os.kill(1, 0))]
found += [failed(lambda: os.setpriority(os.PRIO_PROCESS, 0, 1))]
sys.exit(repr(found))
"""
    in_network(node, attempts)

    def fail(vm_id: str) -> None:
        until(lambda: "status 1" in manager.context.backends.words(vm_id), "its end")
        raise FailedPrecondition("over")

    node.hypervisor.on_start = fail
    eperm = errno.EPERM
    found = re.escape(str(["of a server", eperm, eperm, eperm, eperm]))
    with pytest.raises(FailedPrecondition, match=found):
        manager.start(vm)
