"""What bounds the attempts of an event, so that none holds its source: crashes, time-outs, parking, operators' decisions."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncIterator, Sequence
from dataclasses import replace
from datetime import timedelta
from time import monotonic
from typing import Any

import pytest

from apex_memory.app import App, open_app
from apex_memory.errors import Conflict, NotFound, NoWrites, Unavailable
from apex_memory.fetching.backfills import ReplayedChunk
from apex_memory.model import Event, LandResult, VectorPoint, Vectors, now
from apex_memory.saga.dead_letters import DeadLetter
from apex_memory.saga.failures import MOST_PARKS
from apex_memory.saga.groups import next_group
from apex_memory.saga.stage import Stage
from apex_memory.sources.base import InboundRequest
from tests.documents import PDF
from tests.e2e.conftest import MakeSettings, land, live, state, text_event
from tests.unit.test_reader_limits import looping_pdf
from tests.waiting import until

POISON = "poison"


class WorkerEnds(BaseException):
    """Stands for what no worker survives: it is killed, or its memory is used up."""


@pytest.fixture
async def app(make_settings: MakeSettings) -> AsyncIterator[App]:
    async with open_app(make_settings(max_attempts=3, prepare_seconds=0.5)) as app:
        await app.recovery.check_restarted_stores()
        yield app


async def land_texts(app: App, count: int) -> tuple[list[LandResult], LandResult]:
    """So many harmless events, and one poison among them."""
    events = [text_event(app, f"d{n}", f"text {n}", version=1) for n in range(count)]
    events.insert(count // 2, text_event(app, POISON, "text", version=1))
    landed = await land(app, *events)
    return landed[: count // 2] + landed[count // 2 + 1 :], landed[count // 2]


async def work(app: App, attempts: int = 50) -> int:
    """Drain in one worker after the other until the source is empty; return the number of workers that ended."""
    ended = 0
    for _ in range(attempts):
        try:
            await app.direct.drain("documents")
        except WorkerEnds:
            ended += 1
            # The lease of the batch that the dead worker held runs out.
            await app.db.execute("UPDATE inbox SET next_at = clock_timestamp() WHERE open")
            continue
        if not await app.db.fetch("SELECT FROM inbox WHERE open"):
            return ended
        await app.db.execute("UPDATE inbox SET next_at = clock_timestamp() WHERE open")
    raise AssertionError(f"events are still open after {attempts} workers")


async def letter_of(app: App, landed: LandResult) -> DeadLetter:
    letters = await app.dead_letters.find(status=None)
    return next(letter for letter in letters if letter.inbox_id == landed.id)


async def assert_only_the_poison_died(
    app: App, harmless: Sequence[LandResult], poison: LandResult
) -> DeadLetter:
    assert [await state(app, landed) for landed in harmless] == ["done"] * len(harmless)
    assert await state(app, poison) == "dead"
    return await letter_of(app, poison)


async def test_w1_an_event_that_ends_the_worker_while_it_is_prepared_becomes_a_dead_letter(
    app: App, monkeypatch: pytest.MonkeyPatch
) -> None:
    harmless, poison = await land_texts(app, 40)
    prepare = app.pipeline.prepare

    async def prepare_or_end(work: Sequence[Any]) -> Any:
        if any(event.doc_key == POISON for event, _ in work):
            raise WorkerEnds
        return await prepare(work)

    monkeypatch.setattr(app.pipeline, "prepare", prepare_or_end)
    assert await work(app) == 3
    letter = await assert_only_the_poison_died(app, harmless, poison)
    assert letter.step == "prepare" and "3 times" in letter.message


async def test_w1_an_event_that_ends_the_worker_while_it_is_published_becomes_a_dead_letter(
    app: App, monkeypatch: pytest.MonkeyPatch
) -> None:
    harmless, poison = await land_texts(app, 40)
    stage_and_verify = app.publication._stage_and_verify

    async def stage_or_end(stages: Sequence[Stage]) -> Any:
        if any(stage.manifest.doc_key == POISON for stage in stages):
            raise WorkerEnds
        return await stage_and_verify(stages)

    monkeypatch.setattr(app.publication, "_stage_and_verify", stage_or_end)
    assert await work(app) == 3
    letter = await assert_only_the_poison_died(app, harmless, poison)
    assert letter.step == "stage" and "3 times" in letter.message


async def test_w1_an_event_that_is_never_prepared_in_time_becomes_a_dead_letter(
    app: App, monkeypatch: pytest.MonkeyPatch
) -> None:
    harmless, poison = await land_texts(app, 20)
    prepare = app.pipeline.prepare

    async def prepare_or_hang(work: Sequence[Any]) -> Any:
        if any(event.doc_key == POISON for event, _ in work):
            await asyncio.Event().wait()
        return await prepare(work)

    monkeypatch.setattr(app.pipeline, "prepare", prepare_or_hang)
    assert await work(app) == 0, "a time-out ends no worker"
    letter = await assert_only_the_poison_died(app, harmless, poison)
    assert "longer than" in letter.message


async def test_w1_a_redriven_event_gets_all_its_attempts_again(
    app: App, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, poison = await land_texts(app, 1)
    with monkeypatch.context() as patch:

        async def end(work: Sequence[Any]) -> Any:
            raise WorkerEnds

        patch.setattr(app.pipeline, "prepare", end)
        assert await work(app) > 0
    await app.dead_letters.redrive([(await letter_of(app, poison)).id], actor="test")
    assert await work(app) == 0
    assert await state(app, poison) == "done"


def test_groups_get_smaller_and_the_harmless_come_first() -> None:
    ids = [uuid.uuid4() for _ in range(60)]
    assert next_group({}) == []
    assert next_group(dict.fromkeys(ids, 0)) == ids
    assert next_group(dict.fromkeys(ids, 1)) == ids[:16]
    assert next_group(dict.fromkeys(ids, 2)) == ids[:1]
    assert next_group({ids[0]: 4, ids[1]: 0, ids[2]: 1, ids[3]: 0}) == [ids[1], ids[3]]


async def test_an_event_that_its_store_never_takes_becomes_a_dead_letter_while_others_pass(
    app: App, monkeypatch: pytest.MonkeyPatch
) -> None:
    harmless, poison = await land_texts(app, 4)
    upsert = app.vectors.upsert

    async def upsert_or_fail(points: Sequence[VectorPoint], vectors: Vectors) -> None:
        if any(point.doc == poison.doc_id for point in points):
            raise Unavailable("vectors", "it does not respond")
        await upsert(points, vectors)

    monkeypatch.setattr(app.vectors, "upsert", upsert_or_fail)
    async with asyncio.timeout(60):
        while await state(app, poison) != "dead":
            await app.direct.drain("documents")
            await asyncio.sleep(app.settings.breaker_open_seconds)  # the breaker's own wait
            await app.upkeep.sweep()
    letter = await assert_only_the_poison_died(app, harmless, poison)
    assert f"parked {MOST_PARKS} times" in letter.message


async def test_an_outage_makes_no_dead_letters_however_often_events_are_parked(
    app: App, monkeypatch: pytest.MonkeyPatch
) -> None:
    harmless, poison = await land_texts(app, 3)
    with monkeypatch.context() as patch:

        async def fail(points: Sequence[VectorPoint], vectors: Vectors) -> None:
            raise Unavailable("vectors", "it does not respond")

        patch.setattr(app.vectors, "upsert", fail)
        for _ in range(MOST_PARKS * 2):
            await app.direct.drain("documents")
            await app.db.execute(
                """UPDATE inbox SET parks = parks + 2, state = 'prepared', next_at = clock_timestamp()
                   WHERE state = 'parked'"""
            )
    assert await app.dead_letters.find(status=None) == []
    await asyncio.sleep(app.settings.breaker_open_seconds)  # the breaker's own wait
    assert await work(app) == 0
    assert [await state(app, landed) for landed in [*harmless, poison]] == ["done"] * 4


async def test_a_store_without_space_makes_no_dead_letters_although_it_served_others_before(
    app: App, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Space comes and goes: small documents pass between two refusals of a large one, which is not to blame."""
    harmless, large = await land_texts(app, 4)
    upsert = app.vectors.upsert

    async def upsert_or_refuse(points: Sequence[VectorPoint], vectors: Vectors) -> None:
        if any(point.doc == large.doc_id for point in points):
            raise NoWrites("vectors", "the disk is nearly full")
        await upsert(points, vectors)

    with monkeypatch.context() as patch:
        patch.setattr(app.vectors, "upsert", upsert_or_refuse)
        for turn in range(MOST_PARKS + 2):
            await land(app, text_event(app, f"small{turn}", "text", version=1))
            await app.direct.drain("documents")
            await app.db.execute(
                "UPDATE inbox SET state = 'prepared', next_at = clock_timestamp() WHERE state = 'parked'"
            )
            await asyncio.sleep(app.settings.breaker_open_seconds)  # the breaker's own wait
    assert await app.dead_letters.find(status=None) == []
    row = await app.db.fetch_one("SELECT parks FROM inbox WHERE id = %s", (large.id,))
    assert row == {"parks": 0}, "no attempt of the event counts"
    assert await work(app) == 0
    assert [await state(app, landed) for landed in [*harmless, large]] == ["done"] * 5


@pytest.mark.parametrize("step", ["received", "prepared", "staged", "parked"])
async def test_w1_an_event_that_is_not_final_can_be_discarded(app: App, step: str) -> None:
    [landed] = await land(app, text_event(app, "a", "text", version=1))
    batch = await app.steps.claim("documents")
    stages: list[Stage] = []
    if step != "received":
        await app.steps.prepare("documents", batch.id)
    if step == "staged":
        stages = (await app.publication.journal.begin(batch.id)).stages
    if step == "parked":
        await app.db.execute(
            "UPDATE inbox SET state = 'parked', park_store = 'graph', batch = NULL"
        )
    [letter] = await app.dead_letters.discard_events([landed.id], actor="ops", reason="too large")
    assert (letter.status, letter.actor, letter.resolution) == (
        "discarded",
        "ops",
        "too large",
    )
    assert await state(app, landed) == "dead"
    # The worker that was at it changes nothing.
    await app.steps.prepare("documents", batch.id)
    commit = await app.publication.journal.commit(
        batch.id, stages, graph_at=now(), vectors_at=now()
    )
    assert commit.done == [] and len(commit.lost) == len(stages)
    await app.steps.publish(batch.id)
    assert await work(app) == 0
    assert await state(app, landed) == "dead" and await live(app, "a") is None
    assert (await app.inbox.event(landed.id)).payload, "the raw event stays"
    with pytest.raises(Conflict, match="is dead"):
        await app.dead_letters.discard_events([landed.id], actor="ops", reason="again")


async def test_discarding_an_unknown_event_changes_nothing(app: App) -> None:
    [landed] = await land(app, text_event(app, "a", "text", version=1))
    with pytest.raises(NotFound):
        await app.dead_letters.discard_events(
            [landed.id, uuid.uuid4()], actor="ops", reason="typing error"
        )
    assert await state(app, landed) == "received"


async def test_a_replay_leaves_discarded_events_alone(app: App) -> None:
    kept, discarded = await land(
        app, text_event(app, "a", "one", version=1), text_event(app, "b", "two", version=1)
    )
    await app.dead_letters.discard_events([discarded.id], actor="ops", reason="not ours")
    await work(app)
    id = await app.backfills.create(
        "documents", "replay", now() - timedelta(hours=1), now() + timedelta(hours=1), actor="test"
    )
    assert await app.backfills.replay_chunk(id) == ReplayedChunk(1, 1, more=True)
    await work(app)
    assert await live(app, "a") and await live(app, "b") is None
    assert await state(app, kept) == "done"
    assert (await letter_of(app, discarded)).status == "discarded"


async def test_a_replay_leaves_open_dead_letters_to_their_redrive(app: App) -> None:
    """A copy of each would fail too: every replay would double the list."""
    await land(app, text_event(app, "a", "one", version=1))
    [unreadable] = await land(app, replace(text_event(app, "b", "two", version=1), payload=b"\x00"))
    await work(app)
    assert await state(app, unreadable) == "dead"
    id = await app.backfills.create(
        "documents", "replay", now() - timedelta(hours=1), now() + timedelta(hours=1), actor="test"
    )
    assert await app.backfills.replay_chunk(id) == ReplayedChunk(1, 1, more=True)
    await work(app)
    [row] = await app.db.fetch("SELECT count(*) AS letters FROM dead_letters")
    assert row["letters"] == 1


async def test_o1_a_document_that_names_another_shipment_on_each_line_stops_nobody(
    make_settings: MakeSettings,
) -> None:
    """Each call to a store stays small, so that its time limit holds for a giant, too, and no breaker opens."""
    async with open_app(make_settings(call_timeout_seconds=2, retry_attempts=1)) as app:
        await app.recovery.check_restarted_stores()
        lines = "\n".join(f"Shipment SHP-{n} left." for n in range(100_000, 180_000))
        calls: list[int] = []
        upsert = app.vectors.upsert

        async def measured(points: Sequence[VectorPoint], vectors: Vectors) -> None:
            calls.append(sum(len(ref) for point in points for ref in point.entities))
            await upsert(points, vectors)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(app.vectors, "upsert", measured)
            giant, *small = await land(
                app,
                text_event(app, "giant", lines, version=1),
                *(text_event(app, f"d{n}", f"text {n}", version=1) for n in range(26)),
            )
            await work(app)
        assert [await state(app, landed) for landed in [giant, *small]] == ["done"] * 27
        assert {
            name: store.breaker.state for name, store in app.publication._resilient_stores.items()
        } == {
            "graph": "closed",
            "vectors": "closed",
        }
        assert max(calls) < 200_000, "characters of entities in one call"


async def stalled_sources(app: App) -> dict[str, str]:
    sources = await app.fetcher.states.listed()
    return {source.name: source.state for source in sources if source.stalled is not None}


async def test_o2_a_source_that_nobody_works_on_shows_and_is_drained_by_the_direct_path(
    app: App,
) -> None:
    """Whatever sequences the steps is stuck: it lands, it may even have claimed, and then nothing happens."""
    [first, second] = await land(
        app, text_event(app, "a", "one", version=1), text_event(app, "b", "two", version=1)
    )
    assert await stalled_sources(app) == {}, "it has only just landed"
    await app.steps.claim("documents")
    await app.db.execute("UPDATE inbox SET next_at = next_at - interval '1 h'")
    assert await stalled_sources(app) == {"documents": "stalled"}
    await app.fetcher.states.decide("documents", actor="test", paused=True)
    assert await app.inbox.stalled(seconds=0) == {} and await stalled_sources(app) == {}
    await app.fetcher.states.decide("documents", actor="test", paused=False)
    await app.stalled.look()

    async def all_done() -> bool:
        return [await state(app, landed) for landed in (first, second)] == ["done"] * 2

    await until(all_done, "the direct path drains it")
    assert await stalled_sources(app) == {}


async def test_o2_a_source_with_a_live_lease_is_not_stalled(app: App) -> None:
    """A long backlog waits, too, while a worker makes progress on it."""
    await land(app, *(text_event(app, f"d{n}", "text", version=1) for n in range(4)))
    await app.db.execute("UPDATE inbox SET next_at = next_at - interval '1 h'")
    await app.db.execute(
        """UPDATE inbox SET batch = gen_random_uuid(), next_at = clock_timestamp() + interval '1 min'
           WHERE doc_key = 'd0'"""
    )
    assert await app.inbox.stalled(seconds=0) == {} and await stalled_sources(app) == {}


SLOW_SECONDS = 3.0  # that reading the files of one event may take
SLOW_FILES = 10


def slow_event(app: App, name: str) -> Event:
    request = InboundRequest(
        body=looping_pdf(),
        headers={"content-type": PDF, "idempotency-key": name},
        query={"key": name, "version": "1", "name": "loop.pdf"},
        received_at=now(),
    )
    return app.sources["documents"].receive(request).events[0]


async def seconds_until_dead(app: App, landed: Sequence[LandResult]) -> float:
    """Drain until these events are dead letters of the time limit; return how long that took."""
    began = monotonic()
    while True:
        await app.direct.drain("documents")
        if {await state(app, item) for item in landed} == {"dead"}:
            break
        assert monotonic() - began < 100
    letters = [await letter_of(app, item) for item in landed]
    assert all("limit `reader_seconds`" in letter.message for letter in letters)
    return monotonic() - began


@pytest.mark.timeout(240)
async def test_w6_slow_files_of_one_batch_end_in_bounded_time_and_their_neighbours_are_published(
    make_settings: MakeSettings,
) -> None:
    """The time that a batch may take is five times that of an event, as by default."""
    settings = make_settings(
        reader_seconds=SLOW_SECONDS, reader_cpu_seconds=30, prepare_seconds=5 * SLOW_SECONDS
    )

    async with open_app(settings) as app:
        await app.recovery.check_restarted_stores()
        alone = await seconds_until_dead(app, await land(app, slow_event(app, "alone")))
        poison = [slow_event(app, f"slow{n}") for n in range(SLOW_FILES)]
        harmless = [text_event(app, f"d{n}", f"text {n}", version=1) for n in range(4)]
        landed = await land(app, *harmless[:2], *poison, *harmless[2:])
        neighbours = [item for item in landed if "slow" not in item.event_id]
        together = await seconds_until_dead(
            app, [item for item in landed if item not in neighbours]
        )
        assert [await state(app, item) for item in neighbours] == ["done"] * 4
        # All but one of the reader's processes work on them, and none is read twice.
        assert together < SLOW_FILES * alone, f"{together:.1f} s, one alone {alone:.1f} s"
