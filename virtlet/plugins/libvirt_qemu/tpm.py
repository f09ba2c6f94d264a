"""A VM's TPM: swtpm, one for each VM, as the VM's own user.

The core starts it as it starts virtiofsd, in the VM's cgroups and without a network, and ends it
with the emulator. libvirt's own swtpm would be in the manager's cgroup, and nobody would notice
when it ends. swtpm makes a new TPM where there is no state, and keeps its state in the VM's
directory: a guest that reboots finds its keys, and they go with the VM, or with a root disk that
outlives it (`kept_state.py`).
"""

import shutil
from pathlib import Path

from virtlet.errors import FailedPrecondition
from virtlet.host.files import make_private_directory
from virtlet.model.launch import Backend
from virtlet.model.vm import Machine

_PLACES = "/usr/bin:/usr/local/bin"
_DIRECTORY = "tpm"
"""Below the VM's; whoever reads the state has the TPM's keys."""


def state_directory(machine: Machine) -> Path:
    """Where the state is while the VM is there."""
    return machine.vm.directory / _DIRECTORY


def backends(machine: Machine, uid: int, gid: int, places: str = _PLACES) -> tuple[Backend, ...]:
    """The program that is the machine's TPM, where it has one, with the directory of its state.

    Args:
        machine: whose TPM.
        uid: user that its emulator runs as, and swtpm too.
        gid: group of both.
        places: where swtpm is looked for, as in PATH.

    Raises:
        FailedPrecondition: swtpm is not installed, or the directory cannot be made.
    """
    if not machine.flavor.tpm:
        return ()
    program = shutil.which("swtpm", path=places)
    if program is None:
        raise FailedPrecondition(
            f"VM {machine.vm.name} has a TPM, and swtpm is missing on this node: install the "
            "package swtpm, or take `tpm: true` out of the flavor"
        )
    state = state_directory(machine)
    try:
        make_private_directory(state, uid=uid, gid=gid)
    except OSError as error:
        raise FailedPrecondition(f"{state}, the state of the TPM: {error.strerror}") from None
    command = (
        *(program, "socket", "--tpm2", "--terminate"),
        *("--ctrl", "type=unixio,fd={socket}"),
        *("--tpmstate", f"dir={state},mode=0600"),
        *("--seccomp", "action=kill"),
    )
    return (
        Backend(
            name="swtpm",
            argv=command,
            socket=machine.tpm_socket,
            uid=uid,
            gid=gid,
            loss="the guest's TPM does not answer from now on, and its keys are kept: run the pod "
            "again",
        ),
    )
