"""Readings of streams and their windows, on a real PostgreSQL."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from apex_memory.fetching import windows
from apex_memory.fetching.windows import Readings
from apex_memory.inbox import landing
from apex_memory.model import Document, Event, LandResult, Priority, now
from apex_memory.sources.base import InboundRequest, PulledSettings, Received, Sample, StreamSource
from apex_memory.sources.pages import Page, PullContext, Reading
from apex_memory.stores.postgres import Connection, Postgres
from tests.waiting import until

START = datetime(2025, 11, 20, 12, tzinfo=UTC)
FOREVER = timedelta(days=100_000)


class Toy(StreamSource):
    """A stream of numbers."""

    name = "toy"
    title = "Toy"
    priority = Priority.P1
    window_seconds = 300
    poll_seconds = 5
    broken = False

    def aggregate_window(
        self, series: str, start: datetime, readings: Sequence[Reading], version: int
    ) -> Event:
        if self.broken:
            raise KeyboardInterrupt  # the process ends here
        key = f"{series}@{start:%d %H:%M}"
        body = [[f"{point.at:%H:%M:%S}", point.kind, point.value] for point in readings]
        return Event(
            source=self.name,
            event_id=f"{key}:{version}",
            doc_key=key,
            version=version,
            occurred_at=start,
            payload=json.dumps(body).encode(),
        )

    def receive(self, request: InboundRequest) -> Received:
        raise NotImplementedError

    def pull(self, context: PullContext) -> AsyncIterator[Page]:
        raise NotImplementedError

    def document(self, event: Event) -> Document:
        raise NotImplementedError

    def samples(self) -> Sequence[Sample]:
        raise NotImplementedError


@pytest.fixture
async def db(database_url: str) -> AsyncIterator[Postgres]:
    db = Postgres(database_url)
    await db.open()
    yield db
    await db.close()


@pytest.fixture
def toy() -> Toy:
    return Toy(PulledSettings())


@pytest.fixture
def readings(db: Postgres) -> Readings:
    return Readings(db, keep=FOREVER)


def reading(minutes: float, value: Any = 1, *, series: str = "a", kind: str = "n") -> Reading:
    """Minutes after noon of a day long past."""
    return Reading(series=series, kind=kind, at=START + timedelta(minutes=minutes), value=value)


async def keep(db: Postgres, readings: Readings, toy: Toy, *kept: Reading) -> int:
    async with db.transaction() as connection:
        return await readings.insert(connection, toy, kept)


async def landed(db: Postgres) -> dict[str, Any]:
    """Payloads of all events, by id."""
    rows = await db.fetch(
        "SELECT i.event_id, p.body FROM inbox i JOIN payloads p ON p.inbox_id = i.id ORDER BY 1"
    )
    return {row["event_id"]: json.loads(row["body"]) for row in rows}


async def test_a_window_holds_its_readings_by_time(db: Postgres, readings: Readings, toy: Toy) -> None:  # fmt: skip
    kept = await keep(db, readings, toy, reading(4.9, 2), reading(0, 1), reading(5, 3), reading(0, 9, kind="m"))  # fmt: skip
    assert kept == 4
    assert await readings.aggregate(toy, everything=True) == 2
    assert await landed(db) == {
        "a@20 12:00:1": [["12:00:00", "m", 9], ["12:00:00", "n", 1], ["12:04:54", "n", 2]],
        "a@20 12:05:1": [["12:05:00", "n", 3]],
    }
    assert await readings.aggregate(toy, everything=True) == 0


async def test_repeats_are_no_news(db: Postgres, readings: Readings, toy: Toy) -> None:
    assert await keep(db, readings, toy, reading(1), reading(1), reading(1, 7)) == 1
    await readings.aggregate(toy, everything=True)
    assert await keep(db, readings, toy, reading(1), reading(1, 7)) == 0
    assert await keep(db, readings, toy) == 0
    assert await readings.aggregate(toy, everything=True) == 0
    assert len(await landed(db)) == 1


async def test_a_late_point_opens_its_window_again(db: Postgres, readings: Readings, toy: Toy) -> None:  # fmt: skip
    await keep(db, readings, toy, reading(1), reading(6))
    await readings.aggregate(toy, everything=True)
    await keep(db, readings, toy, reading(2))
    assert await readings.aggregate(toy) == 1, (
        "its series has moved on long ago: it waits for nothing"
    )
    events = await landed(db)
    assert events["a@20 12:00:2"] == [["12:01:00", "n", 1], ["12:02:00", "n", 1]]
    assert list(events) == ["a@20 12:00:1", "a@20 12:00:2", "a@20 12:05:1"]


async def test_a_window_waits_until_its_series_moves_on(db: Postgres, readings: Readings, toy: Toy) -> None:  # fmt: skip
    await keep(db, readings, toy, reading(1), reading(1, series="b"))
    assert await readings.aggregate(toy) == 0, "more may come"
    await keep(db, readings, toy, reading(6))
    assert await readings.aggregate(toy) == 1
    assert list(await landed(db)) == ["a@20 12:00:1"], "the other series has not moved"
    await db.execute("UPDATE windows SET due_at = due_at - interval '30 seconds'")
    assert await readings.aggregate(toy) == 2, "nothing came for a while"


async def test_an_open_window_is_not_written_for_every_page(db: Postgres, readings: Readings, toy: Toy) -> None:  # fmt: skip
    at = now().replace(second=0, microsecond=0)
    for n in range(5):
        point = Reading(series="a", kind="n", at=at + timedelta(milliseconds=n), value=n)
        assert await keep(db, readings, toy, point) == 1
    # The row's version that a statement wrote is known by its transaction: all but the first left it alone.
    row = await db.fetch_one("SELECT due_at, xmin, (SELECT max(xmin::text::bigint) FROM readings) AS last FROM windows")  # fmt: skip
    assert row and int(row["xmin"]) < row["last"]
    assert row["due_at"] > now()


async def test_a_device_ahead_of_time_hurries_nobody(db: Postgres, readings: Readings, toy: Toy) -> None:  # fmt: skip
    ahead = Reading(series="a", kind="n", at=now() + timedelta(hours=3), value=1)
    await keep(db, readings, toy, Reading(series="a", kind="n", at=now(), value=1), ahead)
    assert await readings.aggregate(toy) == 0


async def test_values_come_back_as_they_were(db: Postgres, readings: Readings, toy: Toy) -> None:
    values = [None, 2**80, 1.5, "Göteborg", {"a": [1, {"b": False}]}, -(2**63)]
    await keep(db, readings, toy, *(reading(n / 10, value) for n, value in enumerate(values)))
    await readings.aggregate(toy, everything=True)
    assert [value for *_, value in (await landed(db))["a@20 12:00:1"]] == values


async def test_a_day_has_a_partition_made_when_it_is_needed(db: Postgres, readings: Readings, toy: Toy) -> None:  # fmt: skip
    midnight = 12 * 60
    await keep(
        db, readings, toy, reading(midnight - 0.001), reading(midnight), reading(-400 * 1440)
    )
    rows = await db.fetch("SELECT tableoid::regclass::text AS name FROM readings ORDER BY at")
    assert [row["name"] for row in rows] == [
        "readings_20241016",
        "readings_20251120",
        "readings_20251121",
    ]


async def test_many_need_the_same_new_day_at_once(db: Postgres, toy: Toy) -> None:
    several = [Readings(db, keep=FOREVER) for _ in range(6)]  # each as in a process of its own
    page = [reading(n, series=f"s{n}") for n in range(40)]
    orders = [page if n % 2 else page[::-1] for n in range(6)]
    kept = await asyncio.gather(*(keep(db, worker, toy, *order) for worker, order in zip(several, orders, strict=True)))  # fmt: skip
    assert sum(kept) == 40, "each reading was new to one of them"


def expiring(db: Postgres) -> Readings:
    """Readings whose retention ends at the midnight before `START`."""
    return Readings(db, keep=now() - START)


async def rest(db: Postgres) -> None:
    """No reading arrived for two days."""
    await db.execute("UPDATE windows SET due_at = due_at - interval '2 days'")


async def test_s1_readings_are_dropped_after_their_retention_and_late_ones_do_not_replace_a_window(
    db: Postgres, toy: Toy
) -> None:
    readings = expiring(db)
    await keep(db, readings, toy, reading(-1440), reading(-1440 + 1), reading(0), reading(-721))
    await readings.aggregate(toy, everything=True)
    assert await readings.forget() == [], "a backfill may bring more of them"
    await rest(db)
    assert await readings.forget() == ["readings_20251119"]
    rows = await db.fetch("SELECT start FROM windows")
    assert [row["start"] for row in rows] == [START], "windows within the retention are kept"
    assert await readings.forget() == []
    before = await landed(db)
    assert await keep(db, readings, toy, reading(-1440 + 2)) == 1
    await readings.aggregate(toy, everything=True)
    after = await landed(db)
    [late] = set(after) - set(before)
    assert len(after[late]) == 1, "what came late is an event of its own"
    order = await db.fetch(
        "SELECT event_id FROM inbox WHERE doc_key = 'a@19 12:00' ORDER BY version, event_id"
    )
    assert order[0]["event_id"] == late, "and older than the document of the whole window"
    assert len(after[order[-1]["event_id"]]) == 2


async def test_s1_a_window_that_waits_for_its_aggregation_keeps_its_readings(
    db: Postgres, toy: Toy
) -> None:
    """History of three vehicles: however the collector runs meanwhile, each window reaches the inbox whole."""
    readings = expiring(db)
    for minutes in range(0, 30, 5):
        page = [reading(minutes - 2 * 1440, n, series=series) for n, series in enumerate("abc")]
        await keep(db, readings, toy, *page)
        await rest(db)
        await readings.forget()
    assert await readings.aggregate(toy, everything=True) == 18
    assert [len(body) for body in (await landed(db)).values()] == [1] * 18
    await rest(db)
    assert await readings.forget() == ["readings_20251118"]


async def test_s1_dropping_waits_for_a_transaction_that_inserts_and_keeps_what_it_brings(
    db: Postgres, toy: Toy
) -> None:
    readings = expiring(db)
    await keep(db, readings, toy, reading(-1440))
    await readings.aggregate(toy, everything=True)
    await rest(db)
    async with db.transaction() as connection:
        await readings.insert(connection, toy, [reading(-1440 + 1)])
        forgetting = asyncio.create_task(readings.forget())
        await _waits(db, "LOCK")
        assert await readings.insert(connection, toy, [reading(-1440 + 2)]) == 1, "no deadlock"
    assert await forgetting == []
    assert await readings.aggregate(toy, everything=True) == 1
    assert sorted(map(len, (await landed(db)).values())) == [1, 3]


async def test_aggregations_at_once_share_the_work(db: Postgres, toy: Toy) -> None:
    several = [Readings(db, keep=FOREVER) for _ in range(4)]
    await keep(db, several[0], toy, *(reading(5 * n, series=f"s{m}") for n in range(50) for m in range(12)))  # fmt: skip
    counts = await asyncio.gather(*(worker.aggregate(toy, everything=True) for worker in several))
    assert sum(counts) == 600
    events = await landed(db)
    assert len(events) == 600 and all(event.endswith(":1") for event in events)


async def test_an_aggregation_that_dies_changes_nothing(
    db: Postgres, readings: Readings, toy: Toy
) -> None:
    await keep(db, readings, toy, *(reading(5 * n) for n in range(5)))
    toy.broken = True
    task = asyncio.get_running_loop().run_in_executor(None, _die, str(db._pool.conninfo), toy)
    with pytest.raises(KeyboardInterrupt):
        await task
    assert await landed(db) == {}
    toy.broken = False
    assert await readings.aggregate(toy, everything=True) == 5
    assert all(event.endswith(":1") for event in await landed(db))


async def test_a_page_that_dies_leaves_no_window(
    db: Postgres, readings: Readings, toy: Toy
) -> None:
    with pytest.raises(asyncio.CancelledError):
        async with db.transaction() as connection:
            await readings.insert(connection, toy, [reading(1)])
            raise asyncio.CancelledError
    assert await db.fetch("SELECT FROM windows") == []
    assert await readings.aggregate(toy, everything=True) == 0
    assert await keep(db, readings, toy, reading(1)) == 1, "its partition is made again, too"


async def test_a_reading_that_arrives_while_its_window_is_aggregated_is_not_lost(
    db: Postgres, readings: Readings, toy: Toy, monkeypatch: pytest.MonkeyPatch
) -> None:
    await keep(db, readings, toy, reading(1))
    gated = GatedLanding()
    monkeypatch.setattr(landing, "land", gated.land)
    aggregating = asyncio.create_task(readings.aggregate(toy, everything=True))
    await gated.reached.wait()
    arriving = asyncio.create_task(keep(db, readings, toy, reading(2)))
    await _waits(db, "WITH kept")
    gated.go.set()
    assert await arriving == 1
    await aggregating
    await readings.aggregate(toy, everything=True)
    events = await landed(db)
    assert [len(body) for body in events.values()] == [1, 2]


async def test_an_aggregation_leaves_a_window_that_is_being_written(db: Postgres, readings: Readings, toy: Toy) -> None:  # fmt: skip
    await keep(db, readings, toy, reading(1), reading(1, series="b"))
    async with db.transaction() as connection:
        await readings.insert(connection, toy, [reading(2)])
        assert await readings.aggregate(toy, everything=True) == 1
        assert list(await landed(db)) == ["b@20 12:00:1"]
    assert await readings.aggregate(toy, everything=True) == 1
    assert len((await landed(db))["a@20 12:00:1"]) == 2


async def test_reading_a_window_looks_into_the_index(db: Postgres, readings: Readings, toy: Toy) -> None:  # fmt: skip
    await keep(db, readings, toy, *(reading(n / 50, series=f"s{m}") for n in range(500) for m in range(20)))  # fmt: skip
    # Never analysed, as a partition of today is.
    async with db.transaction() as connection:
        plan = await _plan(connection, toy)
    assert "Seq Scan on readings" not in plan and "Index" in plan, plan


class GatedLanding:
    """`landing.land`, held up until `go` is set."""

    def __init__(self) -> None:
        self.reached, self.go = asyncio.Event(), asyncio.Event()
        self._land = landing.land

    async def land(self, connection: Connection, events: Sequence[Event]) -> list[LandResult]:
        self.reached.set()
        await self.go.wait()
        return await self._land(connection, events)


def _die(url: str, toy: Toy) -> None:
    """Aggregate in an event loop that the interrupt ends, as a Ctrl-C would end a process."""

    async def aggregate() -> None:
        db = Postgres(url)
        await db.open()
        try:
            await Readings(db, keep=FOREVER).aggregate(toy, everything=True)
        finally:
            await db.close()

    asyncio.run(aggregate())


async def _waits(db: Postgres, statement: str) -> None:
    """Wait until a statement that begins so waits for a lock."""
    query = "SELECT FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND query LIKE %s"
    await until(lambda: db.fetch(query, (f"{statement}%",)), "a statement waits for a lock")


async def _plan(connection: Connection, toy: Toy) -> str:
    cursor = await connection.execute(
        "EXPLAIN " + windows._READINGS_OF_WINDOWS,
        (["s1"], [START], toy.name, toy.window_seconds),
    )
    return "\n".join(row["QUERY PLAN"] for row in await cursor.fetchall())
