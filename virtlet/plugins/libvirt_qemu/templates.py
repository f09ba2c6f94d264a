"""Templates: a VM's memory and state in files, where clones start.

A template boots with its RAM in a file. QEMU's migration then writes the state of the devices
alone (`x-ignore-shared`); the RAM is in its file already. A clone maps that file privately, so that
it shares with the others what it does not write, and loads the state before its CPUs run. Its
NICs are plugged in between, into ports that the template has: a NIC's MAC belongs to its state.

libvirt does not compare a clone's document with the template's, and QEMU little: whoever chooses
the template answers for that.

Source: migrate, migrate-incoming, add-fd and device_add of QEMU's qapi/*.json (10.0).
"""

import base64
import contextlib
import json
import os
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any
from xml.etree.ElementTree import Element, SubElement

import libvirt
import libvirt_qemu
from attrs import frozen

from virtlet.errors import FailedPrecondition
from virtlet.host.files import new_disk_file, remove_file
from virtlet.model.disk import Share, host_devices
from virtlet.model.launch import LaunchPart, Visible
from virtlet.model.vm import Machine, Template
from virtlet.plugins.libvirt_qemu import nics

_RAM, _STATE = "ram", "state"
_PATIENCE = 30.0
"""Seconds to write or read a state, which is less than a MiB."""
_POLL = 0.005


@frozen(kw_only=True)
class Load:
    """What a clone's start takes beside its launch."""

    state: Path
    nics: Sequence[Mapping[str, Any]]
    """Arguments of device_add."""


def unfit(machine: Machine, *, jailed: bool) -> str:
    """Why a machine can have no part in a template, as a clause; "" if it can."""
    flavor = machine.flavor
    shares = [volume for volume in machine.volumes if isinstance(volume, Share)]
    reasons = {
        "emulatorJail is off, and a template is shown in jails alone": not jailed,
        f"machine type {flavor.machine} has no free ports": "q35" not in flavor.machine,
        f"firmware {flavor.firmware} keeps variables in a file": flavor.firmware != "bios",
        "it has a TPM, whose state is its own": flavor.tpm,
        "its vCPUs can grow": flavor.max_vcpus > flavor.vcpus,
        "its memory can grow": flavor.max_memory > flavor.memory,
        "the guest may run VMs of its own": flavor.nested,
        "its memory is on huge pages": bool(flavor.page_size),
        "its vCPUs have CPUs of their own": flavor.dedicated_cpus,
        "it has vsock, by an address of its own": flavor.vsock,
        "its memory is locked": flavor.lock_memory,
        "it has a shared directory": bool(shares),
        "it has a device of the node": bool(host_devices(machine.volumes))
        or any(nic.kind != "tap" for nic in machine.network.nics),
        f"it has more than {nics.PORTS} NICs": len(machine.network.nics) > nics.PORTS,
    }
    return next((reason for reason, holds in reasons.items() if holds), "")


def basis(emulator: Path) -> Mapping[str, str]:
    """What of the node a state fits: its first CPU, with microcode; the emulator's file, which a
    package may replace while we run; and our own layout of ports."""
    first = Path("/proc/cpuinfo").read_text().partition("\n\n")[0]
    # What changes from one moment to the next is left out.
    lines = [line for line in first.splitlines() if not line.startswith(("cpu MHz", "bogomips"))]
    status = emulator.stat()
    file = f"{status.st_dev} {status.st_ino} {status.st_size} {status.st_mtime_ns}"
    # A device that every machine has since there are restores.
    ours = {"ports": str(nics.PORTS), "generation": "1"}
    return {"cpu": "\n".join(lines), "emulator": file, **ours}


def give_generation(domain: Element) -> None:
    """Tell the guest by a new VM generation id that it is another machine.

    Its kernel then takes new random numbers. A template without the device has no clones with it.
    """
    for old in domain.findall("genid"):
        domain.remove(old)
    SubElement(domain, "genid").text = str(uuid.uuid4())


def launch_part(machine: Machine, template: Template, user: tuple[int, int]) -> LaunchPart:
    """The file of a template's or a clone's RAM, in place of memory.

    Args:
        machine: which VM.
        template: what it becomes, or starts from.
        user: user and group of its emulator.

    Raises:
        FailedPrecondition: a file of the template is not as it was made.
    """
    ram, size = template.directory / _RAM, machine.flavor.memory
    backend = {"qom-type": "memory-backend-file", "id": "template", "size": size}
    backend |= {"mem-path": str(ram), "share": not template.frozen}
    more: tuple[str, ...] = ()
    if template.frozen:
        _check(template.directory, size)
        # RAM that is written goes to pages of the emulator's own.
        backend |= {"readonly": True, "rom": "off"}
        more = ("-incoming", "defer")
    else:
        _make_ram(ram, size, *user)
        more = tuple(_credentials(template.credentials))
    memory = ("-object", json.dumps(backend), "-machine", "memory-backend=template")
    return LaunchPart(
        arguments=(*memory, *more),
        visible=(Visible(path=ram, writable=not template.frozen),),
    )


def _credentials(credentials: Mapping[str, str]) -> Iterator[str]:
    """OEM strings of SMBIOS, where systemd looks for credentials in a VM."""
    for name, text in credentials.items():
        encoded = base64.b64encode(text.encode()).decode()
        yield from ("-smbios", f"type=11,value=io.systemd.credential.binary:{name}={encoded}")


def load_of(machine: Machine, template: Template) -> Load:
    """What a clone's start takes beside its launch."""
    return Load(state=template.directory / _STATE, nics=nics.plugged(machine))


def _make_ram(path: Path, size: int, uid: int, gid: int) -> None:
    try:
        with new_disk_file(path, uid, gid) as descriptor:
            os.truncate(descriptor, size)
    except OSError as error:
        raise FailedPrecondition(f"{path}, a template's memory: {error.strerror}") from None


def _check(directory: Path, size: int) -> None:
    """Refuse a template whose files somebody changed, or of other memory."""
    try:
        found = {name: (directory / name).lstat() for name in (_RAM, _STATE)}
    except OSError as error:
        raise FailedPrecondition(
            f"template {directory} is not whole: {error.filename}: {error.strerror}"
        ) from None
    if found[_RAM].st_size != size:
        raise FailedPrecondition(
            f"template {directory} has {found[_RAM].st_size} bytes of memory, and not the VM's "
            f"{size}"
        )
    for name, status in found.items():
        if (status.st_uid, status.st_mode & 0o222) != (0, 0) or not status.st_size:
            raise FailedPrecondition(
                f"{directory / name} was changed after the template was made: remove the template"
            )


def freeze(domain: Any, directory: Path) -> None:
    """Write a running domain's state, and stop its CPUs for good.

    Raises:
        FailedPrecondition: QEMU refuses; a device cannot be migrated, say.
        libvirt.libvirtError: the domain does not run, or its emulator does not answer.
    """
    domain.suspend()
    _ignore_shared(domain, on=True)
    path = directory / _STATE
    remove_file(path)
    try:
        state = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise FailedPrecondition(f"{path}, a template's state: {error.strerror}") from None
    try:
        _migrate(domain, "migrate", state)
        os.fsync(state)
    except OSError as error:
        raise FailedPrecondition(f"{path}, a template's state: {error.strerror}") from None
    finally:
        os.close(state)


def seal(directory: Path) -> None:
    """Let nobody write a template's files again; its emulator has ended."""
    for name in (_RAM, _STATE):
        path = directory / name
        os.chown(path, 0, 0, follow_symlinks=False)
        # The directory is root's alone. Emulators of any user read the RAM, in their jails.
        path.chmod(0o444 if name == _RAM else 0o400)


def create_paused(domain: Any) -> None:
    """Start a domain that waits for its template's state."""
    domain.createWithFlags(libvirt.VIR_DOMAIN_START_PAUSED)


def load(domain: Any, what: Load) -> None:
    """Give a domain that was started paused its template's state and its NICs, and let it run.

    Raises:
        FailedPrecondition: QEMU refuses the state.
        libvirt.libvirtError: the emulator does not answer, or has ended.
    """
    _ignore_shared(domain, on=True)
    try:
        state = os.open(what.state, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        raise FailedPrecondition(f"{what.state}, a template's state: {error.strerror}") from None
    try:
        _migrate(domain, "migrate-incoming", state)
    finally:
        os.close(state)
    # Else a state that is saved later would lack the RAM.
    _ignore_shared(domain, on=False)
    for nic in what.nics:
        ask(domain, "device_add", nic)
    domain.resume()


def _ignore_shared(domain: Any, *, on: bool) -> None:
    capabilities = [{"capability": "x-ignore-shared", "state": on}]
    ask(domain, "migrate-set-capabilities", {"capabilities": capabilities})


def _migrate(domain: Any, command: str, state: int) -> None:
    """Write or read a state by our descriptor: the emulator has no way to the file."""
    answer = ask(domain, "add-fd", {}, [state])
    number = answer["fdset-id"]
    ask(domain, command, {"uri": f"file:/dev/fdset/{number}"})
    deadline = time.monotonic() + _PATIENCE
    while (progress := ask(domain, "query-migrate")).get("status") != "completed":
        if progress.get("status") in ("failed", "cancelled") or time.monotonic() > deadline:
            raise FailedPrecondition(
                f"QEMU's {command}: {progress.get('error-desc') or progress.get('status')}"
            )
        time.sleep(_POLL)
    with contextlib.suppress(FailedPrecondition):
        ask(domain, "remove-fd", {"fdset-id": number})


def ask(
    domain: Any, command: str, arguments: Mapping[str, Any] | None = None, files: Any = ()
) -> Any:
    """What an emulator answers to a command of its monitor.

    Args:
        domain: libvirt's.
        command: QEMU's name of it.
        arguments: of the command.
        files: descriptors that are passed with it.

    Raises:
        FailedPrecondition: QEMU refuses.
        libvirt.libvirtError: the emulator does not answer, or has ended.
    """
    text = json.dumps({"execute": command, "arguments": dict(arguments or {})})
    if files:
        answer = libvirt_qemu.qemuMonitorCommandWithFiles(domain, text, list(files), 0)
        answer = answer[0] if isinstance(answer, tuple) else answer
    else:
        answer = libvirt_qemu.qemuMonitorCommand(domain, text, 0)
    parsed = json.loads(answer)
    if "return" not in parsed:
        raise FailedPrecondition(f"QEMU's {command}: {parsed.get('error', {}).get('desc')}")
    return parsed["return"]
