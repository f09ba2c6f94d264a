"""The memory of a running domain: what it started with, less a balloon, plus a virtio-mem device.

Source: virDomainSetMemoryFlags, virDomainUpdateDeviceFlags and "Memory devices" of libvirt's
documentation. libvirt counts in KiB; its balloon is the started memory alone, without the device.
"""

import contextlib
import time
from collections.abc import Callable
from typing import Any
from xml.etree import ElementTree

import libvirt
from attrs import frozen

from virtlet.errors import FailedPrecondition

_LIVE = libvirt.VIR_DOMAIN_AFFECT_LIVE
_POLL = 0.1
"""Seconds between looks at what the guest has done so far."""
_LONGEST = 30.0
"""Seconds for a guest that makes progress all the time."""
_SLACK = 4 << 10
"""KiB: kernels before 6.0 take memory up in pieces of 4 MiB."""
_RESERVE = (16 << 10, 16)
"""KiB, and part of what a guest has afterwards, that it keeps free: a guest without any kills its
processes, or itself."""


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


class Memory:
    """Changes a domain's memory.

    Args:
        domain: libvirt's.
        patience: seconds that a guest may stand still.
    """

    def __init__(self, domain: Any, patience: float) -> None:
        self._domain = domain
        self._patience = patience

    def resize(self, wanted: int) -> int:
        """Give the guest so much.

        Args:
            wanted: bytes.

        Returns:
            Bytes it had before.

        Raises:
            FailedPrecondition: it cannot have that without a restart, or the guest does not do
                its part; it has what it had.
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
        """Refuse to take what the guest uses."""
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
        """KiB that the guest could do without, by its own estimate of this moment."""
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
        """When the guest told of its memory last: seconds since the epoch, by its report's time."""
        return int(self._domain.memoryStats().get("last_update", 0))

    def _apply(self, now: MemoryState, goal: int) -> None:
        extra = max(goal - now.started, 0) // now.block * now.block
        plugged = now.plugged
        if extra > plugged:
            # What the balloon holds comes back first.
            self._inflate_to(now.started)
            plugged = self._grow(extra)
        elif now.device is not None:
            # Also where the guest has as much: a resize cut short may have asked for other.
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
        """Take memory out of the device; the balloon can hold what the guest does not unplug."""
        self._request(extra)
        plugged = self._settle(self._plugged, lambda size: size <= extra)
        if plugged > extra:
            # It would go on trying, and the balloon would then hold too much.
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
        """Ask for what was; the guest follows when it can."""
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
        # Also where libvirt knows the size: of a request cut short QEMU may know and it may not.
        requested.text = str(size)
        text = ElementTree.tostring(device, encoding="unicode")
        self._domain.updateDeviceFlags(text, _LIVE)

    def _plugged(self) -> int:
        return look(self._domain).plugged

    def _ballooned(self) -> int:
        return int(self._domain.memoryStats().get("actual", 0))

    def _settle(self, value: Callable[[], int], reached: Callable[[int], bool]) -> int:
        """Wait while a number moves; returns it when it is as wanted or stands still."""
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
