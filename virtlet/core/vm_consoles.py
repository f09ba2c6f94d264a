"""The consoles of VMs, as the lifecycle uses them: VM in, log files out."""

import logging
from pathlib import Path

from virtlet.console.console_files import ConsoleFiles
from virtlet.console.log_writer import ConsoleLogs
from virtlet.core.paths import Paths, pod_log
from virtlet.model.vm import Vm

log = logging.getLogger(__name__)


class VmConsoles:
    """The consoles and pod logs of VMs.

    Args:
        logs: writes them.
        paths: where consoles are.
        uid: user of emulators whose VM has none of its own.
        gid: group of that user.
        disabled: do not write what guests print to pod logs.
    """

    def __init__(
        self, logs: ConsoleLogs, paths: Paths, uid: int, gid: int, *, disabled: bool
    ) -> None:
        self._logs = logs
        self._paths = paths
        self._uid = uid
        self._gid = gid
        self._disabled = disabled

    def prepare(self, vm: Vm) -> None:
        """Make the console for an emulator that is about to start, and follow it."""
        uid = self._uid if vm.uid is None else vm.uid
        gid = self._gid if vm.gid is None else vm.gid
        self._logs.prepare(self.files(vm), uid=uid, gid=gid)

    def follow(self, vm: Vm) -> None:
        """Follow the console of a VM that an earlier manager started."""
        self._logs.add(self.files(vm))

    def reopen(self, vm: Vm) -> None:
        """Open the pod log again, after a rotation."""
        self._logs.reopen(vm.id)

    def tell(self, vm: Vm, text: str) -> None:
        """Write a notice to the pod log; see ConsoleLogs.tell."""
        self._logs.tell(vm.id, text)

    def finish(self, vm: Vm) -> None:
        """Write the rest after the VM has ended; idempotent."""
        status = self._logs.finish(self.files(vm))
        if not status.complete:
            log.error("console not complete", extra={"vm": vm.id, "problem": status.problem})

    def remove(self, vm: Vm) -> None:
        """Stop following and delete the console, but not the pod log; idempotent."""
        self._logs.remove(self.files(vm))

    def files(self, vm: Vm) -> ConsoleFiles:
        """Where a VM's console and its log are."""
        log_file = None if self._disabled else pod_log(vm)
        below = Path(vm.pod.config.log_directory) if log_file else None
        return ConsoleFiles(vm.id, self._paths.console(vm.id), log_file, below)
