"""What the console tests share: reading logs back, and an emulator's end of a console."""

import os
from pathlib import Path

from tests.polling import until
from virtlet.console.console_files import ConsoleFiles
from virtlet.console.cri_log import HEADER_SIZE, MAX_PAYLOAD, decode


def console_files(directory: Path, vm_id: str = "vm-1") -> ConsoleFiles:
    """A VM's console below a directory, its log in a directory of the pod's that is not there."""
    return ConsoleFiles(vm_id, directory / f"{vm_id}-console", directory / "pods" / vm_id / "0.log")


def log_of(files: ConsoleFiles) -> Path:
    assert files.log is not None
    return files.log


def rotate(files: ConsoleFiles) -> None:
    """Rename the log as the kubelet does before it calls ReopenContainerLog."""
    log = log_of(files)
    count = len(list(log.parent.iterdir()))
    log.rename(log.with_name(f"{log.name}.{count:06}"))


def printed(files: ConsoleFiles) -> bytes:
    """What all logs of a VM say the guest printed, rotated ones first; every line is checked."""
    log = log_of(files)
    rotated = sorted(path for path in log.parent.iterdir() if path != log)
    payload = []
    for path in [*rotated, *([log] if log.exists() else [])]:
        text = path.read_bytes()
        decoded = decode(text)
        assert decoded.whole == len(text), f"{path} ends in a torn line"
        longest = max((len(line) for line in text.splitlines()), default=0)
        assert longest <= HEADER_SIZE + MAX_PAYLOAD
        payload.append(decoded.payload)
    return b"".join(payload)


def lost(files: ConsoleFiles, output: bytes) -> int:
    """How many bytes the log says were lost, once it is seen to tell of all output but those.

    Each line is compared with the output at the place where the lines before it end.
    """
    place = count = 0
    for line in log_of(files).read_bytes().splitlines(keepends=True):
        told = decode(line)
        assert told.whole == len(line)
        assert output[place : place + len(told.payload)] == told.payload
        place += len(told.payload) + told.lost
        count += told.lost
    assert place == len(output)
    return count


def numbered(size: int) -> bytes:
    """So many bytes of output, of which every two lines differ."""
    return b"".join(b"%09d\n" % number for number in range(size // 10 + 1))[:size]


def on_disk(files: ConsoleFiles) -> int:
    """Bytes that the raw file takes on its disk."""
    return files.raw.stat().st_blocks * 512


class Emulator:
    """Does to a console what QEMU's pipe chardev does: see ConsoleFiles."""

    def __init__(self, files: ConsoleFiles) -> None:
        self._keyboard = os.open(files.keyboard, os.O_RDWR | os.O_NONBLOCK)
        self._raw = os.open(files.raw, os.O_RDWR)

    def print(self, data: bytes) -> None:
        assert os.write(self._raw, data) == len(data)

    def typed(self, count: int) -> bytes:
        """The next keys, exactly so many."""
        keys = b""

        def read() -> bool:
            nonlocal keys
            try:
                keys += os.read(self._keyboard, count - len(keys))
            except BlockingIOError:
                return False
            return len(keys) == count

        until(read)
        return keys

    def exit(self) -> None:
        os.close(self._keyboard)
        os.close(self._raw)
