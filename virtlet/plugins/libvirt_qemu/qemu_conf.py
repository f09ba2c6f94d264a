"""The embedded driver's own directory and its configuration."""

import logging
import os
import stat
from pathlib import Path
from urllib.parse import parse_qs, urlencode, urlsplit

from attrs import frozen

from virtlet.errors import InvalidArgument
from virtlet.host.files import make_private_directory, remove_tree, write_atomically
from virtlet.host.processes import end_process, open_process
from virtlet.model.node import Node

log = logging.getLogger(__name__)

_STATE, _LIBRARY = Path("run/qemu"), Path("lib/qemu")


@frozen
class Place:
    """Where the driver keeps its files."""

    uri: str
    """What to open."""
    embedded: bool
    root: Path | None
    """The embedded driver's root directory."""
    state: Path
    """pid files and status of running domains."""
    library: Path
    """A directory for each running domain."""
    logs: Path
    """A log for each domain, the emulator's messages in it."""


def locate(uri: str, data_dir: Path) -> Place:
    """Find the driver's places from the configured URI.

    Raises:
        InvalidArgument: it is not a URI of QEMU, or its root is not usable.
    """
    try:
        parts = urlsplit(uri)
    except ValueError:
        parts = urlsplit("")
    if parts.scheme.split("+")[0] != "qemu" or parts.path not in ("/system", "/embed"):
        raise InvalidArgument(
            f"libvirtURI {uri!r}: only qemu:///system and qemu:///embed?root=DIR are supported"
        )
    query = parse_qs(parts.query)
    if parts.path == "/system":
        # A daemon keeps its state beside its socket, wherever that is.
        socket = Path(query.get("socket", ["/run/libvirt/libvirt-sock"])[0])
        return Place(
            uri=uri,
            embedded=False,
            root=None,
            state=socket.parent / "qemu",
            library=Path("/var/lib/libvirt/qemu"),
            logs=Path("/var/log/libvirt/qemu"),
        )
    root = Path(query.get("root", [str(data_dir / "libvirt")])[0])
    if not root.is_absolute():
        raise InvalidArgument(f"libvirtURI {uri!r}: root must be an absolute path")
    return Place(
        uri="qemu:///embed?" + urlencode({"root": str(root)}, safe="/"),
        embedded=True,
        root=root,
        state=root / _STATE,
        library=root / _LIBRARY,
        logs=root / "log/qemu",
    )


def configuration(node: Node, accelerator: str) -> str:
    """qemu.conf for the embedded driver.

    The manager prepares files, sockets and cgroups itself and knows which of them VMs share, so
    that libvirt must not change owners, make cgroups or hide /dev. A domain's document says who its
    emulator is; the driver's user is who answers questions about QEMU's capabilities.

    When a VM starts, libvirt reads each property of its CPU by a command of its own, 464 of them,
    unless it has to believe that QEMU cannot say which features it lacks: then it takes their CPUID
    words, all by two. Features that are in no word, as those of a real CPU's registers, are left
    out, so under KVM all is read.
    """
    filtered = "" if accelerator == "kvm" else '"cpu-unavailable-features"'
    return f"""# Written by Virtlet at every start; changes are lost.
security_driver = "none"
user = "+{node.emulator_uid}"
group = "+{node.emulator_gid}"
dynamic_ownership = 0
remember_owner = 0
cgroup_controllers = [ ]
namespaces = [ ]
seccomp_sandbox = 1
stdio_handler = "file"
capability_filters = [ {filtered} ]
"""


_PASSED = (Path("."), _LIBRARY.parent, _LIBRARY, _LIBRARY / "nvram")
"""Directories where an emulator's user passes through to what libvirt has for it."""
_CLOSED = (
    *map(Path, ("etc", "log", "cache")),
    *(_STATE.parent, _STATE),
    *(_LIBRARY / name for name in ("save", "snapshot", "checkpoint", "dump", "ram")),
)
"""Directories that are nobody's but libvirt's."""


def prepare_root(root: Path, node: Node, accelerator: str) -> None:
    """Prepare the embedded driver's directory for its start.

    Earlier releases gave most of it to the user of emulators, who may have put anything there.
    """
    take_back(root)
    write_atomically(root / "etc" / "qemu.conf", configuration(node, accelerator).encode())
    for left in (root / _LIBRARY).glob("qmp-*"):
        _end_probe(left)


def take_back(root: Path) -> None:
    """Make the embedded driver's directories root's, which the driver gives to its user when it
    starts: root follows what is in them."""
    # From above: what is in a directory does not change any more once that is root's.
    for path in (*_PASSED, *_CLOSED):
        mode = 0o711 if path in _PASSED else 0o700
        make_private_directory(root / path, uid=0, gid=0, mode=mode)
        _remove_planted(root / path, state=path == _STATE)


def _end_probe(directory: Path) -> None:
    """End an emulator that a driver asked for its capabilities before it was killed itself."""
    argument = str(directory / "qmp.pid")  # may not be written yet, but every stage is given it
    for entry in Path("/proc").iterdir():
        process = open_process(int(entry.name), argument) if entry.name.isdigit() else None
        if process is not None:
            end_process(process, grace=2.0)
            os.close(process)
    remove_tree(directory)


def _remove_planted(directory: Path, *, state: bool) -> None:
    """Remove links, which libvirt makes none of, and files of its state that it has not made."""
    for entry in directory.iterdir():
        try:
            status = entry.lstat()
        except FileNotFoundError:
            continue  # An emulator that ends removes its own files.
        foreign = state and not stat.S_ISDIR(status.st_mode) and status.st_uid != 0
        if stat.S_ISLNK(status.st_mode) or foreign:
            entry.unlink(missing_ok=True)
            log.warning("removed what libvirt has not made", extra={"path": str(entry)})


def tell_of_owner(state: Path, node: Node) -> None:
    """Log what a daemon's qemu.conf needs, where its directories are not root's."""
    try:
        owner = state.stat().st_uid
    except OSError:
        return
    if owner == node.emulator_uid:
        log.warning(
            "libvirt's directories belong to user %d, as which emulators run whose VM has no user "
            "of its own, and root follows what that user puts there: "
            'write `user = "+0"` and `group = "+0"` into qemu.conf and start the daemon again; '
            "emulators run as their documents say, and none as root",
            owner,
            extra={"path": str(state)},
        )
