"""What may be run, and where."""

from collections.abc import Sequence

from virtlet.core.store.records import VmPhase
from virtlet.core.store.store import Store
from virtlet.errors import FailedPrecondition, InvalidArgument, NotFound
from virtlet.model.vm import Machine

COMMAND_LIMIT = 128 << 10
"""Bytes of a command, all its arguments together: what Linux takes as one argument, and far more
than anyone types."""


def checked(command: Sequence[str]) -> tuple[str, ...]:
    """A command as it was asked for.

    Raises:
        InvalidArgument: it is empty, too long, or holds what no argument can hold.
    """
    if not command or not command[0]:
        raise InvalidArgument("the command is empty: name a program")
    size = sum(len(argument.encode()) + 1 for argument in command)
    if size > COMMAND_LIMIT:
        raise InvalidArgument(
            f"the command has {size} bytes, at most {COMMAND_LIMIT} are taken: send what is long "
            "over its standard input"
        )
    if any("\0" in argument for argument in command):
        raise InvalidArgument("an argument of the command has a zero byte in it")
    return tuple(command)


def running_machine(store: Store, vm_id: str) -> Machine:
    """The machine of a VM that runs.

    Raises:
        NotFound: there is no such VM.
        FailedPrecondition: it does not run.
    """
    record = store.vms.get(vm_id)
    if record is None or not record.visible:
        raise NotFound(f"there is no container {vm_id}")
    if record.phase is not VmPhase.RUNNING or record.machine is None:
        raise FailedPrecondition(
            f"VM {record.vm.name} is {record.phase.value}: commands need a running one"
        )
    return record.machine
