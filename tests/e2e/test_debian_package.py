"""The Debian package on a Debian of its own: installed, used, removed and purged, in this order."""

import contextlib
import gzip
import shlex
import shutil
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.docs.test_commands import COMMANDS
from virtlet.host.files import remove_tree

# The first run downloads a Debian and builds the package; the next ones take a quarter of a minute.
pytestmark = pytest.mark.timeout(900)

ROOT = Path(__file__).parents[2]
BUILD = ROOT / "build" / "deb"
INSTALL = "dpkg --no-triggers -i /virtlet.deb"
DROP_IN = Path("etc/systemd/system/kubelet.service.d/90-criproxy.conf")
IMAGE = Path("var/lib/virtlet/images/an-image")
NOT_OURS = ("var/lib/dpkg/", "var/lib/ucf/", "var/cache/debconf/", "var/log/")
"""Where dpkg, ucf and debconf keep what they know."""


@pytest.fixture(scope="module")
def package() -> Path:
    subprocess.run([ROOT / "debian" / "build.sh", BUILD], check=True, stdout=subprocess.DEVNULL)
    return BUILD / "virtlet.deb"


class Machine:
    """A root directory with Debian; nothing of it outlives a command."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def sh(self, script: str) -> "subprocess.CompletedProcess[str]":
        inside = 'mount -t proc proc "$0/proc" && exec chroot "$0" /bin/sh -c "$1"'
        return subprocess.run(
            [
                *("unshare", "--mount", "--pid", "--net", "--fork", "--kill-child"),
                *("sh", "-c", inside, str(self.root), script),
            ],
            env={"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL": "C.UTF-8"},
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )

    def done(self, script: str) -> str:
        done = self.sh(script)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout + done.stderr

    def broken_off(self, command: str, at: str) -> None:
        """Run a command of dpkg, which is killed when the package's scripts call a program."""
        stub = self.root / "stubs" / at
        stub.parent.mkdir(exist_ok=True)
        stub.write_text("#!/bin/sh\nkill -KILL $(pidof dpkg)\n")
        stub.chmod(0o755)
        done = self.sh(f"PATH=/stubs:$PATH {command}")
        stub.unlink()
        assert done.returncode == 128 + signal.SIGKILL, done.stdout + done.stderr

    @property
    def state(self) -> str:
        """What dpkg says of the package."""
        return self.done("dpkg-query -W -f '${Status}' virtlet")

    def files(self) -> set[str]:
        ours = {"proc", "sys", "dev", "virtlet.deb", "next.deb", "stubs"}
        found = (path.relative_to(self.root) for path in self.root.rglob("*"))
        return {
            str(path)
            for path in found
            if path.parts[0] not in ours and not str(path).startswith(NOT_OURS)
        }


@pytest.fixture(scope="module")
def machine(package: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machine]:
    archive = BUILD / "root.tar"
    subprocess.run([ROOT / "debian" / "test-root.sh", archive], check=True)
    root = tmp_path_factory.mktemp("debian") / "root"
    root.mkdir(mode=0o755)
    subprocess.run(["tar", "-xf", archive, "-C", root, "--exclude=./dev/*"], check=True)
    # In place of one that leaves documentation out.
    (root / "etc/dpkg/dpkg.cfg.d/99mmdebstrap").write_text("force-unsafe-io\n")
    (root / "virtlet.deb").write_bytes(package.read_bytes())
    with contextlib.suppress(FileExistsError):
        (root / "dev" / "null").touch(mode=0o666)
    yield Machine(root)
    remove_tree(root)


@pytest.fixture(scope="module")
def before(machine: Machine) -> set[str]:
    """The files of a machine that never had the package."""
    return machine.files()


def test_it_is_installed_without_a_compiler_and_is_whole(
    machine: Machine, before: set[str]
) -> None:
    said = machine.done(INSTALL)
    assert '"virtlet doctor" says what this node lacks' in said
    assert machine.done("dpkg --verify virtlet") == ""
    assert not any((machine.root / "usr/bin" / name).exists() for name in ("gcc", "pip"))
    wants = machine.root / "etc/systemd/system/multi-user.target.wants"
    assert (wants / "virtlet.service").is_symlink()
    assert not (wants / "criproxy.service").is_symlink()  # criproxy-setup does that


def test_its_commands_run_and_find_nothing_wrong_with_the_package(machine: Machine) -> None:
    assert machine.done("virtlet --version").startswith("virtlet, version 2.0.0")
    checked = machine.done("virtlet serve --check --config /etc/virtlet/virtlet.yaml")
    assert "ok    handlers: would be served: '', 'virtlet', 'virtlet-large'\n" in checked
    assert "ok    libvirt: qemu:///embed is libvirt " in checked
    assert "runtimes; the configuration can work" in machine.done(
        "criproxy --config /etc/criproxy/criproxy.yaml --check"
    )
    assert "this node has no kubelet.service" in machine.sh("criproxy-setup --dry-run").stdout
    machine.done("/usr/lib/virtlet/bin/python3 -c 'import virtlet.otlp_traces, cryptography'")
    said = machine.sh("virtlet doctor").stdout
    assert "could not be looked at" not in said
    assert "fault cni: " in said


def test_its_units_start_what_is_installed(machine: Machine) -> None:
    for unit in ("virtlet", "criproxy"):
        text = (machine.root / f"usr/lib/systemd/system/{unit}.service").read_text()
        (start,) = (line for line in text.splitlines() if line.startswith("ExecStart="))
        command = start.removeprefix("ExecStart=").split()[0]
        config = start.split()[-1]
        assert machine.done(f"test -x {command} && test -f {config}") == ""


def test_man_pages_and_completion_have_every_command_and_option(machine: Machine) -> None:
    manual = machine.root / "usr/share/man"
    serve = gzip.decompress((manual / "man1/virtlet-serve.1.gz").read_bytes()).decode()
    assert "libvirt-uri" in serve.replace("\\-", "-")
    names = {path.name for path in manual.glob("man?/*")}
    assert {"virtlet.1.gz", "virtlet-doctor.1.gz", "criproxy.1.gz", "criproxy-setup.1.gz"} <= names
    assert "vmwrapper.8.gz" in names
    asked = "COMP_WORDS='virtlet doc' COMP_CWORD=1 _VIRTLET_COMPLETE=bash_complete virtlet"
    assert machine.done(asked) == "plain,doctor\n"
    source = (machine.root / "usr/share/bash-completion/completions/virtlet").read_text()
    assert "_VIRTLET_COMPLETE=bash_complete" in source


@pytest.fixture(scope="module")
def next_package(package: Path, machine: Machine, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The next release, with other samples of both configurations: its path on the machine."""
    tree = tmp_path_factory.mktemp("next") / "tree"
    subprocess.run(["dpkg-deb", "-R", package, tree], check=True)
    control = tree / "DEBIAN" / "control"
    control.write_text(control.read_text().replace("Version: 2", "Version: 3"))
    for name in ("virtlet.yaml", "criproxy.yaml"):
        with (tree / "usr/share/virtlet" / name).open("a") as sample:
            sample.write("# new\n")
    build = [
        "dpkg-deb",
        "--root-owner-group",
        "-Znone",
        "--build",
        str(tree),
        f"{machine.root}/next.deb",
    ]
    subprocess.run(build, check=True, stdout=subprocess.DEVNULL)
    remove_tree(tree)
    return "/next.deb"


def test_an_upgrade_without_a_terminal_keeps_what_was_changed_and_renews_the_rest(
    machine: Machine, next_package: str
) -> None:
    changed, unchanged = (
        machine.root / "etc" / name for name in ("virtlet/virtlet.yaml", "criproxy/criproxy.yaml")
    )
    own = changed.read_text() + "logLevel: debug\n"
    changed.write_text(own)
    machine.done(f"setsid --wait dpkg --no-triggers -i {next_package} <&-")
    assert machine.state == "install ok installed"
    assert changed.read_text() == own
    assert changed.with_name("virtlet.yaml.ucf-dist").read_text().endswith("# new\n")
    assert unchanged.read_text().endswith("# new\n")
    machine.done("virtlet serve --check --config /etc/virtlet/virtlet.yaml")

    machine.done(f"setsid --wait {INSTALL} <&-")  # and a downgrade
    assert machine.state == "install ok installed"
    assert changed.read_text() == own


def test_what_was_removed_of_the_configuration_does_not_come_back(machine: Machine) -> None:
    file = machine.root / "etc/criproxy/criproxy.yaml"
    text = file.read_text()
    file.unlink()
    machine.done(f"{INSTALL} <&-")
    assert not file.exists()
    file.write_text(text)


@pytest.mark.parametrize(
    ("program", "state"),
    [
        ("find", "half-configured"),  # in prerm
        ("ucf", "half-configured"),  # in postinst
        ("deb-systemd-helper", "half-configured"),
    ],
)
def test_an_upgrade_that_is_broken_off_is_finished_by_the_next_try(
    machine: Machine, program: str, state: str
) -> None:
    own = (machine.root / "etc/virtlet/virtlet.yaml").read_text()
    machine.broken_off(INSTALL, program)
    assert machine.state.endswith(state)
    machine.done("virtlet --version")
    machine.done(f"{INSTALL} <&-" if program == "find" else "dpkg --configure -a <&-")
    assert machine.state == "install ok installed"
    assert machine.done("dpkg --verify virtlet") == ""
    assert (machine.root / "etc/virtlet/virtlet.yaml").read_text() == own


def test_it_stays_while_the_kubelet_speaks_to_the_proxy(machine: Machine) -> None:
    drop_in = machine.root / DROP_IN
    drop_in.parent.mkdir(parents=True)
    drop_in.touch()
    done = machine.sh("dpkg -r virtlet")
    drop_in.unlink()
    drop_in.parent.rmdir()
    assert done.returncode != 0
    assert 'Run "criproxy-setup --undo" first.' in done.stderr
    assert machine.done("dpkg-query -W -f '${Status}' virtlet").endswith(" ok installed")
    machine.done("virtlet --version")


def test_removal_leaves_the_configuration_and_purging_only_images_and_what_is_not_ours(
    machine: Machine, before: set[str]
) -> None:
    image = machine.root / IMAGE
    image.parent.mkdir(parents=True)
    image.touch()
    (machine.root / "var/lib/virtlet/reserve").touch()
    (machine.root / "var/lib/virtlet/mine.qcow2").touch()
    machine.broken_off("dpkg -r virtlet", "find")
    machine.done("dpkg -r virtlet")
    assert not (machine.root / "usr/lib/virtlet").exists()
    assert (machine.root / "etc/virtlet/virtlet.yaml").exists()
    machine.broken_off("dpkg -P virtlet", "ucf")
    said = machine.done("dpkg -P virtlet")
    assert "the images in /var/lib/virtlet/images are left" in said
    assert "/var/lib/virtlet/mine.qcow2 is left: it is not Virtlet's own" in said
    left = {str(path) for path in (IMAGE, *IMAGE.parents[:2])} | {"var/lib/virtlet/mine.qcow2"}
    assert machine.files() - before == left
    assert before - machine.files() == set()


def test_purging_leaves_the_disks_of_vms_and_says_so(machine: Machine, before: set[str]) -> None:
    machine.done(INSTALL)
    disk = machine.root / "var/lib/virtlet/volumes/vm/root.qcow2"
    disk.parent.mkdir(parents=True)
    disk.touch()
    (machine.root / "var/lib/virtlet/run/vm/vm").mkdir(parents=True)
    done = machine.sh("dpkg -P virtlet")
    assert done.returncode == 0, done.stderr
    assert "virtlet: 1 VMs run on without a manager." in done.stderr
    assert "/var/lib/virtlet is left as it is: it has pods and the disks" in done.stderr
    assert disk.exists()
    remove_tree(machine.root / "var/lib/virtlet")
    machine.done(f"{INSTALL} && mkdir -p /var/lib/virtlet/bin && dpkg -P virtlet")
    assert machine.files() - before == set()


GUIDED = {
    "apt-get install ./build/deb/virtlet.deb": "virtlet",
    "virtlet doctor": "fault cni: ",
    "criproxy-setup --dry-run": "this node has no kubelet.service",
    "criproxy-setup": "this node has no kubelet.service",
    "criproxy-setup --undo": "",
    "apt-get purge virtlet": "Purging configuration files for virtlet",
}
"""What the guides have an operator type, in this order, and what it says here."""


def test_the_guides_commands_run_as_they_stand(machine: Machine) -> None:
    shown = {shlex.join(words) for _, words in COMMANDS}
    assert GUIDED.keys() <= shown
    checkout = machine.root / "checkout"
    shutil.copytree(ROOT / "deploy", checkout / "deploy")
    (checkout / "build/deb").mkdir(parents=True)
    (machine.root / "virtlet.deb").rename(checkout / "build/deb/virtlet.deb")
    for name in ("build/tiny.qcow2", "build/debian.qcow2", "virtlet.kubeconfig"):
        (checkout / name).touch()
    installs = sorted(command for command in shown if command.startswith("install "))
    assert len(installs) > 5
    for command in installs:
        machine.done(f"cd /checkout && {command}")
    assert (machine.root / "srv/virtlet/tiny.qcow2").exists()
    for command, says in GUIDED.items():
        done = machine.sh(f"cd /checkout && yes | {command}")
        assert says in done.stdout + done.stderr, (command, done.stdout, done.stderr)
    assert (machine.root / "srv/virtlet/tiny.qcow2").exists(), "purging leaves what is not ours"
