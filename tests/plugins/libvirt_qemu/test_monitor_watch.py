"""Emulators that flood their monitor are found and ended."""

import shutil
from pathlib import Path

from tests.plugins.libvirt_qemu import flood
from tests.plugins.libvirt_qemu.rig import Rig
from virtlet.model.hypervisor import DomainState
from virtlet.model.launch import LaunchPart
from virtlet.plugins.libvirt_qemu.domain_endings import FLOODED
from virtlet.plugins.libvirt_qemu.monitor_watch import MOST, WINDOW, MonitorWatch, thread_of


class _Process:
    """A directory like that of a process below /proc."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.now = 0.0
        self.ended: list[str] = []
        self.watch = MonitorWatch(self.ended.append, path, lambda: self.now)
        (path / "task").mkdir()
        self._had: dict[str, int] = {}
        self.read("1", "python", 0)

    def read(self, tid: str, name: str, size: int) -> None:
        """Have a thread read some bytes more."""
        self._had[tid] = self._had.get(tid, 0) + size
        thread = self.path / "task" / tid
        thread.mkdir(exist_ok=True)
        (thread / "comm").write_text(f"{name}\n")
        (thread / "io").write_text(f"rchar: {self._had[tid]}\nwchar: 7\n")
        (self.path / "io").write_text(f"rchar: {sum(self._had.values())}\nwchar: 7\n")

    def look(self, seconds: float = 0.1) -> list[str]:
        """The threads that were told after some more seconds."""
        self.now += seconds
        self.ended.clear()
        assert self.watch.look() is not None
        return sorted(self.ended)


def test_a_thread_that_reads_too_much_is_told(tmp_path: Path) -> None:
    """In one piece or many, whether it was there when the window began or came later."""
    process = _Process(tmp_path)
    process.read("2", "vm-a", 5 * MOST)
    assert process.look() == []  # before the first look
    process.read("2", "vm-a", MOST)
    assert process.look() == []
    process.read("2", "vm-a", 1)
    assert process.look() == ["vm-a"]
    process.read("3", "vm-b", MOST + 1)
    assert process.look() == ["vm-b"]  # nothing more of the other
    process.read("2", "vm-a", MOST + 1)
    assert process.look() == ["vm-a"]


def test_what_is_read_slowly_or_by_other_threads_is_nobodys_flood(tmp_path: Path) -> None:
    """Each window counts for itself, and each thread."""
    process = _Process(tmp_path)
    process.look()
    for _ in range(3):
        process.read("1", "python", 9 * MOST)
        process.read("2", "vm-a", MOST)
        process.read("3", "vm-b", MOST)
        assert process.look() == []
        assert process.look(WINDOW) == []


def test_a_kernel_that_does_not_count_ends_the_watch(tmp_path: Path) -> None:
    assert MonitorWatch(lambda thread: None, tmp_path).look() is None


def test_a_threads_name_is_cut_as_the_kernel_does() -> None:
    assert thread_of("virtlet-0123456789ab-web-1") == "vm-virtlet-0123"


def test_an_emulator_that_floods_libvirt_is_ended_and_no_other(rig: Rig) -> None:
    """Its end says why, and it can be removed and started again."""
    program = rig.node.data_dir / "flood"
    shutil.copy(flood.__file__, program)
    program.write_text("#!/usr/bin/python3 -IS\n" + program.read_text())
    program.chmod(0o755)
    machine = rig.machine()
    console = machine.console.output
    part = LaunchPart(emulator=program, environment={"CONSOLE": str(console)})
    with rig.running() as other:
        try:
            rig.define(machine)
            rig.start(machine, part, alone=False)
            rig.wait_for_console(machine, b"ready")
            with console.open("ab") as printed:
                printed.write(flood.WORD)
            ended = rig.wait_for_end(machine)
            assert (ended.exit_code, ended.reason, ended.message) == FLOODED
            assert rig.hypervisor.process(machine.vm.id) is None
            assert rig.pid(other)
            rig.start(machine)
            rig.wait_to_hear(machine, DomainState.RUNNING)
        finally:
            rig.hypervisor.remove(machine.vm.id)
