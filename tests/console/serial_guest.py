"""A guest of 512 bytes for QEMU: a boot sector that talks on the first serial port.

It prints `ready` and a newline. Then it sends back what it receives, except for `F`, upon which
it prints FLOOD_LINES lines with their numbers in hexadecimal, and `Q`, upon which it ends QEMU.
"""

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from virtlet.console.console_files import ConsoleFiles

FLOOD_LINES = 0x8000
FLOOD = b"".join(b"%08x\n" % number for number in range(FLOOD_LINES))

# 16-bit x86. "label:" marks a place, ">label" and ">>label" stand for its relative address in
# one and two bytes, ";" begins a comment.
_PROGRAM = """
    b0 72 e8 >>putc  b0 65 e8 >>putc  b0 61 e8 >>putc ; mov al,'r'; call putc; ...
    b0 64 e8 >>putc  b0 79 e8 >>putc  b0 0a e8 >>putc
main:
    ba fd 03  ec  a8 01  74 >main                    ; mov dx,3fd; in al,dx; test al,1; jz main
    ba f8 03  ec                                     ; mov dx,3f8; in al,dx
    3c 46  74 >flood                                 ; cmp al,'F'; je flood
    3c 51  74 >quit                                  ; cmp al,'Q'; je quit
    e8 >>putc  eb >main                              ; call putc; jmp main
flood:
    66 31 db                                         ; xor ebx,ebx
line:
    b1 08  66 89 dd                                  ; mov cl,8; mov ebp,ebx
digit:
    66 c1 c5 04  89 e8  24 0f                        ; rol ebp,4; mov ax,bp; and al,15
    04 30  3c 3a  72 02  04 27                       ; add al,'0'; cmp al,':'; jb +2; add al,39
    e8 >>putc  fe c9  75 >digit                      ; call putc; dec cl; jnz digit
    b0 0a e8 >>putc                                  ; mov al,10; call putc
    66 43  81 fb 00 80  75 >line                     ; inc ebx; cmp bx,FLOOD_LINES; jne line
    eb >main                                         ; jmp main
quit:
    ba f4 00  ee  eb >quit                           ; mov dx,f4; out dx,al; jmp quit
putc:
    88 c4  ba fd 03                                  ; mov ah,al; mov dx,3fd
wait:
    ec  a8 20  74 >wait                              ; in al,dx; test al,20; jz wait
    ba f8 03  88 e0  ee  c3                          ; mov dx,3f8; mov al,ah; out dx,al; ret
"""


def _assembled() -> bytes:
    code, labels, uses = bytearray(), {}, []
    for line in _PROGRAM.splitlines():
        for word in line.partition(";")[0].split():
            if word.endswith(":"):
                labels[word[:-1]] = len(code)
            elif word.startswith(">"):
                name = word.lstrip(">")
                size = len(word) - len(name)
                code += bytes(size)
                uses.append((len(code), size, name))
            else:
                code.append(int(word, 16))
    for end, size, name in uses:
        code[end - size : end] = (labels[name] - end).to_bytes(size, "little", signed=True)
    return bytes(code)


@contextmanager
def qemu(files: ConsoleFiles, directory: Path) -> Iterator[subprocess.Popen[bytes]]:
    """Run the guest, its console as the domain document has it."""
    disk = directory / "boot.img"
    disk.write_bytes((_assembled().ljust(510, b"\0") + b"\x55\xaa").ljust(1440 * 1024, b"\0"))
    program = ["qemu-system-x86_64", "-accel", "tcg", "-m", "16", "-display", "none", "-nodefaults"]
    program += ["-drive", f"file={disk},format=raw,if=floppy", "-serial", "chardev:console"]
    program += ["-chardev", f"pipe,id=console,path={files.stem}"]
    program += ["-device", "isa-debug-exit,iobase=0xf4,iosize=1"]
    emulator = subprocess.Popen(program)
    try:
        yield emulator
    finally:
        emulator.kill()
        emulator.wait()
