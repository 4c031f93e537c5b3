"""Rate of documents into all four stores, compared with the stores' bulk rate, the model's rate, and a workflow per event.

Measured in this process on the direct path. Vectors are made beforehand where the model is not the subject.
"""

from __future__ import annotations

import asyncio
import json
import os
import time
import uuid
from collections.abc import Sequence

from psycopg.types.json import Jsonb

from apex_memory.app import App
from apex_memory.model import Event, Manifest
from apex_memory.pipeline import Embedder
from apex_memory.saga.manifests import _columns as manifest_columns
from apex_memory.saga.stage import Stage
from bench.corpus import CHUNKS, Corpus, GivenEmbedder, random_pool
from bench.cpu import spent, usage
from bench.engines import opened, running_engines, standalone
from bench.per_event import AT_ONCE, AsOne, LocalSteps, StepByStep, run_drain, run_each
from bench.rows import Row, at_least, at_most, percentile, stated

DOCUMENTS = 3_000
PER_EVENT = 200
BATCHED = 2_048
SINGLE = 60
WITH_MODEL = 48
TURNS = 2
RAW_PAGE = 1_000


async def rates() -> list[Row]:
    """Measure documents/s, the bulk rate of the same stores, and the latency of a single event."""
    corpus = Corpus()
    async with running_engines() as engines:
        pids = {**engines.pids, "client": os.getpid()}
        urls, raw_urls = await engines.fresh(), await engines.fresh()
        async with opened(urls, engines.folder, GivenEmbedder(random_pool())) as app:
            await land_and_drain(app, corpus, 256, "warm")
            before = usage(pids)
            rate = await land_and_drain(app, corpus, DOCUMENTS, "a")
            cpu = spent(before, usage(pids))
            single = [
                await land_and_commit(app, corpus.event(n, name="one")) for n in range(SINGLE)
            ]
        async with opened(raw_urls, engines.folder, GivenEmbedder(random_pool())) as app:
            raw = await raw_rate(app, [corpus.event(n, name="raw") for n in range(DOCUMENTS)])
    parts = ", ".join(f"{name} {1000 * used.total / DOCUMENTS:.2f}" for name, used in cpu.items())
    total = 1000 * sum(used.total for used in cpu.values()) / DOCUMENTS
    how = f"{DOCUMENTS} documents of {CHUNKS} chunks of 60 words, direct path, vectors given, all landed first"
    return [
        at_least(
            "documents/s into all four stores",
            rate,
            "documents/s",
            500,
            f"{how}; CPU ms a document {total:.2f}: {parts}",
        ),
        at_least(
            "documents/s, of the stores' raw bulk rate",
            rate / raw,
            "×",
            0.5,
            f"raw {raw:.0f}/s on the same servers: same rows by COPY, same assertions and points, stores in parallel, one flush per {RAW_PAGE}, no saga, not parsed",
        ),
        at_most(
            "direct path, one event, p50",
            1000 * percentile(single, 0.5),
            "ms",
            60,
            f"land to committed, {SINGLE} single events in turn, {CHUNKS} chunks each; p99 {1000 * percentile(single, 0.99):.0f} ms",
        ),
    ]


async def land_and_drain(app: App, corpus: Corpus, count: int, name: str, first: int = 0) -> float:
    """Land documents, then drain them; return the documents/s of draining. Raises `AssertionError` if one is not done."""
    for page in corpus.events(first, count, name=name):
        await app.inbox.land(page)
    began = time.perf_counter()
    drained = await app.direct.drain("documents")
    seconds = time.perf_counter() - began
    row = await app.db.fetch_one("SELECT count(*) AS n FROM inbox WHERE state <> 'done'")
    if drained != count or row is None or row["n"]:
        raise AssertionError(f"{drained} of {count} drained, {row} not done")
    return count / seconds


async def land_and_commit(app: App, event: Event) -> float:
    """Return the seconds from landing an event to its commit."""
    began = time.perf_counter()
    await app.inbox.land([event])
    await app.direct.drain("documents")
    return time.perf_counter() - began


async def raw_rate(app: App, events: Sequence[Event]) -> float:
    """Return the documents/s of bulk writes: each store takes page after page, all stores at once, without a saga."""
    document = app.sources["documents"].document
    prepared = await app.pipeline.prepare([(event, document) for event in events])
    manifests = [manifest for manifest in prepared if isinstance(manifest, Manifest)]
    assert len(manifests) == len(events)
    stages = [Stage(uuid.uuid4(), manifest, 1, "x") for manifest in manifests]
    began = time.perf_counter()
    for first in range(0, len(stages), RAW_PAGE):
        page = slice(first, first + RAW_PAGE)
        await asyncio.gather(
            _copy(app, events[page], stages[page]),
            _graph(app, stages[page]),
            _vectors(app, stages[page]),
        )
    return len(events) / (time.perf_counter() - began)


async def _copy(app: App, events: Sequence[Event], stages: Sequence[Stage]) -> None:
    """Copy the rows that a processed document leaves in inbox, payloads, manifests, stages and documents."""
    async with app.db.transaction() as connection:
        cursor = connection.cursor()
        async with cursor.copy(
            "COPY inbox (id, source, event_id, doc_id, doc_key, priority, version, occurred_at, content_type, state) FROM STDIN"
        ) as copy:
            for e in events:
                await copy.write_row(
                    (
                        e.id,
                        e.source,
                        e.event_id,
                        e.doc_id,
                        e.doc_key,
                        1,
                        1,
                        e.occurred_at,
                        e.content_type,
                        "done",
                    )
                )
        async with cursor.copy("COPY payloads (inbox_id, body) FROM STDIN (FORMAT binary)") as copy:
            copy.set_types(["uuid", "bytea"])
            for e in events:
                await copy.write_row((e.id, e.payload))
        async with cursor.copy(
            """COPY manifests (id, inbox_id, doc_id, source, doc_key, pipeline, kind, title, text, occurred_at, metadata,
                               parent_id, deleted, chunks, vectors, assertions, entities, hash, about) FROM STDIN (FORMAT binary)"""
        ) as copy:
            texts = ["text"] * 6
            copy.set_types(
                ["uuid"] * 3
                + texts
                + [
                    "timestamptz",
                    "jsonb",
                    "uuid",
                    "bool",
                    "bytea",
                    "bytea",
                    "bytea",
                    "text[]",
                    "bytea",
                    "text",
                ]
            )
            for s in stages:
                columns = list(manifest_columns(s.manifest))
                columns[10] = Jsonb(json.loads(columns[10]))
                columns[16] = list(s.manifest.entities)
                await copy.write_row(columns)
        async with cursor.copy(
            "COPY stages (stage_id, inbox_id, doc_id, version, event_id, manifest_id, state, owner, lease_until, chunks, chunks_sum, edges, edges_sum) FROM STDIN"
        ) as copy:
            for s in stages:
                m = s.manifest
                await copy.write_row(
                    (
                        s.id,
                        m.inbox_id,
                        m.doc_id,
                        1,
                        "x",
                        m.id,
                        "committed",
                        s.id,
                        m.occurred_at,
                        5,
                        0,
                        3,
                        0,
                    )
                )
        async with cursor.copy(
            "COPY documents (doc_id, source, doc_key, kind, title, version, event_id, stage_id, manifest_id, deleted, occurred_at, entities, hash, committed_at) FROM STDIN"
        ) as copy:
            for s in stages:
                m = s.manifest
                await copy.write_row(
                    (
                        m.doc_id,
                        m.source,
                        m.doc_key,
                        m.kind,
                        m.title,
                        1,
                        "x",
                        s.id,
                        m.id,
                        False,
                        m.occurred_at,
                        list(m.entities),
                        b"x" * 32,
                        m.occurred_at,
                    )
                )


async def _graph(app: App, stages: Sequence[Stage]) -> None:
    await app.graph.upsert([item for stage in stages for item in stage.assertions()])


async def _vectors(app: App, stages: Sequence[Stage]) -> None:
    points = [point for stage in stages for point in stage.points()]
    rows = app.publication._rows(stages)
    await app.vectors.upsert(points, rows)
    await app.vectors.flush()


async def with_model() -> list[Row]:
    """Measure documents/s with the default model, relative to the rate at which the model alone embeds the same passages."""
    corpus = Corpus()
    async with standalone() as app:
        texts = []
        for n in range(WITH_MODEL):
            texts += corpus.text(n).split("\n\n")
        embedder = app.pipeline._embedder
        await embedder.passages(texts[:50])
        model_seconds, rates = [await _embedding(embedder, texts)], []
        for turn in range(TURNS):  # alternately, because the speed of a machine varies
            rates.append(await land_and_drain(app, corpus, WITH_MODEL, f"m{turn}"))
            model_seconds.append(await _embedding(embedder, texts))
        model = WITH_MODEL * len(model_seconds) / sum(model_seconds)
        rate = len(rates) / sum(1 / each for each in rates)
    return [
        at_least(
            "documents/s with the default model, of the model's own rate",
            rate / model,
            "×",
            0.9,
            f"{rate:.1f} of {model:.1f} documents/s, {TURNS} × {WITH_MODEL} documents of {CHUNKS} chunks of 60 words, direct path, between {len(model_seconds)} runs of the model alone over the same passages",
        )
    ]


async def _embedding(embedder: Embedder, texts: Sequence[str]) -> float:
    began = time.perf_counter()
    await embedder.passages(texts)
    return time.perf_counter() - began


async def per_event() -> list[Row]:
    """Compare batches with a workflow per event, on the same servers in the same minute."""
    corpus = Corpus()
    async with running_engines(temporal=True) as engines:
        urls = await engines.fresh()
        async with opened(urls, engines.folder, GivenEmbedder(random_pool())) as app:
            await land_and_drain(app, corpus, 256, "warm")
            drained = await run_drain(app, _make_events(corpus, BATCHED, "d"))
            steps = await run_each(app, StepByStep, _make_events(corpus, PER_EVENT, "s"))
            local = await run_each(app, LocalSteps, _make_events(corpus, PER_EVENT, "l"))
            single = await run_each(app, AsOne, _make_events(corpus, PER_EVENT, "o"))
            direct = await land_and_drain(app, corpus, BATCHED, "a")
    same = f"same App, stores, process and Temporal dev server; {PER_EVENT} workflows, up to {AT_ONCE} at once, against {BATCHED} events in batches"
    return [
        at_least(
            "against a workflow per event",
            drained / steps,
            "×",
            30,
            f"{drained:.0f}/s by the drain workflow in batches ({direct:.0f}/s by the direct path), {steps:.1f}/s with a workflow an event and an activity a step (claim, parse, embed, keep, begin, graph, vectors, verify, commit); {same}",
        ),
        stated(
            "against a workflow per event with local activities",
            drained / local,
            "×",
            f"the same steps as local activities: {local:.1f}/s; {same}",
        ),
        stated(
            "against a workflow per event with a single activity",
            drained / single,
            "×",
            f"the cheapest form of the pattern, all steps of an event in one activity: {single:.1f}/s; {same}",
        ),
    ]


def _make_events(corpus: Corpus, count: int, name: str) -> list[Event]:
    return [corpus.event(n, name=name) for n in range(count)]
