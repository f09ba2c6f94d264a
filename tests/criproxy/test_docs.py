"""The proxy's documentation and examples say what the code says."""

from __future__ import annotations

import configparser
import re
import subprocess
from pathlib import Path

import pytest
import yaml

from criproxy import config_file as file
from criproxy.__main__ import main
from criproxy.config import DEFAULT_STATE_DIR
from criproxy.config_file import build, read_file
from criproxy.health_endpoint import Metrics
from criproxy.methods import BY_NAME
from criproxy.routes.new_pod import TARGET_RUNTIME
from criproxy.rpc.messages import Code

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy" / "criproxy"
PAGE = (ROOT / "docs" / "criproxy.md").read_text()


def test_every_option_is_documented() -> None:
    documented = set(re.findall(r"^\| `(--[a-z-]+)", PAGE, re.M))
    options = {max(p.opts, key=len) for p in main.params}
    assert documented == options


def test_every_key_of_the_configuration_is_documented() -> None:
    section = PAGE[PAGE.index("## Configuration file") : PAGE.index("## Where a call goes")]
    documented = set(re.findall(r"^\| `([\w\[\].]+)`", section, re.M))
    keys = set(file.TOP)
    keys |= {f"runtimes[].{k}" for k in file.RUNTIME if k not in ("dial", "limits")}
    keys |= {f"runtimes[].dial.{k}" for k in file.DIAL}
    keys |= {f"runtimes[].limits.{k}" for k in file.LIMITS}
    assert documented == keys


def test_every_method_stands_in_one_row_of_the_routing_table() -> None:
    section = PAGE[PAGE.index("## Where a call goes") : PAGE.index("**Handlers**")]
    rows = [row.split("|")[1] for row in section.splitlines() if row.startswith("| ")]
    named = [word for row in rows for word in re.findall(r"\b[A-Z]\w+[a-z]\w*", row)]
    assert sorted(n for n in named if n in BY_NAME) == sorted(BY_NAME)


def test_every_metric_is_documented() -> None:
    metrics = Metrics()
    metrics.watch(())
    metrics.client_call("Version", Code.OK, 0.1)
    metrics.runtime_call("a", "Version", Code.OK, 0.1)
    names = re.findall(rb"^# TYPE (criproxy_\w+) ", metrics.text(), re.M)
    documented = set(re.findall(r"^\| `(criproxy_\w+)`", PAGE, re.M))
    assert documented == {name.decode() for name in names}


def test_links_lead_somewhere() -> None:
    for target in re.findall(r"\]\(([^)#]+)\)", PAGE):
        assert (ROOT / "docs" / target).exists(), target
    for path in re.findall(r"`(criproxy/[\w/.]+)`|`(deploy/[\w/.-]+)`", PAGE):
        assert (ROOT / "".join(path)).exists(), path


def test_the_example_configuration_is_one() -> None:
    config = build(read_file(str(DEPLOY / "criproxy.yaml")))
    assert [r.name for r in config.runtimes] == ["containerd", "virtlet.cloud"]
    assert config.state_dir == DEFAULT_STATE_DIR


@pytest.fixture
def unit() -> configparser.ConfigParser:
    """The systemd unit."""
    return _unit(DEPLOY / "criproxy.service")


def _unit(path: Path) -> configparser.ConfigParser:
    parser = configparser.ConfigParser(strict=False, interpolation=None)
    parser.optionxform = str  # type: ignore[assignment,method-assign]
    parser.read(path)
    return parser


def test_the_unit_fits_the_example_configuration(unit: configparser.ConfigParser) -> None:
    config = build(read_file(str(DEPLOY / "criproxy.yaml")))
    service = unit["Service"]
    assert service["ExecStart"].endswith("criproxy --config /etc/criproxy/criproxy.yaml")
    assert config.listen == f"/run/{service['RuntimeDirectory']}/criproxy.sock"
    assert config.state_dir == f"/var/lib/{service['StateDirectory']}"
    # systemd applies this to the main process only: a check before it would be tried again.
    assert service["RestartPreventExitStatus"] == "78"
    assert "ExecStartPre" not in service


@pytest.mark.parametrize("path", ["criproxy/criproxy.service", "virtlet.service"])
def test_the_units_never_give_up_what_may_be_different_in_a_moment(path: str) -> None:
    unit = _unit(ROOT / "deploy" / path)
    assert unit["Service"]["Restart"] == "always"
    # systemd's own limit, five starts in ten seconds, is soon met by what ends at once.
    assert unit["Unit"]["StartLimitIntervalSec"] == "0"


@pytest.mark.parametrize(
    ("path", "exposure"), [("criproxy/criproxy.service", 2.5), ("virtlet.service", 6.4)]
)
def test_the_units_restrict_what_they_start(path: str, exposure: float) -> None:
    # Bounds of `systemd-analyze security`, 0 to 10; the units say what is left, and why.
    command = ["systemd-analyze", "security", "--offline=yes", "--no-pager"]
    command += [f"--threshold={exposure * 10:.0f}", str(ROOT / "deploy" / path)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-200:]
    assert not done.stderr, done.stderr  # an unknown setting, or a wrong value


def test_the_kubelets_drop_in_names_the_socket() -> None:
    config = build(read_file(str(DEPLOY / "criproxy.yaml")))
    drop_in = _unit(DEPLOY / "kubelet.service.d" / "20-criproxy.conf")
    assert (
        f"--container-runtime-endpoint=unix://{config.listen}" in drop_in["Service"]["Environment"]
    )


def test_the_runtime_classes_are_served() -> None:
    config = build(read_file(str(DEPLOY / "criproxy.yaml")))
    documents = yaml.safe_load_all((ROOT / "deploy" / "cluster" / "runtimeclass.yaml").read_text())
    assert {d["handler"] for d in documents} == set(config.runtimes[1].handlers)
    assert TARGET_RUNTIME in PAGE


def test_the_guide_has_the_steps_to_a_mixed_node_and_their_files_exist() -> None:
    section = (ROOT / "docs" / "guide" / "first-pod.md").read_text()
    steps = re.findall(r"^\d+\. ", section, re.M)
    assert steps == [f"{n}. " for n in range(1, len(steps) + 1)]
    files = set(re.findall(r"\bdeploy/[\w/.-]+\w", section))
    assert {f"deploy/criproxy/{p}" for p in ("criproxy.yaml", "criproxy.service")} <= files
    for file_ in files:
        assert (ROOT / file_).exists(), file_
