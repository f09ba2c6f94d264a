"""The wrapper as libvirt runs it: a program that becomes another one."""

import json
import os
import pwd
import resource
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from attrs import frozen

import vmwrapper.__main__ as wrapper
from virtlet.launch import merge
from virtlet.launch.server import LaunchServer
from virtlet.launch.wrapper import install_wrapper
from virtlet.model import launch as names
from virtlet.model.launch import LaunchFd, LaunchPart, Visible

VM = "0123456789abcdef0123456789abcdef"
TOKEN = "a-token"
OWN_COST = 0.060
"""Seconds that a launch through the wrapper may take longer than the emulator alone."""

_EMULATOR = f"""#!{sys.executable} -IS
import json, os, sys
fds = {{}}
for argument in sys.argv:
    if argument.startswith("fd="):
        fds[argument] = os.read(int(argument[3:]), 100).decode()
ids = [os.getresuid(), os.getresgid()]
print(json.dumps({{"argv": sys.argv[1:], "env": dict(os.environ), "fds": fds, "ids": ids}}))
sys.exit(7)
"""


@frozen
class Setup:
    """An installed wrapper, the emulator behind it, and the server it asks."""

    path: Path
    emulator: Path
    server: LaunchServer
    socket: Path

    def run(self, *arguments: str, **more: str) -> "subprocess.CompletedProcess[str]":
        return subprocess.run(
            [str(self.path), *arguments],
            env={"PATH": "/usr/bin:/bin", **more},
            capture_output=True,
            text=True,
            timeout=30,
            check=False,
        )

    def launch(self, *arguments: str, token: str = TOKEN) -> "subprocess.CompletedProcess[str]":
        return self.run(
            *arguments,
            VIRTLET_LAUNCH_SOCKET=str(self.socket),
            VIRTLET_LAUNCH_VM=VM,
            VIRTLET_LAUNCH_TOKEN=token,
        )


@pytest.fixture
def setup(tmp_path: Path) -> Iterator[Setup]:
    emulator = tmp_path / "emulator"
    emulator.write_text(_EMULATOR)
    emulator.chmod(0o755)
    path = install_wrapper(tmp_path / "bin" / "vmwrapper", emulator, os.getuid(), os.getgid())
    server = LaunchServer(tmp_path / "s", os.getuid(), os.getgid())
    server.start()
    yield Setup(path, emulator, server, tmp_path / "s")
    server.stop()


def seen(done: "subprocess.CompletedProcess[str]") -> Any:
    """What the emulator was started with."""
    assert done.returncode == 7, done.stderr
    return json.loads(done.stdout)


def failed(done: "subprocess.CompletedProcess[str]", status: int) -> str:
    """The one line that says why nothing was started."""
    assert (done.returncode, done.stdout) == (status, "")
    assert done.stderr.count("\n") == 1
    assert done.stderr.startswith("vmwrapper: ")
    assert TOKEN not in done.stderr
    return done.stderr


def test_it_is_transparent_without_our_variables(setup: Setup) -> None:
    """libvirt's questions reach the emulator as they are."""
    done = seen(setup.run("-machine", "none,accel=kvm:tcg", "{fd:x}", COLOUR="blue"))
    assert done["argv"] == ["-machine", "none,accel=kvm:tcg", "{fd:x}"]
    assert done["env"]["COLOUR"] == "blue"


@pytest.mark.parametrize(
    "arguments",
    [
        ("-name", "x", "-machine", "q35,accel=kvm"),
        ("-machine", "none", "-machine", "q35"),
        ("-machine", "none,accel=kvm,type=q35"),
        ("-machine", "none", "--M", "q35"),
        ("-name", "-machine"),
        (),
    ],
)
def test_no_guest_starts_without_our_variables(setup: Setup, arguments: tuple[str, ...]) -> None:
    """As of a document that lost them: neither jail nor cgroup would hold it."""
    said = failed(setup.run(*arguments), wrapper.EXIT_ENVIRONMENT)
    assert "outside of its jail" in said


def test_anybody_may_ask_for_the_version(setup: Setup) -> None:
    """Which starts no guest."""
    assert seen(setup.run("--version"))["argv"] == ["--version"]


@pytest.fixture
def installed() -> Iterator[Path]:
    """A wrapper for the emulator's user, who can get at it and at the emulator."""
    user = pwd.getpwnam("libvirt-qemu")
    with tempfile.TemporaryDirectory(prefix="vt-", dir="/var/tmp") as directory:
        place = Path(directory)
        place.chmod(0o711)
        emulator = place / "emulator"
        emulator.write_text(_EMULATOR.replace(sys.executable, "/usr/bin/python3", 1))
        emulator.chmod(0o755)
        yield install_wrapper(place / "bin" / "vmwrapper", emulator, user.pw_uid, user.pw_gid)


def _as_root(path: Path, *arguments: str, **more: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [str(path), *arguments],
        env={"PATH": "/usr/bin:/bin", **more},
        cwd="/",
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )


def test_a_question_of_a_driver_that_is_root_is_answered_as_the_emulators_user(
    installed: Path,
) -> None:
    """Who can write where libvirt waits for the answer, and gains nothing."""
    user = pwd.getpwnam("libvirt-qemu")
    place = installed.parent.parent / "qmp-1"
    place.mkdir(mode=0o700)
    asked = ["-machine", "none,accel=tcg", "-qmp", f"unix:{place}/qmp.monitor,server=on"]
    done = seen(_as_root(installed, *asked))
    assert done["argv"] == asked
    assert done["ids"] == [[user.pw_uid] * 3, [user.pw_gid] * 3]
    assert place.stat().st_uid == user.pw_uid


def test_no_emulator_runs_as_root(installed: Path) -> None:
    """A document that names no user has libvirt start it as the driver's."""
    variables = {names.ENV_SOCKET: "/s", names.ENV_VM: VM, names.ENV_TOKEN: TOKEN}
    assert "no emulator runs as root" in failed(
        _as_root(installed, "-name", "x", **variables), wrapper.EXIT_REFUSED
    )


def test_an_accelerator_of_the_launch_takes_the_place_of_libvirts(setup: Setup) -> None:
    """KVM comes as a descriptor."""
    part = LaunchPart(arguments=("-accel", "kvm,device=/dev/fdset/64"))
    setup.server.arm(VM, TOKEN, [("test", part)])
    done = seen(setup.launch("-name", "x", "-accel", "kvm", "-S"))
    assert done["argv"] == ["-name", "x", "-S", "-accel", "kvm,device=/dev/fdset/64"]


def test_the_launch_is_put_on_top_of_what_libvirt_gave(setup: Setup) -> None:
    """Arguments come last, the environment is merged, and the token is gone."""
    part = LaunchPart(arguments=("-smbios", "type=11"), environment={"COLOUR": "red"})
    setup.server.arm(VM, TOKEN, [("test", part)])
    done = seen(setup.launch("-name", "x"))
    assert done["argv"] == ["-name", "x", "-smbios", "type=11"]
    assert done["env"]["COLOUR"] == "red"
    assert done["env"]["PATH"] == "/usr/bin:/bin"
    assert not [name for name in done["env"] if name.startswith("VIRTLET_")]


def test_arguments_that_look_like_the_end_are_passed_on(setup: Setup) -> None:
    """The end is a record of its own."""
    part = LaunchPart(arguments=("-append", "host.example.", ".", ""))
    setup.server.arm(VM, TOKEN, [("test", part)])
    assert seen(setup.launch())["argv"] == ["-append", "host.example.", ".", ""]


def test_descriptors_arrive_and_their_numbers_are_put_in(setup: Setup) -> None:
    """Each at its own name, several in one argument too."""
    fds = []
    for word in ("one", "two"):
        reading, writing = os.pipe()
        os.write(writing, word.encode())
        os.close(writing)
        fds.append(LaunchFd(name=word, fd=reading))
    part = LaunchPart(arguments=("fd={fd:one}", "fd={fd:two}", "{fd:one},{fd:two}"), fds=(*fds,))
    setup.server.arm(VM, TOKEN, [("test", part)])
    done = seen(setup.launch())
    assert list(done["fds"].values()) == ["one", "two"]
    numbers = [argument.removeprefix("fd=") for argument in done["argv"][:2]]
    assert done["argv"][2] == ",".join(numbers)


def test_as_many_descriptors_as_the_kernel_passes(setup: Setup) -> None:
    """And a document that no single read takes."""
    fds = tuple(
        LaunchFd(name=f"n{i}", fd=os.open("/dev/null", os.O_RDONLY)) for i in range(merge.MOST_FDS)
    )
    arguments = tuple(f"{{fd:n{i}}}" + "x" * 400 for i in range(merge.MOST_FDS))
    setup.server.arm(VM, TOKEN, [("test", LaunchPart(arguments=arguments, fds=fds))])
    done = seen(setup.launch())
    assert len({argument.strip("x") for argument in done["argv"]}) == merge.MOST_FDS


def test_what_libvirt_lets_it_inherit_is_inherited(setup: Setup) -> None:
    """The monitor's socket, for one."""
    setup.server.arm(VM, TOKEN, [])
    reading, writing = os.pipe()
    os.write(writing, b"monitor")
    os.close(writing)
    done = subprocess.run(
        [str(setup.path), f"fd={reading}"],
        env={
            names.ENV_SOCKET: str(setup.socket),
            names.ENV_VM: VM,
            names.ENV_TOKEN: TOKEN,
        },
        pass_fds=[reading],
        capture_output=True,
        text=True,
        check=False,
    )
    os.close(reading)
    assert seen(done)["fds"] == {f"fd={reading}": "monitor"}


def test_a_plugin_may_choose_another_emulator(setup: Setup, tmp_path: Path) -> None:
    """It is started instead, with the same arguments."""
    other = tmp_path / "other"
    other.write_text('#!/bin/sh\necho other "$@"\n')
    other.chmod(0o755)
    setup.server.arm(VM, TOKEN, [("test", LaunchPart(emulator=other))])
    done = setup.launch("-name", "x")
    assert (done.returncode, done.stdout) == (0, "other -name x\n")


def test_a_wrong_token_is_refused(setup: Setup) -> None:
    """And does not use up the right one."""
    setup.server.arm(VM, TOKEN, [])
    assert "refused the launch" in failed(setup.launch(token="wrong"), wrapper.EXIT_REFUSED)
    seen(setup.launch())


def test_a_token_serves_once(setup: Setup) -> None:
    """A second emulator with the same domain's environment gets nothing."""
    setup.server.arm(VM, TOKEN, [])
    seen(setup.launch())
    assert "no longer" in failed(setup.launch(), wrapper.EXIT_REFUSED)


def test_where_it_may_make_no_namespaces_nothing_starts(setup: Setup) -> None:
    """And the message names the settings: the kernel's, and ours."""
    part = LaunchPart(jail=True, visible=(Visible(path=Path("/usr")),))
    setup.server.arm(VM, TOKEN, [("test", part)])
    closed = 'echo 0 >/proc/sys/user/max_user_namespaces && exec "$@"'
    done = subprocess.run(
        ["unshare", "--user", "--map-root-user", "sh", "-c", closed, "sh", str(setup.path)],
        env={
            "PATH": "/usr/bin:/bin",
            names.ENV_SOCKET: str(setup.socket),
            names.ENV_VM: VM,
            names.ENV_TOKEN: TOKEN,
        },
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    said = failed(done, wrapper.EXIT_JAIL)
    assert "namespaces: No space left on device" in said
    assert "user.max_user_namespaces" in said
    assert "emulatorJail: off" in said


def test_a_jail_has_what_is_visible_and_nothing_else(setup: Setup, tmp_path: Path) -> None:
    """Directories, files and links at their paths, each as writable as was said."""
    for name in ("shown", "taken", "hidden"):
        (tmp_path / name).write_text(name)
    program = tmp_path / "look"
    program.write_text(
        '#!/bin/sh\ncd "$1"; ls /; ls .; cat /proc/self/comm; '
        "(echo x >taken) && (echo x >shown) 2>&- || echo refused\n"
    )
    program.chmod(0o755)
    part = LaunchPart(
        emulator=program,
        jail=True,
        visible=(
            *(
                Visible(path=Path(path), optional=True)
                for path in ("/usr", "/bin", "/lib", "/lib64")
            ),
            Visible(path=tmp_path / "shown"),
            Visible(path=tmp_path / "taken"),
            Visible(path=tmp_path / "taken", writable=True),
            Visible(path=tmp_path / "not-there", optional=True),
        ),
    )
    setup.server.arm(VM, TOKEN, [("test", part)])
    done = setup.launch(str(tmp_path))
    top = sorted((*tmp_path.parts[1:2], "bin", "lib", "lib64", "proc", "usr"))
    # The emulator itself came along, as it is not below /usr.
    assert done.stdout.split() == [*top, "look", "shown", "taken", "look", "refused"], done.stderr
    assert (tmp_path / "taken").read_text() == "x\n"
    assert (tmp_path / "shown").read_text() == "shown"


@pytest.mark.parametrize("odd", ["missing", "link"])
def test_what_cannot_be_shown_is_refused_by_its_path(
    setup: Setup, tmp_path: Path, odd: str
) -> None:
    """Before the emulator is started, and with all descriptors closed again."""
    (tmp_path / "link").symlink_to("/etc/passwd")
    before = len(os.listdir("/proc/self/fd"))
    shown = (Visible(path=Path("/usr")), Visible(path=tmp_path / odd, writable=True))
    setup.server.arm(VM, TOKEN, [("test", LaunchPart(jail=True, visible=shown))])
    assert str(tmp_path / odd) in failed(setup.launch(), wrapper.EXIT_REFUSED)
    assert len(os.listdir("/proc/self/fd")) == before


def test_files_that_others_read_too_are_not_locked() -> None:
    """By the arguments that libvirt writes."""
    image, firmware, disk = (
        f'{{"driver":"file","filename":"{path}","node-name":"libvirt-1-storage"}}'
        for path in ("/images/a", "/usr/share/OVMF/CODE.fd", "/volumes/root.qcow2")
    )
    arguments = [word for value in (image, firmware, disk) for word in ("-blockdev", value)]
    found = wrapper.without_locks([*arguments, "-name", image], ["/usr", "/images/a"])
    assert [json.loads(value).get("locking") for value in found[1:6:2]] == ["off", "off", None]
    assert found[6:] == ["-name", image]


def test_more_than_one_message_passes_is_refused(setup: Setup, tmp_path: Path) -> None:
    """Descriptors and mounts share it."""
    fds = tuple(LaunchFd(name=f"n{i}", fd=os.open("/dev/null", os.O_RDONLY)) for i in range(200))
    paths = [tmp_path / f"{number}" for number in range(60)]
    for path in paths:
        path.touch()
    shown = tuple(Visible(path=path) for path in paths)
    setup.server.arm(VM, TOKEN, [("test", LaunchPart(fds=fds, jail=True, visible=shown))])
    assert "more than 253" in failed(setup.launch(), wrapper.EXIT_REFUSED)


def test_without_a_manager_it_says_so(setup: Setup) -> None:
    """With the path it tried."""
    setup.server.stop()
    assert str(setup.socket) in failed(setup.launch(), wrapper.EXIT_NO_SERVER)


def test_half_an_environment_is_no_launch(setup: Setup) -> None:
    """Neither is it a capability probe."""
    text = failed(setup.run(VIRTLET_LAUNCH_VM=VM), wrapper.EXIT_ENVIRONMENT)
    assert "all or none" in text


@pytest.mark.parametrize(
    "answer",
    [
        *(b"", b"a-name\0", b"a-name", b"a-name\0aends.\0", b"aends.\0", b"."),
        *(b"z\0.\0", b"a{fd:x}\0.\0", b"a{fd:x\0.\0", b"fx\0.\0"),
    ],
)
def test_a_manager_that_dies_or_babbles_ends_the_launch(
    setup: Setup, tmp_path: Path, answer: bytes
) -> None:
    """Half an answer never becomes half a machine."""
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(tmp_path / "broken"))
    listener.listen()

    def serve() -> None:
        peer, _ = listener.accept()
        with peer:
            peer.recv(4096)
            peer.sendall(answer)

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        done = setup.run(
            VIRTLET_LAUNCH_SOCKET=str(tmp_path / "broken"),
            VIRTLET_LAUNCH_VM=VM,
            VIRTLET_LAUNCH_TOKEN=TOKEN,
        )
    finally:
        thread.join()
        listener.close()
    failed(done, wrapper.EXIT_BROKEN)


def test_an_emulator_that_cannot_be_executed_is_named(setup: Setup, tmp_path: Path) -> None:
    """The line ends up in the domain's log."""
    setup.server.arm(VM, TOKEN, [("test", LaunchPart(emulator=tmp_path / "nowhere"))])
    assert str(tmp_path / "nowhere") in failed(setup.launch(), wrapper.EXIT_EXEC)


def test_both_sides_use_the_same_names() -> None:
    """The wrapper imports nothing of ours, so the names are written twice."""
    for name in ("ENV_SOCKET", "ENV_VM", "ENV_TOKEN"):
        assert getattr(wrapper, name) == getattr(names, name)
    assert wrapper.MOST_FDS == merge.MOST_FDS


def _children() -> float:
    """Seconds of the processor that the processes we waited for have used."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


@pytest.mark.parametrize("jail", [False, True])
def test_it_costs_little(setup: Setup, jail: bool) -> None:
    """Every start of a VM waits for it: interpreter, hand-over and all."""
    emulator = Path("/bin/true")
    path = install_wrapper(
        setup.path.parent / "bin" / "vmwrapper", emulator, os.getuid(), os.getgid()
    )
    through: list[float] = []
    direct: list[float] = []
    shown = ("/usr", "/bin", "/lib", "/lib64", "/etc", "/dev/null", "/dev/zero", "/dev/urandom")
    visible = tuple(Visible(path=Path(path), optional=True) for path in shown)
    for _ in range(15):
        setup.server.arm(VM, TOKEN, [("test", LaunchPart(jail=jail, visible=visible))])
        environment = {
            names.ENV_SOCKET: str(setup.socket),
            names.ENV_VM: VM,
            names.ENV_TOKEN: TOKEN,
        }
        for command, times in (([str(path)], through), ([str(emulator)], direct)):
            before = _children()
            subprocess.run(command, env=environment, check=True)
            times.append(_children() - before)
    # Of the processor, and the quickest of each: the tests share the machine.
    assert min(through) - min(direct) < OWN_COST
