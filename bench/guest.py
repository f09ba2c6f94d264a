"""Guests of one boot sector: one costs nothing, one prints as fast as it can.

What is measured is mostly what happens until the emulator runs. A guest that boots would take the
processor from the measurement next to it, more so without KVM.
"""

import subprocess
from pathlib import Path

from virtlet.cli.steps import wait_until

GREETING = b"the guest of the benchmark\r\n"
"""What its console says."""
_ORIGIN = 0x7C00
"""Where a PC's firmware loads a boot sector."""
_CODE = bytes.fromhex(
    "fa"  # cli
    "31c0 8ed8"  # xor ax, ax; mov ds, ax
    "be0000"  # mov si, GREETING (put in below)
    "baf803"  # mov dx, 0x3f8: the first serial port
    "ac 84c0 7403"  # next: lodsb; test al, al; jz halt
    "ee ebf8"  # out dx, al; jmp next
    "f4 ebfd"  # halt: hlt; jmp halt
)
_LETTERS = str.maketrans("0123456789abcdef", "abcdefghijklmnop")
_POINTER = _CODE.index(b"\xbe") + 1


_COUNTING = bytes.fromhex(
    "fa 6631ed"  # cli; xor ebp, ebp
    "6645 6689eb b90800"  # next: inc ebp; mov ebx, ebp; mov cx, 8
    "66c1c304 88d8 240f 0461"  # digit: rol ebx, 4; mov al, bl; and al, 15; add al, 'a'
    "e80e00 e2f1"  # call print; loop digit
    "b00d e80700 b00a e80200 ebdd"  # CR, LF; jmp next
    "88c4 bafd03"  # print: mov ah, al; mov dx, 0x3fd: the line's status
    "ec a820 74fb"  # wait: in al, dx; test al, 0x20; jz wait
    "baf803 88e0 ee c3"  # mov dx, 0x3f8; mov al, ah; out dx, al; ret
)


def greeting_sector() -> bytes:
    """Says a word on the serial console and halts."""
    pointer = (_ORIGIN + len(_CODE)).to_bytes(2, "little")
    return _CODE[:_POINTER] + pointer + _CODE[_POINTER + 2 :] + GREETING + b"\0"


def counting_sector() -> bytes:
    """Prints lines as fast as it can; see `counted_line`."""
    return _COUNTING


def counted_line(number: int) -> bytes:
    """What the counting guest prints as its line of that number, from 1 on."""
    digits = f"{number:08x}".translate(_LETTERS)
    return digits.encode() + b"\r\n"


def make_image(path: Path, sector: bytes) -> Path:
    """Write the disk of a guest, 96 MiB as qcow2; returns `path`."""
    raw = path.with_suffix(".raw")
    with raw.open("wb") as file:
        file.write(sector.ljust(510, b"\0") + b"\x55\xaa")
        file.truncate(96 << 20)
    argv = ["qemu-img", "convert", "-q", "-f", "raw", "-O", "qcow2", str(raw), str(path)]
    subprocess.run(argv, check=True)
    raw.unlink()
    return path


def wait_for_greeting(console: Path) -> None:
    """Wait until the guest has spoken into a file."""
    word = GREETING.strip()
    wait_until(lambda: word in _read(console), 60.0, f"the guest's word in {console}")


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return b""
