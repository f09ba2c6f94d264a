"""`virtlet doctor`: what it finds on made-up nodes, and that it looks at this one."""

import json
import subprocess
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest

from virtlet.cli import doctor, kubelet_checks, node_checks
from virtlet.cli.findings import FAULT, NOTE, OK, Finding, guarded, show
from virtlet.cli.node_checks import Node, Probes
from virtlet.core.config.options import CORE_OPTIONS
from virtlet.plugins.libvirt_qemu.accelerator import Verdict
from virtlet.plugins.libvirt_qemu.plugin import OPTIONS as LIBVIRT_OPTIONS
from virtlet.plugins.network_cni.cni_config import CNI_CONF_DIR
from virtlet.plugins.network_cni.cni_plugins import CNI_BIN_DIR
from virtlet.testing import make_settings

GIB = 1 << 30
V1 = "tmpfs /sys/fs/cgroup tmpfs rw 0 0\ncgroup /sys/fs/cgroup/memory cgroup rw,memory 0 0\n"
V2 = "cgroup2 /sys/fs/cgroup cgroup2 rw 0 0\n"
ALL = "cpuset cpu io memory pids"
RELEASE = "/proc/sys/kernel/osrelease"
NETWORK = json.dumps(
    {
        "cniVersion": "1.0.0",
        "name": "net",
        "plugins": [{"type": "bridge", "ipam": {"type": "host-local"}}],
    }
)
UNIT = "/usr/lib/systemd/system/kubelet.service"
PROXY = "/run/criproxy/criproxy.sock"
CONTAINERD = "/run/containerd/containerd.sock"


def kubelet(flags: str = "", configuration: str = "") -> dict[str, str]:
    return {
        UNIT: f"[Service]\nExecStart=/usr/bin/kubelet --config=/etc/kubelet.yaml {flags}\n",
        "/etc/kubelet.yaml": configuration,
    }


def make_node(root: Path, files: dict[str, str], settings: dict[str, Any], **probes: Any) -> Node:
    for path, text in files.items():
        file = root / path.lstrip("/")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
        file.chmod(0o755)
    options = (*CORE_OPTIONS, *LIBVIRT_OPTIONS, CNI_BIN_DIR, CNI_CONF_DIR)
    given: dict[str, Any] = {
        "kvm": lambda *_: Verdict(True, "the test guest ran to its end"),
        "landlock": lambda: 7,
        "room": lambda path: (100 * GIB, 1000),
        "run": lambda argv: "",
        "resolve": lambda name: 0.0,
        "host_name": lambda: "node-1",
        **probes,
    }
    return Node(
        config=make_settings(options, root, **settings),
        user=(1, 1),
        root=root,
        probes=Probes(**given),
    )


Case = tuple[
    Callable[[Node], Iterable[Finding]], dict[str, str], dict[str, Any], dict[str, Any], str, str
]
"""Check, files, settings, probes, level and beginning of a finding, or `found -> remedy` of it."""

N, K = node_checks, kubelet_checks
QEMU = {"/usr/bin/qemu-system-x86_64": ""}
ALL_PROGRAMS = {f"/usr/bin/{n}": "" for n in ("qemu-img", "dnsmasq", "nft", "zstd", "virtiofsd")}
CASES: tuple[Case, ...] = (
    (N.kvm, QEMU, {}, {}, OK, "the test guest ran to its end"),
    (N.kvm, {}, {}, {}, NOTE, "not tried: there is no emulator"),
    (N.kvm, QEMU, {"disableKVM": "true"}, {}, NOTE, "disableKVM is set"),
    (
        *(N.kvm, QEMU, {}, {"kvm": lambda *_: Verdict(False, "no KVM")}, NOTE),
        "guests are emulated, which is slow: no KVM -> switch virtualization on in the firmware",
    ),
    (
        *(N.kvm, QEMU | {"/dev/kvm": ""}, {}, {"kvm": lambda *_: Verdict(False, "hung")}, NOTE),
        "guests are emulated, which is slow: hung -> in a VM, have its host pass",
    ),
    (
        *(N.kvm, QEMU, {"kvm": "force"}, {"kvm": lambda *_: Verdict(False, "hung")}, FAULT),
        "kvm is `force`, and hung -> set kvm: probe",
    ),
    (N.nested, {"/proc/cpuinfo": "flags : fpu hypervisor\n"}, {}, {}, NOTE, "this node is a VM"),
    (
        *(N.nested, {"/sys/module/kvm_intel/parameters/nested": "Y\n"}, {}, {}, OK),
        "kvm_intel lets guests run VMs",
    ),
    (
        *(N.nested, {"/sys/module/kvm_amd/parameters/nested": "0\n"}, {}, {}, NOTE),
        "kvm_amd does not let guests run VMs -> only for handlers with `nested: true`: `options",
    ),
    (N.modules, {"/sys/class/misc/tun": ""}, {}, {}, OK, "tun is there"),
    (N.modules, {}, {}, {}, FAULT, "tun is missing: no guest gets a network interface -> install"),
    (N.modules, {}, {}, {}, NOTE, "vhost_net is missing: guests' networks are slower -> "),
    (N.modules, {RELEASE: "6.1\n"}, {}, {}, NOTE, "bridge cannot be seen: this kernel 6.1 has"),
    (
        *(N.modules, {RELEASE: "6.1\n", "/lib/modules/6.1/modules.dep": "k/net/bridge.ko.xz:"}),
        *({}, {}, OK, "bridge is loaded when it is needed"),
    ),
    (
        *(N.modules, {RELEASE: "6.1\n", "/lib/modules/6.1/modules.builtin": "k/tun.ko\n"}),
        *({}, {}, OK, "tun is loaded when it is needed"),
    ),
    (
        *(N.modules, {RELEASE: "6.1\n", "/lib/modules/6.1/modules.dep": "k/tun.ko:"}),
        *({}, {}, FAULT, "nf_tables is missing: guests' frames cannot be filtered"),
    ),
    (
        *(N.cgroups, {"/proc/self/mounts": V2, "/sys/fs/cgroup/cgroup.controllers": ALL}),
        *({"cgroupDriver": "cgroupfs"}, {}, OK, "version 2"),
    ),
    (
        *(N.cgroups, {"/proc/self/mounts": V2, "/sys/fs/cgroup/cgroup.controllers": "cpu pids"}),
        *({}, {}, FAULT, "version 2 without the controllers memory -> switch them on"),
    ),
    (
        *(N.cgroups, {"/proc/self/mounts": V1 + V2.replace("cgroup ", "cgroup/unified ", 1)}),
        *({}, {}, NOTE, "version 1 beside version 2 (hybrid): Virtlet works with it -> kubelets"),
    ),
    (N.cgroups, {"/proc/self/mounts": V1}, {}, {}, NOTE, "version 1: Virtlet works with it"),
    (N.cgroups, {"/proc/self/mounts": ""}, {}, {}, FAULT, "no control groups are mounted -> mou"),
    (
        *(N.cgroups, {"/proc/self/mounts": V2}, {}, {}, FAULT),
        "cgroupDriver is systemd, which does not run on this node -> set cgroupDriver: cgroupfs",
    ),
    (
        *(N.programs, QEMU, {}, {"run": lambda _: "QEMU emulator version 10.0.1 (x)\n"}, OK),
        "/usr/bin/qemu-system-x86_64 is QEMU 10.0.1",
    ),
    (N.programs, {}, {}, {}, FAULT, "/usr/bin/qemu-system-x86_64 is missing: no VM starts -> ins"),
    (N.programs, ALL_PROGRAMS, {}, {}, OK, "dnsmasq is there"),
    (N.programs, {}, {}, {}, FAULT, "dnsmasq is missing: guests get no address by DHCP -> install"),
    (N.programs, {}, {}, {}, NOTE, "virtiofsd is missing: directories are not shared"),
    (
        *(N.cni, {"/etc/cni/net.d/1.conflist": NETWORK}, {}, {}, OK),
        "network net of /etc/cni/net.d",
    ),
    (N.cni, {}, {}, {}, FAULT, "cannot read the CNI configuration directory /etc/cni/net.d: "),
    (N.cni, {"/etc/cni/net.d/1.conf": "{"}, {}, {}, FAULT, "CNI configuration /etc/cni/net.d/1.c"),
    (
        N.cni,
        {"/etc/cni/net.d/1.conf": NETWORK, "/opt/cni/bin/bridge": ""},
        *({}, {}, FAULT, "/opt/cni/bin has no host-local -> install the network add-on's plugins"),
    ),
    (
        N.cni,
        {
            "/etc/cni/net.d/1.conf": NETWORK,
            "/usr/lib/cni/bridge": "",
            "/usr/lib/cni/host-local": "",
        },
        *({}, {}, FAULT, "/opt/cni/bin has no bridge, host-local -> they are in /usr/lib/cni: set"),
    ),
    (
        *(N.cni, {"/usr/lib/cni/loopback": ""}, {"cniPluginDir": "/usr/lib/cni"}, {}, OK),
        "plugins are in /usr/lib/cni",
    ),
    (N.confinement, {}, {}, {}, OK, "Landlock 7"),
    (N.confinement, {}, {}, {"landlock": lambda: 0}, NOTE, "no Landlock: emulators are held by"),
    (N.confinement, {}, {"emulatorJail": "off"}, {}, NOTE, "emulatorJail is off: emulators see"),
    (
        *(N.confinement, {"/proc/sys/user/max_user_namespaces": "0\n"}, {}, {}, FAULT),
        "users cannot make namespaces (user/max_user_namespaces is 0): no emulator starts",
    ),
    (
        N.confinement,
        {
            "/sys/module/apparmor/parameters/enabled": "Y\n",
            "/proc/sys/kernel/apparmor_restrict_unprivileged_userns": "1\n",
        },
        *({}, {}, FAULT, "AppArmor keeps users from making namespaces: no emulator starts in its"),
    ),
    (
        *(N.confinement, {"/sys/module/apparmor/parameters/enabled": "Y\n"}, {}, {}, OK),
        "AppArmor is on",
    ),
    (N.room, {}, {}, {}, OK, "dataDir "),
    (N.room, {}, {}, {"room": lambda _: (5 * GIB, 9)}, NOTE, "imageDir "),
    (N.room, {}, {}, {"room": lambda _: (GIB // 2, 9)}, FAULT, "dataDir "),
    (N.room, {}, {}, {"room": lambda _: (99 * GIB, 0)}, FAULT, "dataDir "),
    (N.clock, {}, {}, {"run": lambda _: "yes\n"}, OK, "is kept"),
    (N.clock, {}, {}, {}, OK, "is not wrong by years"),
    (N.clock, {}, {}, {"run": lambda _: "no\n"}, NOTE, "nothing keeps the clock -> run chrony"),
    (
        *(N.clock, {"/var/lib/dpkg/status": ""}, {}, {"now": lambda: 0.0}, FAULT),
        "the clock is behind the packages of this node -> set it",
    ),
    (N.name, {}, {}, {}, OK, "the node's name node-1 resolves"),
    (N.name, {}, {}, {"resolve": lambda _: 6.0}, NOTE, "the node's name node-1 takes 6.0 s to res"),
    (
        *(N.name, {}, {}, {"resolve": lambda _: None}, FAULT),
        "the node's name node-1 does not resolve -> write `127.0.1.1 node-1` into /etc/hosts",
    ),
    (K.kubelet, {}, {}, {}, NOTE, "there is no kubelet.service on this node -> install it"),
    (K.kubelet, kubelet(), {}, {}, NOTE, "the kubelet does not say its version"),
    (K.kubelet, kubelet(), {}, {"run": lambda _: "Kubernetes v1.34.2\n"}, OK, "kubelet v1.34.2"),
    (
        *(K.kubelet, kubelet(), {}, {"run": lambda _: "Kubernetes v1.29.0\n"}, FAULT),
        "kubelet v1.29.0 is older than what Virtlet is made for -> upgrade it to 1.33 or later",
    ),
    (
        *(K.kubelet, kubelet(), {}, {"run": lambda _: "Kubernetes v1.99.0\n"}, NOTE),
        "kubelet v1.99.0 is newer than what was tried",
    ),
    (
        *(K.kubelet, kubelet(), {}, {}, FAULT),
        "the kubelet speaks to its default, so Virtlet gets no pods -> `criproxy-setup` puts",
    ),
    (
        *(K.kubelet, kubelet(f"--container-runtime-endpoint unix://{CONTAINERD}"), {}, {}, FAULT),
        f"the kubelet speaks to {CONTAINERD} (its command line), so Virtlet gets no pods",
    ),
    (
        K.kubelet,
        kubelet(configuration=f"containerRuntimeEndpoint: unix://{PROXY}\n") | {PROXY: ""},
        *({}, {}, OK, f"the kubelet speaks to the CRI proxy, {PROXY} (/etc/kubelet.yaml)"),
    ),
    (
        *(K.kubelet, kubelet(f"--container-runtime-endpoint=unix:///var{PROXY}"), {}, {}, FAULT),
        f"nobody serves on {PROXY} -> systemctl start criproxy",
    ),
    (
        K.kubelet,
        kubelet("--container-runtime-endpoint=unix:///run/v.sock"),
        *({"criSocketPath": "/run/v.sock"}, {}, OK, "the kubelet speaks to Virtlet alone"),
    ),
    (
        *(K.kubelet, kubelet(configuration="cgroupDriver: cgroupfs\n"), {}, {}, FAULT),
        "the kubelet's cgroupDriver is cgroupfs, Virtlet's systemd -> set cgroupDriver: cgroupfs",
    ),
    (K.containerd, {CONTAINERD: ""}, {}, {}, OK, f"{CONTAINERD} is there"),
    (K.containerd, {}, {}, {}, NOTE, f"{CONTAINERD} is not there -> start containerd"),
    (K.containerd, kubelet(), {}, {}, FAULT, f"{CONTAINERD} is not there -> start containerd"),
    (
        K.containerd,
        kubelet(configuration="cgroupDriver: systemd\n")
        | {
            "/etc/containerd/config.toml": "[plugins.'io.containerd.cri.v1.runtime'.containerd."
            "runtimes.runc.options]\nSystemdCgroup = false\n"
        },
        *({}, {}, FAULT, "containerd's cgroup driver is cgroupfs, the kubelet's systemd -> set"),
    ),
)


@pytest.mark.parametrize(("check", "files", "settings", "probes", "level", "says"), CASES)
def test_what_a_node_has_or_lacks_is_found(
    check: Callable[[Node], Iterable[Finding]],
    files: dict[str, str],
    settings: dict[str, Any],
    probes: dict[str, Any],
    level: str,
    says: str,
    tmp_path: Path,
) -> None:
    node = make_node(tmp_path, files, {"cniConfigDir": "/etc/cni/net.d", **settings}, **probes)
    before = sorted(tmp_path.rglob("*"))
    found = tuple(check(node))
    texts = [f"{f.found} -> {f.remedy}" for f in found if f.level == level]
    assert any(text.startswith(says) for text in texts), found
    assert all(finding.remedy for finding in found if finding.level == FAULT)
    assert sorted(tmp_path.rglob("*")) == before


def test_a_check_that_fails_itself_is_a_note_and_says_why() -> None:
    def broken() -> Iterable[Finding]:
        yield Finding("x", OK, "first")
        raise ValueError("oh")

    found = list(guarded("x", broken))
    assert found == [
        Finding("x", OK, "first"),
        Finding("x", NOTE, "could not be looked at: ValueError: oh"),
    ]


def test_it_prints_levels_and_remedies(capsys: pytest.CaptureFixture[str]) -> None:
    assert not show([Finding("a", OK, "well"), Finding("b", FAULT, "bad", "mend it")])
    assert capsys.readouterr().out == (
        "ok    a: well\n"
        "fault b: bad\n      -> mend it\n"
        "1 fault in 2 findings; nothing was changed\n"
    )


def test_it_looks_at_this_node(tmp_path: Path) -> None:
    config = tmp_path / "virtlet.yaml"
    config.write_text(f"dataDir: {tmp_path}/data\ncniPluginDir: /usr/lib/cni\n")
    done = subprocess.run(
        [sys.executable, "-m", "virtlet.cli.main", "doctor", "-o", "json", "--config", str(config)],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.stderr == ""
    said = json.loads(done.stdout)
    findings = [Finding(**finding) for finding in said["findings"]]
    assert {name for name, _ in doctor.CHECKS} <= {finding.check for finding in findings} | {
        "nested"
    }
    assert [f for f in findings if "could not be looked at" in f.found] == []
    assert said["faults"] == sum(finding.level == FAULT for finding in findings)
    assert done.returncode == (1 if said["faults"] else 0)
    assert [path.name for path in tmp_path.iterdir()] == ["virtlet.yaml"]


def test_settings_that_cannot_be_read_do_not_keep_it_from_the_node(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "virtlet.cli.main", "doctor", "--config", str(tmp_path / "none")],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 1
    assert f"fault settings: {tmp_path}/none: No such file or directory\n" in done.stdout
    assert "\nok    disk: dataDir /var/lib/virtlet" in done.stdout
