"""Changed ConfigMaps, Secrets and tokens reach running guests, whose shell is the test's own."""

import os
import shutil
import stat
import subprocess
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from attrs import evolve

from tests.core.lifecycle.conftest import Managers
from tests.fakes.manager import Manager, Node
from tests.polling import until
from virtlet.core.lifecycle import exits
from virtlet.core.lifecycle.file_updates import CLOCK_STEP, SILENCE, FileUpdates, update_script
from virtlet.core.store.records import VmRecord
from virtlet.errors import FailedPrecondition, GuestNotReady, Unavailable
from virtlet.host.guest_files import GuestFile
from virtlet.model.disk import GuestFiles
from virtlet.model.event import EventKind
from virtlet.model.hypervisor import DomainState, Observation

LIMIT = 60.0
SHELLS = [("/bin/sh",), ("/bin/busybox", "sh")]
SECRET = "hunter2"


def run(script: bytes, shell: tuple[str, ...] = ("/bin/sh",)) -> int:
    """As a guest runs it; busybox' shell takes its own tools."""
    done = subprocess.run(shell, input=script, capture_output=True, timeout=LIMIT)
    assert done.stdout + done.stderr == b""
    return done.returncode


def write_volume(volume: Path, version: str, **files: str) -> None:
    """A version of a volume, as a kubelet writes it over the last one."""
    before = volume / os.readlink(volume / "..data") if (volume / "..data").is_symlink() else None
    (volume / version).mkdir(parents=True)
    for name, content in files.items():
        (volume / version / name).write_text(content)
        (volume / version / name).chmod(0o640)
    (volume / "..data_tmp").symlink_to(version)
    (volume / "..data_tmp").replace(volume / "..data")
    if before:
        shutil.rmtree(before)


def contents(top: Path) -> dict[str, str]:
    """What a program in the guest sees."""
    return {path.name: path.read_text() for path in top.iterdir() if path.is_file()}


def hidden(top: Path) -> set[str]:
    """Names of what is there beside that."""
    return {path.name for path in top.iterdir() if path.name.startswith("..")}


@pytest.fixture
def volume(tmp_path: Path) -> Path:
    """On the node, of version 1."""
    path = tmp_path / "volume"
    write_volume(path, "..1", a="one", b="one")
    return path


@pytest.fixture
def top(tmp_path: Path) -> Path:
    """In the guest, as cloud-init left it, beside a file of the image's own."""
    path = tmp_path / "guest" / "my app"
    path.mkdir(parents=True)
    for name in ("a", "b", "of the image"):
        (path / name).write_text("one")
    return path


@pytest.fixture
def vm(manager: Manager, node: Node, volume: Path, top: Path) -> str:
    """A VM that runs, and had version 1 when it was made."""
    node.shell = run
    vm_id = manager.create(manager.run())
    manager.start(vm_id)

    def mount(record: VmRecord) -> VmRecord:
        assert record.machine is not None
        files = GuestFiles(host_path=volume, guest_path=str(top), mode=None)
        machine = evolve(record.machine, volumes=(files,))
        # Later than the volume for sure: a file's time may lag behind the clock.
        later = os.lstat(volume / "..data").st_ctime_ns + CLOCK_STEP + 1
        vm = evolve(record.vm, created_at=max(record.vm.created_at, later))
        return evolve(record, vm=vm, machine=machine)

    manager.store.change_vm(vm_id, mount)
    return vm_id


def looked(manager: Manager, updates: FileUpdates | None = None) -> FileUpdates:
    """After one look, and what follows from it."""
    updates = updates or FileUpdates(manager.context, pause=0.0)
    updates.look()
    assert updates.settle(LIMIT)
    return updates


def notices(manager: Manager) -> list[str]:
    return [e.reason for e in manager.told.events if e.kind is EventKind.VM_NOTICE]


def test_a_change_reaches_the_guest_in_the_kubelets_layout(
    manager: Manager, vm: str, volume: Path, top: Path
) -> None:
    """With modes and owners; keys come and go, and what is not ours stays."""
    updates = looked(manager)
    assert hidden(top) == set()  # nothing has changed
    write_volume(volume, "..2", a="two", c="two")
    os.chown(volume / "..2" / "a", 1000, 2000)
    looked(manager, updates)
    assert contents(top) == {"a": "two", "c": "two", "of the image": "one"}
    assert os.readlink(top / "..data") == "..2"
    assert os.readlink(top / "a") == "..data/a"
    found = (top / "a").stat()
    assert (stat.S_IMODE(found.st_mode), found.st_uid, found.st_gid) == (0o640, 1000, 2000)
    assert stat.S_IMODE((top / "..2").stat().st_mode) == 0o755
    write_volume(volume, "..3", b="three")
    looked(manager, updates)
    assert contents(top) == {"b": "three", "of the image": "one"}
    assert hidden(top) == {"..data", "..3"}


def test_a_change_between_the_making_of_a_vm_and_its_boot_is_not_lost(
    manager: Manager, vm: str, volume: Path, top: Path
) -> None:
    write_volume(volume, "..2", a="two", b="two")
    looked(manager)
    assert contents(top) == {"a": "two", "b": "two", "of the image": "one"}


def test_the_next_manager_goes_on_and_repeats_nothing(
    managers: Managers, node: Node, vm: str, volume: Path, top: Path
) -> None:
    write_volume(volume, "..2", a="two", b="two")
    looked(managers.now)
    before = (top / "..2").stat().st_ino
    updates = looked(managers.restart())
    assert (top / "..2").stat().st_ino == before
    write_volume(volume, "..3", a="three")
    looked(managers.now, updates)
    assert contents(top) == {"a": "three", "of the image": "one"}


def test_a_guest_that_has_rebooted_gets_again_what_it_lost(
    manager: Manager, node: Node, vm: str, volume: Path, top: Path
) -> None:
    """As of a tmpfs, also where nothing had changed before; one that kept it is left alone."""
    sent: list[bytes] = []

    def shell(script: bytes) -> int:
        sent.append(script)
        return run(script)

    node.shell = shell
    updates = looked(manager)
    assert sent == []
    shutil.rmtree(top)
    exits.on_change(
        manager.context, Observation(vm_id=vm, state=DomainState.RUNNING, rebooted=True)
    )
    looked(manager, updates)
    assert contents(top) == {"a": "one", "b": "one"}
    write_volume(volume, "..2", a="two")
    looked(manager, updates)
    before = (top / "..2").stat().st_ino
    exits.on_change(
        manager.context, Observation(vm_id=vm, state=DomainState.RUNNING, rebooted=True)
    )
    looked(manager, updates)
    assert (top / "..2").stat().st_ino == before
    assert len(sent) == 3
    looked(manager, updates)
    assert len(sent) == 3


def test_parts_and_single_files_are_not_followed(
    manager: Manager, node: Node, vm: str, tmp_path: Path
) -> None:
    """As for containers: what is mounted by subPath stays what it was."""

    def never(script: bytes) -> int:
        raise AssertionError

    node.shell = never
    part = tmp_path / "part"
    part.mkdir()
    (part / "key").write_text("one")
    files = (
        GuestFiles(host_path=part, guest_path="/a", mode=None),
        GuestFiles(host_path=part / "key", guest_path="/b", mode=None),
    )

    def mount(record: VmRecord) -> VmRecord:
        assert record.machine is not None
        return evolve(record, machine=evolve(record.machine, volumes=files))

    manager.store.change_vm(vm, mount)
    updates = looked(manager)
    (part / "key").write_text("two")
    looked(manager, updates)


def failing(error: Exception) -> Callable[[bytes], int]:
    def shell(script: bytes) -> int:
        raise error

    return shell


def test_a_guest_without_an_agent_is_said_once_and_the_change_is_kept_for_it(
    manager: Manager, node: Node, vm: str, volume: Path, top: Path
) -> None:
    node.shell = failing(FailedPrecondition("VM x has no channel for a guest agent"))
    updates = looked(manager)
    write_volume(volume, "..2", a=SECRET)
    for _ in range(3):
        looked(manager, updates)
    (told,) = notices(manager)
    assert told.startswith(f"the files at {top} have changed, and the guest still has the old ones")
    assert "VM x has no channel for a guest agent" in told
    assert SECRET not in told
    node.shell = run
    looked(manager, updates)
    assert contents(top) == {"a": SECRET, "of the image": "one"}


def test_a_guest_that_does_not_answer_is_said_and_one_that_boots_is_waited_for(
    manager: Manager, node: Node, vm: str, volume: Path
) -> None:
    node.shell = failing(GuestNotReady("boots"))
    updates = looked(manager)
    write_volume(volume, "..2", a="two")
    for _ in range(SILENCE + 1):
        looked(manager, updates)
    node.shell = failing(Unavailable("no guest agent answers"))
    for _ in range(SILENCE - 1):
        looked(manager, updates)
    assert notices(manager) == []
    for _ in range(2):
        looked(manager, updates)
    assert len(notices(manager)) == 1


def test_a_guest_that_does_not_answer_is_not_asked_at_every_look(
    manager: Manager, node: Node, vm: str, volume: Path
) -> None:
    asked = []

    def shell(script: bytes) -> int:
        asked.append(script)
        raise Unavailable("no guest agent answers")

    node.shell = shell
    updates = looked(manager, FileUpdates(manager.context))
    write_volume(volume, "..2", a="two")
    for _ in range(3):
        looked(manager, updates)
    assert len(asked) == 1


def test_a_guest_that_hangs_holds_up_no_other(
    manager: Manager, node: Node, vm: str, volume: Path, top: Path
) -> None:
    hangs, over = threading.Event(), threading.Event()
    other = manager.create(manager.run("other"))
    manager.start(other)
    first = manager.store.vms[vm].machine
    assert first is not None

    def share(record: VmRecord) -> VmRecord:
        assert record.machine is not None
        return evolve(record, machine=evolve(record.machine, volumes=first.volumes))

    manager.store.change_vm(other, share)
    updates = looked(manager)

    def shell(script: bytes) -> int:
        if not hangs.is_set():
            hangs.set()
            assert over.wait(LIMIT)
        return run(script)

    node.shell = shell
    write_volume(volume, "..2", a="two")
    updates.look()
    assert hangs.wait(LIMIT)
    until(lambda: (top / "a").read_text() == "two", "the other guest's change", LIMIT)
    over.set()
    assert updates.settle(LIMIT)


def test_files_that_are_too_large_are_said(
    manager: Manager, vm: str, volume: Path, top: Path
) -> None:
    updates = looked(manager)
    write_volume(volume, "..2", a="x" * (1 << 20) + "x")
    for _ in range(SILENCE):
        looked(manager, updates)
    assert "has more than 1 MiB" in notices(manager)[0]
    assert (top / "a").read_text() == "one"


def test_a_vm_that_has_ended_is_told_nothing(
    manager: Manager, node: Node, vm: str, volume: Path
) -> None:
    updates = looked(manager)
    manager.stop(vm)
    write_volume(volume, "..2", a="two")
    node.shell = failing(AssertionError())
    looked(manager, updates)
    assert notices(manager) == []


@pytest.mark.parametrize("shell", SHELLS)
def test_the_script_serves_small_shells_and_odd_names(
    tmp_path: Path, top: Path, shell: tuple[str, ...]
) -> None:
    """Directories in it too, names with quotes, and a file that becomes a directory and back."""

    def files(*given: tuple[str, bytes]) -> list[GuestFile]:
        return [GuestFile(f"{top}/{name}", content, 0o644) for name, content in given]

    first = files((".docker'cfg", b"\x00\xff"), ("sub/deep/x", b"1"), ("a", b"1"))
    assert run(update_script(str(top), "..1", first, ["a", "b"]), shell) == 0
    assert (top / ".docker'cfg").read_bytes() == b"\x00\xff"
    assert (top / "sub" / "deep" / "x").read_bytes() == b"1"
    assert stat.S_IMODE((top / "sub" / "deep").stat().st_mode) == 0o755
    assert not (top / "b").exists()
    second = files(("a/x", b"2"), ("sub", b"2"))
    assert run(update_script(str(top), "..2", second, []), shell) == 0
    assert (top / "a" / "x").read_bytes() == (top / "sub").read_bytes() == b"2"
    assert {path.name for path in top.iterdir()} == {"..2", "..data", "a", "sub", "of the image"}
    assert run(update_script(str(top), "..3", [], []), shell) == 0
    assert {path.name for path in top.iterdir()} == {"..3", "..data", "of the image"}


@pytest.mark.parametrize("shell", SHELLS)
def test_half_a_script_changes_nothing(tmp_path: Path, top: Path, shell: tuple[str, ...]) -> None:
    """As where the manager ends while it sends it."""
    script = update_script(str(top), "..1", [GuestFile(f"{top}/a", b"two" * 999, 0o644)], ["a"])
    for size in (len(script) // 2, len(script) - 3):
        done = subprocess.run(shell, input=script[:size], capture_output=True)
        assert done.returncode != 0
        assert contents(top) == {"a": "one", "b": "one", "of the image": "one"}
        assert hidden(top) == set()


def test_all_files_change_in_one_step(top: Path) -> None:
    """A reader that follows `..data` sees one version, from the first change on."""
    torn: list[tuple[str, str]] = []
    done = threading.Event()

    def read() -> None:
        while not done.is_set():
            try:
                directory = os.open(top / "..data", os.O_RDONLY | os.O_DIRECTORY)
            except FileNotFoundError:
                continue
            try:
                seen = [os.open(name, os.O_RDONLY, dir_fd=directory) for name in ("a", "b")]
            except FileNotFoundError:
                continue  # the version was removed meanwhile
            finally:
                os.close(directory)
            a, b = (os.read(file, 9).decode() for file in seen)
            for file in seen:
                os.close(file)
            if a != b:
                torn.append((a, b))

    reader = threading.Thread(target=read)
    reader.start()
    for number in range(1, 20):
        content = str(number).encode()
        files = [GuestFile(f"{top}/{name}", content, 0o644) for name in ("a", "b")]
        assert run(update_script(str(top), f"..{number}", files, ["a", "b"])) == 0
    done.set()
    reader.join()
    assert torn == []
    assert contents(top)["a"] == "19"
