"""What plugins are told of the node and manager they run in."""

from pathlib import Path

from attrs import frozen

from virtlet.model.typed import typed
from virtlet.model.vm import Vm


@frozen(kw_only=True, field_transformer=typed)
class Node:
    """The manager's own places on the node."""

    data_dir: Path
    """Root of everything the manager keeps."""
    run_dir: Path
    """Sockets and namespaces; a short path, because unix socket paths end at 107 bytes."""
    instance: str
    """Tells this manager from others on the node; stays the same over restarts."""
    vmwrapper: Path
    """For hypervisors to start; readable and executable for the emulator's user."""
    emulator_uid: int
    """User of emulators whose VM has none of its own, and of what is asked of an emulator apart
    from VMs; what a VM's emulator opens belongs to `user_of`."""
    emulator_gid: int
    emulator: Path = Path("/usr/bin/qemu-system-x86_64")
    """The default emulator. Guests start by vmwrapper alone; it may be asked for its version."""
    emulator_problem: str = ""
    """Why vmwrapper cannot start its default emulator, QEMU, with the remedy: it is not installed,
    or its user may not run it. A hypervisor that needs QEMU raises this as FailedPrecondition; ""
    when all is well."""

    def user_of(self, vm: Vm) -> tuple[int, int]:
        """User and group that the emulator of a VM runs as, and that its files belong to."""
        return (
            self.emulator_uid if vm.uid is None else vm.uid,
            self.emulator_gid if vm.gid is None else vm.gid,
        )

    def state_dir(self, plugin: str) -> Path:
        """A directory for a plugin's own state; the plugin makes it."""
        return self.data_dir / "plugins" / plugin
