"""Programs that unpack or convert an image, run as nobody between two descriptors.

The kernel keeps what they write below a size (RLIMIT_FSIZE); nothing of it passes through the
manager.
"""

import contextlib
import os
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path

from virtlet.errors import InvalidArgument, ResourceExhausted, Unavailable
from virtlet.host.commands import CommandLimits, start
from virtlet.host.confinement import NOBODY, Confinement
from virtlet.model.image import Conversion

_CPU_SECONDS = 7200
_MEMORY = 1 << 30
_LAST_BYTES = 300.0
"""Seconds for what is in a pipe still: a few MiB at most, when unpacked."""
_POLL = 0.2
_STEP = 4 << 20
"""More than qemu-img writes at once."""


class TooLarge(ResourceExhausted):
    """An image becomes too large when it is unpacked or converted."""


class Unpacker:
    """A program that unpacks what is written to it into a file.

    Args:
        name: the image's, for messages.
        conversion: the program.
        file: descriptor of the file, at the place where it is to write.
        limit: bytes that the file may have.

    Raises:
        FailedPrecondition: the program is not installed.
    """

    def __init__(self, name: str, conversion: Conversion, file: int, limit: int) -> None:
        self.format = conversion.format
        self._name = name
        self._program = conversion.argv[0]
        self._limit = limit
        self._process = _start(conversion, subprocess.PIPE, file, limit, NOBODY)

    def write(self, chunk: bytes | memoryview) -> None:
        """Have it unpack a chunk.

        Raises:
            InvalidArgument: the content is damaged.
            ResourceExhausted: it unpacks to too much.
            Unavailable: the program was ended.
        """
        assert self._process.stdin is not None
        try:
            rest = memoryview(chunk)
            while rest:
                rest = rest[self._process.stdin.write(rest) :]
        except (BrokenPipeError, ValueError):
            # It has ended, or its input has: either way there is more than it takes.
            self._judge()
            raise self._damaged() from None

    def finish(self) -> None:
        """Wait until everything is unpacked.

        Raises:
            InvalidArgument, ResourceExhausted, Unavailable: as `write`.
        """
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._judge()

    def end(self) -> None:
        """End the program, done or not; idempotent."""
        _kill(self._process)

    def _judge(self) -> None:
        try:
            status = self._process.wait(_LAST_BYTES)
        except subprocess.TimeoutExpired:
            self.end()
            raise Unavailable(
                f"image {self._name}: {self._program} does not come to its end"
            ) from None
        _check_signal(self._name, self._program, status, self._limit)
        if status:
            raise self._damaged()

    def _damaged(self) -> InvalidArgument:
        return InvalidArgument(
            f"image {self._name}: it is {self.format}-compressed, and damaged or cut off"
        )


def convert(
    name: str,
    conversion: Conversion,
    source: Path,
    target: Path,
    *,
    limit: int,
    gid: int,
    wanted: Callable[[], bool],
) -> None:
    """Convert a file into a new one, and see to it that this is on the disk.

    Args:
        name: the image's, for messages.
        conversion: the program.
        source: is made readable for the group.
        target: is made; on failure the caller removes what there is of it.
        limit: bytes that it may have.
        gid: the group that the program runs in.
        wanted: whether somebody still waits.

    Raises:
        FailedPrecondition: the program is not installed.
        InvalidArgument: it cannot convert the file.
        TooLarge: the result would be larger than the limit.
        Unavailable: nobody waits any more, or the program was ended.
        OSError: the target cannot be made.
    """
    with contextlib.ExitStack() as stack:
        read = os.open(source, os.O_RDONLY | os.O_CLOEXEC)
        stack.callback(os.close, read)
        write = os.open(target, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        stack.callback(os.close, write)
        # It opens both once more, as /proc/self/fd/0 and 1.
        if os.geteuid() == 0:
            os.fchown(read, -1, gid)
            os.fchmod(read, 0o640)
            os.fchown(write, NOBODY, -1)
        _run(name, conversion, read, write, limit, gid, wanted)
        os.fchown(write, os.geteuid(), -1)
        os.fsync(write)


def _run(
    name: str,
    conversion: Conversion,
    read: int,
    write: int,
    limit: int,
    gid: int,
    wanted: Callable[[], bool],
) -> None:
    process = _start(conversion, read, write, limit, gid)
    try:
        while process.poll() is None:
            if not wanted():
                raise Unavailable(f"image {name}: the pull was cancelled by its caller")
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(_POLL)
    finally:
        _kill(process)
    program = conversion.argv[0]
    _check_signal(name, program, process.returncode, limit)
    if process.returncode:
        # Where it writes from a thread that takes no signals, as qemu-img does, it goes on to fail.
        if os.fstat(write).st_size > limit - min(_STEP, limit // 2):
            raise TooLarge(_too_large(name, limit))
        raise InvalidArgument(
            f"image {name}: {program} cannot convert it from {conversion.format}; it is damaged"
        )


def _start(
    conversion: Conversion, stdin: int, stdout: int, limit: int, gid: int
) -> "subprocess.Popen[bytes]":
    return start(
        conversion.argv,
        stdin=stdin,
        stdout=stdout,
        limits=CommandLimits(cpu_seconds=_CPU_SECONDS, memory=_MEMORY, file_size=limit),
        confinement=Confinement(uid=NOBODY, gid=gid, network=False),
        package=conversion.package,
    )


def _check_signal(name: str, program: str, status: int, limit: int) -> None:
    """Tell what ended a program that has not ended by itself."""
    if status == -signal.SIGXFSZ:
        raise TooLarge(_too_large(name, limit))
    if status == -signal.SIGXCPU:
        raise ResourceExhausted(
            f"image {name}: {program} needs more than {_CPU_SECONDS} seconds for it; offer the "
            "image as qcow2, uncompressed"
        )
    if status < 0:
        # The OOM killer, most likely.
        raise Unavailable(f"image {name}: {program} was ended by signal {-status}")


def _too_large(name: str, limit: int) -> str:
    return (
        f"image {name}: larger than the limit of {limit} bytes once it is unpacked; use a smaller "
        "image or raise imageSizeLimit"
    )


def _kill(process: "subprocess.Popen[bytes]") -> None:
    process.kill()
    process.wait()
    if process.stdin is not None:
        with contextlib.suppress(OSError):
            process.stdin.close()
