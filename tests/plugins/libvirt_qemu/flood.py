"""An emulator that its guest has taken over: it goes on as QEMU, and floods libvirt.

Started in QEMU's place, it stands between libvirt and a QEMU of its own. Once WORD is in the
console's file, which the environment names, it sends one long line after the other.
"""

import os
import socket
import threading
import time

_QEMU = "/usr/bin/qemu-system-x86_64"
_LINE = b'{"return":[' + b"{}," * (3 << 20) + b"{}]}\r\n"
WORD = b"flood"
_MONITOR = "socket,id=charmonitor,fd="


def main(arguments: list[str]) -> None:
    behind = socket.socket(socket.AF_UNIX)
    behind.bind("")  # a name of the kernel's choice
    behind.listen(1)
    behind.set_inheritable(True)
    (place,) = (n for n, word in enumerate(arguments) if word.startswith(_MONITOR))
    number = arguments[place].removeprefix(_MONITOR).partition(",")[0]
    arguments[place] = arguments[place].replace(f"fd={number}", f"fd={behind.fileno()}")
    if os.fork() != 0:  # libvirt knows the parent: its end alone does not end the flood
        os.execv(_QEMU, [_QEMU, *arguments])
    libvirt, _ = socket.socket(fileno=int(number)).accept()
    qemu = socket.socket(socket.AF_UNIX)
    qemu.connect(behind.getsockname())
    sending = threading.Lock()
    threading.Thread(target=_ask, args=(libvirt, qemu), daemon=True).start()
    threading.Thread(target=_answer, args=(qemu, libvirt, sending), daemon=True).start()
    with open(os.environ["CONSOLE"], "rb") as console:
        while WORD not in os.pread(console.fileno(), 1 << 16, 0):
            time.sleep(0.02)
    with sending:
        while True:
            libvirt.sendall(_LINE)


def _ask(libvirt: socket.socket, qemu: socket.socket) -> None:
    while data := libvirt.recv(1 << 16):
        qemu.sendall(data)


def _answer(qemu: socket.socket, libvirt: socket.socket, sending: threading.Lock) -> None:
    """Pass whole lines on."""
    for line in qemu.makefile("rb"):
        with sending:
            libvirt.sendall(line)


if __name__ == "__main__":
    import sys

    main(sys.argv[1:])
