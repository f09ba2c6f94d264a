"""A manager that dies in the middle of libvirt's first look at the emulator.

python -m tests.plugins.libvirt_qemu.victim DIRECTORY
"""

import os
import signal
import sys
import time
from pathlib import Path

from tests.plugins.libvirt_qemu.rig import Rig, make_open_node


def probes(directory: Path) -> list[int]:
    """Emulators that libvirt asks for their capabilities, for one data directory."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            words = process.joinpath("cmdline").read_text().split("\0")
        except OSError:
            continue
        if "none,accel=kvm:tcg" in words and any(str(directory) in word for word in words):
            found.append(int(process.name))
    return found


def main(directory: Path) -> None:
    """Open, wait for the first probe, die."""
    rig = Rig(make_open_node(directory), "qemu:///embed")
    rig.open()
    while not probes(directory):
        time.sleep(0.001)
    os.kill(os.getpid(), signal.SIGKILL)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
