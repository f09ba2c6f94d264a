"""Screens of real emulators, as viewers see them."""

import json
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import libvirt_qemu
import pytest
from attrs import evolve

from tests.fakes.rfb import Viewer
from tests.plugins.libvirt_qemu.rig import Rig
from tests.polling import until
from virtlet.errors import FailedPrecondition, NotFound
from virtlet.model.vm import Machine


def _with_video(machine: Machine, video: str) -> Machine:
    return evolve(machine, flavor=evolve(machine.flavor, video=video))


@pytest.fixture(scope="module", params=["vga", "virtio"])
def shown(rig: Rig, request: pytest.FixtureRequest) -> Iterator[Machine]:
    """A running VM with a screen."""
    with rig.running(machine=_with_video(rig.machine(), request.param)) as machine:
        yield machine


def _dumped(rig: Rig, machine: Machine, file: Path) -> bytes:
    """What QEMU itself says is on the screen, as red, green and blue.

    It gets a descriptor: its jail has no place to write to.
    """
    with rig.domain(machine) as domain, file.open("wb") as output:
        wanted = {"execute": "add-fd", "arguments": {"fdset-id": 99}}
        ask = libvirt_qemu.qemuMonitorCommandWithFiles
        ask(domain, json.dumps(wanted), [output.fileno()], 0)
        wanted = {"execute": "screendump", "arguments": {"filename": "/dev/fdset/99"}}
        assert "error" not in libvirt_qemu.qemuMonitorCommand(domain, json.dumps(wanted), 0)
        wanted = {"execute": "remove-fd", "arguments": {"fdset-id": 99}}
        libvirt_qemu.qemuMonitorCommand(domain, json.dumps(wanted), 0)
    # P6, the size, the largest value, the pixels.
    return file.read_bytes().split(b"\n", 3)[3]


def test_a_viewer_sees_what_is_on_the_screen(rig: Rig, shown: Machine, tmp_path: Path) -> None:
    with closing(rig.hypervisor.open_screen(shown.vm.id)) as connection:
        viewer = Viewer.greet(connection)
        # The cursor blinks.
        file = tmp_path / "screen.ppm"
        until(lambda: viewer.picture() == _dumped(rig, shown, file), "the same picture")
        assert len(set(viewer.picture())) > 1, "nothing is on it"


def test_viewers_do_not_disturb_each_other(rig: Rig, shown: Machine) -> None:
    """Neither one who wants the screen alone, nor one who goes away."""
    with closing(rig.hypervisor.open_screen(shown.vm.id)) as first:
        viewer = Viewer.greet(first)
        with closing(rig.hypervisor.open_screen(shown.vm.id)) as second:
            assert Viewer.greet(second, shared=False).picture()
            assert viewer.picture()
        with closing(rig.hypervisor.open_screen(shown.vm.id)) as third:
            third.sendall(b"GET / HTTP/1.1\r\n\r\n")
            assert viewer.picture()
        assert viewer.picture()


def test_an_emulator_listens_nowhere(rig: Rig, shown: Machine) -> None:
    """No address and no path leads to the screen, only the emulator's monitor."""
    with rig.domain(shown) as domain:
        document = domain.XMLDesc()
    assert "<listen type='none'/>" in document
    arguments = Path(f"/proc/{rig.pid(shown)}/cmdline").read_bytes().split(b"\0")
    assert arguments[arguments.index(b"-vnc") + 1].split(b",")[0] in (b"none", b"vnc=none")


def test_a_vm_without_a_screen_says_so(rig: Rig) -> None:
    with pytest.raises(NotFound, match="libvirt has no domain of it"):
        rig.hypervisor.open_screen("0" * 32)
    with rig.running() as machine:
        with pytest.raises(FailedPrecondition, match="no screen: give its flavor `video`"):
            rig.hypervisor.open_screen(machine.vm.id)
        rig.hypervisor.stop(machine.vm.id)
        rig.wait_for_end(machine)
        with pytest.raises(FailedPrecondition, match="does not run"):
            rig.hypervisor.open_screen(machine.vm.id)


def test_the_end_of_the_vm_is_the_end_of_its_viewers(rig: Rig) -> None:
    with (
        rig.running(machine=_with_video(rig.machine(), "vga")) as machine,
        closing(rig.hypervisor.open_screen(machine.vm.id)) as connection,
    ):
        Viewer.greet(connection)
        rig.hypervisor.stop(machine.vm.id)
        assert connection.recv(1) == b""
