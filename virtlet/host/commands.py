"""Running programs of the node."""

import fcntl
import os
import shutil
import subprocess
from collections.abc import Container, Mapping, Sequence
from contextlib import ExitStack
from typing import BinaryIO

from attrs import frozen

from virtlet.errors import DeadlineExceeded, FailedPrecondition, VirtletError
from virtlet.host.confinement import Confinement
from virtlet.host.processes import HELPER_OOM_SCORE
from virtlet.model.typed import typed


class CommandError(VirtletError):
    """A program of the node failed."""


@frozen(kw_only=True, field_transformer=typed)
class CommandLimits:
    """Bounds for a program that reads data we do not trust."""

    cpu_seconds: int = 30
    memory: int = 1 << 30
    """Bytes of address space; its threads share one allocator's arena, as each further one
    would take 64 MiB of them and end a busy program that has done nothing wrong."""
    output: int = 16 << 20
    """Bytes that it may print."""
    file_size: int = 0
    """Bytes that a file it writes may have; 0 is any."""


def find_program(name: str, package: str) -> str:
    """The path of a program, which may be in a directory of root's.

    Args:
        name: the program's.
        package: the Debian package that has it.

    Raises:
        FailedPrecondition: it is not installed.
    """
    path = shutil.which(name) or shutil.which(name, path="/usr/sbin:/sbin")
    if path is None:
        raise FailedPrecondition(f"the program {name} is missing on this node: install {package}")
    return path


def clean_environment() -> dict[str, str]:
    """What a program needs to be found and to speak English; ours may hold secrets."""
    return {"PATH": os.environ.get("PATH", os.defpath), "LC_ALL": "C"}


def run(
    argv: Sequence[str],
    *,
    stdin: bytes = b"",
    env: Mapping[str, str] | None = None,
    timeout: float = 60.0,
    limits: CommandLimits | None = None,
    confinement: Confinement | None = None,
    pass_fds: Sequence[int] = (),
    statuses: Container[int] = (0,),
    quiet: bool = False,
    package: str = "",
) -> bytes:
    """Run a program and return its standard output.

    Args:
        argv: program and arguments; never a shell line.
        stdin: what it reads.
        env: its whole environment. None passes ours on, but to a program that is bounded or
            confined, which gets a clean one. Limits add to it.
        timeout: seconds before it is killed.
        limits: bounds for untrusted input.
        confinement: who the program is instead of us.
        pass_fds: descriptors of ours that it inherits under the same numbers.
        statuses: exit statuses that are no failure.
        quiet: its stderr goes nowhere, as that of one that may complain without end.
        package: the Debian package that has the program, for the message where it is missing.

    Raises:
        FailedPrecondition: the program is not installed.
        DeadlineExceeded: it ran longer than `timeout`.
        CommandError: it ended with another status; the message has the end of its stderr.
    """
    program = os.path.basename(argv[0])
    if env is None and (limits or confinement):
        env = clean_environment()
    if shutil.which(argv[0]) is not None:
        argv, env = _wrapped(argv, env, limits, confinement)
    with ExitStack() as stack:
        sink = stack.enter_context(bounded_file(limits.output)) if limits else None
        try:
            done = subprocess.run(
                argv,
                input=stdin,
                stdout=sink or subprocess.PIPE,
                stderr=subprocess.DEVNULL if quiet else subprocess.PIPE,
                env=env,
                timeout=timeout,
                check=False,
                pass_fds=pass_fds,
            )
        except FileNotFoundError:
            remedy = f": install the package {package}" if package else ""
            raise FailedPrecondition(f"{argv[0]} is not installed on this node{remedy}") from None
        except subprocess.TimeoutExpired:
            raise DeadlineExceeded(f"{program} did not end within {timeout:g} s") from None
        if done.returncode not in statuses:
            words = (done.stderr or b"").decode(errors="replace")
            message = words.strip()[-500:] or "it said nothing"
            raise CommandError(f"{program} ended with status {done.returncode}: {message}")
        if limits is None or sink is None:
            return done.stdout
        written = sink.seek(0, os.SEEK_CUR)
        if written >= limits.output:
            raise CommandError(f"{program} printed more than {limits.output} bytes")
        return os.pread(sink.fileno(), written, 0)


def start(
    argv: Sequence[str],
    *,
    stdin: int,
    stdout: int,
    limits: CommandLimits,
    confinement: Confinement,
    package: str,
) -> "subprocess.Popen[bytes]":
    """Start a program that reads what we do not trust from one descriptor and writes to another.

    Args:
        argv: program and arguments; it gets none of our environment, and its stderr goes nowhere.
        stdin: what it reads; subprocess.PIPE for a pipe.
        stdout: what it writes.
        limits: its bounds; not for what it prints, which is bounded by `file_size` in a file.
        confinement: who it is instead of us.
        package: the Debian package that has the program.

    Raises:
        FailedPrecondition: it is not installed.
    """
    find_program(argv[0], package)
    argv, env = _wrapped(argv, clean_environment(), limits, confinement)
    return subprocess.Popen(
        argv, stdin=stdin, stdout=stdout, stderr=subprocess.DEVNULL, env=env, bufsize=0
    )


def _wrapped(
    argv: Sequence[str],
    env: Mapping[str, str] | None,
    limits: CommandLimits | None,
    confinement: Confinement | None,
) -> tuple[Sequence[str], Mapping[str, str] | None]:
    """The command line and environment that confine a program and bound it."""
    if confinement is not None:
        argv = confinement.wrap(argv)
    if limits is not None:
        # prlimit(1) instead of code of ours between fork and exec, which threads make unsafe.
        bounds = [f"--cpu={limits.cpu_seconds}", f"--as={limits.memory}"]
        bounds += [f"--fsize={limits.file_size}"] if limits.file_size else []
        argv = ["choom", "-n", str(HELPER_OOM_SCORE), "--", "prlimit", *bounds, "--", *argv]
        env = {**(os.environ if env is None else env), "MALLOC_ARENA_MAX": "1"}
    return argv, env


def bounded_file(size: int) -> BinaryIO:
    """A file that nobody can write more to, for what a program prints."""
    descriptor = os.memfd_create("output", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    file = os.fdopen(descriptor, "w+b", 0)
    file.truncate(size)
    fcntl.fcntl(file, fcntl.F_ADD_SEALS, fcntl.F_SEAL_GROW | fcntl.F_SEAL_SHRINK)
    return file


def sealed_file(content: bytes) -> BinaryIO:
    """A file without a place on the node that nobody can change."""
    descriptor = os.memfd_create("document", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    file = os.fdopen(descriptor, "w+b", 0)
    file.write(content)
    seals = fcntl.F_SEAL_WRITE | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_SEAL
    fcntl.fcntl(file, fcntl.F_ADD_SEALS, seals)
    return file
