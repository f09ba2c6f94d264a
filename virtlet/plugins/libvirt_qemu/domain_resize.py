"""Changing a running domain: where it runs, how much memory and how many vCPUs it has.

Its memory is what it started with, less a balloon, plus a virtio-mem device.

Source: virDomainSetMemoryFlags, virDomainUpdateDeviceFlags and "Memory devices" of libvirt's
documentation. libvirt counts in KiB; its balloon is the started memory alone, without the device.
"""

import contextlib
import logging
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import libvirt
from attrs import frozen

from virtlet.errors import FailedPrecondition, Unavailable, VirtletError
from virtlet.model.hypervisor import Resize
from virtlet.plugins.libvirt_qemu import failures

log = logging.getLogger(__name__)

_LIVE = libvirt.VIR_DOMAIN_AFFECT_LIVE
_MOST = libvirt.VIR_DOMAIN_AFFECT_LIVE | libvirt.VIR_DOMAIN_VCPU_MAXIMUM
PATIENCE = 5.0
"""Seconds that a guest may make no progress in taking up or giving back memory."""
_POLL = 0.1
"""Seconds between looks at what the guest has done so far."""
_LONGEST = 30.0
"""Seconds for a guest that makes progress all the time."""
_SLACK = 4 << 10
"""KiB: kernels before 6.0 take memory up in pieces of 4 MiB."""
_RESERVE = (16 << 10, 16)
"""KiB, and part of what a guest has afterwards, that stays free: without free memory a guest kills
its processes, or panics."""


class Resizer:
    """Changes one running domain.

    Args:
        vm_id: whose it is.
        domain: libvirt's.
        emulator: process id of its emulator.
        emulated: it runs without KVM.
    """

    def __init__(self, vm_id: str, domain: Any, emulator: int, *, emulated: bool) -> None:
        self._vm_id = vm_id
        self._domain = domain
        self._emulator = emulator
        self._emulated = emulated
        self._memory = DomainMemory(domain, PATIENCE)

    def resize(self, change: Resize) -> Resize:
        """Apply a change, all of it or nothing.

        Returns:
            What was before.

        Raises:
            FailedPrecondition: see virtlet.model.hypervisor.
            Unavailable: what failed could not be undone either; it may be later.
        """
        undo: list[Callable[[], object]] = []
        cpus = memory = vcpus = None
        try:
            # First what is least likely to fail, last what is hardest to undo.
            if change.cpus is not None:
                before = cpus = self._pinned()
                undo.append(lambda: self._pin(before))
                self._pin(change.cpus)
            if change.memory is not None:
                had = memory = self._memory.resize(change.memory)
                undo.append(lambda: self._memory.resize(had))
            if change.vcpus is not None:
                vcpus = self._domain.vcpusFlags(_LIVE)
                self._set_vcpus(vcpus, change.vcpus)
        except (VirtletError, libvirt.libvirtError, OSError) as error:
            told = self._told(error)
            left = [problem for step in reversed(undo) if (problem := self._try(step))]
            if left and isinstance(told, FailedPrecondition):
                # Which says that all is as before.
                raise Unavailable(f"{told}; not undone: {'; '.join(left)}") from None
            raise told from None
        return Resize(vcpus=vcpus, memory=memory, cpus=cpus)

    def _told(self, error: Exception) -> Exception:
        """The error for the caller."""
        if isinstance(error, FailedPrecondition):
            return FailedPrecondition(f"cannot resize VM {self._vm_id}: {error}")
        if isinstance(error, OSError):
            return FailedPrecondition(f"cannot resize VM {self._vm_id}: {error.strerror}")
        if isinstance(error, libvirt.libvirtError) and not _is_away(error):
            return FailedPrecondition(f"cannot resize VM {self._vm_id}: {failures.short(error)}")
        return error

    def _try(self, step: Callable[[], object]) -> str:
        """Undo a step.

        Returns:
            Why that failed; "" if it did not.
        """
        try:
            step()
        except (VirtletError, libvirt.libvirtError, OSError) as error:
            log.warning("not undone", extra={"vm": self._vm_id, "problem": str(error)})
            return str(error)
        return ""

    # vCPUs

    def _set_vcpus(self, now: int, wanted: int) -> None:
        most = self._domain.vcpusFlags(_MOST)
        if wanted > most:
            raise FailedPrecondition(
                f"{wanted} vCPUs need a restart: it can have {most} while it runs"
            )
        if wanted < now:
            self._unplug_vcpus(now, wanted)
        elif wanted > now:
            try:
                self._domain.setVcpusFlags(wanted, _LIVE)
            except libvirt.libvirtError:
                self._unplug_vcpus(wanted, now)
                raise

    def _unplug_vcpus(self, now: int, wanted: int) -> None:
        extra = {"vm": self._vm_id, "vcpus": now, "wanted": wanted}
        if self._emulated:
            # Without KVM QEMU keeps the state of a vCPU that is gone, and aborts if a vCPU is added
            # afterwards for which there is no room left.
            log.info("vCPUs stay: without KVM none can be taken away safely", extra=extra)
            return
        try:
            self._domain.setVcpusFlags(wanted, _LIVE)
        except libvirt.libvirtError as error:
            if _is_away(error):
                raise
            log.warning("the guest keeps vCPUs", extra=extra | {"problem": failures.short(error)})

    # Placement

    def _pinned(self) -> frozenset[int]:
        mask = self._domain.emulatorPinInfo(_LIVE)
        return frozenset(number for number, allowed in enumerate(mask) if allowed)

    def _pin(self, cpus: frozenset[int]) -> None:
        mask = tuple(number in cpus for number in range(max(cpus) + 1))
        self._domain.pinEmulator(mask, _LIVE)
        for number in range(self._domain.vcpusFlags(_MOST)):
            # Also those that do not exist yet: they are pinned when they are added.
            self._domain.pinVcpuFlags(number, mask, _LIVE)
        # libvirt does not know the other threads of the emulator.
        for task in Path(f"/proc/{self._emulator}/task").iterdir():
            with contextlib.suppress(ProcessLookupError):
                os.sched_setaffinity(int(task.name), cpus)


def _is_away(error: libvirt.libvirtError) -> bool:
    """Whether the domain or libvirt itself is gone."""
    return failures.is_lost(error) or failures.is_missing(error)


@frozen
class MemoryState:
    """All in KiB."""

    started: int
    balloon: int
    """What the balloon leaves of it."""
    device: ElementTree.Element | None
    """The virtio-mem device's element."""
    size: int = 0
    """Of the device."""
    block: int = 1
    """The device's smallest step."""
    plugged: int = 0
    """What the guest has of the device."""

    @property
    def usable(self) -> int:
        """What the guest has in all."""
        return self.balloon + self.plugged

    @property
    def most(self) -> int:
        """What it can have at most."""
        return self.started + self.size


def look(domain: Any) -> MemoryState:
    """The domain's memory now."""
    document = ElementTree.fromstring(domain.XMLDesc(0))
    total = int(document.findtext("memory", "0"))
    balloon = int(domain.memoryStats().get("actual", total))
    device = document.find("devices/memory[@model='virtio-mem']")
    if device is None:
        return MemoryState(total, balloon, None)
    size, block, plugged = (
        int(device.findtext(f"target/{name}", "0")) for name in ("size", "block", "current")
    )
    return MemoryState(total - size, balloon, device, size, block, plugged)


class DomainMemory:
    """Changes the memory of a domain.

    Args:
        domain: libvirt's.
        patience: seconds that a guest may make no progress.
    """

    def __init__(self, domain: Any, patience: float) -> None:
        self._domain = domain
        self._patience = patience

    def resize(self, wanted: int) -> int:
        """Give the guest this much memory.

        Args:
            wanted: bytes.

        Returns:
            Bytes it had before.

        Raises:
            FailedPrecondition: it cannot have that without a restart, or the guest does not
                cooperate; its memory is as before.
        """
        before = look(self._domain)
        goal = wanted >> 10
        if goal > before.most:
            raise FailedPrecondition(
                f"{_mib(goal)} MiB of memory need a restart: it can have {_mib(before.most)} MiB "
                f"while it runs, and started with {_mib(before.started)} MiB"
            )
        if goal < before.usable:
            self._check_spare(before, goal)
        try:
            self._apply(before, goal)
        except (FailedPrecondition, libvirt.libvirtError):
            with contextlib.suppress(libvirt.libvirtError):
                self._restore(before)
            raise
        return before.usable << 10

    def _check_spare(self, now: MemoryState, goal: int) -> None:
        """Refuse to take memory that the guest uses."""
        spare = self._spare()
        if spare is None:
            raise FailedPrecondition(
                "the guest does not tell how much memory it can spare: it needs a balloon driver "
                "with statistics, and time to load it; try again, or restart the VM with less"
            )
        least = now.usable - spare
        least += max(_RESERVE[0], goal // _RESERVE[1])
        if goal < least:
            raise FailedPrecondition(
                f"the guest uses its memory and cannot do with {_mib(goal)} MiB of it: at least "
                f"{_mib(least) + 1} MiB for now; free some in the guest, or restart the VM with "
                "less"
            )

    def _spare(self) -> int | None:
        """KiB that the guest could do without now, by its own estimate; None without one."""
        document = ElementTree.fromstring(self._domain.XMLDesc(0))
        usual = document.find("devices/memballoon/stats")
        told = self._told_at()
        self._domain.setMemoryStatsPeriod(1, _LIVE)
        try:
            fresh = self._settle(self._told_at, lambda at: at != told) != told
        finally:
            period = 0 if usual is None else int(usual.get("period", "0"))
            self._domain.setMemoryStatsPeriod(period, _LIVE)
        stats = self._domain.memoryStats()
        spare = stats.get("usable", stats.get("unused"))
        return int(spare) if fresh and spare is not None else None

    def _told_at(self) -> int:
        """When the guest reported its memory last: seconds since the epoch, by its own clock."""
        return int(self._domain.memoryStats().get("last_update", 0))

    def _apply(self, now: MemoryState, goal: int) -> None:
        extra = max(goal - now.started, 0) // now.block * now.block
        plugged = now.plugged
        if extra > plugged:
            # What the balloon holds comes back first.
            self._inflate_to(now.started)
            plugged = self._grow(extra)
        elif now.device is not None:
            # Also if the guest has as much: an interrupted resize may have requested another size.
            plugged = self._shrink(extra)
        self._balloon(min(now.started, goal - plugged))

    def _grow(self, extra: int) -> int:
        self._request(extra)
        plugged = self._settle(self._plugged, lambda size: size >= extra)
        if plugged < extra - _SLACK:
            raise FailedPrecondition(
                f"the guest took up {_mib(plugged)} of {_mib(extra)} MiB that were added: it needs "
                "Linux 5.8 or newer with the module virtio_mem, and time to load it; try again, or "
                "restart the VM with the memory it needs"
            )
        return plugged

    def _shrink(self, extra: int) -> int:
        """Take memory out of the device; the balloon can take what the guest does not unplug."""
        self._request(extra)
        plugged = self._settle(self._plugged, lambda size: size <= extra)
        if plugged > extra:
            # Else it would go on unplugging, and the balloon would then hold too much.
            self._request(plugged)
        return plugged

    def _balloon(self, goal: int) -> None:
        if goal > 0:
            self._inflate_to(goal)
            left = self._settle(self._ballooned, lambda size: size <= goal)
        if goal <= 0 or left > goal:
            raise FailedPrecondition(
                "the guest does not give its memory back: it needs a balloon driver, time to load "
                "it, and memory that is not in use; try again, or restart the VM with less"
            )

    def _restore(self, before: MemoryState) -> None:
        """Request what was before; the guest follows when it can."""
        now = look(self._domain)
        if now.balloon != before.balloon:
            self._inflate_to(before.balloon)
        if before.device is not None:
            self._request(before.plugged)

    def _inflate_to(self, left: int) -> None:
        self._domain.setMemoryFlags(left, _LIVE)

    def _request(self, size: int) -> None:
        device = look(self._domain).device
        requested = None if device is None else device.find("target/requested")
        if device is None or requested is None:
            raise FailedPrecondition("the machine has no device that memory can be added to")
        # Also if libvirt knows it as the size: after an interrupted request QEMU may have another.
        requested.text = str(size)
        text = ElementTree.tostring(device, encoding="unicode")
        self._domain.updateDeviceFlags(text, _LIVE)

    def _plugged(self) -> int:
        return look(self._domain).plugged

    def _ballooned(self) -> int:
        return int(self._domain.memoryStats().get("actual", 0))

    def _settle(self, value: Callable[[], int], reached: Callable[[int], bool]) -> int:
        """Wait while a number changes; return it when it is as wanted or changes no more."""
        last, started = value(), time.monotonic()
        moved = started
        while not reached(last):
            time.sleep(_POLL)
            current, now = value(), time.monotonic()
            if current != last:
                last, moved = current, now
            elif now - moved > self._patience or now - started > _LONGEST:
                break
        return last


def _mib(kib: int) -> int:
    return kib >> 10
