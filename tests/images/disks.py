"""Disk images for the tests, made by qemu-img where they are not raw."""

import errno
import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from virtlet.errors import ResourceExhausted
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


def program_that(
    line: str, directory: Path, monkeypatch: pytest.MonkeyPatch, name: str = "qemu-img"
) -> None:
    """Put a program first in the path that runs a line of shell before it is itself.

    Args:
        line: runs as nobody.
        directory: is made; open to everybody, with what leads there.
        monkeypatch: puts the path back.
        name: the program's.
    """
    directory.mkdir(exist_ok=True)
    directory.chmod(0o777)
    program = directory / name
    real = shutil.which(name, path="/usr/bin:/bin")
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


def fill_before_each_step(
    directory: Path, pull: Callable[[], object], state: Callable[[], object]
) -> int:
    """Pull as if the disk was full from the first step on that needs room, then from the second,
    until it is full after the last; each time the pull has to say so and to change nothing.

    Args:
        directory: where there is no room.
        pull: raises or not.
        state: what is there.

    Returns:
        The number of steps.
    """
    before = state()
    steps = 0
    while True:
        with pytest.MonkeyPatch.context() as patch:
            called = _without_room(patch, directory, steps)
            try:
                pull()
            except ResourceExhausted as error:
                said = str(error)
            else:
                return steps
        assert "no space for it in" in said, called[-1]
        assert state() == before, called[-1]
        steps += 1


def _without_room(patch: pytest.MonkeyPatch, directory: Path, steps: int) -> list[str]:
    """Have calls that need room in a directory fail, but for the first ones; lists the calls."""
    called: list[str] = []

    def wrap(name: str, place: Callable[..., object]) -> None:
        real = getattr(os, name)

        def wrapped(*arguments: Any, **named: Any) -> Any:
            path = str(place(*arguments))
            if Path(path).is_relative_to(directory) and not Path(path).is_dir():
                called.append(f"{name} {path}")
                if len(called) > steps:
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), path)
            return real(*arguments, **named)

        patch.setattr(os, name, wrapped)

    def opened(descriptor: int, *_: object) -> str:
        return os.readlink(f"/proc/self/fd/{descriptor}")

    def created(path: object, flags: int, *_: object) -> object:
        return path if flags & os.O_CREAT else "/"

    wrap("open", created)
    for name in ("write", "fsync", "fdopen"):  # What opens with fdopen writes there.
        wrap(name, opened)
    for name in ("symlink", "replace"):
        wrap(name, lambda _, path, *__: path)
    return called
