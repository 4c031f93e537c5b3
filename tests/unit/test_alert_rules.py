"""The rules of deploy/prometheus: valid, about metrics that exist, each with a runbook, and each fires and clears."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

from apex_memory.telemetry import metric_rows
from tests.alerts.rules import DEPLOY, RUNBOOKS, alerts, metrics_of, rule_files, rules, scaled

ROOT = Path(__file__).parents[2]
HISTOGRAM = ("_bucket", "_count", "_sum")
needs_promtool = pytest.mark.skipif(
    not shutil.which("promtool"), reason="NOT TESTED: promtool (package `prometheus`) is missing"
)


def promtool(*arguments: str, cwd: Path = DEPLOY) -> str:
    result = subprocess.run(
        ["promtool", *arguments], cwd=cwd, capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


@needs_promtool
def test_the_rules_and_the_configuration_are_valid(tmp_path: Path) -> None:
    promtool("check", "rules", *map(str, rule_files()))
    promtool("check", "config", "--syntax-only", "prometheus.yml")
    for file in rule_files():
        short = tmp_path / file.name
        short.write_text(scaled(file.read_text(encoding="utf-8"), 30), encoding="utf-8")
        promtool("check", "rules", str(short))


@needs_promtool
def test_every_alert_is_silent_fires_and_clears() -> None:
    promtool("test", "rules", "tests/apex.yml")
    tested = yaml.safe_load((DEPLOY / "tests" / "apex.yml").read_text(encoding="utf-8"))["tests"]
    assert {test["name"] for test in tested} == set(alerts())
    for test in tested:
        expected = [bool(case["exp_alerts"]) for case in test["alert_rule_test"]]
        assert True in expected and False in expected, test["name"]


def test_every_expression_names_metrics_that_exist() -> None:
    known = {"up"}
    for name, kind, _ in metric_rows():
        known |= {name + suffix for suffix in HISTOGRAM} if kind == "histogram" else {name}
    recorded = {rule["record"] for rule in rules() if "record" in rule}
    for rule in rules():
        named = metrics_of(rule["expr"])
        assert named <= known, rule.get("alert", rule.get("record"))
        used = set(re.findall(r"apex:\w+:\w+", rule["expr"]))
        assert used <= recorded, rule["alert"]
        assert named | used, "a rule is about something"


def test_a_metric_that_does_not_exist_is_noticed() -> None:
    assert metrics_of(
        'rate(apex_gone_total{source="apex_x"}[5m]) > apex:landing_bad:ratio_rate5m'
    ) == {"apex_gone_total"}


def test_every_alert_has_a_severity_and_a_runbook() -> None:
    names = alerts()
    assert len(names) == len(set(names))
    for rule in rules():
        if "alert" not in rule:
            continue
        name = rule["alert"]
        assert rule["labels"]["severity"] in ("page", "ticket")
        assert rule["annotations"]["runbook_url"] == f"docs/runbooks/{name}.md"
        page = (RUNBOOKS / f"{name}.md").read_text(encoding="utf-8")
        assert page.startswith(f"# {name}\n")
        assert "```console\n$ apex " in page, f"{name}: a runbook has commands"
    pages = {page.stem for page in RUNBOOKS.glob("Apex*.md")}
    assert pages == set(names), "no runbook without an alert"


def test_scaling_shortens_windows_waits_and_minutes_and_nothing_else() -> None:
    text = "expr: rate(a_total[1h]) > (10 * 60) and b > 14.4 * 0.01\n        for: 5m\n  - record: a:rate1h"
    assert scaled(text, 30) == (
        "expr: rate(a_total[120s]) > (20) and b > 14.4 * 0.01\n        for: 10s\n  - record: a:rate1h"
    )
