"""What this host can run guests with: asked once, then remembered for as long as it holds."""

import contextlib
import hashlib
import json
import logging
import os
import re
import selectors
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any

from attrs import asdict, frozen

from virtlet.host.commands import run
from virtlet.host.files import write_atomically
from virtlet.model.node import Node
from virtlet.plugins.libvirt_qemu.probe_payload import firmware

log = logging.getLogger(__name__)


DEVICE = Path("/dev/kvm")
TIME_LIMIT = 3.0
"""Seconds a working host needs a tenth of at most."""
_STAGES = {
    "R": "real mode",
    "P": "protected mode",
    "L": "paging and 64-bit mode",
    "X": "an exception",
    "F": "a page fault",
    "S": "SSE2",
    "U": "user mode and system calls",
    "T": "a timer interrupt",
}
_PASSED = 1
"""QEMU's exit status when the guest writes 0 to isa-debug-exit: (value << 1) | 1."""
_SIGNAL = 128
"""From this status on timeout(1) tells of a signal that ended the emulator."""
_KVM_ERROR = "KVM internal error"


# Does KVM run guests here? Only booting something tells.
#
# /dev/kvm may open and still not run a stock kernel: nested and paravirtual hosts emulate part of
# what a guest's kernel does, and give up, or hang, at the rest. The probe boots a firmware of 1 KiB
# that goes a kernel's way through the CPU's modes (see probe_payload.S) and says how far it got.


@frozen
class Verdict:
    """Whether KVM is usable, and why not."""

    usable: bool
    reason: str
    lasting: bool = True
    """Whether it holds as long as the device is what it is; a busy host's may pass by itself."""


def probe_kvm(
    emulator: Path, uid: int, gid: int, *, accelerator: str = "kvm", device: Path = DEVICE
) -> Verdict:
    """Try KVM; takes a tenth of a second where it works, `TIME_LIMIT` seconds at most.

    Args:
        emulator: QEMU, or a program that passes its arguments on to QEMU.
        uid: user that guests will run as.
        gid: its group.
        accelerator: QEMU's name of what is tried; `tcg` shows that the test itself works.
        device: what is looked at before and after; QEMU opens its own.
    """
    if accelerator == "kvm" and not device.exists():
        return Verdict(False, f"{device} is not there: the CPU or the host offers no KVM")
    with tempfile.TemporaryDirectory(prefix="virtlet-kvm-probe-") as directory:
        image = Path(directory) / "firmware"
        image.write_bytes(firmware())
        verdict = _boot(emulator, image, accelerator)
    if verdict.usable and accelerator == "kvm" and not _may_open(device, uid, gid):
        return Verdict(
            False,
            f"KVM works, but the emulator's user (uid {uid}) may not open {device}: "
            "add it to the device's group",
        )
    return verdict


def access(uid: int, gid: int, device: Path = DEVICE) -> tuple[int, ...]:
    """All that decides who may open the device: a verdict is good for as long as it is the same.

    Args:
        uid: user that guests will run as.
        gid: its group.
        device: the device, there or not.

    Returns:
        Mode, owner and group of the device, if it is there, and the user's groups.
    """
    try:
        status = device.stat()
    except OSError:
        return ()
    return (status.st_mode, status.st_uid, status.st_gid, *sorted(_groups(uid, gid)))


def _boot(emulator: Path, image: Path, accelerator: str) -> Verdict:
    cpu = "host" if accelerator == "kvm" else "qemu64"
    command = [
        # Ends the emulator also when the manager dies in the middle.
        *("timeout", "--signal=KILL", f"{TIME_LIMIT + 1:g}"),
        *(str(emulator), "-nodefaults", "-no-user-config", "-display", "none", "-no-reboot"),
        *("-machine", "q35", "-accel", accelerator, "-cpu", cpu, "-m", "32", "-bios", str(image)),
        *("-chardev", "stdio,id=out", "-device", "isa-debugcon,iobase=0x402,chardev=out"),
        *("-device", "isa-debug-exit,iobase=0xf4,iosize=4"),
    ]
    try:
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )
    except OSError as error:
        return Verdict(False, f"cannot run {emulator}: {error.strerror}", lasting=False)
    with process:
        reached, said = _follow(process)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(0.2)
        hung = process.poll() is None
        if hung:
            process.terminate()  # passed on as SIGKILL
        status = process.wait()
    if status == _PASSED and reached == "".join(_STAGES):
        return Verdict(True, "the test guest ran to its end")
    by_itself = bool(reached) and not hung and status < _SIGNAL
    return Verdict(False, _explain(reached, said), lasting=_KVM_ERROR in said or by_itself)


def _follow(process: "subprocess.Popen[bytes]") -> tuple[str, str]:
    """Read until the emulator ends, reports an error of KVM's, or the time is over.

    Returns:
        The stages' letters, and what the emulator said.
    """
    assert process.stdout is not None
    assert process.stderr is not None
    texts = {process.stdout: b"", process.stderr: b""}
    deadline = time.monotonic() + TIME_LIMIT
    with selectors.DefaultSelector() as selector:
        for pipe in texts:
            selector.register(pipe, selectors.EVENT_READ)
        while selector.get_map() and (left := deadline - time.monotonic()) > 0:
            for key, _ in selector.select(left):
                chunk = os.read(key.fd, 4096)
                texts[key.fileobj] += chunk  # type: ignore[index]
                if not chunk:
                    selector.unregister(key.fileobj)
            if _KVM_ERROR.encode() in texts[process.stderr]:
                # QEMU stays, paused; it needs no longer than this for the rest of its report.
                deadline = min(deadline, time.monotonic() + 0.1)
    return texts[process.stdout].decode("latin-1"), texts[process.stderr].decode(errors="replace")


def _explain(reached: str, said: str) -> str:
    lines = [line.strip() for line in said.splitlines() if line.strip()]
    if _KVM_ERROR in said:
        cause = _KVM_ERROR
        if any(line == "emulation failure" for line in lines):
            cause += ", emulation failure"
    elif not reached and lines:
        return f"QEMU does not start with KVM: {lines[-1][:200]}"
    else:
        cause = "it hung or the CPU was reset"
    done = [letter for letter in reached if letter in _STAGES]
    failed = next((what for letter, what in _STAGES.items() if letter not in done), "its end")
    passed = _STAGES[done[-1]] if done else "nothing"
    return (
        f"/dev/kvm opens, but a test guest fails at {failed} after {passed} worked ({cause}): "
        "this host's KVM runs no ordinary kernels"
    )


def _groups(uid: int, gid: int) -> list[int]:
    """Groups of a process of the user's, as libvirt starts it."""
    if uid == os.geteuid():
        return os.getgroups()
    try:
        import pwd

        return os.getgrouplist(pwd.getpwuid(uid).pw_name, gid)
    except KeyError:
        return [gid]


def _may_open(device: Path, uid: int, gid: int) -> bool:
    """Whether a process of the user's may read and write the device."""
    if uid == os.geteuid():
        return os.access(device, os.R_OK | os.W_OK)
    done = subprocess.run(
        ["/bin/sh", "-c", 'test -r "$1" && test -w "$1"', "test", str(device)],
        user=uid,
        group=gid,
        extra_groups=_groups(uid, gid),
        check=False,
    )
    return done.returncode == 0


@frozen
class Host:
    """What was found out about QEMU and KVM here."""

    qemu_version: str
    kvm: Verdict | None
    """None when nobody asked."""


def examine(node: Node, *, ask_kvm: bool, device: Path = DEVICE) -> Host:
    """Find out what there is, from memory where nothing has changed.

    Args:
        node: whose emulator is asked; the answer is kept in its state directory.
        ask_kvm: whether KVM matters.
        device: KVM's.

    Raises:
        VirtletError: the emulator does not even tell its version.
    """
    memory = node.state_dir("libvirt_qemu") / "host.json"
    user = node.emulator_uid, node.emulator_gid
    key = _key(node, device)
    host = _recall(memory, key)
    if host is not None and (host.kvm is not None or not ask_kvm):
        return host
    version = host.qemu_version if host else _version(node.vmwrapper)
    kvm = probe_kvm(node.vmwrapper, *user, device=device) if ask_kvm else None
    if kvm is not None:
        log.info("KVM probed", extra={"usable": kvm.usable, "problem": kvm.reason})
    host = Host(version, kvm)
    memory.parent.mkdir(parents=True, exist_ok=True)
    kept = asdict(kvm) if kvm and kvm.lasting else None
    document = {"key": key, "qemu_version": version, "kvm": kept}
    write_atomically(memory, json.dumps(document, indent=1).encode())
    return host


def _key(node: Node, device: Path) -> dict[str, Any]:
    """Everything the answer depends on; the wrapper's text names QEMU's version of its file."""
    return {
        "kernel": os.uname().release,
        "boot": Path("/proc/sys/kernel/random/boot_id").read_text().strip(),
        "emulator": hashlib.sha256(node.vmwrapper.read_bytes()).hexdigest(),
        "probe": hashlib.sha256(firmware()).hexdigest(),
        "user": [node.emulator_uid, node.emulator_gid],
        "access": list(access(node.emulator_uid, node.emulator_gid, device)),
    }


def _recall(memory: Path, key: dict[str, Any]) -> Host | None:
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        known = json.loads(memory.read_bytes())
        if known["key"] == key:
            kvm = Verdict(**known["kvm"]) if known["kvm"] else None
            return Host(str(known["qemu_version"]), kvm)
    return None


def _version(emulator: Path) -> str:
    text = run([str(emulator), "--version"], timeout=10).decode(errors="replace")
    match = re.search(r"version (\S+)", text)
    return match[1] if match else text.split("\n")[0][:60]
