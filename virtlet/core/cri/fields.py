"""What the fields of a request may hold.

Every message names the field, quotes the beginning of its value and says what it must be.
"""

import re
from collections.abc import Callable, Mapping

from virtlet.errors import InvalidArgument
from virtlet.host import cgroups
from virtlet.model.plain import quote
from virtlet.model.strict_ip import ip_address

LONGEST_NAME = 253
"""Bytes of the longest name Kubernetes allows (RFC 1123 subdomain)."""
LONGEST_PART = 255
"""Bytes of a path's component (NAME_MAX of Linux)."""
LONGEST_PATH = 4095
"""Bytes of a path (PATH_MAX of Linux, less the NUL that ends it)."""
_LONGEST_GROUP = LONGEST_PATH - 255
"""Bytes of a group's path below its hierarchy: a mount point, a VM and a file are added to it."""
LARGEST_MAP = 512 << 10
"""Bytes of all labels or annotations of a pod or container: twice what Kubernetes allows
annotations (TotalAnnotationSizeLimitB), as clients add some. Replies that list pods have them all.
"""
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\ufffe\uffff]")
"""What neither a line of a log nor an XML document can hold."""
_HOST = re.compile(r"[A-Za-z0-9_]([A-Za-z0-9_.-]*[A-Za-z0-9_])?")


def name(value: str, field: str) -> str:
    """The name of a pod or container, a namespace or a uid.

    Kubernetes' own are narrower (DNS labels and subdomains); other clients' must still be one word
    that can be a file's name and a line's part.

    Raises:
        InvalidArgument: it is not one.
    """
    if not value:
        raise InvalidArgument(f"{field} is empty")
    fits = len(value.encode()) <= LONGEST_NAME and value.isprintable()
    if not fits or value in (".", "..") or set(value) & {"/", " "}:
        raise _wrong(
            field,
            value,
            f"a name of at most {LONGEST_NAME} bytes, without slashes, spaces or control "
            "characters, and not '.' or '..'",
        )
    return value


def text_map(value: Mapping[str, str], field: str) -> dict[str, str]:
    """Labels or annotations.

    Raises:
        InvalidArgument: they are too large.
    """
    sizes = {key: len(key.encode()) + len(text.encode()) for key, text in value.items()}
    if sum(sizes.values()) > LARGEST_MAP:
        largest = max(sizes, key=sizes.__getitem__)
        raise InvalidArgument(
            f"{field} have {sum(sizes.values())} bytes, {quote(largest)} the most; they may have "
            f"{LARGEST_MAP} in all: keep what is large in a ConfigMap or Secret"
        )
    return dict(value)


def host_name(value: str, field: str) -> str:
    """A host name, or nothing.

    Raises:
        InvalidArgument: it is not one.
    """
    if value and (len(value) > LONGEST_NAME or not _HOST.fullmatch(value)):
        raise _wrong(
            field,
            value,
            f"a host name: at most {LONGEST_NAME} letters, digits, '-', '.' and '_', with a letter "
            "or digit at both ends",
        )
    return value


def absolute_path(value: str, field: str) -> str:
    """A path on the node or in the guest.

    Raises:
        InvalidArgument: it is not absolute, too long or holds control characters.
    """
    if not value.startswith("/") or not _is_path(value):
        raise _wrong(field, value, f"an absolute path, {_path_limits()}")
    return value


def log_directory(value: str) -> str:
    """A pod's log directory, or nothing where no log is wanted.

    Raises:
        InvalidArgument: it is not one.
    """
    field = "log_directory"
    if value and ".." in value.split("/"):
        raise _wrong(field, value, "an absolute path without '..'")
    return absolute_path(value, field) if value else value


def log_path(value: str) -> str:
    """A container's log, a file below the pod's log directory, or nothing.

    Raises:
        InvalidArgument: it is not one.
    """
    *above, last = value.split("/")
    outside = value.startswith("/") or ".." in above
    if value and (outside or last in ("", ".", "..") or not _is_path(value)):
        raise _wrong(
            "log_path",
            value,
            "the path of a file in the pod's log directory: relative, without '..', "
            + _path_limits(),
        )
    return value


def log_file(directory: str, path: str) -> None:
    """Refuse a log whose two parts are fit each by itself, but not together.

    Raises:
        InvalidArgument: the path is too long.
    """
    if len(f"{directory}/{path}".encode()) > LONGEST_PATH:
        raise _wrong(
            "log_path",
            path,
            f"shorter: with the pod's log_directory it has more than {LONGEST_PATH} bytes",
        )


def cgroup_parent(value: str) -> str:
    """The pod's control group, as either cgroup driver names it, or nothing.

    Raises:
        InvalidArgument: it is neither an absolute path nor a systemd slice.
    """
    if value and not _is_group(value):
        raise _wrong(
            "linux.cgroup_parent",
            value,
            "an absolute path without '..', as /kubepods/burstable/pod1, or the name of a "
            f"systemd slice, as kubepods-burstable-pod1.slice, {_path_limits(_LONGEST_GROUP)}",
        )
    return value


def port(value: int, field: str, *, lowest: int) -> int:
    """A TCP, UDP or SCTP port.

    Raises:
        InvalidArgument: it is not one.
    """
    if not lowest <= value <= 65535:
        raise InvalidArgument(f"{field} {value} must be a port from {lowest} to 65535")
    return value


def address(value: str, field: str) -> str:
    """An IP address, or nothing for all of the node's.

    Raises:
        InvalidArgument: it is not one, or names an interface as well.
    """
    try:
        if value:
            ip_address(value)
    except ValueError:
        raise _wrong(field, value, "an IP address, or empty for all addresses") from None
    return value


def environment_name(value: str) -> str:
    """The name of an environment variable; Kubernetes allows all printable ones without `=`.

    Raises:
        InvalidArgument: it is not one.
    """
    if not value or "=" in value or not value.isprintable():
        raise _wrong("envs: key", value, "a name of printable characters without '='")
    return value


def environment_value(value: bytes, key: str) -> str:
    """The value of an environment variable; it may be a secret and is never quoted.

    Raises:
        InvalidArgument: it is not UTF-8 text, or holds NUL.
    """
    try:
        text = value.decode()
    except UnicodeDecodeError:
        text = "\0"
    if "\0" in text:
        raise InvalidArgument(f"envs: the value of {quote(key)} must be UTF-8 text without NUL")
    return text


def listed(value: str, field: str, parse: Callable[[str], object]) -> str:
    """A list of CPUs or memory nodes, or nothing.

    Raises:
        InvalidArgument: it is not one.
    """
    try:
        if value:
            parse(value)
    except ValueError as error:
        raise InvalidArgument(f"{field} {quote(value)}: {error}") from None
    return value


def _is_path(value: str, longest: int = LONGEST_PATH) -> bool:
    fits = all(len(part.encode()) <= LONGEST_PART for part in value.split("/"))
    return fits and len(value.encode()) <= longest and not _CONTROL.search(value)


def _path_limits(longest: int = LONGEST_PATH) -> str:
    return (
        f"without control characters, of at most {longest} bytes and {LONGEST_PART} between slashes"
    )


def _is_group(value: str) -> bool:
    path = str(cgroups.expand(value))
    if not _is_path(value) or not _is_path(path, _LONGEST_GROUP) or ".." in path.split("/"):
        return False
    word = value.strip("/")
    if value.endswith(".slice") and "/" not in word:
        # systemd.slice(5): a slice's name is its ancestors' with single dashes between.
        return all(word.removesuffix(".slice").split("-"))
    return value.startswith("/")


def _wrong(field: str, value: str, expected: str) -> InvalidArgument:
    return InvalidArgument(f"{field} {quote(value)} must be {expected}")
