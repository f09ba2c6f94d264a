"""What a node lacks, looked at and never changed: the checks of `virtlet doctor`.

Every check is a function of the table CHECKS that takes the node and yields findings. What is read
of the node's files goes through `Node.path`, so that tests give a root of their own; what asks the
kernel or a program goes through `Probes`.
"""

import os
import re
import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from attrs import Factory, frozen

from virtlet.cli.findings import FAULT, NOTE, OK, Finding
from virtlet.core.config import options
from virtlet.errors import VirtletError
from virtlet.host.confinement import landlock
from virtlet.model.option import Settings
from virtlet.plugins.libvirt_qemu.accelerator import DEVICE, Verdict, probe_kvm
from virtlet.plugins.libvirt_qemu.plugin import DISABLE_KVM, JAIL, KVM
from virtlet.plugins.network_cni import cni_config
from virtlet.plugins.network_cni.cni_config import CNI_CONF_DIR
from virtlet.plugins.network_cni.cni_plugins import CNI_BIN_DIR

DEBIANS_CNI = Path("/usr/lib/cni")
"""Where Debian's package containernetworking-plugins has them."""
LEAST_ROOM, SOME_ROOM = 1 << 30, 10 << 30
"""Bytes free on the data directory's file system: too few, and few."""
SLOW_NAME = 1.0
"""Seconds that the node's name may take to be resolved."""


def _disk(path: Path) -> tuple[int, int]:
    status = os.statvfs(path)
    return status.f_bavail * status.f_frsize, status.f_favail


def _run(argv: list[str]) -> str:
    done = subprocess.run(argv, capture_output=True, text=True, timeout=10, check=False)
    return done.stdout if done.returncode == 0 else ""


def _resolve(name: str) -> float | None:
    started = time.monotonic()
    try:
        socket.getaddrinfo(name, None)
    except OSError:
        return None
    return time.monotonic() - started


@frozen(kw_only=True)
class Probes:
    """What asks the kernel or a program, to be replaced in tests."""

    kvm: Callable[[Path, int, int], Verdict] = probe_kvm
    landlock: Callable[[], int] = landlock
    room: Callable[[Path], tuple[int, int]] = _disk
    """Bytes and inodes that are free on a path's file system."""
    run: Callable[[list[str]], str] = _run
    """The output of a program; "" where it fails."""
    which: Callable[[str], str | None] = shutil.which
    resolve: Callable[[str], float | None] = _resolve
    """Seconds that a look-up of a name took; None where it fails."""
    now: Callable[[], float] = time.time
    host_name: Callable[[], str] = socket.gethostname


@frozen(kw_only=True)
class Node:
    """The node that is looked at."""

    config: Settings
    user: tuple[int, int] | None
    """Who emulators run as; None where there is no such user."""
    root: Path = Path("/")
    probes: Probes = Factory(Probes)

    def path(self, path: str | Path) -> Path:
        """Where a file of the node is."""
        return self.root / str(path).lstrip("/")

    def text(self, path: str | Path) -> str:
        """The text of a file; "" where there is none."""
        try:
            return self.path(path).read_text(errors="replace")
        except OSError:
            return ""

    def program(self, name: str) -> bool:
        """Whether a program is installed."""
        places = ("/usr/local/sbin", "/usr/local/bin", "/usr/sbin", "/usr/bin", "/sbin", "/bin")
        return any(os.access(self.path(f"{place}/{name}"), os.X_OK) for place in places)


def kvm(node: Node) -> Iterator[Finding]:
    """Whether a guest runs under KVM: one is booted."""
    if node.config[DISABLE_KVM]:
        text = "disableKVM is set: guests are emulated, which is slow"
        yield Finding("kvm", NOTE, text, "take it out of the settings to use KVM")
        return
    emulator = node.config[options.EMULATOR]
    if node.user is None or not node.path(emulator).exists():
        yield Finding("kvm", NOTE, "not tried: there is no emulator, or no user for it")
        return
    verdict = node.probes.kvm(emulator, *node.user)
    if verdict.usable:
        yield Finding("kvm", OK, verdict.reason)
    elif node.config[KVM] == "force":
        yield Finding("kvm", FAULT, f"kvm is `force`, and {verdict.reason}", "set kvm: probe")
    else:
        remedy = "switch virtualization on in the firmware, and load kvm_intel or kvm_amd"
        if node.path(DEVICE).exists():
            remedy = (
                "in a VM, have its host pass virtualization on (nested); else mend what it says"
            )
        text = f"guests are emulated, which is slow: {verdict.reason}"
        yield Finding("kvm", NOTE, text, remedy)


def nested(node: Node) -> Iterator[Finding]:
    """Whether guests could run VMs themselves, and whether this node is a VM."""
    cpu = node.text("/proc/cpuinfo")
    if re.search(r"^flags\s*:.*\bhypervisor\b", cpu, re.M):
        yield Finding("nested", NOTE, "this node is a VM itself: guests are nested, and slower")
    for module in ("kvm_intel", "kvm_amd"):
        value = node.text(f"/sys/module/{module}/parameters/nested").strip()
        if value:
            on = value in ("Y", "1")
            text = f"{module} {'lets' if on else 'does not let'} guests run VMs"
            remedy = (
                ""
                if on
                else (
                    f"only for handlers with `nested: true`: `options {module} nested=1` in "
                    "/etc/modprobe.d"
                )
            )
            yield Finding("nested", OK if on else NOTE, text, remedy)


MODULES = (
    ("tun", "/sys/class/misc/tun", FAULT, "no guest gets a network interface"),
    ("bridge", "/sys/module/bridge", FAULT, "no guest is connected to its pod's network"),
    ("nf_tables", "/sys/module/nf_tables", FAULT, "guests' frames cannot be filtered"),
    ("vhost_net", "/sys/class/misc/vhost-net", NOTE, "guests' networks are slower"),
)
"""Kernel modules: name, where the kernel shows it, and what is missing without it."""


def modules(node: Node) -> Iterator[Finding]:
    """Whether the kernel has what guests' networks need, loaded, built in or to be loaded."""
    release = node.text("/proc/sys/kernel/osrelease").strip()
    lists = "".join(
        node.text(f"/lib/modules/{release}/modules.{kind}") for kind in ("builtin", "dep")
    )
    for name, shown, level, lack in MODULES:
        if node.path(shown).exists():
            yield Finding("modules", OK, f"{name} is there")
        elif re.search(rf"/{name.replace('_', '[-_]')}\.ko", lists):
            yield Finding("modules", OK, f"{name} is loaded when it is needed")
        elif not lists and name in ("bridge", "nf_tables"):
            # A kernel without modules shows only those with parameters.
            text = f"{name} cannot be seen: this kernel {release} has no list of modules"
            yield Finding("modules", NOTE, text)
        else:
            remedy = f"install the kernel's modules, and name {name} in /etc/modules-load.d"
            yield Finding("modules", level, f"{name} is missing: {lack}", remedy)


def cgroups(node: Node) -> Iterator[Finding]:
    """The version of control groups, and whether the driver fits it."""
    mounts = [line.split() for line in node.text("/proc/self/mounts").splitlines()]
    kinds = {words[1]: words[2] for words in mounts if words[2:3] in (["cgroup"], ["cgroup2"])}
    driver = node.config[options.CGROUP_DRIVER]
    systemd = node.path("/run/systemd/system").is_dir()
    if not kinds:
        remedy = "mount control groups, as systemd does: the kubelet needs them, too"
        yield Finding("cgroups", FAULT, "no control groups are mounted", remedy)
    elif set(kinds.values()) == {"cgroup2"}:
        yield Finding("cgroups", OK, "version 2")
        have = node.text("/sys/fs/cgroup/cgroup.controllers").split()
        lacking = [name for name in ("cpu", "memory", "pids") if name not in have]
        if lacking:
            text = f"version 2 without the controllers {', '.join(lacking)}"
            remedy = "switch them on: the kernel's command line may have cgroup_disable="
            yield Finding("cgroups", FAULT, text, remedy)
    else:
        both = "cgroup2" in kinds.values()
        yield Finding(
            "cgroups",
            NOTE,
            f"version 1{' beside version 2 (hybrid)' if both else ''}: Virtlet works with it",
            "kubelets from 1.35 on refuse it unless `failCgroupV1: false` is in their "
            "configuration; boot with systemd.unified_cgroup_hierarchy=1",
        )
    if driver == "systemd" and not systemd:
        remedy = "set cgroupDriver: cgroupfs here and in the kubelet, or run systemd"
        text = "cgroupDriver is systemd, which does not run on this node"
        yield Finding("cgroups", FAULT, text, remedy)


PROGRAMS = (
    ("qemu-img", "qemu-utils", FAULT, "images cannot be looked at"),
    ("dnsmasq", "dnsmasq-base", FAULT, "guests get no address by DHCP"),
    ("nft", "nftables", FAULT, "guests' frames cannot be filtered"),
    ("zstd", "zstd", NOTE, "images packed with zstd cannot be unpacked"),
)
"""Program, Debian package, level, and what does not work without it."""


def programs(node: Node) -> Iterator[Finding]:
    """QEMU with its version, and the programs beside it."""
    emulator = node.config[options.EMULATOR]
    if node.path(emulator).exists():
        said = node.probes.run([str(emulator), "--version"])
        match = re.search(r"version (\S+)", said)
        yield Finding(
            "programs", OK, f"{emulator} is QEMU {match[1] if match else 'of no version'}"
        )
    else:
        remedy = "install the package qemu-system-x86, or set `emulator`"
        yield Finding("programs", FAULT, f"{emulator} is missing: no VM starts", remedy)
    for name, package, level, lack in PROGRAMS:
        if node.program(name):
            yield Finding("programs", OK, f"{name} is there")
        else:
            yield Finding("programs", level, f"{name} is missing: {lack}", f"install {package}")
    if not (node.program("virtiofsd") or node.path("/usr/libexec/virtiofsd").exists()):
        remedy = "install the package virtiofsd, or set shareDriver: 9p"
        text = "virtiofsd is missing: directories are not shared with guests by virtiofs"
        yield Finding("programs", NOTE, text, remedy)


def cni(node: Node) -> Iterator[Finding]:
    """CNI's configuration and plugins, in their directory or Debian's."""
    plugins, configuration = node.config[CNI_BIN_DIR], node.config[CNI_CONF_DIR]
    wanted = {"loopback"}
    try:
        network = cni_config.load(node.path(configuration))
        wanted = {name for plugin in network.plugins for name in plugin.executables}
        yield Finding("cni", OK, f"network {network.name} of {configuration}")
    except VirtletError as error:
        text = str(error).replace(str(node.path(configuration)), str(configuration))
        yield Finding("cni", FAULT, text, "pods get no network until there is one")
    missing = sorted(n for n in wanted if not os.access(node.path(plugins) / n, os.X_OK))
    if not missing:
        yield Finding("cni", OK, f"plugins are in {plugins}")
        return
    elsewhere = [n for n in missing if os.access(node.path(DEBIANS_CNI) / n, os.X_OK)]
    remedy = "install the network add-on's plugins (Debian: containernetworking-plugins)"
    if elsewhere == missing and plugins != DEBIANS_CNI:
        remedy = f"they are in {DEBIANS_CNI}: set {CNI_BIN_DIR.field}: {DEBIANS_CNI}"
    yield Finding("cni", FAULT, f"{plugins} has no {', '.join(missing)}", remedy)


def confinement(node: Node) -> Iterator[Finding]:
    """What keeps emulators from the node."""
    if node.config[JAIL] == "off":
        remedy = "take emulatorJail out of the settings"
        yield Finding("confinement", NOTE, "emulatorJail is off: emulators see the node", remedy)
    for name in ("kernel/unprivileged_userns_clone", "user/max_user_namespaces"):
        if node.text(f"/proc/sys/{name}").strip() == "0" and node.config[JAIL] != "off":
            remedy = f"sysctl {name.replace('/', '.')} to 1 (or a number), or emulatorJail: off"
            text = f"users cannot make namespaces ({name} is 0): no emulator starts in its jail"
            yield Finding("confinement", FAULT, text, remedy)
    version = node.probes.landlock()
    if version:
        yield Finding("confinement", OK, f"Landlock {version}")
    else:
        remedy = "have `landlock` in the kernel's list of LSMs (lsm= of its command line)"
        text = "no Landlock: emulators are held by their jail alone"
        yield Finding("confinement", NOTE, text, remedy)
    if node.text("/sys/module/apparmor/parameters/enabled").strip() == "Y":
        restricted = "kernel/apparmor_restrict_unprivileged_userns"
        if node.text(f"/proc/sys/{restricted}").strip() == "1" and node.config[JAIL] != "off":
            yield Finding(
                "confinement",
                FAULT,
                "AppArmor keeps users from making namespaces: no emulator starts in its jail",
                f"sysctl {restricted.replace('/', '.')}=0, or a profile with `userns` for "
                "vmwrapper below the data directory",
            )
        else:
            yield Finding("confinement", OK, "AppArmor is on, and has no profile of Virtlet's")


def room(node: Node) -> Iterator[Finding]:
    """Free space for images and disks."""
    for option in (options.DATA_DIR, options.IMAGE_DIR):
        directory = node.path(node.config[option])
        there = next(step for step in (directory, *directory.parents) if step.exists())
        free, inodes = node.probes.room(there)
        text = f"{option.field} {node.config[option]}: {free / (1 << 30):.1f} GiB free"
        remedy = f"free some, or set {option.field} to a larger file system"
        if free < LEAST_ROOM or inodes == 0:
            lack = ", no inodes" if inodes == 0 and free >= LEAST_ROOM else ""
            yield Finding("disk", FAULT, f"{text}{lack}: images have no room", remedy)
        elif free < SOME_ROOM:
            yield Finding("disk", NOTE, text, remedy)
        else:
            yield Finding("disk", OK, text)


def clock(node: Node) -> Iterator[Finding]:
    """Whether the clock is kept: certificates and tokens have times."""
    newest = node.path("/var/lib/dpkg/status")
    if newest.exists() and node.probes.now() < newest.stat().st_mtime - 86400:
        remedy = "set it (`timedatectl set-time`), and run chrony or systemd-timesyncd"
        yield Finding("clock", FAULT, "the clock is behind the packages of this node", remedy)
        return
    said = node.probes.run(["timedatectl", "show", "-p", "NTPSynchronized", "--value"]).strip()
    if said == "no":
        remedy = "run chrony or systemd-timesyncd: tokens and certificates of a cluster have times"
        yield Finding("clock", NOTE, "nothing keeps the clock", remedy)
    else:
        kept = "is kept" if said == "yes" else "is not wrong by years; who keeps it is not known"
        yield Finding("clock", OK, kept)


def name(node: Node) -> Iterator[Finding]:
    """Whether the node's name resolves soon: libvirt asks for it at every start of a VM."""
    ours = node.probes.host_name()
    took = node.probes.resolve(ours)
    remedy = f"write `127.0.1.1 {ours}` into /etc/hosts"
    if took is None:
        yield Finding("name", FAULT, f"the node's name {ours} does not resolve", remedy)
    elif took > SLOW_NAME:
        text = f"the node's name {ours} takes {took:.1f} s to resolve, at every start of a VM"
        yield Finding("name", NOTE, text, remedy)
    else:
        yield Finding("name", OK, f"the node's name {ours} resolves")


CHECKS: tuple[tuple[str, Callable[[Node], Iterable[Finding]]], ...] = (
    ("kvm", kvm),
    ("nested", nested),
    ("modules", modules),
    ("cgroups", cgroups),
    ("programs", programs),
    ("cni", cni),
    ("confinement", confinement),
    ("disk", room),
    ("clock", clock),
    ("name", name),
)
"""Name of a check, and the function that makes it."""
