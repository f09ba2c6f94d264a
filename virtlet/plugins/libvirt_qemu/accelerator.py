"""What this host can run guests with: asked once, then remembered for as long as it holds."""

import contextlib
import hashlib
import json
import logging
import os
import re
from pathlib import Path
from typing import Any

from attrs import asdict, frozen

from virtlet.host.commands import run
from virtlet.host.files import write_atomically
from virtlet.model.node import Node
from virtlet.plugins.libvirt_qemu.probe import DEVICE, Verdict, access, probe_kvm
from virtlet.plugins.libvirt_qemu.probe_payload import firmware

log = logging.getLogger(__name__)


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
    version = host.qemu_version if host else _version(node.emulator)
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
    """Everything the answer depends on; the wrapper's text names QEMU's version of its file."""
    return {
        "kernel": os.uname().release,
        "boot": Path("/proc/sys/kernel/random/boot_id").read_text().strip(),
        "emulator": hashlib.sha256(node.emulator.read_bytes()).hexdigest(),
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
