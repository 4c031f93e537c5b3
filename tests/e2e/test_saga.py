"""The saga on real engines: an update, a redelivery, a late older version, a delete, and what crashes leave behind."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest

from apex_memory.app import App, open_app
from apex_memory.errors import Misconfigured, Rejected, Unavailable
from apex_memory.model import Tally
from apex_memory.pipeline.embedders.hashing import HashingEmbedder
from apex_memory.pipeline.reuse import PassageVectors
from apex_memory.saga.manifests import live_manifests
from apex_memory.steps import direct
from apex_memory.stores.cache import Cache
from tests.e2e.conftest import MakeSettings, delete_event, land, live, state, text_event
from tests.faulty import Fault, Faulty


async def stages(app: App, state: str) -> list[dict[str, Any]]:
    return await app.db.fetch("SELECT * FROM stages WHERE state = %s", (state,))


async def held(app: App, stage: uuid.UUID) -> tuple[int, int]:
    """Items of a stage in (graph, vectors)."""
    graph = (await app.graph.tally([stage])).get(stage, Tally())
    vectors = (await app.vectors.tally([stage])).get(stage, Tally())
    return graph.count, vectors.count


async def test_one_event_becomes_one_document_in_all_stores(app: App) -> None:
    [landed] = await land(
        app, text_event(app, "a", "Shipment SHP-100045 left Columbus, OH.", version=1)
    )
    assert await app.direct.drain("documents") == 1
    assert await state(app, landed) == "done"
    document = await live(app, "a")
    assert document and "shipment:SHP-100045" in document["entities"]
    edges, points = await held(app, document["stage_id"])
    assert edges > 0 and points == 1


async def test_an_update_replaces_the_version_and_the_old_stage_is_collected_after_the_grace(
    make_settings: MakeSettings,
) -> None:
    async with open_app(make_settings(call_timeout_seconds=1)) as app:
        await _update_and_collect(app)


async def _update_and_collect(app: App) -> None:
    await land(app, text_event(app, "a", "first text", version=1))
    await app.direct.drain("documents")
    first = await live(app, "a")
    await land(app, text_event(app, "a", "second text", version=2))
    await app.direct.drain("documents")
    second = await live(app, "a")
    assert (
        first
        and second
        and second["text"] == "second text"
        and second["stage_id"] != first["stage_id"]
    )
    assert await app.upkeep.collect() == 0, "within the grace a reader may still see it"
    assert (await held(app, first["stage_id"]))[1] == 1
    # The grace itself is what is tested: it counts from the end of the longest possible flip.
    await asyncio.sleep(app.settings.grace_seconds + app.settings.call_timeout_seconds + 0.1)
    assert await app.upkeep.collect() == 1
    assert await held(app, first["stage_id"]) == (0, 0)
    assert (await held(app, second["stage_id"]))[1] == 1


async def test_landing_calls_no_store_but_postgresql(
    app: App, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing stands between a request and its 202 but the commit."""

    def called(*_: Any, **__: Any) -> None:
        raise AssertionError("landing called another store")

    for store in (Cache, type(app.graph), type(app.vectors)):
        for name in [name for name in vars(store) if not name.startswith("__")]:
            if callable(getattr(store, name)):
                monkeypatch.setattr(store, name, called)
    [landed] = await land(app, text_event(app, "a", "text", version=1))
    monkeypatch.undo()
    assert await state(app, landed) == "received"


async def test_a_redelivery_changes_nothing(app: App) -> None:
    event = text_event(app, "a", "text", version=1)
    [first] = await land(app, event)
    await app.direct.drain("documents")
    before = await live(app, "a")
    [again] = await land(app, event)
    assert again.duplicate and again.id == first.id
    assert await app.direct.drain("documents") == 0
    assert await live(app, "a") == before


async def test_vectors_stay_where_only_the_version_of_the_pipeline_changes(app: App) -> None:
    [landed] = await land(app, text_event(app, "a", "text", version=1))
    await app.direct.drain("documents")
    await app.db.execute("UPDATE manifests SET pipeline = '0/' || split_part(pipeline, '/', 2)")
    document = await live(app, "a")
    assert document
    vectors = PassageVectors(HashingEmbedder(), None).id
    [manifest] = await live_manifests(app.db, [document["doc_id"]], vectors)
    assert manifest.inbox_id == landed.id and len(manifest.vectors) == 1
    assert not await live_manifests(app.db, [document["doc_id"]], f"{vectors}0")


async def test_a_late_older_version_is_superseded(app: App) -> None:
    await land(app, text_event(app, "a", "newer", version=2))
    await app.direct.drain("documents")
    [late] = await land(app, text_event(app, "a", "older", version=1))
    await app.direct.drain("documents")
    document = await live(app, "a")
    assert await state(app, late) == "superseded"
    assert document and document["text"] == "newer"


async def test_versions_in_one_batch_end_with_the_newest(app: App) -> None:
    events = [text_event(app, "a", f"text {n}", version=n) for n in (3, 1, 5, 2, 4)]
    landed = await land(app, *events)
    await app.direct.drain("documents")
    document = await live(app, "a")
    assert document and document["text"] == "text 5"
    states = [await state(app, item) for item in landed]
    assert sorted(states) == ["done"] + ["superseded"] * 4


async def test_equal_versions_are_decided_by_event_id_in_either_order(app: App) -> None:
    for key, order in (("a", ("x", "y")), ("b", ("y", "x"))):
        for name in order:
            await land(
                app, text_event(app, key, f"text of {name}", version=7, event_id=f"{key}-{name}")
            )
            await app.direct.drain("documents")
        document = await live(app, key)
        assert document and document["text"] == "text of y"


async def test_a_delete_hides_and_an_older_version_does_not_revive(app: App) -> None:
    event = text_event(app, "a", "text", version=1)
    await land(app, event)
    await app.direct.drain("documents")
    [gone] = await land(app, delete_event(event, version=5))
    await app.direct.drain("documents")
    assert await state(app, gone) == "done"
    assert await live(app, "a") is None
    [late] = await land(app, text_event(app, "a", "late", version=3))
    await app.direct.drain("documents")
    assert await state(app, late) == "superseded" and await live(app, "a") is None
    await land(app, text_event(app, "a", "again", version=9))
    await app.direct.drain("documents")
    document = await live(app, "a")
    assert document and document["text"] == "again"


async def test_poison_ends_as_dead_letter_and_its_neighbours_go_on(app: App) -> None:
    good = [text_event(app, f"g{n}", f"good {n}", version=1) for n in range(5)]
    poison = replace(good[2], event_id="poison", doc_key="p", payload=b"\x00not an envelope")
    landed = await land(app, *good, poison)
    await app.direct.drain("documents")
    assert [await state(app, item) for item in landed] == ["done"] * 5 + ["dead"]
    [letter] = await app.dead_letters.find()
    assert letter.step == "prepare" and letter.event_id == "poison" and letter.message
    assert "not an envelope" not in letter.message, "payloads stay out of messages"


async def test_a_dead_letter_is_redriven_or_superseded(app: App) -> None:
    poison = replace(text_event(app, "p", "x", version=1), payload=b"junk")
    [landed] = await land(app, poison)
    await app.direct.drain("documents")
    [letter] = await app.dead_letters.find()
    assert [
        redriven.id
        for redriven in await app.dead_letters.redrive([letter.id], actor="test", dry_run=True)
    ] == [letter.id]
    assert await state(app, landed) == "dead", "a dry run changes nothing"
    await app.dead_letters.redrive([letter.id], actor="test")
    await app.direct.drain("documents")
    assert (await app.dead_letters.show(letter.id)).status == "open", "still poison: open again"
    await land(app, text_event(app, "p", "healthy", version=2))
    await app.direct.drain("documents")
    assert (await app.dead_letters.show(letter.id)).status == "superseded"


async def test_a_crash_before_commit_leaves_the_prior_version_and_is_swept(app: App) -> None:
    await land(app, text_event(app, "a", "good", version=1))
    await app.direct.drain("documents")
    [landed] = await land(app, text_event(app, "a", "update", version=2))
    batch = await app.steps.claim("documents")
    await app.steps.prepare("documents", batch.id)
    begun = await app.publication.journal.begin(batch.id)
    assert not await app.publication.stage_and_verify(begun.stages)
    # The worker dies here: staged, verified, not committed.
    document = await live(app, "a")
    assert document and document["text"] == "good"
    assert (await held(app, begun.stages[0].id))[1] == 1
    await app.db.execute(
        "UPDATE stages SET lease_until = now() - interval '1 s' WHERE state = 'staging'"
    )
    swept = await app.upkeep.sweep()
    assert (swept.expired, swept.removed) == (1, 1)
    assert await held(app, begun.stages[0].id) == (0, 0)
    assert not (
        await app.publication.journal.commit(
            batch.id,
            begun.stages,
            graph_at=document["committed_at"],
            vectors_at=document["committed_at"],
        )
    ).done, "dead never revives"
    await app.db.execute("UPDATE inbox SET next_at = now() WHERE id = %s", (landed.id,))
    await app.direct.drain("documents")
    document = await live(app, "a")
    assert document and document["text"] == "update"


async def test_a_worker_that_wakes_late_finds_its_commit_refused(app: App) -> None:
    [landed] = await land(app, text_event(app, "a", "text", version=1))
    slow = await app.steps.claim("documents")
    await app.steps.prepare("documents", slow.id)
    begun = await app.publication.journal.begin(slow.id)
    await app.db.execute("UPDATE inbox SET next_at = now()")  # its lease has run out
    await app.cache.unlock([landed.doc_id], slow.id)
    assert await app.direct.drain("documents") == 1
    winner = await live(app, "a")
    assert winner
    assert not await app.publication.stage_and_verify(begun.stages)
    late = await app.publication.journal.commit(
        slow.id, begun.stages, graph_at=winner["committed_at"], vectors_at=winner["committed_at"]
    )
    assert late.done == [] and late.lost == [landed.id]
    assert await live(app, "a") == winner


@pytest.mark.parametrize("store", ["graph", "vectors"])
async def test_a_store_that_is_gone_parks_events_and_they_go_on_by_themselves(
    make_settings: MakeSettings, store: str
) -> None:
    async with open_app(make_settings(retry_attempts=1)) as app:
        await app.recovery.check_restarted_stores()
        real = getattr(app, store)
        gone = Faulty(real)
        gone.plan(Fault.FAIL, "upsert", "tally", "ping")
        setattr(app.publication, f"_{store}", gone)
        app.sweeper._stores = {**app.sweeper._stores, store: gone}
        landed = await land(
            app, *(text_event(app, f"d{n}", f"SHP-20004{n}", version=1) for n in range(25))
        )
        await app.direct.drain("documents")
        rows = await app.db.fetch("SELECT state, park_store, attempts FROM inbox")
        assert {(row["state"], row["park_store"], row["attempts"]) for row in rows} == {
            ("parked", store, 0)
        }
        assert (await app.upkeep.sweep()).unparked == {}, "it does not answer: nothing is let out"
        gone.heal()
        freed = []
        for _ in range(4):
            await asyncio.sleep(app.settings.breaker_open_seconds)  # the breaker's own wait
            freed.append((await app.upkeep.sweep()).unparked.get(store, 0))
            await app.direct.drain("documents")
        assert freed[:3] == [1, 10, 14], "one probe, then a ramp"
        assert {await state(app, item) for item in landed} == {"done"}


async def test_what_a_store_acknowledged_but_does_not_hold_is_not_committed(
    make_settings: MakeSettings,
) -> None:
    """The verify step; and the control: without it the lie becomes visible."""
    async with open_app(make_settings()) as app:
        lying = Faulty(app.vectors)
        lying.plan(Fault.DROP, "upsert", times=1)
        app.publication._vectors = lying
        [landed] = await land(app, text_event(app, "a", "text", version=1))
        await app.direct.drain("documents")
        assert await live(app, "a") is None
        assert await state(app, landed) in ("received", "prepared")
        await app.db.execute("UPDATE inbox SET next_at = now()")
        await app.direct.drain("documents")
        assert await state(app, landed) == "done"

        lying.plan(Fault.DROP, "upsert", times=1)
        app.publication.verify = _believe  # type: ignore[method-assign] # no check
        await land(app, text_event(app, "b", "text", version=1))
        await app.direct.drain("documents")
        document = await live(app, "b")
        assert document and (await held(app, document["stage_id"]))[1] == 0, (
            "control: unverified, a document without vectors is visible"
        )


async def _believe(stages: object) -> dict[uuid.UUID, Any]:
    return {}


async def test_a_refused_document_is_found_by_bisection(make_settings: MakeSettings) -> None:
    async with open_app(make_settings()) as app:
        picky = _Picky(app.graph, {str(text_event(app, "d3", "x", version=1).doc_id)})
        app.publication._graph = picky
        landed = await land(
            app, *(text_event(app, f"d{n}", f"SHP-10004{n}", version=1) for n in range(8))
        )
        await app.direct.drain("documents")
        states = [await state(app, item) for item in landed]
        assert states == ["done"] * 3 + ["dead"] + ["done"] * 4


async def test_many_refusals_alike_park_the_batch(make_settings: MakeSettings) -> None:
    async with open_app(make_settings()) as app:
        events = [text_event(app, f"d{n}", f"SHP-10004{n}", version=1) for n in range(8)]
        app.publication._graph = _Picky(app.graph, {str(event.doc_id) for event in events[:4]})
        landed = await land(app, *events)
        await app.direct.drain("documents")
        assert [await state(app, item) for item in landed] == ["parked"] * 4 + ["done"] * 4
        assert await app.dead_letters.find() == []


class _Picky:
    """A graph that refuses certain documents, as a server with a broken constraint would."""

    def __init__(self, graph: Any, refused: set[str]) -> None:
        self._graph = graph
        self._refused = refused

    def __getattr__(self, name: str) -> Any:
        return getattr(self._graph, name)

    async def upsert(self, assertions: Any) -> None:
        if any(str(item.doc) in self._refused for item in assertions):
            raise Rejected("graph: refuses a value")
        await self._graph.upsert(assertions)


async def test_a_store_that_lost_data_is_repaired_from_manifests(app: App) -> None:
    await land(app, *(text_event(app, f"d{n}", f"SHP-10004{n} text", version=1) for n in range(6)))
    await app.direct.drain("documents")
    before = {row["stage_id"] for row in await stages(app, "committed")}
    lost = sorted(before)[:2]
    await app.vectors.delete_stages(lost)
    await app.vectors.flush()
    assert (await app.recovery.states())["vectors"] == "ready"
    await app.db.execute("UPDATE store_state SET incarnation = 'another' WHERE store = 'vectors'")
    assert (await app.recovery.states())["vectors"] == "recovering", "until it is checked"
    # A second look at the same time waits, and finds it done; what is written meanwhile is not held up.
    await land(app, text_event(app, "d6", "SHP-100046 text", version=1))
    [checked], again, _ = await asyncio.gather(
        app.recovery.check_restarted_stores(),
        app.recovery.check_restarted_stores(),
        app.direct.drain("documents"),
    )
    assert (checked.store, checked.repaired, checked.errors, again) == ("vectors", 2, [], [])
    assert (await app.recovery.states())["vectors"] == "ready"
    now_live = {row["stage_id"] for row in await stages(app, "committed")}
    assert len(now_live) == 7 and not now_live & set(lost)
    for stage in now_live:
        assert (await held(app, stage))[1] == 1


async def test_deleting_a_parent_takes_its_children_and_restoring_brings_them_back(
    app: App,
) -> None:
    front = app.sources["frontapp"]
    from tests.e2e.front import conversation, message, request

    events = [
        message("msg_1", "cnv_1", at=10),
        message("msg_2", "cnv_1", at=11),
        conversation("cnv_1", "archive", at=12),
    ]
    for body in events:
        await app.inbox.land(front.receive(request(front, body)).events)
    await app.direct.drain("frontapp")
    assert await live(app, "message:msg_1") and await live(app, "message:msg_2")
    await app.inbox.land(
        front.receive(request(front, conversation("cnv_1", "trash", at=20))).events
    )
    await app.direct.drain("frontapp")
    assert (
        await live(app, "message:msg_1") is None and await live(app, "conversation:cnv_1") is None
    )
    # One that comes late finds its conversation deleted.
    await app.inbox.land(front.receive(request(front, message("msg_3", "cnv_1", at=15))).events)
    await app.direct.drain("frontapp")
    assert await live(app, "message:msg_3") is None
    await app.inbox.land(
        front.receive(request(front, conversation("cnv_1", "restore", at=30))).events
    )
    await app.direct.drain("frontapp")
    for key in ("message:msg_1", "message:msg_2", "message:msg_3", "conversation:cnv_1"):
        assert await live(app, key), key


async def test_a_batch_that_breaks_a_step_is_taken_apart_until_the_one_to_blame_is_dead(
    make_settings: MakeSettings,
) -> None:
    async with open_app(make_settings(max_attempts=2)) as app:
        cursed = text_event(app, "d2", "text", version=1)
        events = [text_event(app, f"d{n}", f"text {n}", version=1) for n in (0, 1, 3)]
        landed = await land(app, *events, cursed)
        prepare = app.pipeline.prepare

        async def break_on_one(work: Any, *, reuse: bool = True) -> Any:
            if any(event.id == cursed.id for event, _ in work):
                raise ZeroDivisionError("a bug that nobody foresaw")
            return await prepare(work, reuse=reuse)

        app.pipeline.prepare = break_on_one  # type: ignore[method-assign] # has a bug
        for _ in range(20):
            batch = await app.steps.claim("documents")
            if batch.events:
                try:
                    await app.steps.prepare("documents", batch.id)
                    await app.steps.publish(batch.id)
                except ZeroDivisionError:
                    await app.steps.give_up(
                        "documents", batch.id, "prepare", "ZeroDivisionError in prepare"
                    )
            await app.db.execute("UPDATE inbox SET next_at = now() WHERE batch IS NULL")
        assert [await state(app, item) for item in landed] == ["done", "done", "done", "dead"]
        [letter] = await app.dead_letters.find()
        assert letter.step == "prepare" and letter.attempts == 2


async def test_the_next_batch_is_prepared_while_one_is_published_and_order_holds(
    make_settings: MakeSettings,
) -> None:
    async with open_app(make_settings(batch_max=1)) as app:
        prepare, publish = app.pipeline.prepare, app.publication.publish
        prepared: list[str] = []
        published: list[list[str]] = []
        second = asyncio.Event()

        async def prepare_noted(work: Any, *, reuse: bool = True) -> Any:
            prepared.extend(event.event_id for event, _ in work)
            if len(prepared) > 1:
                second.set()
            return await prepare(work, reuse=reuse)

        async def publish_noted(batch: uuid.UUID) -> Any:
            async with asyncio.timeout(10):
                await second.wait()  # never, if the first had to be at its end before
            published.append(list(prepared))
            return await publish(batch)

        app.pipeline.prepare, app.publication.publish = prepare_noted, publish_noted  # type: ignore[method-assign] # both noted
        for version in (1, 2, 3):
            await land(app, text_event(app, "a", f"text {version}", version=version))
        assert await app.direct.drain("documents") == 3
        assert len(prepared) == len(published) == 3
        assert max(len(known) - n for n, known in enumerate(published)) == 2  # two in hand at most
        document = await live(app, "a")
        assert document and document["text"] == "text 3"
        assert len(await stages(app, "superseded")) == 2


async def test_a_batch_that_cannot_be_published_ends_the_drain_and_gives_back_the_one_behind_it(
    make_settings: MakeSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(direct, "WAIT_SECONDS", 0.01)
    async with open_app(make_settings(batch_max=1)) as app:
        attempts = await _failing_to_publish(app, Unavailable("documents", "away"), direct.ATTEMPTS)
        with pytest.raises(Unavailable):
            await app.direct.drain("documents")
        assert not attempts, "every attempt of the step was made"
        assert not await live(app, "a")
        [waiting] = (await app.steps.claim("documents")).events
        assert waiting.event_id == "b@1", "prepared, and ready at once"


async def test_a_step_is_repeated_while_postgresql_is_away_for_a_moment(
    make_settings: MakeSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(direct, "WAIT_SECONDS", 0.01)
    async with open_app(make_settings(batch_max=1)) as app:
        await _failing_to_publish(app, Unavailable("documents", "away"), direct.ATTEMPTS - 1)
        assert await app.direct.drain("documents") == 2
        assert await live(app, "a") and await live(app, "b")


@pytest.mark.parametrize("error", [Misconfigured("wrong", remedy="mend it"), ValueError("a bug")])
async def test_a_step_that_fails_for_good_counts_as_an_attempt_and_the_drain_goes_on(
    make_settings: MakeSettings, error: Exception
) -> None:
    async with open_app(make_settings(batch_max=1)) as app:
        await _failing_to_publish(app, error, 1)
        assert await app.direct.drain("documents") == 2
        assert await live(app, "b") and not await live(app, "a")
        row = await app.db.fetch_one("SELECT * FROM inbox WHERE event_id = 'a@1'")
        assert row and (row["attempts"], row["batch"]) == (1, None)
        assert "a bug" not in row["last_error"], "the text of an unforeseen error may quote data"


async def _failing_to_publish(app: App, error: Exception, times: int) -> list[Exception]:
    """Land two events, and let publishing fail so many times; return the failures that are left."""
    publish = app.publication.publish
    failing = [error] * times

    async def fail(batch: uuid.UUID) -> Any:
        if failing:
            raise failing.pop()
        return await publish(batch)

    app.publication.publish = fail  # type: ignore[method-assign] # fails
    for name in ("a", "b"):
        await land(app, text_event(app, name, "text", version=1))
    return failing


async def test_an_event_that_waited_past_the_retention_keeps_its_manifest(app: App) -> None:
    [landed] = await land(app, text_event(app, "a", "SHP-100045 left.", version=1))
    batch = await app.steps.claim("documents")
    await app.steps.prepare("documents", batch.id)
    await app.db.execute("UPDATE manifests SET created_at = created_at - interval '10 years'")
    await app.upkeep.collect()
    await app.db.execute("UPDATE inbox SET next_at = clock_timestamp()")
    await app.direct.drain("documents")
    assert await state(app, landed) == "done" and await live(app, "a")


async def test_an_event_whose_manifest_is_gone_is_prepared_again(app: App) -> None:
    [landed] = await land(app, text_event(app, "a", "SHP-100045 left.", version=1))
    batch = await app.steps.claim("documents")
    await app.steps.prepare("documents", batch.id)
    await app.db.execute("DELETE FROM manifests")
    await app.steps.publish(batch.id)
    assert await state(app, landed) == "received"
    await app.direct.drain("documents")
    assert await state(app, landed) == "done" and await live(app, "a")


async def test_a_clock_that_is_set_back_holds_neither_an_event_nor_a_stage(app: App) -> None:
    """What a worker leased before the clock went back by an hour is taken over, not an hour later but now."""
    [landed] = await land(app, text_event(app, "a", "SHP-100045 left.", version=1))
    batch = await app.steps.claim("documents")
    await app.steps.prepare("documents", batch.id)
    await app.publication.journal.begin(batch.id)  # and the worker dies
    await app.db.execute("UPDATE inbox SET next_at = next_at + interval '1 hour'")
    await app.db.execute("UPDATE stages SET lease_until = lease_until + interval '1 hour'")
    swept = await app.upkeep.sweep()
    assert swept.expired == 1
    await app.direct.drain("documents")
    assert await state(app, landed) == "done" and await live(app, "a")


async def test_a_new_version_embeds_only_what_it_changes(
    make_settings: MakeSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its vectors come from the live version's manifest: the second process remembers nothing."""
    settings = make_settings()
    embedded: list[str] = []
    passages = HashingEmbedder.passages

    async def noting(embedder: Any, texts: Sequence[str], *, urgent: bool = False) -> Any:
        embedded.extend(texts)
        return await passages(embedder, texts, urgent=urgent)

    monkeypatch.setattr(HashingEmbedder, "passages", noting)
    async with open_app(settings) as app:
        await land(app, text_event(app, "a", "The truck left.", version=1))
        await app.direct.drain("documents")
    left = ["The truck left."]
    assert embedded == left
    async with open_app(settings) as app:
        await land(app, text_event(app, "a", "The truck left.", version=2, metadata={"n": 1}))
        await app.direct.drain("documents")
        assert embedded == left
        await land(app, text_event(app, "a", "The truck came back.", version=3))
        await app.direct.drain("documents")
        await land(app, text_event(app, "a", "The truck left.", version=4, title="Dock 4"))
        await app.direct.drain("documents")
        # A short passage has its document's title before it.
        assert embedded == [*left, "The truck came back.", "document: Dock 4\nThe truck left."]
        row = await app.db.fetch_one("SELECT count(*) AS versions FROM manifests")
        assert row is not None and row["versions"] == 4
