"""How current sources are: when one is behind, and that a search costs no reading of it."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import pytest

from apex_memory.errors import Unavailable
from apex_memory.fetching.source_states import SourceState
from apex_memory.gateway.freshness import (
    FRESH_SECONDS,
    STALE_SECONDS,
    FreshnessCache,
    freshness,
)

AT = datetime(2026, 3, 3, 15, 15, tzinfo=UTC)


def source(name: str = "turvo", **changes: Any) -> SourceState:
    usual = SourceState(
        name=name,
        state="idle",
        missing=None,
        pulled_at=AT,
        error=None,
        last_event_at=AT,
        backlog=0,
        lag=None,
        parked=0,
    )
    return replace(usual, **changes)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({}, None),
        ({"state": "working", "backlog": 4, "lag": 2.0}, None),
        ({"lag": 90.0, "backlog": 1}, "its oldest unfinished event has waited 90 s"),
        ({"state": "paused"}, "the source is paused"),
        (
            {"state": "failing", "error": "401 Unauthorized"},
            "the source is failing: 401 Unauthorized",
        ),
        ({"state": "stalled"}, "the source is stalled"),
        ({"parked": 3}, "3 of its events wait for a store"),
    ],
)
def test_a_source_is_behind_for_a_reason(changes: dict[str, Any], reason: str | None) -> None:
    state = freshness(source(**changes), AT)
    assert (state.reason, state.behind) == (reason, reason is not None)
    assert state.last_event_at == state.pulled_at == AT
    assert state.waiting == changes.get("backlog", 0) + changes.get("parked", 0)


class Reader:
    """Counts its readings. It waits for `go`, and fails while `error` is set."""

    def __init__(self) -> None:
        self.readings = 0
        self.error: Exception | None = None
        self.rows: list[SourceState] = [
            source("turvo"),
            source("llm"),
            source("edi", missing="host", last_event_at=None),
        ]
        self.go = asyncio.Event()
        self.go.set()

    async def read(self) -> Sequence[SourceState]:
        self.readings += 1
        await self.go.wait()
        if self.error:
            raise self.error
        return self.rows


async def test_many_answers_share_one_reading() -> None:
    reader, time = Reader(), [0.0]
    cache = FreshnessCache(reader.read, clock=lambda: time[0])
    first, *others = await asyncio.gather(*(cache.of(["llm"]) for _ in range(50)))
    assert [state.source for state in first] == ["llm"] and others == [first] * 49
    for _ in range(50):
        await cache.of(["llm"])
    assert reader.readings == 1


async def test_a_source_that_is_behind_is_always_shown_and_one_that_is_not_set_up_never() -> None:
    reader = Reader()
    reader.rows[0] = replace(reader.rows[0], state="stalled")
    cache = FreshnessCache(reader.read)
    assert [state.source for state in await cache.of(["llm", "edi"])] == ["turvo", "llm"]
    # A webhook came, though the settings of a poll are missing.
    reader.rows[2] = replace(reader.rows[2], last_event_at=AT)
    await cache.fresh()
    assert [state.source for state in await cache.of(["edi"])] == ["turvo", "edi"]


async def test_it_is_read_in_the_background_first_and_awaited_when_it_is_old() -> None:
    reader, time = Reader(), [0.0]
    cache = FreshnessCache(reader.read, clock=lambda: time[0])
    await cache.all()
    reader.rows = [source("turvo", backlog=7)]
    reader.go.clear()
    time[0] += FRESH_SECONDS + 1
    assert [state.waiting for state in await cache.all()] == [0, 0]  # the answer does not wait
    time[0] += STALE_SECONDS
    waiting = asyncio.create_task(cache.all())
    await asyncio.sleep(0)
    assert not waiting.done()
    reader.go.set()
    assert [state.waiting for state in await waiting] == [7]
    assert reader.readings == 2


async def test_without_a_reading_the_last_one_holds_and_attempts_are_seldom() -> None:
    reader, time = Reader(), [0.0]
    cache = FreshnessCache(reader.read, clock=lambda: time[0])
    before = await cache.all()
    reader.error = Unavailable("documents", "away")
    time[0] += STALE_SECONDS + 1
    for _ in range(10):
        assert await cache.all() == before
    assert reader.readings == 2
    reader.error = None
    time[0] += STALE_SECONDS + 1
    assert (await cache.all())[0].as_of > before[0].as_of
