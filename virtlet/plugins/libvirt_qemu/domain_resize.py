"""Changing a running domain: where it runs, how much memory and how many vCPUs it has."""

import contextlib
import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import libvirt

from virtlet.errors import FailedPrecondition, Unavailable, VirtletError
from virtlet.model.hypervisor import Resize
from virtlet.plugins.libvirt_qemu import failures
from virtlet.plugins.libvirt_qemu.domain_memory import Memory

log = logging.getLogger(__name__)

_LIVE = libvirt.VIR_DOMAIN_AFFECT_LIVE
_MOST = libvirt.VIR_DOMAIN_AFFECT_LIVE | libvirt.VIR_DOMAIN_VCPU_MAXIMUM
PATIENCE = 5.0
"""Seconds that a guest may stand still while it takes up or gives back memory."""


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
        self._memory = Memory(domain, PATIENCE)

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
            # First what fails least, last what can be undone least.
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
                # That would say that all is as before.
                raise Unavailable(f"{told}; not undone: {'; '.join(left)}") from None
            raise told from None
        return Resize(vcpus=vcpus, memory=memory, cpus=cpus)

    def _told(self, error: Exception) -> Exception:
        """What the caller hears."""
        if isinstance(error, FailedPrecondition):
            return FailedPrecondition(f"cannot resize VM {self._vm_id}: {error}")
        if isinstance(error, OSError):
            return FailedPrecondition(f"cannot resize VM {self._vm_id}: {error.strerror}")
        if isinstance(error, libvirt.libvirtError) and not _is_away(error):
            return FailedPrecondition(f"cannot resize VM {self._vm_id}: {failures.short(error)}")
        return error

    def _try(self, step: Callable[[], object]) -> str:
        """Undo a step, as far as it goes.

        Returns:
            Why it did not go; empty if it did.
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
            # QEMU's emulation keeps the state of a vCPU that is gone, and aborts when a vCPU is
            # added afterwards for which there is no room any more.
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
            # Those that are not there yet, too: they are put in place when they come.
            self._domain.pinVcpuFlags(number, mask, _LIVE)
        # libvirt knows nothing of the emulator's other threads.
        for task in Path(f"/proc/{self._emulator}/task").iterdir():
            with contextlib.suppress(ProcessLookupError):
                os.sched_setaffinity(int(task.name), cpus)


def _is_away(error: libvirt.libvirtError) -> bool:
    """Whether the domain or libvirt itself is gone."""
    return failures.is_lost(error) or failures.is_missing(error)
