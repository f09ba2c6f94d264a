"""libvirt's errors in our words, whatever numbers libvirt gives them."""

from collections.abc import Callable
from typing import Any

import libvirt
import pytest

from virtlet.errors import (
    AlreadyExists,
    InvalidArgument,
    NotFound,
    Unavailable,
    VirtletError,
)
from virtlet.plugins.libvirt_qemu import failures

QEMU_DRIVER = libvirt.VIR_FROM_QEMU


def raised(code: int, source: int = QEMU_DRIVER, message: str = "it failed") -> Any:
    """An error as libvirt raises it."""
    error = libvirt.libvirtError("wrapped")
    error.err = (code, source, message, 2, "", None, None, -1, -1)
    return error


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (raised(libvirt.VIR_ERR_NO_DOMAIN), NotFound),
        (raised(libvirt.VIR_ERR_XML_ERROR), InvalidArgument),
        (raised(libvirt.VIR_ERR_XML_DETAIL), InvalidArgument),
        (raised(libvirt.VIR_ERR_CONFIG_UNSUPPORTED), InvalidArgument),
        (raised(libvirt.VIR_ERR_OPERATION_FAILED), AlreadyExists),
        (raised(libvirt.VIR_ERR_OPERATION_TIMEOUT), Unavailable),
        (raised(libvirt.VIR_ERR_NO_CONNECT), Unavailable),
        (raised(libvirt.VIR_ERR_INTERNAL_ERROR, libvirt.VIR_FROM_RPC), Unavailable),
        (raised(libvirt.VIR_ERR_SYSTEM_ERROR, libvirt.VIR_FROM_RPC), Unavailable),
        (raised(libvirt.VIR_ERR_SYSTEM_ERROR, libvirt.VIR_FROM_QEMU), VirtletError),
        (raised(libvirt.VIR_ERR_NO_MEMORY), VirtletError),
    ],
)
def test_errors_become_ours(error: Any, kind: type[VirtletError]) -> None:
    """With what was tried, and libvirt's reason."""
    ours = failures.translate(error, "define VM 0123")
    assert type(ours) is kind
    assert str(ours).startswith("cannot define VM 0123: it failed")


@pytest.mark.parametrize(
    ("check", "code"),
    [
        (failures.is_missing, libvirt.VIR_ERR_NO_DOMAIN),
        (failures.is_wrong_state, libvirt.VIR_ERR_OPERATION_INVALID),
        (failures.is_lost, libvirt.VIR_ERR_NO_CONNECT),
    ],
)
def test_what_callers_pass_over_is_told_by_name(check: Callable[[Any], bool], code: int) -> None:
    """And nothing else is."""
    assert check(raised(code))
    assert not check(raised(libvirt.VIR_ERR_NO_MEMORY))


def test_long_messages_are_cut() -> None:
    """libvirt quotes logs and documents."""
    assert len(failures.short(raised(libvirt.VIR_ERR_XML_ERROR, message="x" * 9999))) == 500
    assert failures.short(libvirt.libvirtError("")) != ""
