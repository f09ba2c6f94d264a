"""TPM and UEFI variables on a device that outlives its VMs."""

import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from virtlet.errors import FailedPrecondition
from virtlet.model.disk import Disk
from virtlet.plugins.libvirt_qemu.kept_state import TPM_FILE, KeptStates

MIB = 1 << 20
OFFSET, SIZE = 4096, 4 * MIB - 4096
HALF = SIZE // 2
FRESH = b"template".ljust(1000)
A, B = "a" * 32, "b" * 32


class Machine:
    """Files of a VM, as the hypervisor makes them."""

    def __init__(self, directory: Path, vm_id: str, device: Path) -> None:
        self.id = vm_id
        self.directory = directory / vm_id
        self.tpm, self.variables = self.directory / "tpm", self.directory / "variables"
        self.tpm.mkdir(parents=True)
        self.variables.write_bytes(FRESH)
        self.root = Disk(path=device, state_offset=OFFSET, state_size=SIZE)

    def begin(self, kept: KeptStates) -> None:
        user = os.getuid(), os.getgid()
        kept.begin(self.id, self.root, tpm=self.tpm, variables=self.variables, user=user)

    def write(self, tpm: bytes, variables: bytes = FRESH) -> None:
        """As the guest has it: swtpm replaces its file, QEMU writes into it."""
        new = self.tpm / "new"
        new.write_bytes(tpm)
        new.rename(self.tpm / TPM_FILE)
        with self.variables.open("r+b") as file:
            file.write(variables)

    @property
    def found(self) -> tuple[bytes, bytes]:
        file = self.tpm / TPM_FILE
        return file.read_bytes() if file.exists() else b"", self.variables.read_bytes()


@pytest.fixture
def device(tmp_path: Path) -> Path:
    """A file in a device's place, with something on either side."""
    path = tmp_path / "device"
    path.write_bytes(b"\xee" * OFFSET + bytes(SIZE) + b"\xee" * 4096)
    return path


@pytest.fixture
def vm(tmp_path: Path, device: Path) -> Callable[[str], Machine]:
    return lambda vm_id: Machine(tmp_path / "volumes", vm_id, device)


@pytest.fixture
def kept(tmp_path: Path) -> KeptStates:
    return KeptStates(tmp_path / "kept")


def test_the_next_vm_has_what_the_last_one_left(
    kept: KeptStates, vm: Callable[[str], Machine], device: Path
) -> None:
    first, second = vm(A), vm(B)
    first.begin(kept)
    assert first.found == (b"", FRESH)
    first.write(b"keys", b"entries!")
    kept.end(A)
    second.begin(kept)
    assert second.found == (b"keys", b"entries!".ljust(1000))
    assert (second.tpm / TPM_FILE).stat().st_mode & 0o777 == 0o600
    content = device.read_bytes()
    assert (content[:OFFSET], content[-4096:]) == (b"\xee" * OFFSET, b"\xee" * 4096)


def test_what_changes_is_written_back_while_the_vm_runs(
    kept: KeptStates, vm: Callable[[str], Machine], tmp_path: Path
) -> None:
    """So that the next one has it on another node, if this one fails."""
    first, second = vm(A), vm(B)
    first.begin(kept)
    for keys in (b"one", b"more", b"three"):
        first.write(keys)
        kept.look()
    second.begin(KeptStates(tmp_path / "another node"))
    assert second.found == (b"three", FRESH)


def test_a_restarted_manager_goes_on(
    kept: KeptStates, vm: Callable[[str], Machine], tmp_path: Path
) -> None:
    first, second = vm(A), vm(B)
    first.begin(kept)
    first.write(b"before the crash")
    again = KeptStates(tmp_path / "kept")
    again.recall()
    again.end(A)
    assert list((tmp_path / "kept").iterdir()) == []
    second.begin(again)
    assert second.found == (b"before the crash", FRESH)


def test_what_a_vm_left_is_taken_before_the_next_one_begins(
    kept: KeptStates, vm: Callable[[str], Machine]
) -> None:
    """Also where nobody has asked for the end of the last one yet."""
    first, second = vm(A), vm(B)
    first.begin(kept)
    first.write(b"late")
    second.begin(kept)
    assert second.found == (b"late", FRESH)


def test_a_vm_that_had_its_turn_changes_nothing_any_more(
    kept: KeptStates, vm: Callable[[str], Machine], tmp_path: Path
) -> None:
    first, second, third = vm(A), vm(B), vm("c" * 32)
    first.begin(kept)
    other = KeptStates(tmp_path / "another node")
    second.begin(other)
    second.write(b"new")
    first.write(b"old")
    other.end(B)
    kept.end(A)
    third.begin(other)
    assert third.found == (b"new", FRESH)


def test_a_start_that_is_tried_again_keeps_the_files(
    kept: KeptStates, vm: Callable[[str], Machine]
) -> None:
    first = vm(A)
    first.begin(kept)
    first.write(b"mine")
    first.begin(kept)
    assert first.found == (b"mine", FRESH)


def test_variables_of_another_firmware_are_not_used(
    kept: KeptStates, vm: Callable[[str], Machine]
) -> None:
    """They would not fit; the TPM is what it was."""
    first, second = vm(A), vm(B)
    first.begin(kept)
    first.write(b"keys")
    kept.end(A)
    second.variables.write_bytes(b"larger" * 1000)
    second.begin(kept)
    assert second.found == (b"keys", b"larger" * 1000)


def test_a_machine_without_a_tpm_leaves_the_state_of_the_one_before(
    kept: KeptStates, vm: Callable[[str], Machine]
) -> None:
    first, second, third = vm(A), vm(B), vm("c" * 32)
    first.begin(kept)
    first.write(b"keys")
    kept.end(A)
    user = os.getuid(), os.getgid()
    kept.begin(B, second.root, tpm=None, variables=second.variables, user=user)
    second.write(b"not asked for", b"changed!")
    kept.end(B)
    third.begin(kept)
    assert third.found == (b"keys", b"changed!".ljust(1000))


def test_a_disk_without_room_keeps_nothing(kept: KeptStates, tmp_path: Path) -> None:
    root = Disk(path=tmp_path / "root.qcow2")
    kept.begin(A, root, tpm=tmp_path, variables=None, user=(0, 0))
    kept.end(A)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("cut", [0, 100, 512, 600])
@pytest.mark.parametrize("place", [0, 1])
def test_what_a_crash_cut_short_leaves_what_was_before(
    kept: KeptStates, vm: Callable[[str], Machine], device: Path, place: int, cut: int
) -> None:
    """Whichever of the two places was being written, and however far that came."""
    first, second = vm(A), vm(B)
    first.begin(kept)  # writes place 0
    for number in range(1, 3 + place):
        first.write(b"state %d" % number)
        kept.look()
    with device.open("r+b") as file:
        file.seek(OFFSET + place * HALF)
        file.write(bytes(512))
        file.seek(OFFSET + place * HALF + 512)
        file.write(b"\x77" * cut)
    second.begin(KeptStates(device.parent / "another node"))
    assert second.found[0] == b"state %d" % (1 + place)


def test_broken_state_is_named_and_left_alone(
    kept: KeptStates, vm: Callable[[str], Machine], device: Path
) -> None:
    first, second = vm(A), vm(B)
    first.begin(kept)
    first.write(b"keys")
    kept.end(A)
    for place in range(2):
        with device.open("r+b") as file:
            file.seek(OFFSET + place * HALF + 100)
            file.write(b"\x77" * 8)
            file.seek(OFFSET + place * HALF)
            file.write(b"\x77")
    before = device.read_bytes()
    with pytest.raises(FailedPrecondition, match=r"device path /: the state of TPM and UEFI vari"):
        second.begin(kept)
    assert device.read_bytes() == before
    assert second.found == (b"", FRESH)


def test_a_device_that_is_gone_keeps_nobody(
    kept: KeptStates, vm: Callable[[str], Machine], device: Path
) -> None:
    first = vm(A)
    first.begin(kept)
    first.write(b"keys")
    device.unlink()
    kept.end(A)


@pytest.mark.parametrize("kind", ["link", "pipe", "large", "directory"])
def test_what_a_vms_user_puts_in_the_place_of_its_files_is_not_read(
    kept: KeptStates, vm: Callable[[str], Machine], tmp_path: Path, kind: str
) -> None:
    """A TPM's program that a guest took over: nothing of the node reaches the volume."""
    secret = tmp_path / TPM_FILE
    secret.write_bytes(b"of the node")
    first, second = vm(A), vm(B)
    first.begin(kept)
    file = first.tpm / TPM_FILE
    match kind:
        case "link":
            file.symlink_to(secret)
        case "pipe":
            os.mkfifo(file)
        case "large":
            file.write_bytes(bytes(2 * MIB))
        case "directory":
            first.tpm.rmdir()
            first.tpm.symlink_to(tmp_path)
    kept.end(A)
    second.begin(kept)
    assert second.found == (b"", FRESH)


@pytest.fixture
def loop(device: Path) -> Iterator[Path]:
    argv = ["losetup", "--find", "--show", str(device)]
    found = subprocess.run(argv, check=True, capture_output=True, text=True).stdout.strip()
    yield Path(found)
    subprocess.run(["losetup", "--detach", found], check=True)


def test_a_device_serves_by_any_name(kept: KeptStates, tmp_path: Path, loop: Path) -> None:
    """Each VM has a node of its own of it."""
    first, second = Machine(tmp_path, A, loop), Machine(tmp_path, B, tmp_path / "other")
    os.mknod(tmp_path / "other", 0o60600, loop.stat().st_rdev)
    first.begin(kept)
    first.write(b"late")
    second.begin(kept)
    assert second.found == (b"late", FRESH)
