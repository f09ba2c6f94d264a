"""Disk images for the tests, made by qemu-img where they are not raw."""

import shutil
import subprocess
from pathlib import Path

import pytest

from virtlet.model.image import RecognizedImage
from virtlet.plugins.image_formats.plugin import recognise

SECTOR = 512


def raw_disk(label: str = "", size: int = 64 * 1024) -> bytes:
    """A raw disk with a boot sector's signature; the label makes its content its own."""
    boot = bytearray(size)
    boot[0:2] = b"\xeb\xfe"
    boot[16 : 16 + len(label)] = label.encode()
    boot[510:512] = b"\x55\xaa"
    return bytes(boot)


def write_raw(path: Path, label: str = "", size: int = 64 * 1024) -> Path:
    path.write_bytes(raw_disk(label, size))
    return path


def qemu_img(*arguments: str | Path) -> None:
    subprocess.run(["qemu-img", *map(str, arguments)], check=True, capture_output=True)


def qemu_img_that(line: str, directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Put a qemu-img first in the path that runs a line of shell before it is itself.

    Args:
        line: runs as nobody.
        directory: is made; open to everybody, with what leads there.
        monkeypatch: puts the path back.
    """
    directory.mkdir(exist_ok=True)
    directory.chmod(0o777)
    program = directory / "qemu-img"
    real = shutil.which("qemu-img", path="/usr/bin:/bin")
    program.write_text(f'#!/bin/sh\n{line}\nexec {real} "$@"\n')
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{directory}:/usr/bin:/bin")


def write_qcow2(path: Path, size: str = "1M", options: str = "") -> Path:
    extra = ["-o", options] if options else []
    qemu_img("create", "-f", "qcow2", *extra, path, size)
    return path


def recognize(name: str, file: Path) -> tuple[str, RecognizedImage]:
    """As a handler with the built-in plugin does."""
    return "image_formats", recognise(file, name)
