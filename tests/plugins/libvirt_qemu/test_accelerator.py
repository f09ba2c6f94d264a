"""The KVM probe, its verdict on this host, and how long that is remembered."""

import json
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from attrs import evolve

from tests.fakes.model import make_config, make_node
from tests.plugins.libvirt_qemu.rig import QEMU, emulator_user
from virtlet.host.confinement import landlock
from virtlet.plugins.libvirt_qemu import accelerator
from virtlet.plugins.libvirt_qemu.accelerator import TIME_LIMIT, Host, examine, probe_kvm
from virtlet.plugins.libvirt_qemu.plugin import OPTIONS, Plugin, isolation, make_hypervisor

_EMULATOR = """#!/bin/sh
echo "$*" >> {calls}
case "$1" in
--version) echo "QEMU emulator version 99.1 (Test)";;
*) {before}; printf RPLXFSUT; exit {status};;
esac
"""


class Emulator:
    """An emulator that counts how often it is asked; KVM works with it or not.

    Args:
        directory: for its files.
        kvm: whether the test guest runs to its end.
        before: what the emulator does first, as a line for the shell.
    """

    def __init__(self, directory: Path, *, kvm: bool, before: str = ":") -> None:
        self.calls = directory / "calls"
        self.device = directory / "kvm"
        self.device.touch(0o600)
        node = evolve(make_node(directory), emulator=directory / "qemu")
        # Which names it, and is written again when it changes.
        node.vmwrapper.write_text(str(node.emulator))
        status = 1 if kvm else 0
        node.emulator.write_text(_EMULATOR.format(calls=self.calls, status=status, before=before))
        node.emulator.chmod(0o755)
        self.node = node

    @property
    def asked(self) -> int:
        return len(self.calls.read_text().splitlines()) if self.calls.exists() else 0

    def examine(self) -> Host:
        return examine(self.node, ask_kvm=True, device=self.device)

    def accelerator(self, **settings: str) -> str:
        config = make_config(OPTIONS, **settings)
        return make_hypervisor(config, self.node).info().accelerator


def test_it_is_asked_once(tmp_path: Path) -> None:
    """Version and KVM, and nothing at the next start."""
    emulator = Emulator(tmp_path, kvm=True)
    first = emulator.examine()
    assert first.qemu_version == "99.1"
    assert first.kvm is not None
    assert first.kvm.usable
    assert emulator.asked == 2
    assert emulator.examine() == first
    assert emulator.asked == 2


@pytest.fixture
def open_path() -> Iterator[Path]:
    """A directory that is open to everybody, as pytest's are not."""
    with tempfile.TemporaryDirectory(prefix="virtlet-test-") as directory:
        Path(directory).chmod(0o777)
        yield Path(directory)


def test_what_keeps_emulators_from_the_node_is_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """With the kernel's Landlock, or that there is none."""
    node = Emulator(tmp_path, kvm=True).node
    config = make_config(OPTIONS, disableKVM="true")
    told = make_hypervisor(config, node).info().isolation
    assert told == isolation(landlock())
    assert ("without Landlock" in caplog.text) is (landlock() == 0)
    assert (isolation(0), isolation(7)) == (
        "jail, no Landlock (the kernel lacks it, or its list of LSMs does)",
        "jail, Landlock 7",
    )
    config = make_config(OPTIONS, disableKVM="true", emulatorJail="off")
    assert make_hypervisor(config, node).info().isolation == "none: emulatorJail is off"


def test_another_emulator_or_user_or_boot_is_asked_again(open_path: Path) -> None:
    """The answer may be another one."""
    emulator = Emulator(open_path, kvm=True)
    emulator.device.chmod(0o666)
    emulator.calls.touch()
    emulator.calls.chmod(0o666)
    emulator.examine()
    asked = emulator.asked
    examine(evolve(emulator.node, emulator_uid=12345), ask_kvm=True, device=emulator.device)
    assert emulator.asked == 2 * asked

    memory = emulator.node.state_dir("libvirt_qemu") / "host.json"
    document = json.loads(memory.read_text())
    document["key"]["boot"] = "an earlier one"
    memory.write_text(json.dumps(document))
    emulator.examine()
    assert emulator.asked == 3 * asked


def test_a_device_that_comes_or_is_opened_to_others_is_asked_again(tmp_path: Path) -> None:
    """As after modprobe, or a change of who may open it."""
    emulator = Emulator(tmp_path, kvm=True)
    emulator.device.unlink()
    for _ in range(2):
        host = emulator.examine()
        assert host.kvm is not None
        assert "is not there" in host.kvm.reason
    assert emulator.asked == 1  # the version
    emulator.device.touch(0o600)
    host = emulator.examine()
    assert host.kvm is not None
    assert host.kvm.usable
    asked = emulator.asked
    emulator.device.chmod(0o660)
    emulator.examine()
    assert emulator.asked > asked


def test_a_verdict_of_a_busy_host_is_asked_again_at_the_next_start(tmp_path: Path) -> None:
    """The guest had no time to show anything; the version is known all the same."""
    first = tmp_path / "first"
    emulator = Emulator(tmp_path, kvm=True, before=f"mkdir {first} && sleep 60")
    host = emulator.examine()
    assert host.kvm is not None
    assert "hung" in host.kvm.reason
    host = emulator.examine()
    assert host.kvm is not None
    assert host.kvm.usable
    assert emulator.asked == 3


def test_a_damaged_memory_is_no_memory(tmp_path: Path) -> None:
    """It is asked again and mended."""
    emulator = Emulator(tmp_path, kvm=True)
    memory = emulator.node.state_dir("libvirt_qemu") / "host.json"
    memory.parent.mkdir(parents=True)
    for text in ("", "{", "[]", '{"key": {}}'):
        memory.write_text(text)
        assert examine(emulator.node, ask_kvm=False).qemu_version == "99.1"


def test_kvm_is_used_by_setting_and_probe(tmp_path: Path) -> None:
    """Disabling wins over forcing, forcing over the probe."""
    emulator = Emulator(tmp_path, kvm=False)
    assert emulator.accelerator() == "qemu"
    assert emulator.accelerator(kvm="force") == "kvm"
    assert emulator.accelerator(kvm="force", disableKVM="true") == "qemu"


def test_with_kvm_disabled_nothing_is_booted(tmp_path: Path) -> None:
    """Only the version is asked."""
    emulator = Emulator(tmp_path, kvm=True)
    assert emulator.accelerator(disableKVM="true") == "qemu"
    assert emulator.asked == 1


def test_hook_virtlet_hypervisor(tmp_path: Path) -> None:
    """One hypervisor for all handlers, and none before the settings are known."""
    emulator = Emulator(tmp_path, kvm=True)
    plugin = Plugin()
    assert plugin.virtlet_hypervisor() is None
    plugin.virtlet_configure(make_config(OPTIONS), emulator.node)
    first = plugin.virtlet_hypervisor()
    assert first is not None
    assert plugin.virtlet_hypervisor() is first
    plugin.virtlet_shutdown()


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
            python="/usr/bin/python3", output=output, error=error, status=status, seconds=seconds
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
    """Within the time limit; the verdict does not last, as the host may just be busy."""
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
    """KVM that works for root alone is of no use, and is not tried as root."""
    nobody = 65534
    with tempfile.TemporaryDirectory() as directory:
        Path(directory).chmod(0o755)
        device = Path(directory) / "kvm"
        device.touch()
        device.chmod(mode)
        path = emulator(Path(directory), "RPLXFSUT", "", 1)
        verdict = probe_kvm(path, nobody, nobody, device=device)
    assert verdict.usable == usable
    assert usable or "may not open" in verdict.reason


def test_kvm_is_not_tried_as_root() -> None:
    """But as the user that guests will run as."""
    nobody = 65534
    with tempfile.TemporaryDirectory() as directory:
        Path(directory).chmod(0o755)
        path = Path(directory) / "qemu"
        path.write_text("#!/bin/sh\necho $(id -u) $(id -g) >&2\n")
        path.chmod(0o755)
        verdict = probe_kvm(path, nobody, nobody, accelerator="tcg")
    assert f": {nobody} {nobody}" in verdict.reason


@pytest.mark.skipif(shutil.which("as") is None, reason="needs binutils")
def test_the_payload_is_what_its_source_says(tmp_path: Path) -> None:
    """The bytes in the repository are assembled from the text beside them."""
    source = Path(accelerator.__file__).with_name("probe_payload.S")
    thing, image = tmp_path / "payload.o", tmp_path / "payload.bin"
    subprocess.run(["as", "--64", "-o", thing, source], check=True)
    link = ["ld", "-m", "elf_x86_64", "-Ttext", "0xF0000", "--oformat", "binary"]
    subprocess.run([*link, "-o", image, thing], check=True)
    assert image.read_bytes() == accelerator.firmware()
