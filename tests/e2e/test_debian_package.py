"""The Debian package on a Debian of its own: installed, used, removed and purged, in this order."""

import contextlib
import gzip
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from virtlet.host.files import remove_tree

# The first run downloads a Debian and builds the package; the next ones take a quarter of a minute.
pytestmark = pytest.mark.timeout(900)

ROOT = Path(__file__).parents[2]
BUILD = ROOT / "build" / "deb"
INSTALL = "dpkg --no-triggers -i /virtlet.deb"
DROP_IN = Path("etc/systemd/system/kubelet.service.d/90-criproxy.conf")
IMAGE = Path("var/lib/virtlet/images/an-image")


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

    def files(self) -> set[str]:
        ours = {"proc", "sys", "dev", "virtlet.deb"}
        found = (path.relative_to(self.root) for path in self.root.rglob("*"))
        return {
            str(path)
            for path in found
            if path.parts[0] not in ours and not str(path).startswith(("var/lib/dpkg/", "var/log/"))
        }


@pytest.fixture(scope="module")
def machine(package: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machine]:
    archive = BUILD / "root.tar"
    subprocess.run([ROOT / "debian" / "test-root.sh", archive], check=True)
    root = tmp_path_factory.mktemp("debian") / "root"
    root.mkdir(mode=0o755)
    subprocess.run(["tar", "-xf", archive, "-C", root, "--exclude=./dev/*"], check=True)
    (root / "etc/dpkg/dpkg.cfg.d/99mmdebstrap").unlink()  # leaves documentation out
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


def test_a_configuration_that_was_changed_survives_an_upgrade(machine: Machine) -> None:
    file = machine.root / "etc/virtlet/virtlet.yaml"
    file.write_text(file.read_text() + "logLevel: debug\n")
    machine.done(f"{INSTALL} </dev/null")
    assert file.read_text().endswith("logLevel: debug\n")
    machine.done("virtlet serve --check --config /etc/virtlet/virtlet.yaml")


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


def test_removal_leaves_configuration_and_images_and_purging_the_images_alone(
    machine: Machine, before: set[str]
) -> None:
    image = machine.root / IMAGE
    image.parent.mkdir(parents=True)
    image.touch()
    (machine.root / "var/lib/virtlet/reserve").touch()
    machine.done("dpkg -r virtlet")
    assert not (machine.root / "usr/lib/virtlet").exists()
    assert (machine.root / "etc/virtlet/virtlet.yaml").exists()
    said = machine.done("dpkg -P virtlet")
    assert "the images in /var/lib/virtlet/images are left" in said
    left = {str(path) for path in (IMAGE, *IMAGE.parents[:2])}
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
