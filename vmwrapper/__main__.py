"""Stands where libvirt expects QEMU: fetches what the launch needs, then becomes QEMU.

libvirt starts it as a domain's <emulator>. Without our environment variables it execs the emulator
only to ask for its version or, as libvirt does, its capabilities. With them it
shows the VM's one-time token at the manager's launch socket, receives arguments, environment and
open descriptors, and execs the emulator with them added. While it waits for the answer, the
manager moves it into the VM's cgroups. Where the answer has mounts, the emulator is jailed: it runs
in namespaces of its own, whose root holds those mounts, and the few
places that only its command line tells. The wrapper imports little, because
every VM's start waits for it.

The manager copies this file to where the emulator's user can read it, with the paths of the
interpreter and the emulator put in.
"""

import itertools
import os
import sys

EMULATOR = "/usr/bin/qemu-system-x86_64"
USER: "tuple[int, int, tuple[int, ...]]" = (0, 0, ())
"""User, group and further groups that questions about the emulator are answered as."""

# The other side has these names in virtlet/model/launch.py; a test holds them together.
ENV_SOCKET = "VIRTLET_LAUNCH_SOCKET"
ENV_VM = "VIRTLET_LAUNCH_VM"
ENV_TOKEN = "VIRTLET_LAUNCH_TOKEN"

# Exit statuses; the message goes to stderr, which libvirt writes to the domain's log.
EXIT_ENVIRONMENT = 71
EXIT_NO_SERVER = 72
EXIT_REFUSED = 73
EXIT_BROKEN = 74
EXIT_EXEC = 75
EXIT_JAIL = 76

TIMEOUT = 20.0
"""Seconds to wait for the manager."""
MOST_FDS = 253
"""As many as the kernel passes in one message (SCM_MAX_FD)."""
MOST_THREADS = 2048
"""Of a jailed emulator, also where no cgroup bounds them: 255 vCPUs, and what a cgroup allows
beside them."""
JAIL_FAILED = (
    "the emulator cannot be jailed: {}: {}. It takes user namespaces for users without privileges "
    "(sysctl kernel.unprivileged_userns_clone=1, user.max_user_namespaces above 0, "
    "kernel.apparmor_restrict_unprivileged_userns=0 or a profile that allows them); to run "
    "emulators without a jail, set emulatorJail: off"
)


class Failure(Exception):
    """The launch is off.

    Args:
        status: exit status.
        message: one line that says what failed and what to do.
    """

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


def main(arguments: list[str]) -> int:
    """Become the emulator.

    Returns:
        An exit status, only when that failed.
    """
    environment = dict(os.environ)
    # The token must not stay visible in the emulator's environment.
    ours = [environment.pop(name, None) for name in (ENV_SOCKET, ENV_VM, ENV_TOKEN)]
    emulator = EMULATOR
    try:
        root = os.getuid() == 0 and USER[0] != 0
        if any(ours):
            if root:
                raise Failure(
                    EXIT_REFUSED,
                    "no emulator runs as root, as this one would: the domain's document has to "
                    'name its user, in <seclabel model="dac">',
                )
            emulator, arguments = hand_over(ours, arguments, environment)
        elif is_probe(arguments):
            drop_lent_capabilities()
            if root:
                try:
                    arguments = leave_root(arguments)
                except OSError as error:
                    raise Failure(
                        EXIT_EXEC,
                        f"QEMU is asked nothing as root, and user {USER[0]} cannot be taken on "
                        f"({error.strerror}): libvirt runs without privileges to gain, so name "
                        "that user in its qemu.conf",
                    ) from None
        else:
            raise Failure(
                EXIT_ENVIRONMENT,
                f"no guest starts without {ENV_SOCKET}, {ENV_VM} and {ENV_TOKEN}, which the "
                "manager writes into the domain document: it would run outside of its jail",
            )
        execute(emulator, arguments, environment)
    except Failure as failure:
        sys.stderr.write(f"vmwrapper: {failure}\n")
        return failure.status
    return 0


def is_probe(arguments: list[str]) -> bool:
    """Whether it is a question that runs no guest: after QEMU's version, or, as of libvirt, after
    its capabilities, with a machine of nothing."""
    if arguments in (["-version"], ["--version"]):
        return True
    following = itertools.pairwise(arguments)
    machines = [value for option, value in following if option.lstrip("-") in ("machine", "M")]
    names = [value.partition(",accel=") for value in machines]
    return bool(names) and all(name == "none" and "," not in rest for name, _, rest in names)


def hand_over(
    ours: list[str | None], arguments: list[str], environment: dict[str, str]
) -> tuple[str, list[str]]:
    """Fetch the launch and put it on top of what libvirt gave.

    Returns:
        The emulator's path and all its arguments; `environment` is updated.
    """
    path, vm, token = ours
    if not (path and vm and token):
        raise Failure(
            EXIT_ENVIRONMENT,
            f"{ENV_SOCKET}, {ENV_VM} and {ENV_TOKEN} must be set all or none: do not start this "
            "domain by hand, the manager starts it",
        )
    answer, fds = ask(path, vm, token)
    if answer.startswith(b"!"):
        reason = answer[1:].rstrip(b"\0").decode("utf-8", "replace")
        raise Failure(EXIT_REFUSED, f"the manager refused the launch of VM {vm}: {reason}")
    # The end is a record of its own: what was cut behind an argument may end in a dot, too.
    if answer != b".\0" and not answer.endswith(b"\0.\0"):
        raise Failure(
            EXIT_BROKEN, f"the manager broke off while it handed over VM {vm}: start it again"
        )
    try:
        emulator, added, mounts, links, syscalls = unpack(answer, fds, environment)
    except (KeyError, ValueError):
        raise Failure(
            EXIT_BROKEN,
            f"the manager's answer for VM {vm} does not fit together: are manager and vmwrapper "
            "of one version?",
        ) from None
    arguments = [*without_accelerator(arguments, added), *added]
    if mounts:
        try:
            visible = [path for path, _, _ in mounts]
            own = own_paths(emulator, arguments, visible)
            arguments = without_locks(arguments, [path for path, _, write in mounts if not write])
            Jail().enter(mounts, links, own, syscalls)
        except OSError as error:
            raise Failure(EXIT_JAIL, JAIL_FAILED.format(error.filename, error.strerror)) from None
    return emulator, arguments


def unpack(
    answer: bytes, fds: list[int], environment: dict[str, str]
) -> tuple[str, list[str], list[tuple[str, int, bool]], list[str], bytes]:
    """Read the answer's records; virtlet/launch/server.py describes them.

    Returns:
        The emulator's path, the arguments to append, and the jail's mounts (path, descriptor,
        whether it can be written), links and seccomp filter; `environment` is updated.
    """
    emulator, added, names, mounts, links, syscalls = EMULATOR, [], [], [], [], b""
    for record in answer.split(b"\0")[:-2]:
        kind, text = record[:1], os.fsdecode(record[1:])
        if kind == b"f":
            names.append(text)
        elif kind in (b"m", b"w"):
            mounts.append((text, kind == b"w"))
        elif kind == b"l":
            links.append(text)
        elif kind == b"s":
            syscalls = bytes.fromhex(text)
        elif kind == b"a":
            added.append(text)
        elif kind == b"e":
            name, _, value = text.partition("=")
            environment[name] = value
        elif kind == b"x":
            emulator = text
        else:
            raise ValueError(record)
    numbers = dict(zip(names, fds[: len(names)], strict=True))
    pairs = zip(mounts, fds[len(names) :], strict=True)
    placed = [(path, fd, writable) for (path, writable), fd in pairs]
    arguments = [substitute(argument, numbers) for argument in added]
    return emulator, arguments, placed, links, syscalls


def ask(path: str, vm: str, token: str) -> tuple[bytes, list[int]]:
    """Show the token and receive the answer, up to the end of the stream.

    Returns:
        The answer, and the descriptors that came with it, which the emulator will inherit.
    """
    # The module `socket` on top of it costs a third of the wrapper's time.
    import _socket
    import array

    connection = _socket.socket(_socket.AF_UNIX, _socket.SOCK_STREAM)
    connection.settimeout(TIMEOUT)
    try:
        connection.connect(path)
        connection.sendall(f"{vm}\0{token}\0".encode())
    except OSError as error:
        raise Failure(
            EXIT_NO_SERVER,
            f"cannot reach the manager at {path} ({error.strerror or error}): VMs start only "
            "while it runs",
        ) from None
    chunks = []
    fds = array.array("i")
    room = _socket.CMSG_LEN(MOST_FDS * fds.itemsize)
    try:
        while True:
            chunk, ancillary, _, _ = connection.recvmsg(65536, room)
            for level, kind, data in ancillary:
                if (level, kind) == (_socket.SOL_SOCKET, _socket.SCM_RIGHTS):
                    fds.frombytes(data[: len(data) - len(data) % fds.itemsize])
            if not chunk:
                break
            chunks.append(chunk)
    except OSError:
        pass  # what came so far is not whole, which its end tells
    connection.close()
    return b"".join(chunks), list(fds)


def substitute(argument: str, numbers: dict[str, int]) -> str:
    """Put descriptors' numbers for their names, written {fd:NAME}."""
    pieces = argument.split("{fd:")
    for position in range(1, len(pieces)):
        name, brace, rest = pieces[position].partition("}")
        if not brace:
            raise ValueError(argument)
        pieces[position] = f"{numbers[name]}{rest}"
    return "".join(pieces)


def drop_lent_capabilities() -> None:
    """Let a capability probe see the host as a guest's emulator will see it.

    libvirt probes QEMU with CAP_DAC_OVERRIDE added. Where the emulator's user may not open
    /dev/kvm, the probe then finds KVM usable, libvirt finds that it is not, and probes again for
    every look at the capabilities, dozens of times per domain.
    """
    import ctypes

    pr_cap_ambient, clear_all = 47, 4  # <linux/prctl.h>
    ctypes.CDLL(None).prctl(pr_cap_ambient, clear_all, 0, 0, 0)


def leave_root(arguments: list[str]) -> list[str]:
    """Become the emulator's user for a question of a driver that runs as root.

    libvirt sees KVM as root does, and asks again and again where the answer differs. So a user that
    may not open it gets a descriptor.

    Returns:
        The arguments for QEMU.
    """
    import ctypes

    no_new_privs = 38  # <linux/prctl.h>
    uid, gid, groups = USER
    for position, value in enumerate(arguments):
        if arguments[position - 1] == "-qmp" and value.startswith("unix:"):
            # Made by libvirt for this question; monitor and process id go there.
            directory = os.path.dirname(value[len("unix:") :].partition(",")[0])
            os.chown(directory, uid, gid, follow_symlinks=False)
    try:
        kvm = os.open("/dev/kvm", os.O_RDWR)
    except OSError:
        kvm = -1
    os.setgroups(groups)
    os.setgid(gid)
    os.setuid(uid)
    zero = ctypes.c_ulong(0)
    ctypes.CDLL(None).prctl(no_new_privs, ctypes.c_ulong(1), zero, zero, zero)
    if kvm >= 0 and not os.access("/dev/kvm", os.R_OK | os.W_OK):
        asked, instead = "none,accel=kvm:tcg", ("-accel", "kvm,device=/dev/fdset/64")
        if asked in arguments:
            os.set_inheritable(kvm, True)
            arguments = ["none" if value == asked else value for value in arguments]
            arguments += ["-add-fd", f"fd={kvm},set=64", *instead, "-accel", "tcg"]
    return arguments


class Jail:
    """Namespaces of our own, whose root holds what the manager hands over and `own_paths`.

    A user without privileges may make them within a user namespace of its own. It keeps its user
    and group there, and loses all capabilities with the exec. There is no network: taps are
    descriptors. A PID namespace would take a second process; `/proc` has this one alone.

    Every method raises OSError with the step that failed as its `filename`.
    """

    # From <linux/sched.h>, <sys/mount.h>, <linux/mount.h>, <linux/prctl.h>, <linux/landlock.h>.
    # Numbers of system calls are the same on every architecture but for pivot_root.
    NEWNS, NEWUTS, NEWIPC, NEWUSER, NEWNET = 0x20000, 0x4000000, 0x8000000, 0x10000000, 0x40000000
    RDONLY, NOSUID, NODEV, REMOUNT, BIND, DETACH = 1, 2, 4, 32, 4096, 2
    REC_PRIVATE = 0x44000
    OPEN_TREE, MOVE_MOUNT, MOUNT_SETATTR = 428, 429, 442
    NEW_RULESET, ADD_RULE, RESTRICT_SELF = 444, 445, 446
    PIVOT_ROOT = 155 if os.uname().machine == "x86_64" else 41
    HERE, EMPTY_PATH, CLONE, MOVE_EMPTY_PATH = -100, 0x1000, os.O_CLOEXEC | 1, 4
    SECCOMP, FILTER, EINVAL = 22, 2, 22
    CAPBSET_DROP, NO_NEW_PRIVS, CAP_AMBIENT, AMBIENT_CLEAR = 24, 38, 47, 4
    PLACE = "/proc"
    """Where the new root is built: every root has it, and nothing in it is needed by then."""

    def __init__(self) -> None:
        # Now, as the interpreter may not be in the jail.
        import ctypes
        import resource
        import stat
        import struct

        self.ctypes, self.resource, self.stat, self.struct = ctypes, resource, stat, struct
        self.libc = ctypes.CDLL(None, use_errno=True)

    def done(self, step: str, result: int) -> int:
        """What a function of the C library returned, unless that says that it failed."""
        if result < 0:
            error = self.ctypes.get_errno()
            raise OSError(error, os.strerror(error), step)
        return result

    def call(self, step: str, number: int, *arguments: "int | bytes | None") -> int:
        """Make a system call that the C library may be too young for."""
        long = self.ctypes.c_long
        words = [long(a) if isinstance(a, int) else a for a in arguments]
        return self.done(step, self.libc.syscall(long(number), *words))

    def own(self, path: str) -> int:
        """A read-only mount of what is at a path; for the few that the manager cannot know of."""
        step = f"show {path}"
        tree = self.call(step, self.OPEN_TREE, self.HERE, os.fsencode(path), self.CLONE)
        flags = self.RDONLY | self.NOSUID | self.NODEV
        wanted = b"".join(n.to_bytes(8, sys.byteorder) for n in (flags, 0, 0, 0))
        self.call(step, self.MOUNT_SETATTR, tree, b"", self.EMPTY_PATH, wanted, len(wanted))
        return tree

    def enter(
        self,
        mounts: list[tuple[str, int, bool]],
        links: list[str],
        more: list[str],
        syscalls: bytes,
    ) -> None:
        """Leave the node behind.

        Args:
            mounts: path, descriptor of the mount, whether it can be written.
            links: paths of links to make as they are on the node.
            more: further paths that are to be visible and can be read alone.
            syscalls: the seccomp filter, in instructions of 8 bytes.
        """
        libc, uid, gid = self.libc, os.getuid(), os.getgid()
        flags = self.NEWUSER | self.NEWNS | self.NEWIPC | self.NEWUTS | self.NEWNET
        self.done("namespaces", libc.unshare(flags))
        for name, text in (
            ("setgroups", "deny"),
            ("uid_map", f"{uid} {uid} 1"),
            ("gid_map", f"{gid} {gid} 1"),
        ):
            with open(f"/proc/self/{name}", "w") as file:
                file.write(text)
        # Neither is there a way to capabilities in further namespaces, where /proc lets us say so.
        try:
            with open("/proc/sys/user/max_user_namespaces", "w") as file:
                file.write("0")
        except OSError:
            pass  # QEMU's own seccomp filter is left
        self.done("private mounts", libc.mount(None, b"/", None, self.REC_PRIVATE, None))
        mounts = mounts + [(path, self.own(path), False) for path in more]
        targets = [(link, os.readlink(link)) for link in links]
        quiet = self.NOSUID | self.NODEV
        options = b"mode=0755,size=256k"
        self.done("new root", libc.mount(b"jail", self.PLACE.encode(), b"tmpfs", quiet, options))
        for path, tree, _ in mounts:
            self.attach(path, tree)
        for link, target in targets:
            os.makedirs(os.path.dirname(self.PLACE + link), exist_ok=True)
            os.symlink(target, self.PLACE + link)
        os.chdir(self.PLACE)
        self.call("pivot_root", self.PIVOT_ROOT, b".", b".")
        self.done("old root", libc.umount2(b".", self.DETACH))
        os.chdir("/")
        still = self.REMOUNT | self.BIND | self.RDONLY | quiet
        self.done("read-only root", libc.mount(None, b"/", None, still, None))
        self.restrict([path for path, _, writable in mounts if writable], syscalls)

    def attach(self, path: str, tree: int) -> None:
        """Put a mount into the new root."""
        target = self.PLACE + path
        if self.stat.S_ISDIR(os.fstat(tree).st_mode):
            os.makedirs(target, exist_ok=True)
        elif not os.path.lexists(target):
            os.makedirs(os.path.dirname(target), exist_ok=True)
            os.close(os.open(target, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
        where = (self.HERE, os.fsencode(target), self.MOVE_EMPTY_PATH)
        self.call(f"mount {path}", self.MOVE_MOUNT, tree, b"", *where)
        os.close(tree)

    def restrict(self, writable: list[str], syscalls: bytes) -> None:
        """What holds without the namespaces, too: Landlock where the kernel has it, no core dump
        of the guest's memory, a bounded number of threads, no capability and no way to one, no call
        that reaches others."""
        # A limit of 1 also keeps the kernel from piping a dump into a program, which 0 does not.
        core = self.resource.RLIMIT_CORE
        if self.resource.getrlimit(core)[1] != 0:
            self.resource.setrlimit(core, (1, 1))
        self.bound_threads()
        zero = self.ctypes.c_ulong(0)
        self.libc.prctl(self.CAP_AMBIENT, self.AMBIENT_CLEAR, zero, zero, zero)
        for capability in range(64):
            if self.libc.prctl(self.CAPBSET_DROP, capability, zero, zero, zero) < 0:
                if self.ctypes.get_errno() != self.EINVAL or not capability:
                    self.done("capabilities", -1)
                break  # the kernel has no more
        self.done("no_new_privs", self.libc.prctl(self.NO_NEW_PRIVS, 1, zero, zero, zero))
        abi = self.libc.syscall(self.NEW_RULESET, None, self.ctypes.c_size_t(0), 1)
        if abi > 0:
            self.landlock(abi, writable)
        program = self.ctypes.create_string_buffer(syscalls, len(syscalls))
        # struct sock_fprog: how many instructions of 8 bytes, and where.
        filter_of = self.struct.pack("@HP", len(syscalls) // 8, self.ctypes.addressof(program))
        self.done("seccomp", self.libc.prctl(self.SECCOMP, self.FILTER, filter_of, zero, zero))

    def bound_threads(self) -> None:
        """Bound the threads and processes of this jail, which a kernel before 5.14 counts together
        with all others of the user."""
        release = os.uname().release.partition("-")[0].split(".")
        if (int(release[0]), int(release[1])) >= (5, 14):
            threads = self.resource.RLIMIT_NPROC
            hard = self.resource.getrlimit(threads)[1]
            most = MOST_THREADS if hard == self.resource.RLIM_INFINITY else min(hard, MOST_THREADS)
            self.resource.setrlimit(threads, (most, most))

    def landlock(self, abi: int, writable: list[str]) -> None:
        """Let files be read, and written only where that is meant; no TCP, no signals to others."""
        struct = self.struct
        read = 0b1101  # execute, read a file, read a directory
        write = 0b10 | (1 << 14 if abi > 2 else 0) | (1 << 15 if abi > 4 else 0)  # truncate, ioctl
        handled = 0x1FFF | (1 << 13 if abi > 1 else 0) | write
        # Files, TCP (bind, connect), and abstract sockets and signals of others.
        attribute = struct.pack("=QQQ", handled, 3, 3)[: 8 if abi < 4 else 16 if abi < 6 else 24]
        ruleset = self.call("Landlock", self.NEW_RULESET, attribute, len(attribute), 0)
        for path in ("/", *writable):
            # A directory that can be written is a share: the guest makes and removes files there.
            allowed = read if path == "/" else handled if os.path.isdir(path) else write
            opened = os.open(path, os.O_PATH | os.O_CLOEXEC)
            rule = struct.pack("=Qi", allowed, opened)
            self.call(f"Landlock {path}", self.ADD_RULE, ruleset, 1, rule, 0)
            os.close(opened)
        self.call("Landlock", self.RESTRICT_SELF, ruleset, 0)
        os.close(ruleset)


def own_paths(emulator: str, arguments: list[str], visible: list[str]) -> list[str]:
    """What only the command line tells: the domain's directory of libvirt, and the emulator."""
    program = os.path.realpath(emulator)
    paths = [] if any(is_below(program, path) for path in visible) else [emulator]
    for position, value in enumerate(arguments):
        option = arguments[position - 1]
        before, found, _ = value.partition('/master-key.aes"')
        if (
            found
            and option == "-object"
            and value.startswith('{"qom-type":"secret","id":"masterKey0"')
        ):
            paths.append(before.rpartition('"')[2])
    return paths


def without_accelerator(arguments: list[str], added: list[str]) -> list[str]:
    """The arguments without -accel, where the manager adds its own: KVM as a descriptor."""
    if "-accel" not in added:
        return arguments
    before = ["", *arguments]
    return [a for a, b in zip(arguments, before, strict=False) if "-accel" not in (a, b)]


def without_locks(arguments: list[str], readable: list[str]) -> list[str]:
    """Have QEMU take no locks on files that it can only read, as libvirt offers no way to.

    Others read them too, an image for one. A lock that one emulator took of its own accord would
    keep the VMs of all others from starting.
    """
    head = '{"driver":"file",'
    found = []
    for position, value in enumerate(arguments):
        if arguments[position - 1] == "-blockdev" and value.startswith(head + '"filename":"'):
            path = value[len(head + '"filename":"') :].partition('"')[0]
            if any(is_below(path, place) for place in readable):
                value = head + '"locking":"off",' + value[len(head) :]
        found.append(value)
    return found


def is_below(path: str, directory: str) -> bool:
    """Whether a path is a directory or within it."""
    return path == directory or path.startswith(directory.rstrip("/") + "/")


def execute(emulator: str, arguments: list[str], environment: dict[str, str]) -> None:
    """Become the emulator; never returns."""
    try:
        os.execve(emulator, [emulator, *arguments], environment)
    except OSError as error:
        raise Failure(
            EXIT_EXEC, f"cannot execute {emulator}: {error.strerror}: check the setting `emulator`"
        ) from None


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
