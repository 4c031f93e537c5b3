"""The panels of `/ops`: what a query returns from the gateway's own history, and how the page writes it."""

from __future__ import annotations

import asyncio
import math
import os
from pathlib import Path

import httpx2
import pytest
from fastapi import FastAPI

from apex_memory.engines.cards import ProcessCard, registered
from apex_memory.gateway.ops.data import (
    MOST_LINES,
    HistoryData,
    SeriesData,
    from_history,
    from_prometheus,
)
from apex_memory.gateway.ops.history import (
    MOST_SERIES,
    SAMPLES,
    Key,
    MetricsHistory,
    parse,
    wanted,
)
from apex_memory.gateway.ops.page import level, page, written
from apex_memory.gateway.ops.panels import DASHBOARDS, Dashboard, Line, Panel, lines, panel_of
from apex_memory.gateway.ops.queries import (
    Age,
    Quantile,
    Rate,
    Ratio,
    Value,
    matches,
    per_second,
    quantile,
)
from apex_memory.telemetry import metric_rows
from apex_memory.telemetry.exposition import Address, exposed

NAN = math.nan
SUFFIXES = ("_bucket", "_count", "_sum")


def history_of(tmp_path: Path, *rounds: str, seconds: float = 10) -> MetricsHistory:
    """A history with the samples of these texts, taken every ten seconds."""
    history = MetricsHistory(tmp_path)
    names = frozenset({"jobs_total", "queue", "took_bucket", "seen_seconds"})
    for n, text in enumerate(rounds):
        samples = dict(parse(text.strip().splitlines(), names, "worker", "1"))
        history.add(1_000 + n * seconds, samples)
    return history


def test_a_rate_is_summed_over_processes_and_survives_a_restart() -> None:
    assert per_second([0, 10, 20, 30], [100, 120, 5, 25])[1:] == [
        2.0,
        pytest.approx(25 / 20),
        pytest.approx(45 / 30),
    ]
    assert math.isnan(per_second([0, 10], [1, 2])[0])


def test_a_rate_covers_the_last_minute() -> None:
    times = [float(n * 10) for n in range(12)]
    values = [0.0] * 6 + [float(n * 60) for n in range(1, 7)]
    assert per_second(times, values)[-1] == pytest.approx(6.0)
    assert per_second(times, values)[5] == 0


def test_a_gap_is_not_growth() -> None:
    assert per_second([0, 10, 20], [100, NAN, 110])[2] == pytest.approx(0.5)
    rates = per_second([0, 10, 20], [NAN, 100, 110])
    assert math.isnan(rates[1]) and rates[2] == pytest.approx(1.0)


def test_a_quantile_is_that_of_prometheus() -> None:
    buckets = [(0.1, 5.0), (0.5, 9.0), (1.0, 10.0), (math.inf, 10.0)]
    assert quantile(0.5, buckets) == pytest.approx(0.1)
    assert quantile(0.9, buckets) == pytest.approx(0.5)
    assert quantile(0.95, buckets) == pytest.approx(0.75)
    assert quantile(0.99, [(1.0, 0.0), (math.inf, 4.0)]) == 1.0
    assert math.isnan(quantile(0.5, [(1.0, 0.0), (math.inf, 0.0)]))


def test_queries_read_the_history(tmp_path: Path) -> None:
    text = """
jobs_total{{kind="a"}} {a}
jobs_total{{kind="b"}} {b}
queue{{kind="a"}} 4
queue{{kind="b"}} 6
took_bucket{{le="0.1"}} {a}
took_bucket{{le="+Inf"}} {b}
seen_seconds 1005
"""
    history = history_of(tmp_path, text.format(a=0, b=0), text.format(a=10, b=20))
    snapshot = history.snapshot({"jobs_total", "queue", "took_bucket", "seen_seconds"})
    rates = Rate("jobs_total", ("kind",)).points(snapshot)
    assert rates[("a",)][1] == 1 and rates[("b",)][1] == 2
    assert Rate("jobs_total", times=3600).points(snapshot)[()][1] == 10_800
    assert Value("queue", aggregate="sum").points(snapshot)[()][1] == 10
    assert Value("queue", where=[("kind", "!=", "b")]).points(snapshot)[()][1] == 4
    assert Value("absent", default=0).points(snapshot) == {(): [0, 0]}
    share = Ratio(Rate("jobs_total", where=[("kind", "=", "a")]), Rate("jobs_total", where=[]))
    assert share.points(snapshot)[()][1] == pytest.approx(1 / 3)
    assert Quantile("took", 0.5).points(snapshot)[()][1] == pytest.approx(0.1)
    assert Age("seen_seconds").points(snapshot)[()][1] == 5


def test_matchers() -> None:
    labels = {"status": "503", "route": "/v1/search"}
    assert matches(labels, [("status", "=~", "5.."), ("route", "=", "/v1/search")])
    assert not matches(labels, [("status", "!~", "5..")])
    assert matches(labels, [("missing", "=", "")])


def test_expressions_for_prometheus() -> None:
    query = Ratio(
        Rate("a_total", where=[("status", "=~", "5..")], default=0),
        Value("b", ("source",), aggregate="sum"),
    )
    assert query.promql() == (
        '(sum (rate(a_total{status=~"5.."}[$__rate_interval])) or vector(0)) '
        "/ clamp_min(sum by (source) (b), 1e-9)"
    )
    assert Quantile("c", 0.99, ("step",)).promql() == (
        "histogram_quantile(0.99, sum by (step, le) (rate(c_bucket[$__rate_interval])))"
    )


def test_the_history_is_bounded_and_forgets_series_that_ended(tmp_path: Path) -> None:
    history = MetricsHistory(tmp_path)
    for n in range(SAMPLES + 5):
        samples: dict[Key, float] = {("kept", ()): float(n)}
        if n < 5:
            samples[("ended", ())] = 1.0
        history.add(float(n), samples)
    snapshot = history.snapshot({"kept", "ended"})
    assert len(snapshot.times) == SAMPLES and set(snapshot.series) == {"kept"}
    [(_, values)] = snapshot.series["kept"]
    assert values[0] == 5 and values[-1] == SAMPLES + 4
    history.add(1e9, {("many", (("n", str(n)),)): 1.0 for n in range(MOST_SERIES + 10)})
    assert sum(map(len, history.snapshot({"kept", "many"}).series.values())) == MOST_SERIES


def test_a_series_that_begins_late_has_gaps_before(tmp_path: Path) -> None:
    history = MetricsHistory(tmp_path)
    for n in range(SAMPLES + 1):
        history.add(float(n), {("late", ()): 1.0} if n == SAMPLES else {("early", ()): 1.0})
    snapshot = history.snapshot({"late"})
    [(_, values)] = snapshot.series["late"]
    assert len(values) == len(snapshot.times) and math.isnan(values[0]) and values[-1] == 1


def test_labels_with_quotes_and_commas_are_read() -> None:
    text = r'queue{kind="a,\"b\"",other="c"} 1.5'
    [(key, value)] = parse([text, "# HELP queue x", "other 1"], frozenset({"queue"}), "worker")
    assert value == 1.5 and dict(key[1])["other"] == "c" and dict(key[1])["process"] == "worker"


async def test_the_history_takes_samples_of_other_processes(tmp_path: Path) -> None:
    with exposed(Address("127.0.0.1", 0), process="worker") as address:
        card = ProcessCard(process="worker", pid=os.getpid(), metrics=address.url)
        gone = ProcessCard(process="bulk", pid=os.getppid(), metrics="http://127.0.0.1:1/metrics")
        with registered(tmp_path, card), registered(tmp_path, gone):
            history = MetricsHistory(tmp_path)
            # Behind thousands of tests this process alone may have more series than a history keeps.
            history._wanted = frozenset({"apex_fallback_active"})
            watching = asyncio.create_task(history.watch())
            try:
                async with asyncio.timeout(20):
                    while not history.snapshot({"apex_fallback_active"}).times:
                        await asyncio.sleep(0.02)
            finally:
                watching.cancel()
                await asyncio.gather(watching, return_exceptions=True)
    series = history.snapshot({"apex_fallback_active"}).series["apex_fallback_active"]
    assert {labels["process"] for labels, _ in series} == {"gateway", "worker"}


def test_every_panel_reads_a_metric_that_exists() -> None:
    known = {name for name, _, _ in metric_rows()}
    for dashboard, panel, line in lines():
        for name in line.query.metrics():
            base = next((name.removesuffix(end) for end in SUFFIXES if name.endswith(end)), name)
            foreign = name.startswith("temporal_") or panel.needs_prometheus
            assert {name, base} & known or foreign, (dashboard.name, panel.title, name)


def test_panels_are_named_once_and_say_what_they_show() -> None:
    for dashboard in DASHBOARDS:
        ids = [panel.id for panel in dashboard.panels]
        assert len(ids) == len(set(ids)), dashboard.name
        for panel in dashboard.panels:
            assert panel.about.endswith(".") and panel.lines, panel.title
            for line in panel.lines:
                assert all(f"{{{name}}}" in line.legend for name in line.query.by), panel.title
    assert "apex_inbox_open" in wanted() and "persistence_latency_bucket" not in wanted()


def test_values_are_written_with_their_units() -> None:
    assert written(None, "seconds") == "–"
    assert written(0.00234, "seconds") == "2.34 ms"
    assert written(90, "seconds") == "90 s"
    assert written(7_000, "seconds") == "117 min"
    assert written(200_000, "seconds") == "2.31 d"
    assert written(1_234_567, "bytes") == "1.23 MB"
    assert written(0.051, "share") == "5.1 %"
    assert written(1_234, "per second") == "1.23 k/s"
    assert written(1, "state", ("down", "up")) == "up"


def test_a_number_has_the_colour_of_its_limit() -> None:
    panel = panel_of("a", "A.", Value("queue"), kind="stat", warn=1, bad=10)
    assert [level(panel, value) for value in (None, 0, 1, 10)] == ["", "good", "warn", "bad"]
    low = panel_of("a", "A.", Value("queue"), kind="stat", bad=0.5, low_is_bad=True)
    assert [level(low, value) for value in (0, 1)] == ["bad", "good"]


async def test_a_chart_shows_the_largest_lines_and_counts_the_others(tmp_path: Path) -> None:
    text = "\n".join(f'queue{{kind="k{n}"}} {n}' for n in range(12))
    history = history_of(tmp_path, text)
    panel = Panel("Queue", "About.", [Line(Value("queue", ("kind",)), "{kind}")])
    data = await from_history(Dashboard("d", "D", "About.", [panel]), history)
    [item] = data.panels
    assert [series.label for series in item.series][:2] == ["k11", "k10"]
    assert len(item.series) == MOST_LINES and item.left_out == 4


async def test_data_are_computed_once_for_a_sample(tmp_path: Path) -> None:
    history = history_of(tmp_path, "queue 1")
    panel = Panel("Queue", "About.", [Line(Value("queue"))])
    dashboard, data = Dashboard("d", "D", "About.", [panel]), HistoryData(history)
    first = await data.of(dashboard)
    assert await data.of(dashboard) is first
    history.add(2_000, {("queue", ()): 2.0})
    later = await data.of(dashboard)
    assert later.panels[0].series[0].last == 2


async def test_the_page_escapes_labels_and_needs_nothing_from_elsewhere(tmp_path: Path) -> None:
    history = history_of(tmp_path, 'queue{kind="<script>alert(1)</script>"} 1')
    panel = Panel("Queue", "About.", [Line(Value("queue", ("kind",)), "{kind}")])
    dashboard = Dashboard("d", "D", "About.", [panel])
    html = page(dashboard, await from_history(dashboard, history), "0.2.0")
    assert "<script>alert" not in html and "&lt;script&gt;" in html
    assert "style=" not in html and "onclick" not in html
    assert "//" not in html.replace("<!doctype html>", "").replace("http://www.w3.org", "")


async def test_the_page_begins_with_an_alarm_if_there_is_one(tmp_path: Path) -> None:
    dashboard = Dashboard("d", "D", "About.", [])
    data = await from_history(dashboard, history_of(tmp_path, "queue 1"))
    html = page(dashboard, data, "0.2.0", alarm="Events wait: <b1> has no worker")
    assert '<p class="alarm" role="alert">Events wait: &lt;b1&gt; has no worker</p>' in html
    assert "alarm" not in page(dashboard, data, "0.2.0")


async def test_data_come_from_prometheus_where_one_is_set() -> None:
    api = FastAPI()

    @api.get("/api/v1/query_range")
    async def query_range(query: str, start: float, end: float, step: float) -> object:
        assert "$__rate_interval" not in query
        values = [[start, "1"], [end, "NaN"]]
        return {
            "status": "success",
            "data": {"result": [{"metric": {"source": "edi"}, "values": values}]},
        }

    transport = httpx2.ASGITransport(app=api)
    panel = Panel("Landed", "About.", [Line(Rate("jobs_total", ("source",)), "{source}")])
    with pytest.MonkeyPatch.context() as patch:
        made = httpx2.AsyncClient

        def client(**options: object) -> httpx2.AsyncClient:
            return made(base_url="http://prometheus", transport=transport)

        patch.setattr(httpx2, "AsyncClient", client)
        data = await from_prometheus(Dashboard("d", "D", "A.", [panel]), "http://prometheus")
    [item] = data.panels
    assert data.origin == "Prometheus"
    assert item.series[0].label == "edi"
    assert item.series[0].values[0] == 1 and item.series[0].values[-1] is None


def test_what_ended_a_minute_ago_has_no_value_now() -> None:
    assert SeriesData("a", [1.0, 2.0, None, None, None]).last == 2
    assert SeriesData("a", [2.0, None, None, None, None]).last is None
