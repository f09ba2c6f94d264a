"""The embedded driver's own directory and its configuration."""

import os
from pathlib import Path
from urllib.parse import parse_qs, urlencode, urlsplit

from attrs import frozen

from virtlet.errors import InvalidArgument
from virtlet.host.files import remove_tree, write_atomically
from virtlet.host.processes import end_process, open_process
from virtlet.model.node import Node


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
            logs=Path("/var/log/libvirt/qemu"),
        )
    root = Path(query.get("root", [str(data_dir / "libvirt")])[0])
    if not root.is_absolute():
        raise InvalidArgument(f"libvirtURI {uri!r}: root must be an absolute path")
    return Place(
        uri="qemu:///embed?" + urlencode({"root": str(root)}, safe="/"),
        embedded=True,
        root=root,
        state=root / "run/qemu",
        logs=root / "log/qemu",
    )


def configuration(node: Node) -> str:
    """qemu.conf for the embedded driver.

    The manager prepares files, sockets and cgroups itself and knows which of them VMs share, so
    that libvirt must not change owners, make cgroups or hide /dev.
    """
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
"""


def prepare_root(root: Path, node: Node) -> None:
    """Prepare the embedded driver's directory for its start."""
    etc = root / "etc"
    etc.mkdir(parents=True, exist_ok=True)
    # The emulator's user passes through to its own directories below.
    root.chmod(0o711)
    write_atomically(etc / "qemu.conf", configuration(node).encode())
    for left in (root / "lib/qemu").glob("qmp-*"):
        _end_probe(left)


def _end_probe(directory: Path) -> None:
    """End an emulator that a driver asked for its capabilities before it was killed itself."""
    argument = str(directory / "qmp.pid")  # may not be written yet, but every stage is given it
    for entry in Path("/proc").iterdir():
        process = open_process(int(entry.name), argument) if entry.name.isdigit() else None
        if process is not None:
            end_process(process, grace=2.0)
            os.close(process)
    remove_tree(directory)
