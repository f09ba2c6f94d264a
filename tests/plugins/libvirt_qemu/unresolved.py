"""A node whose name nobody knows and whose resolver never answers; a VM is started on it.

Started in mount, network and UTS namespaces of its own, with a directory. Writes, as JSON, how many
questions the resolver was asked at each step.
"""

import json
import logging
import socket
import subprocess
import sys
import threading
from pathlib import Path

from tests.plugins.libvirt_qemu.rig import Rig, make_open_node
from virtlet.plugins.libvirt_qemu.process import tell_of_slow_look_ups

NAME = "nobody-knows-me"
FILES = {
    "hosts": "127.0.0.1 localhost\n",
    "resolv.conf": "nameserver 127.0.0.1\noptions timeout:2 attempts:1\n",
    "nsswitch.conf": "hosts: files dns\n",
}


def main(directory: Path) -> None:
    """Start a VM, then look the name up as a daemon would."""
    subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
    socket.sethostname(NAME)
    for name, text in FILES.items():
        (directory / name).write_text(text)
        subprocess.run(["mount", "--bind", str(directory / name), f"/etc/{name}"], check=True)
    asked: list[bytes] = []
    resolver = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    resolver.bind(("127.0.0.1", 53))

    def take() -> None:
        while True:
            asked.append(resolver.recv(4096))

    threading.Thread(target=take, daemon=True).start()
    logged: list[str] = []
    catcher = logging.Handler()
    catcher.emit = lambda record: logged.append(record.getMessage())  # type: ignore[method-assign]
    logging.getLogger().addHandler(catcher)

    rig = Rig(make_open_node(directory), "qemu:///embed")
    rig.open()
    with rig.running():
        pass
    rig.close()
    by_vm = len(asked)
    tell_of_slow_look_ups().join()
    by_name = len(asked) - by_vm
    said = [line for line in logged if "/etc/hosts" in line]
    report = {"vm": by_vm, "name": by_name, "said": said, "host": socket.gethostname()}
    sys.stdout.write(json.dumps(report))
    sys.stdout.flush()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
