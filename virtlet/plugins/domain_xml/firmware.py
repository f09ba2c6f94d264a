"""UEFI firmware images of the node."""

from pathlib import Path

from attrs import frozen

from virtlet.errors import FailedPrecondition


@frozen
class Firmware:
    """A firmware image and the template of its variable store."""

    code: Path
    variables: Path


CANDIDATES = (
    # Debian and Ubuntu
    Firmware(Path("/usr/share/OVMF/OVMF_CODE_4M.fd"), Path("/usr/share/OVMF/OVMF_VARS_4M.fd")),
    Firmware(Path("/usr/share/OVMF/OVMF_CODE.fd"), Path("/usr/share/OVMF/OVMF_VARS.fd")),
    # Fedora and its relatives
    Firmware(Path("/usr/share/edk2/ovmf/OVMF_CODE.fd"), Path("/usr/share/edk2/ovmf/OVMF_VARS.fd")),
    # Arch
    Firmware(
        Path("/usr/share/edk2/x64/OVMF_CODE.4m.fd"), Path("/usr/share/edk2/x64/OVMF_VARS.4m.fd")
    ),
)


def find_uefi(candidates: tuple[Firmware, ...] = CANDIDATES) -> Firmware:
    """The first UEFI firmware that is installed.

    Raises:
        FailedPrecondition: there is none.
    """
    for firmware in candidates:
        if firmware.code.is_file() and firmware.variables.is_file():
            return firmware
    raise FailedPrecondition(
        "the flavor asks for UEFI, but there is no OVMF firmware on this node: install Debian's "
        "package ovmf, or take `firmware: uefi` out of the handler's flavor"
    )
