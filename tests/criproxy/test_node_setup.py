"""`criproxy-setup` on made-up nodes: what it does, that it can be repeated, and the way back."""

from __future__ import annotations

from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Thread

import pytest
import yaml

from criproxy.config_file import build, read_file
from criproxy.kubelet_node import Node
from criproxy.node_setup import CONFIG, DIRECTORY, DROP_IN, Setup, SetupError, Step, carry_out

CONTAINERD = "/run/containerd/containerd.sock"
LISTEN = "/run/criproxy/criproxy.sock"
ENDPOINT = f"--container-runtime-endpoint=unix://{LISTEN}"
UNITS = "/usr/lib/systemd/system"
KUBEADM = {
    f"{UNITS}/kubelet.service": "[Unit]\nAfter=x\n[Service]\nExecStart=/usr/bin/kubelet\n",
    f"{UNITS}/kubelet.service.d/10-kubeadm.conf": """\
[Service]
Environment="KUBELET_CONFIG_ARGS=--config=/var/lib/kubelet/config.yaml"
EnvironmentFile=-/var/lib/kubelet/kubeadm-flags.env
EnvironmentFile=-/etc/default/kubelet
ExecStart=
ExecStart=/usr/bin/kubelet $KUBELET_CONFIG_ARGS $KUBELET_KUBEADM_ARGS $KUBELET_EXTRA_ARGS
""",
    "/var/lib/kubelet/kubeadm-flags.env": "KUBELET_KUBEADM_ARGS="
    '"--container-runtime-endpoint=unix:///var/run/containerd/containerd.sock --pod-infra=x"\n',
    "/var/lib/kubelet/config.yaml": "cgroupDriver: systemd\n",
    "/etc/default/kubelet": "KUBELET_EXTRA_ARGS=--v=4\n",
}
"""As kubeadm sets it up, with arguments of the administrator's."""
FILE_ONLY = {
    f"{UNITS}/kubelet.service": "[Service]\n"
    "ExecStart=/usr/bin/kubelet --config=/etc/kubelet.yaml\n",
    "/etc/kubelet.yaml": "containerRuntimeEndpoint: unix:///run/crio/crio.sock\n",
    "/run/crio/crio.sock": "",
}
"""A plain kubelet, whose configuration names CRI-O."""
PLAIN = {
    "/etc/systemd/system/kubelet.service": """\
[Service]
ExecStart=/usr/local/bin/kubelet --v=2 \\
  --container-runtime-endpoint unix:///run/containerd/containerd.sock
""",
}
"""A plain kubelet, set up by hand."""
UNIT = {f"{UNITS}/criproxy.service": "[Service]\n"}


class Made:
    """A made-up node, with the systemd that its files need."""

    def __init__(self, root: Path, files: dict[str, str]) -> None:
        self.root, self.node = root, Node(root)
        self.commands: list[str] = []
        self.failing: set[str] = set()
        for path, text in {CONTAINERD: "", **UNIT, **files}.items():
            self.write(path, text)

    def write(self, path: str | Path, text: str) -> None:
        file = self.node.path(path)
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)

    def systemctl(self, *words: str) -> bool:
        command = " ".join(words)
        self.commands.append(command)
        if command in self.failing:
            return False
        wants = self.node.path("/etc/systemd/system/multi-user.target.wants/criproxy.service")
        if command == "enable --now criproxy.service":
            wants.parent.mkdir(parents=True, exist_ok=True)
            wants.symlink_to(f"{UNITS}/criproxy.service")
            self.write(LISTEN, "")
        elif command == "disable --now criproxy.service":
            wants.unlink(missing_ok=True)
            self.node.path(LISTEN).unlink()
        elif command == "restart kubelet.service":
            self.write("/proc/42/cmdline", "\0".join(self.node.kubelet().words))
        return True

    def setup(self) -> Setup:
        return Setup(self.node, self.systemctl, wait=0.0)

    def forth(self, *, dry_run: bool = False) -> bool:
        return carry_out(list(self.setup().forth()), dry_run=dry_run)

    def back(self, *, force: bool = False) -> bool:
        return carry_out(list(self.setup().back(force=force)), dry_run=False)

    def faults(self, steps: Callable[[Setup], list[Step]] = lambda s: list(s.forth())) -> str:
        return "\n".join(step.what for step in steps(self.setup()) if step.fault)

    def files(self) -> dict[str, str]:
        found = (path for path in self.root.rglob("*") if path.is_file() or path.is_symlink())
        return {
            str(path.relative_to(self.root)): path.read_text() for path in found if path.exists()
        }

    @property
    def drop_in(self) -> str:
        return self.node.text(DIRECTORY / DROP_IN)


@pytest.mark.parametrize(
    ("files", "primary", "command"),
    [
        (
            KUBEADM,
            CONTAINERD,
            "/usr/bin/kubelet $KUBELET_CONFIG_ARGS $KUBELET_KUBEADM_ARGS $KUBELET_EXTRA_ARGS",
        ),
        (FILE_ONLY, "/run/crio/crio.sock", "/usr/bin/kubelet --config=/etc/kubelet.yaml"),
        (
            PLAIN,
            CONTAINERD,
            f"/usr/local/bin/kubelet --v=2    --container-runtime-endpoint unix://{CONTAINERD}",
        ),
    ],
    ids=["kubeadm", "configuration", "plain"],
)
def test_there_and_back(tmp_path: Path, files: dict[str, str], primary: str, command: str) -> None:
    node = Made(tmp_path, files)
    assert node.forth()
    assert f"ExecStart=\nExecStart={command} {ENDPOINT}\n" in node.drop_in
    assert node.node.kubelet().endpoint == LISTEN
    config = build(read_file(str(node.node.path(CONFIG))))
    assert [runtime.socket for runtime in config.runtimes] == [primary, "/run/virtlet.sock"]
    assert node.commands[-1] == "restart kubelet.service"
    # Whatever else the kubelet is given stays.
    assert set(Node(tmp_path).kubelet(ours=DROP_IN).words) < set(node.node.kubelet().words)

    node.commands.clear()
    assert node.forth()  # once more
    assert node.commands == []

    assert node.back()
    assert node.node.kubelet().endpoint == primary
    assert node.commands == [
        "daemon-reload",
        "restart kubelet.service",
        "disable --now criproxy.service",
    ]
    node.commands.clear()
    assert node.back()
    assert node.commands == []


def test_a_dry_run_says_all_and_changes_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    node = Made(tmp_path, KUBEADM)
    before = node.files()
    assert not node.forth(dry_run=True)  # not done yet
    said = capsys.readouterr().out.splitlines()
    assert [line[:5].strip() for line in said if line.startswith("todo")] == ["todo"] * 4
    assert f"ok    ordinary pods go to {CONTAINERD}" in said
    assert "ok    cgroup driver: systemd" in said
    assert (node.files(), node.commands) == (before, [])
    assert node.forth()
    assert node.forth(dry_run=True)


def test_the_shipped_configuration_is_taken_as_it_is(tmp_path: Path) -> None:
    shipped = (Path(__file__).parents[2] / "deploy" / "criproxy" / "criproxy.yaml").read_text()
    node = Made(tmp_path, KUBEADM | {str(CONFIG): shipped})
    assert node.forth()
    assert node.node.text(CONFIG) == shipped


def test_what_is_written_agrees_with_the_shipped_configuration(tmp_path: Path) -> None:
    node = Made(tmp_path, KUBEADM)
    node.forth()
    shipped = Path(__file__).parents[2] / "deploy" / "criproxy" / "criproxy.yaml"
    assert yaml.safe_load(node.node.text(CONFIG)) == yaml.safe_load(shipped.read_text())


@pytest.mark.parametrize(
    ("files", "says"),
    [
        ({}, "this node has no kubelet.service with a command: install it first"),
        (
            FILE_ONLY | {"/etc/criproxy/criproxy.yaml": "listen: /run/criproxy/criproxy.sock\n"},
            "/etc/criproxy/criproxy.yaml cannot work: no runtimes",
        ),
        (
            FILE_ONLY
            | {
                "/etc/criproxy/criproxy.yaml": f"listen: {LISTEN}\n"
                f"runtimes: [{{name: containerd, socket: {CONTAINERD}}}]\n"
            },
            f"the first runtime is {CONTAINERD}, but the kubelet speaks to /run/crio/crio.sock",
        ),
        (
            KUBEADM | {"/etc/virtlet/virtlet.yaml": "cgroupDriver: cgroupfs\n"},
            "cgroup drivers differ: kubelet has systemd, virtlet has cgroupfs; set all to",
        ),
        (
            KUBEADM
            | {
                "/etc/containerd/config.toml": "[plugins.'io.containerd.grpc.v1.cri'.containerd."
                "runtimes.runc.options]\nSystemdCgroup = false\n"
            },
            "cgroup drivers differ: kubelet has systemd, containerd has cgroupfs; set all to",
        ),
    ],
)
def test_what_is_in_its_way_is_said_and_nothing_is_done(
    tmp_path: Path, files: dict[str, str], says: str
) -> None:
    node = Made(tmp_path, files)
    before = node.files()
    assert says in node.faults()
    assert not node.forth()
    assert (node.files(), node.commands) == (before, [])


@pytest.mark.parametrize("missing", [CONTAINERD, f"{UNITS}/criproxy.service"])
def test_what_is_missing_is_said(tmp_path: Path, missing: str) -> None:
    node = Made(tmp_path, KUBEADM)
    node.node.path(missing).unlink()
    assert Path(missing).name in node.faults()
    assert not node.forth()
    assert node.commands == []


def test_a_proxy_that_does_not_start_leaves_the_kubelet_alone(tmp_path: Path) -> None:
    node = Made(tmp_path, KUBEADM)
    node.failing.add("enable --now criproxy.service")
    with pytest.raises(SetupError, match="journalctl -u criproxy"):
        node.forth()
    assert node.drop_in == ""
    assert "restart kubelet.service" not in node.commands


def test_a_kubelet_that_does_not_start_gets_its_command_back(tmp_path: Path) -> None:
    node = Made(tmp_path, KUBEADM)
    node.failing.add("restart kubelet.service")
    with pytest.raises(SetupError, match="was started as before"):
        node.forth()
    assert node.drop_in == ""
    assert node.commands[-2:] == ["daemon-reload", "restart kubelet.service"]


def test_one_that_was_broken_off_is_finished(tmp_path: Path) -> None:
    """The drop-in is there, but the kubelet was not restarted."""
    node = Made(tmp_path, KUBEADM)
    assert node.forth()
    node.write("/proc/42/cmdline", "/usr/bin/kubelet\0--v=4")
    node.commands.clear()
    assert node.forth()
    assert node.commands == ["daemon-reload", "restart kubelet.service"]


def test_a_kubelet_with_a_new_command_gets_it(tmp_path: Path) -> None:
    node = Made(tmp_path, KUBEADM)
    assert node.forth()
    path = f"{UNITS}/kubelet.service.d/10-kubeadm.conf"
    node.write(path, node.node.text(path).replace("/usr/bin/kubelet", "/opt/bin/kubelet"))
    assert not node.forth(dry_run=True)
    assert node.forth()
    assert "ExecStart=/opt/bin/kubelet $KUBELET_CONFIG_ARGS" in node.drop_in


def test_a_kubelet_that_was_set_up_by_hand_is_left_so(tmp_path: Path) -> None:
    by_hand = Path(__file__).parents[2] / "deploy/criproxy/kubelet.service.d/20-criproxy.conf"
    files = {**KUBEADM, str(DIRECTORY / "20-criproxy.conf"): by_hand.read_text()}
    files["/etc/default/kubelet"] = ""
    node = Made(tmp_path, files)
    assert node.forth()
    assert node.drop_in == ""
    assert f"{DIRECTORY}/20-criproxy.conf names the proxy, too: take" in node.faults(
        lambda setup: list(setup.back(force=False))
    )


class _Metrics(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(200)
        self.end_headers()
        self.wfile.write(
            b'criproxy_runtime_sandboxes{runtime="containerd"} 7\n'
            b'criproxy_runtime_sandboxes{runtime="virtlet.cloud"} 2\n'
        )

    def log_message(self, *_: object) -> None:
        pass


def test_the_way_back_is_refused_while_there_are_vm_pods(tmp_path: Path) -> None:
    node = Made(tmp_path, KUBEADM)
    assert node.forth()
    with HTTPServer(("127.0.0.1", 0), _Metrics) as server:
        thread = Thread(target=server.serve_forever)
        thread.start()
        try:
            text = node.node.text(CONFIG)
            node.write(CONFIG, text.replace(":10009", f":{server.server_port}"))
            assert not node.back()
            assert node.drop_in
            assert node.back(force=True)
        finally:
            server.shutdown()
            thread.join()
    assert node.drop_in == ""
