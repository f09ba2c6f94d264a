"""One dnsmasq: the DHCP server of one pod."""

import os
import shutil
import signal
import time
from pathlib import Path

from attrs import frozen

from virtlet.errors import FailedPrecondition, VirtletError
from virtlet.host import netns
from virtlet.host.files import write_atomically
from virtlet.host.processes import end_process, ended, open_process

_GRACE = 2.0
"""Seconds it gets to end by itself; it takes milliseconds."""
_PATIENCE = 10.0
"""Seconds it gets to start; it takes milliseconds."""


def program() -> str:
    """The dnsmasq of this node.

    Raises:
        FailedPrecondition: there is none.
    """
    path = shutil.which("dnsmasq") or shutil.which("dnsmasq", path="/usr/sbin:/sbin")
    if path is None:
        raise FailedPrecondition(
            "the program dnsmasq is missing on this node: install dnsmasq-base"
        )
    return path


@frozen
class Server:
    """Where a pod's DHCP server runs and keeps its files."""

    netns: Path
    directory: Path

    @property
    def _config(self) -> Path:
        return self.directory / "dnsmasq.conf"

    @property
    def _mark(self) -> str:
        """The argument by which a process is known to be this server."""
        return f"--conf-file={self._config}"

    @property
    def configured(self) -> bool:
        """Whether there is something for a start to read."""
        return self._config.exists()

    def configure(self, configuration: str) -> None:
        """Write what the next start reads."""
        write_atomically(self._config, configuration.encode())

    def start(self) -> int:
        """Start it, and return once it answers.

        It is a child in a session of its own: so it outlives us, and does not need an init
        process that buries the dead, as containers often have none.

        Returns:
            Its pidfd, which the caller owns.

        Raises:
            VirtletError: it did not start; the message has its last words.
        """
        argv = (program(), self._mark, f"--pid-file={self._pid_file}", "--keep-in-foreground")
        self._pid_file.unlink(missing_ok=True)
        pid = netns.inside(self.netns, lambda: self._spawn(argv))
        try:
            pidfd = os.pidfd_open(pid)
        except OSError:
            # Our child, so the number is its own until we wait for it.
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            raise
        end = time.monotonic() + _PATIENCE
        # It writes its process id once its sockets are open.
        while self._written() != pid:
            if ended(pidfd, within=0.001) or time.monotonic() > end:
                end_process(pidfd, grace=0)
                os.close(pidfd)
                words = self._log.read_text(errors="replace").strip()[-500:]
                raise VirtletError(f"dnsmasq does not start: {words or 'it said nothing'}")
        return pidfd

    def _spawn(self, argv: tuple[str, ...]) -> int:
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC
        return os.posix_spawn(
            argv[0],
            argv,
            os.environ,
            file_actions=[
                (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0),
                (os.POSIX_SPAWN_OPEN, 1, os.devnull, os.O_WRONLY, 0),
                (os.POSIX_SPAWN_OPEN, 2, str(self._log), flags, 0o600),
            ],
            setsid=True,
            setsigdef=[signal.SIGPIPE],  # Python ignores it
        )

    def find(self) -> int | None:
        """The pidfd of the running server, which the caller owns, or None."""
        pid = self._written()
        return None if pid is None else open_process(pid, self._mark)

    def end(self, pidfd: int) -> None:
        """End it and return when it is gone.

        Args:
            pidfd: its own, which is closed.
        """
        try:
            end_process(pidfd, grace=_GRACE)
        finally:
            os.close(pidfd)
        self._pid_file.unlink(missing_ok=True)

    def _written(self) -> int | None:
        """The process id in its file, once it is written whole."""
        try:
            text = self._pid_file.read_text()
            return int(text) if text.endswith("\n") else None
        except (OSError, ValueError):
            return None

    @property
    def _pid_file(self) -> Path:
        return self.directory / "dnsmasq.pid"

    @property
    def _log(self) -> Path:
        return self.directory / "dnsmasq.log"
