"""What deploy/monitoring/ has for Prometheus and Grafana."""

import json
import re
import subprocess
from pathlib import Path
from typing import Any

import yaml

from hack.document_dashboard import dashboard

ROOT = Path(__file__).parents[2]
ALERTS = ROOT / "deploy" / "monitoring" / "alerts.yaml"
CASES = Path(__file__).with_name("alerts.yaml")


def rules() -> list[dict[str, Any]]:
    """The rules of all groups."""
    groups = yaml.safe_load(ALERTS.read_text())["groups"]
    return [rule for group in groups for rule in group["rules"]]


def queries() -> list[str]:
    """Every expression of dashboard and alerts, with Grafana's variables filled in."""
    plots = [
        target["expr"] for panel in dashboard()["panels"] for target in panel.get("targets", ())
    ]
    filled = [plot.replace("$instance", ".*").replace("$__rate_interval", "1m") for plot in plots]
    return filled + [rule["expr"] for rule in rules()]


def names(of: str) -> set[str]:
    """The metrics that they name, of those that begin so."""
    return set(re.findall(rf"\b{of}_\w+", " ".join(queries())))


def test_the_dashboard_is_what_the_code_prints() -> None:
    kept = json.loads((ROOT / "deploy/monitoring/dashboard.json").read_text())
    assert kept == dashboard(), "make docs"


def test_no_panel_covers_another() -> None:
    taken: set[tuple[int, int]] = set()
    for panel in dashboard()["panels"]:
        at = panel["gridPos"]
        assert at["x"] + at["w"] <= 24
        cells = {(at["x"] + x, at["y"] + y) for x in range(at["w"]) for y in range(at["h"])}
        assert not taken & cells, panel["title"]
        taken |= cells


def test_every_alert_fires_when_it_should_and_not_when_it_should_not(tmp_path: Path) -> None:
    """The summaries are left out: promtool would have each of them repeated in the cases."""
    document = yaml.safe_load(ALERTS.read_text())
    for group in document["groups"]:
        for rule in group["rules"]:
            del rule["annotations"]
    (tmp_path / "rules.yaml").write_text(yaml.safe_dump(document))
    cases = CASES.read_text().replace("[ALERTS]", "[rules.yaml]")
    (tmp_path / "cases.yaml").write_text(cases)
    argv = ["promtool", "test", "rules", str(tmp_path / "cases.yaml")]
    said = subprocess.run(argv, capture_output=True, text=True)
    assert said.returncode == 0, said.stdout + said.stderr
    fired = {
        check["alertname"]
        for case in yaml.safe_load(cases)["tests"]
        for check in case["alert_rule_test"]
        if check.get("exp_alerts")
    }
    assert fired == {rule["alert"] for rule in rules()}


def test_prometheus_takes_the_alerts_and_each_says_what_to_do() -> None:
    subprocess.run(["promtool", "check", "rules", str(ALERTS)], check=True, capture_output=True)
    for rule in rules():
        assert rule["labels"]["severity"] in ("critical", "warning"), rule["alert"]
        assert rule["annotations"]["summary"].endswith("."), rule["alert"]
        assert rule["annotations"]["description"], rule["alert"]


def test_prometheus_takes_what_the_page_shows(tmp_path: Path) -> None:
    page = (ROOT / "docs" / "metrics.md").read_text()
    [shown] = re.findall(r"```yaml\n(rule_files.*?)```", page, re.DOTALL)
    config = yaml.safe_load(shown)
    assert [Path(path).name for path in config["rule_files"]] == ["virtlet-alerts.yaml"]
    config["rule_files"] = [str(ALERTS)]
    (tmp_path / "prometheus.yaml").write_text(yaml.safe_dump(config))
    argv = ["promtool", "check", "config", str(tmp_path / "prometheus.yaml")]
    subprocess.run(argv, check=True, capture_output=True)
    watched = {job["job_name"] for job in config["scrape_configs"]}
    assert set(re.findall(r'job="([\w-]+)"', " ".join(queries()))) <= watched


def test_commands_and_pages_that_the_alerts_name_exist() -> None:
    for rule in rules():
        for page in re.findall(r"docs/[\w/-]+\.md", rule["annotations"]["description"]):
            assert (ROOT / page).exists(), rule["alert"]
