"""Debian's guest agent on this machine, kept away from it: with processes, mounts and a /run of
its own, so that the programs are Debian's and nothing is left behind."""

import contextlib
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path

from tests.polling import serves, until

_START = """
mount -t tmpfs none /run
for program in $3; do mount --bind /dev/null "$program"; done
# As in a guest: somebody else is the first process, and reaps what is left.
"$1" --method unix-listen --path "$2" --statedir /run --pidfile /run/qemu-ga.pid &
wait
"""


@contextlib.contextmanager
def running_agent(
    qemu_ga: Path, directory: Path, hidden_programs: Sequence[str] = ()
) -> Iterator[Path]:
    """Run it for a while.

    Args:
        qemu_ga: the program.
        directory: for its socket; made here.
        hidden_programs: paths of programs that the guest is not to have.
    """
    directory.mkdir()
    socket = directory / "agent"
    namespaces = ["unshare", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc"]
    hidden = " ".join(hidden_programs)
    arguments = ["sh", "-c", _START, "sh", str(qemu_ga), str(socket), hidden]
    with subprocess.Popen([*namespaces, *arguments], cwd="/") as process:
        try:
            until(lambda: serves(socket) or process.poll() is not None, "qemu-ga's socket")
            assert process.poll() is None, "qemu-ga ended"
            yield socket
        finally:
            process.kill()
