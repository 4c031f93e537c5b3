"""A clock that was ahead and was set back: what was stored meanwhile lies in the future, and holds no source."""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import datetime, timedelta
from types import SimpleNamespace
from typing import Any, cast

import pytest

from apex_memory.errors import RetryLater
from apex_memory.model import micros, now
from apex_memory.sources.hubspot.api import DailyLimit, wait_for_reset
from apex_memory.sources.pages import PullContext
from apex_memory.sources.sonar.source import _State
from apex_memory.sources.turvo.source import _ListScan
from apex_memory.steps.rhythm import Rhythm
from apex_memory.stores.postgres import Postgres
from tests.unit.test_front_poll import front

AHEAD = timedelta(days=365)


def in_time(**distance: float) -> datetime:
    return now() + timedelta(**distance)


@pytest.mark.parametrize(
    "listed, rests",
    [(in_time(seconds=-10), True), (in_time(hours=1), False), (in_time(hours=-1), False)],
)
def test_turvo_lists_again(listed: datetime, rests: bool) -> None:
    context = PullContext(link=cast(Any, None), cursor={"listed": micros(listed)})
    assert (_ListScan.started(context, pause=60) is None) is rests


def test_hubspot_calls_again() -> None:
    with pytest.raises(DailyLimit):
        wait_for_reset({"limit": {"until": in_time(hours=20).isoformat()}})
    wait_for_reset({"limit": {"until": (now() + AHEAD).isoformat()}})


async def test_sonar_calls_again() -> None:
    with pytest.raises(RetryLater):
        await _State.read({"until": micros(in_time(hours=1))}).wait()
    await _State.read({"until": micros(now() + AHEAD)}).wait()


@pytest.fixture
async def db(database_url: str) -> AsyncIterator[Postgres]:
    db = Postgres(database_url)
    await db.open()
    yield db
    await db.close()


@pytest.mark.parametrize("ago, due", [("0 seconds", False), ("1 day", True), ("-1 hour", True)])
async def test_a_pull_is_due_again_without_temporal(db: Postgres, ago: str, due: bool) -> None:
    await db.execute(
        f"INSERT INTO sources (name, pulled_at) VALUES ('frontapp', now() - interval '{ago}')"
    )

    async def may_pull(source: str) -> bool:
        return True

    fetcher = SimpleNamespace(states=SimpleNamespace(may_pull=may_pull))
    rhythm = Rhythm(db, cast(Any, fetcher), cast(Any, None), {}, cast(Any, None), wake=print)
    assert await rhythm._is_due(front()) is due
