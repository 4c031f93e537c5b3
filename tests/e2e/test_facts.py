"""Metrics on real engines: facts from PostgreSQL, webhooks that were lost, and labels that strangers cannot grow."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any

import pytest
from prometheus_client import REGISTRY

from apex_memory.app import App
from apex_memory.gateway.facts import LEASE, FactGauges
from apex_memory.telemetry import HTTP_SECONDS
from tests.e2e.conftest import MakeSettings, land, text_event
from tests.e2e.test_api import Api, client_of, running_api

SECONDS = 10.0


@pytest.fixture
async def api(make_settings: MakeSettings) -> AsyncIterator[Api]:
    async with running_api(make_settings(temporal="127.0.0.1:1/apex")) as api:
        yield api


def value(name: str, **labels: str) -> float | None:
    """Return the value of a series, None when there is none."""
    return REGISTRY.get_sample_value(name, labels)


def series(name: str) -> list[Mapping[str, str]]:
    """Return the labels of all series of a metric."""
    return [
        sample.labels
        for metric in REGISTRY.collect()
        for sample in metric.samples
        if sample.name == name
    ]


@asynccontextmanager
async def reading(app: App) -> AsyncIterator[FactGauges]:
    """A reader of facts; afterwards no other test finds its series."""
    facts = FactGauges(app, seconds=SECONDS)
    await app.db.execute("DELETE FROM leases WHERE name = %s", (LEASE,))
    try:
        yield facts
    finally:
        await facts.end()


async def test_facts_backlog_waits_and_dead_letters(app: App) -> None:
    first, second, third = await land(app, *(text_event(app, key, key) for key in ("a", "b", "c")))
    await app.db.execute(
        "UPDATE inbox SET received_at = received_at - interval '100 seconds' WHERE id = %s",
        (first.id,),
    )
    await app.db.execute(
        "UPDATE inbox SET state = 'parked', park_store = 'graph', received_at = now() - interval '50 seconds' WHERE id = %s",
        (second.id,),
    )
    await app.db.execute(
        """UPDATE inbox SET attempts = 1, next_at = now() + interval '1 hour', received_at = now() - interval '20 seconds'
           WHERE id = %s""",
        (third.id,),
    )
    await app.db.execute(
        """INSERT INTO dead_letters (inbox_id, source, doc_id, version, event_id, step, error_class, fingerprint, message, attempts, first_at, pipeline)
           SELECT id, source, doc_id, version, event_id, 'prepare', 'Rejected', 'f', 'm', 1, now() - interval '2 days', 'p' FROM inbox WHERE id = %s""",
        (third.id,),
    )
    async with reading(app) as facts:
        assert await facts.read()
        assert value("apex_inbox_open", source="documents", state="received") == 2
        assert value("apex_inbox_open", source="documents", state="parked") == 1
        assert value("apex_inbox_open", source="frontapp", state="received") == 0
        for owner, age in (("queue", 100), ("graph", 50), ("retry", 20)):
            oldest = value("apex_oldest_wait_seconds", source="documents", owner=owner)
            assert oldest == pytest.approx(age, abs=15), owner
        assert value("apex_inbox_oldest_seconds", source="documents") == pytest.approx(100, abs=15)
        assert value("apex_dead_letters", source="documents", age="week") == 1
        assert value("apex_dead_letters", source="documents", age="hour") == 0
        letters = value("apex_dead_letters_oldest_seconds", source="documents")
        assert letters == pytest.approx(172_800, abs=60)
        assert (value("apex_table_bytes", table="inbox") or 0) > 8_000
        assert value("apex_stages", state="staging") == 0


async def test_facts_staleness_is_measured_against_each_sources_own_rhythm(app: App) -> None:
    for key, age in (("a", 8_000), ("b", 2_000), ("c", 500)):
        [landed] = await land(app, text_event(app, key, key))
        await app.db.execute(
            "UPDATE inbox SET received_at = now() - make_interval(secs => %s) WHERE id = %s",
            (age, landed.id),
        )
    async with reading(app) as facts:
        await facts.read()
        assert value("apex_source_staleness_seconds", source="documents") == pytest.approx(
            500, abs=15
        )
        assert value("apex_source_rhythm_seconds", source="documents") == pytest.approx(
            6_000, abs=5
        )
        # A source that cannot be pulled, because it has no credentials, is not stale.
        assert app.sources["plaid"].name == "plaid"
        assert value("apex_source_staleness_seconds", source="plaid") is None


async def test_facts_a_paused_source_is_not_stale_and_its_events_wait_for_the_operator(
    app: App,
) -> None:
    await land(app, text_event(app, "a", "one"))
    await app.db.execute("INSERT INTO sources (name, paused) VALUES ('documents', true)")
    async with reading(app) as facts:
        await facts.read()
        assert value("apex_source_staleness_seconds", source="documents") is None
        owners = [s["owner"] for s in series("apex_oldest_wait_seconds")]
        assert owners == ["operator"]


async def test_facts_shares_of_the_rollout(app: App) -> None:
    await app.db.execute(
        "INSERT INTO rollouts (subject, share, shadow) VALUES ('source:documents', 10, true), ('source:removed', 5, false)"
    )
    async with reading(app) as facts:
        await facts.read()
        assert value("apex_rollout_share_ratio", subject="source:documents") == 0.1
        assert value("apex_rollout_shadow", subject="source:documents") == 1
        assert value("apex_rollout_share_ratio", subject="source:frontapp") == 1
        assert value("apex_rollout_share_ratio", subject="build") == 0
        assert value("apex_rollout_share_ratio", subject="source:removed") is None


async def test_facts_results_of_shadows(app: App) -> None:
    landed = await land(app, *(text_event(app, key, key) for key in ("a", "b", "c")))
    rows = [("compared", True, []), ("compared", False, ["title"]), ("failed", None, [])]
    for event, row in zip(landed, rows, strict=True):
        await app.db.execute(
            """INSERT INTO shadows (subject, inbox_id, source, state, equal, fields, ended_at)
               VALUES ('source:documents', %s, 'documents', %s, %s, %s, now())""",
            (event.id, *row),
        )
    await app.db.execute(
        "INSERT INTO shadow_drops (subject, reason, hour, count) VALUES ('source:documents', 'full', now(), 7)"
    )
    async with reading(app) as facts:
        await facts.read()
        shown = {
            result: value("apex_shadow_recent_events", subject="source:documents", result=result)
            for result in ("equal", "accepted", "different", "failed", "dropped")
        }
        assert shown == {"equal": 1, "accepted": 0, "different": 1, "failed": 1, "dropped": 7}
        await app.db.execute(
            "INSERT INTO shadow_acceptances (subject, field, actor) VALUES ('source:documents', 'title', 'test')"
        )
        await facts.read()
        accepted, different = (
            value("apex_shadow_recent_events", subject="source:documents", result=result)
            for result in ("accepted", "different")
        )
        assert (accepted, different) == (1, 0), "what is meant no longer fires the alert"


async def test_facts_are_read_by_one_process_and_another_takes_over(app: App) -> None:
    await land(app, text_event(app, "a", "one"))
    async with reading(app) as first:
        assert await first.read()
        second = FactGauges(app, seconds=SECONDS)
        assert not await second.read()
        await first.end()
        assert value("apex_inbox_open", source="documents", state="received") is None
        assert await second.read()
        assert value("apex_inbox_open", source="documents", state="received") == 1
        await second.end()


async def test_facts_are_read_by_one_process_also_while_a_reading_takes_long(app: App) -> None:
    """The one that reads waits longer between two readings, and holds its lease longer, than the other one would."""
    first, second = FactGauges(app, seconds=50), FactGauges(app, seconds=SECONDS)
    assert await first.read()
    assert not await second.read()
    await first.end()
    await second.end()


async def test_facts_of_sources_that_are_not_in_the_settings_make_no_series(app: App) -> None:
    [landed] = await land(app, text_event(app, "a", "one"))
    await app.db.execute("UPDATE inbox SET source = 'removed' WHERE id = %s", (landed.id,))
    async with reading(app) as facts:
        await facts.read()
        sources = {labels["source"] for labels in series("apex_inbox_open")}
        assert sources == set(app.sources)


FOREIGN: list[tuple[str, str, dict[str, Any]]] = [
    ("POST", "/hooks/nobody-{n}", {"content": b"{}"}),
    ("POST", "/hooks/frontapp/{n}", {"content": b"{}"}),
    ("GET", "/v1/sources/{n}", {}),
    ("GET", "/v1/events/{n}", {}),
    ("GET", "/{n}?q={n}", {}),
    ("BREW{n}", "/v1/status", {}),
    ("POST", "/v1/documents", {"json": {"key": "{n}", "text": "x", "source": "{n}"}}),
    ("POST", "/v1/search", {"json": {"query": "{n}", "filters": {"sources": ["{n}"]}}}),
    ("POST", "/v1/search", {"json": {"{n}": "{n}"}}),
    ("GET", "/v1/status", {"headers": {"authorization": "Bearer {n}", "host": "127.0.0.1"}}),
    ("GET", "/v1/status", {"headers": {"host": "{n}.example"}}),
]


def filled(item: Any, number: int) -> Any:
    """Return a copy of a request in which `{n}` is a number."""
    if isinstance(item, str):
        return item.replace("{n}", str(number))
    if isinstance(item, list):
        return [filled(part, number) for part in item]
    if isinstance(item, dict):
        return {filled(key, number): filled(part, number) for key, part in item.items()}
    return item


async def test_strangers_cannot_grow_labels(api: Api) -> None:
    async def send(number: int) -> None:
        async with client_of(api.application) as stranger:
            for http in (stranger, api.http):
                for method, path, options in FOREIGN:
                    given = filled(options, number)
                    await http.request(filled(method, number), filled(path, number), **given)

    def count() -> int:
        return sum(
            len(metric.samples) for metric in REGISTRY.collect() if metric.name.startswith("apex_")
        )

    await send(1)
    before = count()
    for number in range(2, 12):
        await send(number)
    assert count() == before
    [metric] = HTTP_SECONDS.collect()
    labels = {tuple(sample.labels.values()) for sample in metric.samples}
    assert not any("nobody" in value or "BREW" in value for row in labels for value in row)


async def test_the_gateway_offers_openmetrics(api: Api) -> None:
    async with client_of(api.application) as http:
        answer = await http.get(
            "/metrics", headers={"accept": "application/openmetrics-text; version=1.0.0"}
        )
    assert answer.headers["content-type"].startswith("application/openmetrics-text")
    assert answer.text.endswith("# EOF\n")
