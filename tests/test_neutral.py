"""Which hypervisor runs the VMs is known to its plugins alone."""

from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1] / "virtlet"
NEUTRAL = (
    "console",
    "core",
    "host",
    "images",
    "launch",
    "model",
    "streaming",
    "hookspecs.py",
    "api.py",
)
DEFAULT_USER = 'default="libvirt-qemu",'
"""The name of a user that a distribution's package made, and of nothing else."""


@pytest.mark.parametrize("part", NEUTRAL)
def test_what_serves_every_hypervisor_names_none(part: str) -> None:
    path = ROOT / part
    files = [path] if path.is_file() else sorted(path.rglob("*.py"))
    assert files
    told = [
        f"{file.relative_to(ROOT)}: {line.strip()}"
        for file in files
        for line in file.read_text().splitlines()
        if "libvirt" in line.replace(DEFAULT_USER, "").lower()
    ]
    assert not told
