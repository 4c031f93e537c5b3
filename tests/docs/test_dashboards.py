"""The Grafana dashboards: generated from the panels of `/ops`, with expressions that Prometheus parses."""

from __future__ import annotations

import json

import promql_parser
import pytest

from apex_memory.gateway.ops.panels import DASHBOARDS, lines
from apex_memory.gateway.ops.queries import RANGE
from docs.generate.dashboards import FOLDER, dashboards


@pytest.mark.parametrize("name", [f"apex-{dashboard.name}.json" for dashboard in DASHBOARDS])
def test_the_committed_dashboards_are_those_of_the_panels(name: str) -> None:
    assert (FOLDER / name).read_text(encoding="utf-8") == dashboards()[name], "run `make docs`"


def test_no_other_dashboard_is_committed() -> None:
    assert {file.name for file in FOLDER.glob("*.json")} == set(dashboards())


def test_every_target_has_a_reference_and_the_chosen_source() -> None:
    for text in dashboards().values():
        document = json.loads(text)
        assert document["templating"]["list"][0]["name"] == "datasource"
        for panel in document["panels"]:
            assert panel["datasource"]["uid"] == "${datasource}"
            references = [target["refId"] for target in panel["targets"]]
            assert all(references) and len(references) == len(set(references)), panel["title"]


@pytest.mark.parametrize("expression", sorted({line.query.promql() for _, _, line in lines()}))
def test_every_expression_parses(expression: str) -> None:
    promql_parser.parse(expression.replace(RANGE, "1m"))
