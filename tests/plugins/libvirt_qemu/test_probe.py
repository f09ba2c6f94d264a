"""The KVM probe: what it boots runs where a CPU does, and its verdict is right on this host."""

import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

from tests.plugins.libvirt_qemu.rig import QEMU, emulator_user
from virtlet.plugins.libvirt_qemu import probe_payload
from virtlet.plugins.libvirt_qemu.accelerator import TIME_LIMIT, probe_kvm

_QEMU = """#!{python}
import sys, time
sys.stdout.write({output!r})
sys.stdout.flush()
sys.stderr.write({error!r})
sys.stderr.flush()
time.sleep({seconds})
sys.exit({status})
"""


def emulator(directory: Path, output: str, error: str, status: int, seconds: float = 0) -> Path:
    """A program that behaves like QEMU on some host."""
    path = directory / "qemu"
    path.write_text(
        _QEMU.format(
            python=sys.executable, output=output, error=error, status=status, seconds=seconds
        )
    )
    path.chmod(0o755)
    return path


def test_the_payload_runs_to_its_end_on_a_cpu_that_works() -> None:
    """QEMU's emulated one."""
    verdict = probe_kvm(QEMU, *emulator_user(), accelerator="tcg")
    assert verdict.usable, verdict.reason


def test_the_verdict_on_this_host_comes_in_time() -> None:
    """Whatever it is, it names the device or says that all is well."""
    before = time.monotonic()
    verdict = probe_kvm(QEMU, *emulator_user())
    assert time.monotonic() - before < TIME_LIMIT + 20
    assert verdict.usable or "KVM" in verdict.reason


@pytest.mark.parametrize(
    ("output", "error", "status", "words"),
    [
        ("RPL", "KVM internal error. Suberror: 1\nemulation failure\n", 1, "fails at an exception"),
        ("RPLXFSU", "", 0, "fails at a timer interrupt after user mode"),
        ("RPLXF?", "", 3, "fails at SSE2"),
        ("", "qemu: failed to initialize kvm: Permission denied\n", 1, "Permission denied"),
        ("", "qemu: host doesn't support requested feature\n", 134, "host doesn't support"),
        ("RPLXFSUT", "", 0, "its end"),
    ],
)
def test_a_host_that_fails_is_told_where(
    tmp_path: Path, output: str, error: str, status: int, words: str
) -> None:
    """The reason says how far the test guest got."""
    path = emulator(tmp_path, output, error, status)
    verdict = probe_kvm(path, 0, 0, device=tmp_path)
    assert not verdict.usable
    assert words in verdict.reason
    assert verdict.lasting == bool(output)


def test_a_hanging_guest_is_ended(tmp_path: Path) -> None:
    """Within the time limit; that is no verdict for long, the host may just be busy."""
    path = emulator(tmp_path, "R", "", 0, seconds=60)
    before = time.monotonic()
    verdict = probe_kvm(path, 0, 0, device=tmp_path)
    assert time.monotonic() - before < TIME_LIMIT + 20
    assert "hung" in verdict.reason
    assert not verdict.lasting


@pytest.mark.parametrize(("mode", "usable"), [(0o666, True), (0o660, False)])
def test_a_device_closed_to_the_emulators_user_is_told(
    tmp_path: Path, mode: int, usable: bool
) -> None:
    """KVM that works for root alone is of no use."""
    nobody = 65534
    with tempfile.TemporaryDirectory() as directory:
        Path(directory).chmod(0o755)
        device = Path(directory) / "kvm"
        device.touch()
        device.chmod(mode)
        path = emulator(tmp_path, "RPLXFSUT", "", 1)
        verdict = probe_kvm(path, nobody, nobody, device=device)
    assert verdict.usable == usable
    assert usable or "may not open" in verdict.reason


@pytest.mark.skipif(shutil.which("as") is None, reason="needs binutils")
def test_the_payload_is_what_its_source_says(tmp_path: Path) -> None:
    """The bytes in the repository are assembled from the text beside them."""
    source = Path(probe_payload.__file__).with_suffix(".S")
    thing, image = tmp_path / "payload.o", tmp_path / "payload.bin"
    subprocess.run(["as", "--64", "-o", thing, source], check=True)
    link = ["ld", "-m", "elf_x86_64", "-Ttext", "0xF0000", "--oformat", "binary"]
    subprocess.run([*link, "-o", image, thing], check=True)
    assert image.read_bytes() == probe_payload.firmware()
