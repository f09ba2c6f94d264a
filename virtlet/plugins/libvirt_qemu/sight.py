"""What libvirt knows of our domains, as observations."""

from collections.abc import Callable, Mapping
from typing import Any

from virtlet.model.hypervisor import DomainState, Observation
from virtlet.plugins.libvirt_qemu import states
from virtlet.plugins.libvirt_qemu.domains import Domains, missing_is_fine
from virtlet.plugins.libvirt_qemu.runs import Runs

EVENT_DELAY = 0.5
"""Seconds that the event of an end may come after the state: it knows better how a VM ended."""


class Sight:
    """Looks at domains.

    How a VM ended is what its record says. Where there is none yet, its event is given some
    seconds (`patience`) to write it, and then the state's reason has to do; with no patience at
    all (None) the observation has no `exit`.

    Args:
        domains: where they are found.
        runs: where ends are recorded.
        by_signal: whether a signal ended the emulator of the domain with this name.
    """

    def __init__(self, domains: Domains, runs: Runs, by_signal: Callable[[str], bool]) -> None:
        self._domains = domains
        self._runs = runs
        self._by_signal = by_signal

    def one(self, vm_id: str, patience: float | None = EVENT_DELAY) -> Observation | None:
        """One of our domains now, or None."""
        with self._domains.call(f"look at VM {vm_id}") as connection:
            domain = self._domains.find(connection, vm_id)
            if domain is None:
                return None
            with missing_is_fine():
                return self._observation(vm_id, domain, patience)
            return None

    def all(self, patience: float | None = EVENT_DELAY) -> Mapping[str, Observation]:
        """All of ours."""
        found: dict[str, Observation] = {}
        with self._domains.call("list VMs") as connection:
            for vm_id, domain in self._domains.all(connection):
                with missing_is_fine():
                    found[vm_id] = self._observation(vm_id, domain, patience)
        return found

    def _observation(self, vm_id: str, domain: Any, patience: float | None) -> Observation:
        state, reason = domain.state()
        live = states.live_state(state, reason)
        if live is not None:
            return Observation(vm_id=vm_id, state=live)
        if not self._runs.begun(vm_id):
            return Observation(vm_id=vm_id, state=DomainState.DEFINED)
        ended = self._runs.wait_for_end(vm_id, patience or 0.0)
        if ended is None and patience is not None:
            how = states.exit_by_reason(reason, lambda: self._by_signal(domain.name()))
            ended = self._runs.end(vm_id, how)
        return Observation(vm_id=vm_id, state=DomainState.STOPPED, exit=ended)
