"""What this host can run guests with: found out once, and stored until something changes.

/dev/kvm may open and still not run a stock kernel: nested and paravirtual hosts emulate part of
what a guest's kernel does, and give up, or hang, at the rest. So the probe boots a firmware that
goes through the CPU's modes as a kernel does (see probe_payload.S) and says how far it got.
"""

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

from virtlet.host.commands import clean_environment, run
from virtlet.host.confinement import Confinement, as_user
from virtlet.host.files import write_atomically
from virtlet.model.node import Node

log = logging.getLogger(__name__)


DEVICE = Path("/dev/kvm")
TIME_LIMIT = 3.0
"""Seconds; a working host needs a tenth of that at most."""
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
"""Exit statuses of timeout(1) from this one on mean that a signal ended the emulator."""
_KVM_ERROR = "KVM internal error"
_SIZE = 0x10000
_RESET_VECTOR = 0xFFF0
"""Where the CPU starts, in a firmware image of 64 KiB."""


@frozen
class Verdict:
    """Whether KVM is usable, and why not."""

    usable: bool
    reason: str
    lasting: bool = True
    """Whether it holds as long as the device does not change; one of a busy host may not."""


def probe_kvm(
    emulator: Path, uid: int, gid: int, *, accelerator: str = "kvm", device: Path = DEVICE
) -> Verdict:
    """Try KVM; takes a tenth of a second where it works, `TIME_LIMIT` seconds at most.

    Args:
        emulator: QEMU.
        uid: user that guests will run as.
        gid: its group.
        accelerator: QEMU's name of what is tried; `tcg` shows that the test itself works.
        device: what is looked at before and after; QEMU opens its own.
    """
    if accelerator == "kvm" and not device.exists():
        return Verdict(False, f"{device} is not there: the CPU or the host offers no KVM")
    if accelerator == "kvm" and not _may_open(device, uid, gid):
        return Verdict(
            False,
            f"KVM cannot be used: the emulator's user (uid {uid}) may not open {device}: add it to "
            "the device's group",
        )
    with tempfile.TemporaryDirectory(prefix="virtlet-kvm-probe-") as directory:
        Path(directory).chmod(0o755)
        image = Path(directory) / "firmware"
        image.write_bytes(firmware())
        image.chmod(0o644)
        return _boot(emulator, image, accelerator, as_user(uid, gid))


def access(uid: int, gid: int, device: Path = DEVICE) -> tuple[int, ...]:
    """What decides who may open the device: a verdict holds for as long as it is the same.

    Args:
        uid: user that guests will run as.
        gid: its group.
        device: the device, which may not exist.

    Returns:
        Mode, owner and group of the device, if it is there, and the user's groups.
    """
    try:
        status = device.stat()
    except OSError:
        return ()
    return (status.st_mode, status.st_uid, status.st_gid, *sorted(_groups(uid, gid)))


def _boot(emulator: Path, image: Path, accelerator: str, user: Confinement) -> Verdict:
    cpu = "host" if accelerator == "kvm" else "qemu64"
    command = [
        # Ends the emulator also if the manager is killed meanwhile.
        *("timeout", "--signal=KILL", f"{TIME_LIMIT + 1:g}"),
        *(str(emulator), "-nodefaults", "-no-user-config", "-display", "none", "-no-reboot"),
        *("-machine", "q35", "-accel", accelerator, "-cpu", cpu, "-m", "32", "-bios", str(image)),
        *("-chardev", "stdio,id=out", "-device", "isa-debugcon,iobase=0x402,chardev=out"),
        *("-device", "isa-debug-exit,iobase=0xf4,iosize=4"),
    ]
    try:
        process = subprocess.Popen(
            user.wrap(command),
            env=clean_environment(),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
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
    """Read until the emulator ends, reports an error of KVM, or the time is over.

    Returns:
        The letters of the stages, and the emulator's messages.
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
                # QEMU stays, paused; the rest of its report takes no longer than this.
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
    """Groups of a process of the user, as libvirt starts it."""
    if uid == os.geteuid():
        return os.getgroups()
    return list(as_user(uid, gid).groups)


def _may_open(device: Path, uid: int, gid: int) -> bool:
    """Whether a process of the user may read and write the device."""
    if uid == os.geteuid():
        return os.access(device, os.R_OK | os.W_OK)
    done = subprocess.run(
        ["/bin/sh", "-c", 'test -r "$1" && test -w "$1"', "test", str(device)],
        user=uid,
        group=gid,
        extra_groups=_groups(uid, gid),
        env={},
        check=False,
    )
    return done.returncode == 0


@frozen
class Host:
    """QEMU and KVM of this host."""

    qemu_version: str
    kvm: Verdict | None
    """None if it was not asked for."""


def examine(node: Node, *, ask_kvm: bool, device: Path = DEVICE) -> Host:
    """Find out about QEMU and KVM, from what is stored if nothing has changed.

    Args:
        node: whose emulator is asked; the answer is stored in its state directory.
        ask_kvm: whether to probe KVM.
        device: the device of KVM.

    Raises:
        VirtletError: the emulator does not say its version.
    """
    memory = node.state_dir("libvirt_qemu") / "host.json"
    user = node.emulator_uid, node.emulator_gid
    key = _key(node, device)
    host = _recall(memory, key)
    if host is not None and (host.kvm is not None or not ask_kvm):
        return host
    version = host.qemu_version if host else _version(node.emulator, as_user(*user))
    kvm = probe_kvm(node.emulator, *user, device=device) if ask_kvm else None
    if kvm is not None:
        log.info("KVM probed", extra={"usable": kvm.usable, "problem": kvm.reason})
    host = Host(version, kvm)
    memory.parent.mkdir(parents=True, exist_ok=True)
    kept = asdict(kvm) if kvm and kvm.lasting else None
    document = {"key": key, "qemu_version": version, "kvm": kept}
    write_atomically(memory, json.dumps(document, indent=1).encode())
    return host


def _key(node: Node, device: Path) -> dict[str, Any]:
    """All that the answer depends on; vmwrapper names the file of QEMU and its version."""
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


def _version(emulator: Path, user: Confinement) -> str:
    text = run(user.wrap([str(emulator), "--version"]), timeout=10).decode(errors="replace")
    match = re.search(r"version (\S+)", text)
    return match[1] if match else text.split("\n")[0][:60]


def firmware() -> bytes:
    """The image, 64 KiB: the code at its start, a jump to it at the reset vector."""
    return _CODE.ljust(_RESET_VECTOR, b"\0") + _JUMP.ljust(_SIZE - _RESET_VECTOR, b"\0")


_CODE = bytes.fromhex(
    """
    fab052ba0204ee2e660f011640030f20c00c010f22c066ea1e000f000800b8100000008e
    d88ec08ed0bc00900000b05066ba0204ee31c0bf00100000b900240000f3abc705001000
    0007200000c7050020000007300000c7051820000007400000c7050030000087000000c7
    050830000087002000c705b84f00009b00e0feb8001000000f22d80f20e00d200600000f
    22e0b9800000c00f320d010100000f300f20c083e0fb0d020001800f22c0eab5000f0018
    00b8100000008ed88ec08ed048c7c400900000b04c66ba0204ee31dbbe70020f00e8e301
    0000ffc383fb4175f4bb03000000be81020f00e8cd010000bb0e000000be89020f00e8be
    010000bb40000000beab020f00e8af0100000f011c2546030f0048c70425046000000090
    0000b8400000000f00d84531c0cc4183f8030f852a010000b05866ba0204eebf00000040
    c7075a5a5a5a813c25000020005a5a5a5a0f85070100004183f80e0f85fd000000b04666
    ba0204eeb8010000000fa281e20100000681fa010000060f85dd000000f30f6f04255003
    0f00660ffec0f30f7f0425008f0000833c250c8f0000080f85b9000000b05366ba0204ee
    b9810000c031c0ba180028000f30ffc1b8f9010f0031d20f30b9840000c0b8000200000f
    306a336800a000006a026a3b68e7010f0048cf41b9010000000f0541b9020000000f050f
    0b0f01f848c7c4009000004183f902740d48c7c400a000000f01f8480f07b05566ba0204
    eebf0000e0fec787f0000000ff010000c787e003000003000000c7872003000040000000
    4531c0c78780030000204e0000fa4585c07504fbf4ebf6b05466ba0204ee31c0eb1ab03f
    66ba0204eeb801000000eb0cb02166ba0204eeb802000000e7f4f4ebfd41b80300000048
    cf4883c40841b80e000000c704250070000087002000c70425082000000770000048cf41
    b840000000c787b00000000000000048cf89dfc1e70481c70050000089f025ffff00000d
    00001800890789f0250000ffff0d008e000089470448c7470800000000c3669000000000
    00000000ffff0000009bcf00ffff00000093cf00ffff0000009baf00ffff00000093cf00
    ffff000000fbcf00ffff000000f3cf00ffff000000fbaf00670000600089000000000000
    000000004f00f0020f000f04005000000000000001000000020000000300000004
    """
)
"""Assembled from probe_payload.S beside this file."""
_JUMP = bytes.fromhex("ea000000f0")
