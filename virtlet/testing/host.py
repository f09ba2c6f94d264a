"""What a machine must have for guests to boot on it."""

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

_PROGRAMS = {
    "qemu-system-x86_64": "qemu-system-x86",
    "qemu-img": "qemu-utils",
    "dnsmasq": "dnsmasq-base",
    "ip": "iproute2",
    "iptables": "iptables",
    "nft": "nftables",
    "nsenter": "util-linux",
}
"""Program to the Debian package that has it."""
_FILES = {
    "lib/cni/bridge": "containernetworking-plugins",
    "lib/*/libvirt/connection-driver/libvirt_driver_qemu.so": "libvirt-daemon-driver-qemu",
}
"""File below /usr to the Debian package that has it."""


def missing() -> list[str]:
    """What this machine lacks, by name."""
    return list(_missing())


def _missing() -> Iterator[str]:
    if os.geteuid() != 0:
        yield "root"
    path = os.pathsep.join([os.environ.get("PATH", os.defpath), "/usr/sbin", "/sbin"])
    for program, package in _PROGRAMS.items():
        if shutil.which(program, path=path) is None:
            yield f"the Debian package {package}"
    for pattern, package in _FILES.items():
        if not any(Path("/usr").glob(pattern)):
            yield f"the Debian package {package}"
