"""Writes the Grafana dashboards from the panels of `/ops`: `python -m docs.generate.dashboards`, with `--check` to compare only.

The schema is that of Grafana 11.6, which later releases read. Queries are tested against a real Prometheus
(`tests/e2e/test_dashboards.py`); no Grafana takes part in the tests.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from grafana_foundation_sdk.builders import common, dashboard, prometheus, stat, timeseries
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models.common import (
    BigValueColorMode,
    StackingMode,
    VizOrientation,
)
from grafana_foundation_sdk.models.dashboard import (
    DashboardLinkType,
    DataSourceRef,
    Threshold,
    ThresholdsMode,
    ValueMap,
    ValueMappingResult,
)

from apex_memory.gateway.ops.panels import DASHBOARDS, Dashboard, Panel

FOLDER = Path(__file__).parents[2] / "deploy" / "grafana" / "dashboards"
UNITS = {
    "short": "short",
    "seconds": "s",
    "bytes": "decbytes",
    "share": "percentunit",
    "per second": "cps",
    "per hour": "none",
    "state": "none",
}
SOURCE = DataSourceRef(type_val="prometheus", uid="${datasource}")


def dashboards() -> dict[str, str]:
    """Return the JSON of each dashboard, by file name."""
    return {f"apex-{item.name}.json": _document(item) for item in DASHBOARDS}


def _document(item: Dashboard) -> str:
    builder = (
        dashboard.Dashboard(f"Apex Memory: {item.title}")
        .uid(f"apex-{item.name}")
        .description(item.about)
        .tags(["apex-memory"])
        .refresh("30s")
        .time("now-1h", "now")
        .timezone("browser")
        .readonly()
        .with_variable(
            dashboard.DatasourceVariable("datasource").label("Prometheus").type("prometheus")
        )
        .link(
            dashboard.DashboardLink("Apex Memory")
            .type(DashboardLinkType.DASHBOARDS)
            .tags(["apex-memory"])
        )
    )
    for panel in item.panels:
        builder = builder.with_panel(_stat(panel) if panel.kind == "stat" else _chart(panel))
    document = json.dumps(builder.build(), cls=JSONEncoder, indent=1, sort_keys=True)
    return document + "\n"


def _stat(panel: Panel) -> Any:
    builder = (
        stat.Panel()
        .title(panel.title)
        .description(panel.about)
        .datasource(SOURCE)
        .unit(UNITS[panel.unit])
        .color_mode(BigValueColorMode.VALUE)
        .orientation(VizOrientation.AUTO)
        .height(4)
        .span(4)
        .thresholds(_thresholds(panel))
    )
    if panel.unit == "state":
        words = {str(n): ValueMappingResult(text=word) for n, word in enumerate(panel.words)}
        builder = builder.mappings([ValueMap(options=words)])
    return _with_targets(builder, panel)


def _chart(panel: Panel) -> Any:
    builder = (
        timeseries.Panel()
        .title(panel.title)
        .description(panel.about)
        .datasource(SOURCE)
        .unit(UNITS[panel.unit])
        .min(0)
        .height(8)
        .span(8)
        .fill_opacity(25 if panel.stacked else 0)
    )
    if panel.stacked:
        builder = builder.stacking(common.StackingConfig().mode(StackingMode.NORMAL))
    return _with_targets(builder, panel)


def _thresholds(panel: Panel) -> Any:
    """Return the colours of a number: green, from `warn` on orange, from `bad` on red; the other way round where low is bad."""
    steps = [Threshold(value=None, color="green")]
    if panel.low_is_bad:
        limit = panel.bad if panel.bad is not None else 0
        steps = [Threshold(value=None, color="red"), Threshold(value=limit, color="green")]
    else:
        if panel.warn is not None:
            steps.append(Threshold(value=panel.warn, color="orange"))
        if panel.bad is not None:
            steps.append(Threshold(value=panel.bad, color="red"))
    return dashboard.ThresholdsConfig().mode(ThresholdsMode.ABSOLUTE).steps(steps)


def _with_targets(builder: Any, panel: Panel) -> Any:
    for n, line in enumerate(panel.lines):
        builder = builder.with_target(
            prometheus.Dataquery()
            .ref_id("ABCDEFGH"[n])
            .expr(line.query.promql())
            .legend_format(_legend(line.legend, line.query.by))
        )
    return builder


def _legend(text: str, by: tuple[str, ...]) -> str:
    """Return a legend with Grafana's placeholders, `{{source}}`."""
    for name in by:
        text = text.replace(f"{{{name}}}", f"{{{{{name}}}}}")
    return text


def main(arguments: list[str]) -> int:
    """Write the files, or with `--check` list those that differ. Return the exit code."""
    stale = []
    FOLDER.mkdir(parents=True, exist_ok=True)
    for name, text in dashboards().items():
        file = FOLDER / name
        if not file.exists() or file.read_text(encoding="utf-8") != text:
            stale.append(name)
            if "--check" not in arguments:
                file.write_text(text, encoding="utf-8")
    if "--check" in arguments and stale:
        print(f"out of date: {', '.join(stale)}; run `make docs`", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
