"""Shadow stages on real engines: staged and verified, compared, invisible, removed; whatever crashes or stores do."""

from __future__ import annotations

import asyncio
import uuid
from dataclasses import replace
from typing import Any

import psycopg
import pytest

from apex_memory.app import App, open_app
from apex_memory.model import Assertion, Document, Tally
from apex_memory.pipeline import prepare as pipeline_prepare
from apex_memory.pipeline.extract import Statement, statements
from apex_memory.rollout import shadow_queue, shadow_steps
from apex_memory.rollout.shadow_loop import ShadowLoop
from apex_memory.rollout.shadow_steps import CopyResult
from tests.e2e.conftest import MakeSettings, delete_event, live, state, text_event
from tests.e2e.shadows import (
    CANDIDATE,
    SOURCE,
    SUBJECT,
    LeakReader,
    candidate,
    copy_of,
    drain,
    facts,
    leftovers,
    marked,
    process_all,
    shadow_off,
    shadow_on,
)
from tests.faulty import Fault, Faulty

WORD = "zqxglimmer"
LONG = "\n\n".join(
    f"Paragraph {n}: shipment SHP-1000{n:02} left Columbus, OH for the dock of Northwind Trucking. "
    "The driver reported a delay of two hours, and the pallets were counted twice before departure."
    for n in range(12)
)


async def test_equal_copies_compare_equal_and_leave_nothing(app: App) -> None:
    await shadow_on(app)
    first = text_event(app, "a", "Shipment SHP-100045 left Columbus, OH.", version=1)
    poison = replace(first, event_id="poison", doc_key="p", payload=b"\x00not an envelope")
    landed = await drain(app, first, text_event(app, "b", LONG, version=1), poison)
    landed += await drain(app, text_event(app, "a", "It arrived.", version=3))
    landed += await drain(app, text_event(app, "a", "late", version=2))
    landed += await drain(app, delete_event(first, version=9))
    assert [await state(app, item) for item in landed] == [
        "done", "done", "dead", "done", "superseded", "done"
    ]  # fmt: skip
    before = await app.db.fetch("SELECT * FROM documents ORDER BY doc_id")
    assert await process_all(app) == CopyResult(equal=6)
    known = await facts(app)
    assert (known.compared, known.equal, known.mismatched, known.waiting) == (6, 6, 0, 0)
    assert known.live_p50 and known.shadow_p50 and known.last_at
    assert await leftovers(app) == []
    assert await app.db.fetch("SELECT * FROM documents ORDER BY doc_id") == before
    row = await copy_of(app, landed[1])
    assert row["tallies"]["vectors"]["live"] == row["tallies"]["vectors"]["shadow"] != [0, 0]
    assert set(row["seconds"]["shadow"]) == {"wait", "prepare", "stage", "verify", "total"}
    assert {"prepare", "stage", "total"} <= set(row["seconds"]["live"])
    outcomes = [(await copy_of(app, item))["shadow_outcome"] for item in landed]
    assert outcomes == ["done", "done", "dead", "done", "superseded", "done"]


async def test_only_what_the_direct_path_processed_is_copied_while_the_shadow_is_on(
    app: App,
) -> None:
    await drain(app, text_event(app, "before", "text", version=1))
    await shadow_on(app)
    [processed] = await drain(app, text_event(app, "processed", "text", version=1))
    await app.inbox.land([text_event(app, "other", "text", version=1)])
    batch = await app.steps.claim(SOURCE)
    await app.db.execute("UPDATE inbox SET path = 'temporal' WHERE batch = %s", (batch.id,))
    await app.steps.prepare(SOURCE, batch.id)
    await app.steps.publish(batch.id)
    await shadow_off(app)
    await drain(app, text_event(app, "after", "text", version=1))
    rows = await app.db.fetch("SELECT inbox_id, subject, build FROM shadows")
    assert rows == [{"inbox_id": processed.id, "subject": SUBJECT, "build": ""}]


async def test_a_copy_is_staged_and_verified_in_both_stores_for_real(
    app: App, monkeypatch: pytest.MonkeyPatch
) -> None:
    await shadow_on(app)
    [landed] = await drain(app, text_event(app, "a", LONG, version=1))
    held: list[tuple[Tally, Tally]] = []
    compare = app.shadow._compare

    async def looked(*args: Any) -> None:
        rows = await app.db.fetch("SELECT stage_id, state FROM stages WHERE shadow")
        assert [row["state"] for row in rows] == ["staging"]
        stage = rows[0]["stage_id"]
        held.append(
            ((await app.graph.tally([stage]))[stage], (await app.vectors.tally([stage]))[stage])
        )
        await compare(*args)

    monkeypatch.setattr(app.shadow, "_compare", looked)
    assert await process_all(app) == CopyResult(equal=1)
    row = await app.db.fetch_one(
        "SELECT edges, edges_sum, chunks, chunks_sum FROM stages WHERE inbox_id = %s", (landed.id,)
    )
    assert row
    assert held == [
        (Tally(row["edges"], row["edges_sum"]), Tally(row["chunks"], row["chunks_sum"]))
    ]
    assert held[0][0].count > 0 and held[0][1].count > 1


async def process_candidate(
    app: App, changed: App, *texts: str, build: str = CANDIDATE
) -> tuple[CopyResult, list[str]]:
    """Land texts, process them live and then as copies of a candidate; return the result and the fields that differ."""
    await shadow_on(app, "build", build)
    await drain(app, *(text_event(app, f"d{n}", text, version=1) for n, text in enumerate(texts)))
    result = await process_all(changed, "build", build)
    return result, sorted((await facts(app, "build", build)).by_field)


async def test_a_changed_mapper_shows_the_fields_it_changed(make_settings: MakeSettings) -> None:
    def change(document: Document) -> Document:
        return replace(
            document,
            title=document.title.upper(),
            metadata={**document.metadata, "channel": "mail"},
            assertions=(
                *document.assertions,
                Assertion(predicate="status", subject="shipment:SHP-1", value="late"),
            ),
            about="shipment:SHP-1",
        )

    settings = make_settings()
    async with open_app(settings) as app, candidate(settings, change) as changed:
        result, fields = await process_candidate(app, changed, LONG, "Shipment SHP-100045 left.")
        assert result == CopyResult(different=2)
        assert fields == [
            "about", "assertions.status", "entities.shipment", "metadata.channel", "title"
        ]  # fmt: skip
        assert await leftovers(app) == []


async def test_a_changed_chunker_shows_as_chunks_alone(make_settings: MakeSettings) -> None:
    settings = make_settings()
    async with (
        open_app(settings) as app,
        candidate(settings.model_copy(update={"chunk_chars": 300})) as changed,
    ):
        result, fields = await process_candidate(app, changed, LONG, "short")
        assert result == CopyResult(equal=1, different=1)
        assert fields == ["chunks"]


async def test_a_changed_extractor_shows_as_the_assertions_and_entities_it_misses(
    make_settings: MakeSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = make_settings()
    async with open_app(settings) as app, candidate(settings) as changed:
        await shadow_on(app, "build", CANDIDATE)
        await drain(app, text_event(app, "a", "Shipment SHP-100045 left Columbus, OH.", version=1))
        real = statements

        def without_shipments(*arguments: Any, **options: Any) -> list[Statement]:
            return [
                item
                for item in real(*arguments, **options)
                if "shp-100045" not in str(item[2]).lower()  # the object
            ]

        monkeypatch.setattr(pipeline_prepare, "statements", without_shipments)
        assert await process_all(changed, "build", CANDIDATE) == CopyResult(different=1)
        fields = sorted((await facts(app, "build", CANDIDATE)).by_field)
        assert fields == ["assertions.mentions", "entities.shipment"]


@pytest.mark.parametrize(
    ("embedder", "reason", "staged"),
    [("wordllama", "changed", True), ("minilm", "another dimension", False)],
)
async def test_another_embedder_shows_as_vectors(
    make_settings: MakeSettings, embedder: str, reason: str, staged: bool
) -> None:
    """One with the store's dimension is staged for real; for another the store has no place, and the graph alone is staged."""
    settings = make_settings()
    async with (
        open_app(settings) as app,
        candidate(settings.model_copy(update={"embedder": embedder})) as changed,
    ):
        await shadow_on(app, "build", CANDIDATE)
        [landed] = await drain(app, text_event(app, "a", "SHP-100045 left.", version=1))
        assert await process_all(changed, "build", CANDIDATE) == CopyResult(different=1)
        row = await copy_of(app, landed)
        assert [(item["field"], item["reason"]) for item in row["differences"]] == [
            ("vectors", reason)
        ]
        assert (row["tallies"]["vectors"]["shadow"] is not None) == staged
        assert row["tallies"]["graph"]["shadow"] == row["tallies"]["graph"]["live"]


async def test_a_candidate_that_rejects_shows_the_outcome_with_its_error(
    make_settings: MakeSettings,
) -> None:
    def broken(document: Document) -> Document:
        raise KeyError("a bug of the candidate")

    settings = make_settings()
    async with open_app(settings) as app, candidate(settings, broken) as changed:
        result, fields = await process_candidate(app, changed, "text")
        assert (result, fields) == (CopyResult(different=1), ["outcome"])
        [row] = await app.db.fetch("SELECT * FROM shadows")
        [difference] = row["differences"]
        assert difference["reason"] == "done → dead"
        assert "KeyError" in difference["shadow"] and "a bug" not in difference["shadow"]
        assert (await live(app, "d0") or {})["text"] == "text"


async def test_readers_never_see_a_copy_under_load_and_would_see_one_that_is_flipped(
    make_settings: MakeSettings, own_vectors_url: str
) -> None:
    settings = make_settings(vectors=own_vectors_url, snapshot_seconds=10, grace_seconds=12)
    async with open_app(settings) as app, candidate(settings, marked(WORD)) as changed:
        await app.recovery.check_restarted_stores()
        await shadow_on(app, "build", CANDIDATE)
        landed = await drain(
            app, *(text_event(app, f"d{n}", f"{LONG}\n\nnumber {n}", version=1) for n in range(40))
        )
        readers = [LeakReader(app, WORD, [item.doc_id for item in landed[:2]]) for _ in range(3)]
        stop = asyncio.Event()
        reading = [asyncio.create_task(reader.run(stop)) for reader in readers]
        try:
            for version in (2, 3, 4):
                await drain(
                    app,
                    *(
                        text_event(app, f"d{n}", f"{LONG} v{version} of {n}", version=version)
                        for n in range(40)
                    ),
                )
                result = await process_all(changed, "build", CANDIDATE)
                assert result.different and not result.equal
        finally:
            stop.set()
            await asyncio.gather(*reading)
        assert [reader.leaks for reader in readers] == [[], [], []]
        assert sum(reader.reads for reader in readers) > 20
        assert await leftovers(app) == []

        # The control: the same copies with one flipped on purpose must be seen, or the readers above are blind.
        control = LeakReader(app, WORD, [item.doc_id for item in landed[:2]])
        await _with_flipped_copy(app, changed, control)
        assert any(leak.startswith("search") for leak in control.leaks), control.leaks


async def _with_flipped_copy(app: App, changed: App, reader: LeakReader) -> None:
    """Look while a document points at the stage of a copy."""
    await drain(app, text_event(app, "d0", f"{LONG} v9", version=9))
    compare = changed.shadow._compare

    async def flipped(*args: Any) -> None:
        [before] = await app.db.fetch("SELECT * FROM documents WHERE doc_key = 'd0'")
        await app.db.execute(
            """UPDATE documents d SET stage_id = s.stage_id FROM stages s
               WHERE s.doc_id = d.doc_id AND s.shadow AND s.state = 'staging'"""
        )
        await reader.look()
        await app.db.execute(
            "UPDATE documents SET stage_id = %s WHERE doc_id = %s",
            (before["stage_id"], before["doc_id"]),
        )
        await compare(*args)

    changed.shadow._compare = flipped  # type: ignore[assignment]
    await process_all(changed, "build", CANDIDATE)


async def test_the_versions_of_a_document_and_the_state_of_its_event_do_not_show_a_copy(
    app: App, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A stage in staging is listed among the versions; the stage of a copy is not."""
    await shadow_on(app)
    [landed] = await drain(app, text_event(app, "a", "text", version=1))
    compare = app.shadow._compare
    seen: list[Any] = []

    async def looked(*args: Any) -> None:
        document = await app.search.document(landed.doc_id)
        rows = await app.db.fetch(
            "SELECT count(*) AS n FROM stages WHERE inbox_id = %s", (landed.id,)
        )
        seen.append(([version.state for version in document.versions], rows[0]["n"]))
        await compare(*args)

    monkeypatch.setattr(app.shadow, "_compare", looked)
    await process_all(app)
    assert seen == [(["committed"], 1)]


async def test_the_database_refuses_to_commit_the_stage_of_a_copy(
    app: App, monkeypatch: pytest.MonkeyPatch
) -> None:
    await shadow_on(app)
    await drain(app, text_event(app, "a", "text", version=1))
    compare = app.shadow._compare

    async def tried(*args: Any) -> None:
        for change in ("state = 'committed'", "committed_at = now()", "state = 'superseded'"):
            async with await psycopg.AsyncConnection.connect(app.settings.documents) as connection:
                with pytest.raises(psycopg.errors.CheckViolation):
                    await connection.execute(f"UPDATE stages SET {change} WHERE shadow")
        await compare(*args)

    monkeypatch.setattr(app.shadow, "_compare", tried)
    assert await process_all(app) == CopyResult(equal=1)


@pytest.mark.parametrize("step", ["_stage", "_compare", "_remove"])
async def test_a_crash_in_the_middle_of_a_copy_leaves_nothing_and_it_is_processed_again(
    app: App, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    """The process dies before a step: nothing after it runs, no clean-up either. The lease ends, and the sweeper removes."""
    await shadow_on(app)
    [landed] = await drain(app, text_event(app, "a", LONG, version=1))
    before = await live(app, "a")

    async def dies(*_: Any, **__: Any) -> None:
        raise asyncio.CancelledError

    async def nothing(*_: Any, **__: Any) -> None:
        return None

    with monkeypatch.context() as patch:
        if step != "_remove":
            patch.setattr(app.shadow, "_remove", nothing)
        patch.setattr(app.shadow, step, dies)
        with pytest.raises(asyncio.CancelledError):
            await app.shadow.process(SUBJECT)
    assert len(await leftovers(app)) == 1
    assert await app.shadow.process(SUBJECT) is None, "its lease still runs"
    await app.db.execute("UPDATE stages SET lease_until = now() - interval '1 s' WHERE shadow")
    await app.db.execute("UPDATE shadows SET next_at = now() - interval '1 s'")
    await app.upkeep.sweep()
    assert await leftovers(app) == []
    expected = CopyResult() if step == "_remove" else CopyResult(equal=1)
    assert await process_all(app) == expected, "what was recorded is not processed twice"
    assert (await copy_of(app, landed))["equal"] is True
    assert await leftovers(app) == []
    assert await live(app, "a") == before


async def test_an_event_that_ends_the_candidates_worker_is_processed_alone_and_then_counts_as_dead(
    make_settings: MakeSettings,
) -> None:
    settings = make_settings()
    async with open_app(settings) as app, candidate(settings) as changed:
        await shadow_on(app, "build", CANDIDATE)
        landed = await drain(
            app, *(text_event(app, f"d{n}", f"text {n}", version=1) for n in range(4))
        )
        for attempt in range(shadow_steps.MOST_ATTEMPTS):
            # A worker that dies after its claim: nobody reports an outcome.
            ids = await changed.shadow.claim("build", CANDIDATE, batch=uuid.uuid4())
            assert len(ids) == (4 if attempt == 0 else 1)
            await app.db.execute("UPDATE shadows SET next_at = now() - interval '1 s'")
        result = await process_all(changed, "build", CANDIDATE)
        assert result == CopyResult(equal=3, different=1)
        [row] = await app.db.fetch("SELECT * FROM shadows WHERE NOT equal")
        [difference] = row["differences"]
        assert difference["field"] == "outcome" and "ended the worker" in difference["shadow"]
        assert [await state(app, item) for item in landed] == ["done"] * 4


@pytest.mark.parametrize("store", ["graph", "vectors"])
async def test_while_a_store_is_away_copies_wait_and_live_events_are_not_touched(
    make_settings: MakeSettings, monkeypatch: pytest.MonkeyPatch, store: str
) -> None:
    monkeypatch.setattr(shadow_steps, "WAIT_SECONDS", 0.0)
    async with open_app(make_settings(retry_attempts=1, breaker_open_seconds=60)) as app:
        await shadow_on(app)
        landed = await drain(
            app, *(text_event(app, f"d{n}", f"text {n}", version=1) for n in range(5))
        )
        gone = Faulty(getattr(app, store))
        gone.plan(Fault.FAIL, "upsert", "tally")
        with monkeypatch.context() as patch:
            patch.setattr(app.shadow._publication, f"_{store}", gone)
            for _ in range(4):
                result = await app.shadow.process(SUBJECT)
                assert result and result.waiting == 5 and not result.failed
        # The breaker of the copies is open by now; that of live events is not.
        assert [await state(app, item) for item in landed] == ["done"] * 5
        [more] = await drain(app, text_event(app, "more", "text", version=1))
        assert await state(app, more) == "done"
        assert await leftovers(app) == []
        app.shadow._publication._resilient_stores[store].breaker._opened_at = None
        assert await process_all(app) == CopyResult(equal=6)


async def test_a_store_that_lies_fails_the_copy_and_the_facts_say_so(
    app: App, monkeypatch: pytest.MonkeyPatch
) -> None:
    await shadow_on(app)
    await drain(app, text_event(app, "a", "text", version=1))
    lying = Faulty(app.vectors)
    lying.plan(Fault.DROP, "upsert")
    monkeypatch.setattr(app.shadow._publication, "_vectors", lying)
    for _ in range(shadow_steps.MOST_TRIES):
        await app.shadow.process(SUBJECT)
        await app.db.execute("UPDATE shadows SET next_at = now()")
    known = await facts(app)
    assert (known.failed, known.compared, known.waiting) == (1, 0, 0)
    assert await leftovers(app) == []


async def test_a_lost_acknowledgement_of_both_stores_changes_nothing(
    app: App, monkeypatch: pytest.MonkeyPatch
) -> None:
    await shadow_on(app)
    await drain(app, *(text_event(app, f"d{n}", f"text {n}", version=1) for n in range(5)))
    for store in ("graph", "vectors"):
        faulty = Faulty(getattr(app, store))
        faulty.plan(Fault.LOSE_REPLY, "upsert", times=1)
        monkeypatch.setattr(app.shadow._publication, f"_{store}", faulty)
    assert await process_all(app) == CopyResult(equal=5)
    assert await leftovers(app) == []


async def test_the_backlog_is_bounded_and_drops_are_counted(make_settings: MakeSettings) -> None:
    settings = make_settings(shadow_backlog=10)
    async with open_app(settings) as app:
        await shadow_on(app)
        await drain(app, *(text_event(app, f"d{n}", f"text {n}", version=1) for n in range(25)))
        queued = await app.db.fetch("SELECT id FROM shadows ORDER BY id")
        loop = ShadowLoop(app.db, app.shadow, settings, build="live")
        await loop.tidy()
        known = await facts(app)
        assert (known.waiting, known.dropped) == (10, 15)
        kept = await app.db.fetch("SELECT id FROM shadows ORDER BY id")
        assert kept == queued[-10:], "the newest are kept"
        await shadow_off(app)
        await loop.tidy()
        known = await facts(app)
        assert (known.waiting, known.dropped) == (0, 25)


async def test_a_redriven_event_is_compared_again(app: App) -> None:
    await shadow_on(app)
    poison = replace(text_event(app, "p", "x", version=1), payload=b"junk")
    [landed] = await drain(app, poison)
    assert await process_all(app) == CopyResult(equal=1)
    [letter] = await app.dead_letters.find()
    await app.dead_letters.redrive([letter.id], actor="test")
    assert (await copy_of(app, landed))["state"] == "compared"
    await app.direct.drain(SOURCE)
    assert (await copy_of(app, landed))["state"] == "waiting"
    assert await process_all(app) == CopyResult(equal=1)


async def test_a_replay_processes_a_range_of_past_events_evenly(
    make_settings: MakeSettings,
) -> None:
    settings = make_settings()
    async with open_app(settings) as app, candidate(settings, marked(WORD)) as changed:
        await drain(app, *(text_event(app, f"d{n}", f"text {n}", version=1) for n in range(20)))
        async with app.db.connection() as connection:
            result = await shadow_queue.replay(
                connection, CANDIDATE, sources=[SOURCE], since=None, until=None, limit=5
            )
        assert (result.events, result.queued) == (20, 5)
        seqs = await app.db.fetch(
            "SELECT inbox.seq - min(inbox.seq) OVER () AS n FROM shadows JOIN inbox ON inbox.id = inbox_id ORDER BY 1"
        )
        assert [row["n"] for row in seqs] == [0, 4, 8, 12, 16]
        assert await process_all(app, "build", "another") == CopyResult(), (
            "another build's are not taken"
        )
        assert await process_all(changed, "build", CANDIDATE) == CopyResult(different=5)
        known = await facts(app, "build", CANDIDATE)
        assert known.mismatched == 5 and {"text", "title"} <= set(known.by_field)


async def test_copies_give_way_while_events_wait(make_settings: MakeSettings) -> None:
    settings = make_settings(shadow_busy_share=0.05)
    async with open_app(settings) as app:
        await shadow_on(app)
        await drain(app, *(text_event(app, f"d{n}", LONG, version=1) for n in range(64)))
        await app.inbox.land([text_event(app, f"w{n}", "text", version=1) for n in range(3)])
        await app.shadow.process(SUBJECT)
        waiting = asyncio.create_task(app.shadow.process(SUBJECT))
        await asyncio.sleep(0.3)  # what is tested is that time passes and nothing happens
        assert not waiting.done()
        await app.direct.drain(SOURCE)
        async with asyncio.timeout(20):
            result = await waiting
        assert result and result.equal == 32
