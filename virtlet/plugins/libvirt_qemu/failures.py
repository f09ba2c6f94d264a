"""libvirt's errors in our words."""

import libvirt

from virtlet.errors import AlreadyExists, InvalidArgument, NotFound, Unavailable, VirtletError

_LOST = frozenset(
    {
        libvirt.VIR_ERR_NO_CONNECT,
        libvirt.VIR_ERR_INVALID_CONN,
        libvirt.VIR_ERR_RPC,
        libvirt.VIR_ERR_NO_CLIENT,
        libvirt.VIR_ERR_NO_SERVER,
        libvirt.VIR_ERR_AUTH_UNAVAILABLE,
    }
)
_TRANSPORT = frozenset({libvirt.VIR_FROM_RPC, libvirt.VIR_FROM_REMOTE})
_REFUSED = frozenset(
    {
        libvirt.VIR_ERR_XML_ERROR,
        libvirt.VIR_ERR_XML_DETAIL,
        libvirt.VIR_ERR_XML_INVALID_SCHEMA,
        libvirt.VIR_ERR_CONFIG_UNSUPPORTED,
        libvirt.VIR_ERR_INVALID_ARG,
        libvirt.VIR_ERR_UNKNOWN_HOST,
        libvirt.VIR_ERR_OS_TYPE,
        libvirt.VIR_ERR_INTERNAL_ERROR,
        libvirt.VIR_ERR_NO_SUPPORT,
    }
)
_TAKEN = frozenset({libvirt.VIR_ERR_DOM_EXIST, libvirt.VIR_ERR_OPERATION_FAILED})


def is_lost(error: libvirt.libvirtError) -> bool:
    """Whether the connection, not the request, is at fault."""
    code = error.get_error_code()
    return code in _LOST or (
        error.get_error_domain() in _TRANSPORT
        and code in (libvirt.VIR_ERR_SYSTEM_ERROR, libvirt.VIR_ERR_INTERNAL_ERROR)
    )


def is_missing(error: libvirt.libvirtError) -> bool:
    """Whether there is no such domain."""
    return bool(error.get_error_code() == libvirt.VIR_ERR_NO_DOMAIN)


def is_wrong_state(error: libvirt.libvirtError) -> bool:
    """Whether the domain is not in the state (running, stopped) that the call is for."""
    return bool(error.get_error_code() == libvirt.VIR_ERR_OPERATION_INVALID)


def translate(error: libvirt.libvirtError, doing: str) -> VirtletError:
    """Our error for one of libvirt's.

    Args:
        error: what libvirt raised.
        doing: what was tried, on what: "define VM 0123".
    """
    text = f"cannot {doing}: {short(error)}"
    code = error.get_error_code()
    if is_lost(error):
        return Unavailable(f"{text}; libvirt does not answer")
    if is_missing(error):
        return NotFound(text)
    if code in _TAKEN:
        return AlreadyExists(text)
    if code in _REFUSED:
        return InvalidArgument(text)
    if code == libvirt.VIR_ERR_OPERATION_TIMEOUT:
        return Unavailable(text)
    return VirtletError(text)


def short(error: libvirt.libvirtError) -> str:
    """libvirt's own message, bounded: it may quote a log or a document."""
    return (error.get_error_message() or "libvirt gave no reason").strip()[:500]
