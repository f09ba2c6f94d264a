"""A guest of one boot sector, assembled from boot_sector.S beside this file; up within a second.

It prints "ready" on the serial port, powers off by the power button or the letter `o`, panics on
`p`, resets on `r`, hangs on `h` and prints back whatever else is typed.
"""

from pathlib import Path

POWER_OFF, PANIC, RESET, HANG = b"o", b"p", b"r", b"h"

_CODE = bytes.fromhex(
    """
    31c08ed8c7062000777ca32200ba0206b80001efbe7e7cac84c07405e84900ebf6fbf4ba
    0006edf6c4017521bafd03eca80174edbaf803ec3c6f74113c7074163c72741a3c68741c
    e81d00ebd4ba0406b80020efeb0eba0505b001eeeb06baf90cb006eefaf4ebfc50bafd03
    eca82074f858baf803eec350b020e62058cf72656164790d0a
    """
)
_SIZE = 1 << 20
"""SeaBIOS boots from no disk below one cylinder of 16 heads and 63 sectors."""


def write_boot_disk(path: Path) -> None:
    """Write the guest's disk, a raw image."""
    path.write_bytes(_CODE.ljust(510, b"\0") + b"\x55\xaa")
    with path.open("r+b") as file:
        file.truncate(_SIZE)
