"""The file server of a virtiofs share: virtiofsd, one for each share.

It is root, because a guest's files belong to several users, as a container's do; of root's
capabilities it keeps those to act for the owners of files. It moves into namespaces of its own, in
which nothing is left but the share, and filters its system calls (`--sandbox`, `--seccomp`). A
device node would be one of the node's too: it can make none. File handles would lead out of the
share: it has no capability to open them.
"""

import shutil
from collections.abc import Iterator

from virtlet.errors import FailedPrecondition
from virtlet.model.disk import Share
from virtlet.model.launch import Backend, LaunchPart, Visible
from virtlet.model.vm import Machine

_PLACES = ("/usr/libexec", "/usr/lib", "/usr/lib/qemu", "/usr/bin")
"""Where distributions have it, none of which but the last is in PATH."""
_SERVING = ("chown", "dac_override", "fowner", "fsetid", "setgid", "setuid")
"""Capabilities that it keeps."""
_STARTING = ("sys_admin", "setpcap")
"""Those that it gives up by itself once it is in its namespaces."""
_FILES = 1_000_000
"""Descriptors: one for each file that the guest's kernel remembers."""


def program() -> str:
    """The path of virtiofsd.

    Raises:
        FailedPrecondition: it is not installed.
    """
    found = shutil.which("virtiofsd", path=":".join(_PLACES))
    if found is None:
        raise FailedPrecondition(
            "virtiofsd is missing on this node: install the package virtiofsd, or have directories "
            "shared over 9p (setting shareDriver, annotation VirtletShareDriver)"
        )
    return found


def launch_part(machine: Machine) -> LaunchPart:
    """The file servers of all virtiofs shares of a machine.

    Raises:
        FailedPrecondition: virtiofsd is not installed.
    """
    backends = tuple(_backends(machine))
    visible = tuple(Visible(path=backend.socket, writable=True) for backend in backends)
    return LaunchPart(backends=backends, visible=visible)


def _backends(machine: Machine) -> Iterator[Backend]:
    for share in machine.volumes:
        if isinstance(share, Share) and share.driver == "virtiofs":
            yield Backend(
                name=f"virtiofsd-{share.tag}",
                argv=tuple(_command_line(share)),
                socket=machine.share_socket(share),
                capabilities=(*_SERVING, *_STARTING),
                files=_FILES,
                share=share.tag,
                loss=f"what the guest does in {share.guest_path} hangs from now on, and what it "
                "wrote there before is kept: run the pod again",
            )


def _command_line(share: Share) -> Iterator[str]:
    yield program()
    yield "--fd={socket}"
    # A path and no descriptor, which would lead out of the sandbox. Nobody can put anything else
    # there: something is mounted at it.
    yield f"--shared-dir={share.host_path}"
    yield "--sandbox=namespace"
    yield "--seccomp=kill"
    # Of its own choice it would keep these too.
    yield "--modcaps=-mknod:-setfcap"
    yield "--inode-file-handles=never"
    yield "--rlimit-nofile=0"
    # A guest could fill a log.
    yield "--log-level=error"
    if share.readonly:
        yield "--readonly"
