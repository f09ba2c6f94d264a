"""A guest without a machine: a network namespace behind a pod's tap.

What QEMU does with a tap's descriptor, a thread does here: it carries frames between the pod's
tap and one of the guest's own.
"""

import json
import os
import select
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from virtlet.host import netns
from virtlet.host.links import Links, open_tap

_LEASE_SCRIPT = """\
#!/bin/sh
[ "$1" = bound ] || exit 0
env > "$LEASE_FILE"
if [ -n "$ipv6" ]; then
    ip address add "$ipv6/128" dev "$interface" nodad
    exit 0
fi
ip link set "$interface" mtu "${mtu:-1500}"
ip address add "$ip/$mask" dev "$interface"
set -- $staticroutes
while [ $# -ge 2 ]; do
    if [ "$2" = 0.0.0.0 ]; then
        ip route replace "$1" dev "$interface"
    else
        ip route replace "$1" via "$2" dev "$interface"
    fi
    shift 2
done
"""


class Plugged:
    """A running guest with one NIC, `eth0`."""

    def __init__(self, root: Path, tap: int, mac: str) -> None:
        self._root = root
        self._namespace = root / "guest.netns"
        self._tap = tap
        self._stop_read, self._stop_write = os.pipe()
        root.mkdir(parents=True, exist_ok=True)
        netns.create(self._namespace)
        self._nic = netns.inside(self._namespace, lambda: self._plug(mac))
        self._thread = threading.Thread(target=self._carry)
        self._thread.start()

    def run(self, *argv: str, timeout: float = 20) -> "subprocess.CompletedProcess[str]":
        """Run a program in the guest."""
        return netns.inside(
            self._namespace,
            lambda: subprocess.run(
                argv, capture_output=True, text=True, timeout=timeout, check=False
            ),
        )

    @contextmanager
    def running(self, *argv: str) -> Iterator[None]:
        """A program that runs in the guest for a while."""
        process = netns.inside(self._namespace, lambda: subprocess.Popen(argv))
        try:
            time.sleep(0.2)  # it has to listen first
            yield
        finally:
            process.kill()
            process.wait()

    def dhcp(self) -> dict[str, str] | None:
        """Ask for a lease and apply it.

        Returns:
            What udhcpc tells its script, or None when nobody answered.
        """
        return self._ask("udhcpc", "-O", "staticroutes", "-O", "search", "-O", "mtu")

    def dhcp6(self) -> dict[str, str] | None:
        """The same by DHCPv6; waits for the router advertisement first."""
        for _ in range(50):
            if self.show("-6", "route", "show", "default"):
                break
            time.sleep(0.1)
        return self._ask("udhcpc6")

    def _ask(self, *client: str) -> dict[str, str] | None:
        script = self._root / "lease.sh"
        script.write_text(_LEASE_SCRIPT)
        script.chmod(0o755)
        lease = self._root / "lease.env"
        lease.unlink(missing_ok=True)
        once = ("-i", "eth0", "-n", "-q", "-f", "-s", str(script), "-t", "3", "-T", "1")
        self.run("env", f"LEASE_FILE={lease}", "busybox", *client, *once)
        if not lease.exists():
            return None
        lines = lease.read_text().splitlines()
        return dict(line.split("=", 1) for line in lines if "=" in line)

    def reaches(self, address: str) -> bool:
        """Whether an address answers to ping."""
        return self.run("busybox", "ping", "-c", "1", "-W", "2", address).returncode == 0

    def show(self, *arguments: str) -> Any:
        """What `ip -json …` says in the guest."""
        return json.loads(self.run("ip", "-json", *arguments).stdout or "[]")

    def close(self) -> None:
        """Switch it off; the pod's tap is let go."""
        os.write(self._stop_write, b"\0")
        self._thread.join()
        for descriptor in (self._nic, self._tap, self._stop_read, self._stop_write):
            os.close(descriptor)
        netns.delete(self._namespace)

    def _plug(self, mac: str) -> int:
        with Links() as links:
            links.set("lo", up=True)
            links.add_tap("eth0")
            descriptor = open_tap("eth0")
            links.set("eth0", mac=mac, up=True)
        return descriptor

    def _carry(self) -> None:
        other = {self._tap: self._nic, self._nic: self._tap}
        poll = select.poll()
        for descriptor in (*other, self._stop_read):
            poll.register(descriptor, select.POLLIN)
        while True:
            for descriptor, _ in poll.poll():
                if descriptor == self._stop_read:
                    return
                try:
                    os.write(other[descriptor], os.read(descriptor, 65536 + 64))
                except OSError:
                    continue  # an interface that is down takes no frames


@contextmanager
def plugged(root: Path, tap: int, mac: str) -> Iterator[Plugged]:
    """A guest for a while."""
    guest = Plugged(root, tap, mac)
    try:
        yield guest
    finally:
        guest.close()
