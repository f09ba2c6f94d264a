"""A libvirtd of the test's own, in a mount namespace where its directories are the test's."""

import shutil
import signal
import subprocess
from pathlib import Path

from tests.polling import serves, until

_DAEMON_CONF = """
auth_unix_rw = "none"
auth_unix_ro = "none"
log_outputs = "4:stderr"
"""
_PAGE = Path(__file__).parents[3] / "docs" / "hypervisor.md"
_PLACES = {
    "etc": "/etc/libvirt",
    "run": "/run/libvirt",
    "lib": "/var/lib/libvirt",
    "log": "/var/log/libvirt",
    "cache": "/var/cache/libvirt",
}


def advised() -> str:
    """The qemu.conf that the page asks administrators for, word for word."""
    section = _PAGE.read_text().partition("## A libvirt daemon")[2]
    return section.split("```\n")[1]


class Daemon:
    """libvirtd, started and stopped by hand.

    Args:
        root: where it keeps everything.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        shutil.copytree("/etc/libvirt", root / "etc", dirs_exist_ok=True)
        for name in _PLACES:
            (root / name).mkdir(exist_ok=True)
        (root / "etc/libvirtd.conf").write_text(_DAEMON_CONF)
        (root / "etc/qemu.conf").write_text(advised())
        self.process: subprocess.Popen[bytes] | None = None

    @property
    def uri(self) -> str:
        return f"qemu+unix:///system?socket={self.root}/run/libvirt-sock"

    def start(self) -> None:
        binds = " && ".join(
            f"mkdir -p {there} && mount --bind {self.root / here} {there}"
            for here, there in _PLACES.items()
        )
        inside = ["unshare", "--mount", "--propagation", "private", "sh", "-c"]
        with (self.root / "stderr").open("ab") as stderr:
            self.process = subprocess.Popen(
                [*inside, f"{binds} && exec libvirtd --pid-file {self.root}/pid"],
                stdout=subprocess.DEVNULL,
                stderr=stderr,
            )
        socket = self.root / "run/libvirt-sock"
        until(lambda: serves(socket), f"libvirtd's socket; see {self.root}/stderr")

    def send(self, number: int) -> None:
        assert self.process is not None
        self.process.send_signal(number)

    def kill(self) -> None:
        self.send(signal.SIGKILL)
        self.wait()

    def stop(self) -> None:
        if self.process is not None:
            self.send(signal.SIGCONT)
            self.send(signal.SIGTERM)
            self.wait()

    def wait(self) -> None:
        assert self.process is not None
        self.process.wait(20)
        self.process = None
