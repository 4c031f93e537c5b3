"""The composition root: opens every part, wires it, and offers the steps that `flows` and `gateway` sequence.

The steps of a batch are `claim`, `prepare`, `publish`; each is safe to run again. `drain` runs them
in a plain loop: the direct path, without Temporal.
"""

from __future__ import annotations

import uuid
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from uuid import UUID

from apex_memory import sources
from apex_memory.config import Settings
from apex_memory.inbox import Claimed, Inbox, Run
from apex_memory.model import Event, Landed
from apex_memory.pipeline import Pipeline, open_embedder
from apex_memory.saga import recovery
from apex_memory.saga.collector import Collector
from apex_memory.saga.dead_letters import DeadLetters
from apex_memory.saga.guard import Guard
from apex_memory.saga.publication import Publication, Report
from apex_memory.saga.recovery import Recovery
from apex_memory.saga.sweeper import Sweeper, Swept
from apex_memory.sources import Source
from apex_memory.stores import GraphStore, Store, VectorStore
from apex_memory.stores.graph import open_graph
from apex_memory.stores.postgres import Postgres, claim_installation, migrate
from apex_memory.stores.redis import Cache
from apex_memory.stores.vectors import open_vectors
from apex_memory.telemetry import BATCH_EVENTS, STEP_SECONDS


@dataclass(frozen=True, slots=True)
class Batch:
    """A claimed batch: its id (the lease's owner) and its events."""

    id: UUID
    source: str
    events: list[Claimed]


@dataclass(slots=True, kw_only=True)
class App:
    """Everything, opened. Build it with `open_app`."""

    settings: Settings
    db: Postgres
    graph: GraphStore
    vectors: VectorStore
    cache: Cache
    sources: dict[str, Source]
    pipeline: Pipeline
    inbox: Inbox
    publication: Publication
    sweeper: Sweeper
    collector: Collector
    recovery: Recovery
    dead_letters: DeadLetters
    guards: dict[str, Guard]

    async def land(self, events: Sequence[Event]) -> list[Landed]:
        """Commit events to the inbox; only then may a source be answered 2xx."""
        landed = await self.inbox.land(events)
        await self.cache.remember([item.id for item in landed])
        return landed

    async def claim(self, source: str, *, run: Run | None = None) -> Batch:
        """Lease what is ready of a source, up to `batch_max`. An empty batch means nothing is."""
        batch = uuid.uuid4()
        events = await self.inbox.claim(
            source,
            batch=batch,
            limit=self.settings.batch_max,
            lease=self.settings.lease_seconds,
            run=run,
        )
        if events:
            BATCH_EVENTS.labels(source).observe(len(events))
        return Batch(batch, source, events)

    async def prepare(self, source: str, batch: UUID) -> Report:
        """Parse, extract and embed the events of a batch that have no manifest yet, and store the manifests."""
        events = [event for event, _ in await self.inbox.events(batch)]
        with STEP_SECONDS.labels("prepare").time():
            results = await self.pipeline.prepare(
                [(event, self.sources[source].document) for event in events]
            )
        return await self.publication.store_manifests(
            batch, list(zip(events, results, strict=True))
        )

    async def publish(self, batch: UUID) -> Report:
        """Stage, verify and flip the prepared events of a batch."""
        return await self.publication.publish(batch)

    async def drain(self, source: str, *, run: Run | None = None) -> int:
        """The direct path: batches until nothing is ready; answers the number of events carried."""
        carried = 0
        while True:
            batch = await self.claim(source, run=run)
            if not batch.events:
                return carried
            carried += len(batch.events)
            await self.prepare(source, batch.id)
            await self.publish(batch.id)

    async def sweep(self) -> Swept:
        """Check stores that restarted, abort and remove what expired, let parked events go on."""
        await self.recovery.gate()
        return await self.sweeper.sweep()

    async def collect(self) -> int:
        """Remove superseded stages past their grace, and what retention has outlived."""
        return await self.collector.collect()

    @property
    def stores(self) -> list[Store]:
        return [self.db, self.graph, self.vectors, self.cache]

    async def store_states(self) -> dict[str, str]:
        """`ready`, `recovering` or `unavailable` for the graph and the vectors."""
        return await recovery.states(self.db, [self.graph, self.vectors])


@asynccontextmanager
async def open_app(settings: Settings) -> AsyncIterator[App]:
    """Open every part against the URLs in the settings, and close them at the end.

    Raises `Misconfigured` for settings that cannot work, `Unavailable` when PostgreSQL is not there.
    The other stores may be away: what needs them waits.
    """
    async with AsyncExitStack() as stack:
        loaded = sources.load(settings.sources, settings.source_path)
        embedder = open_embedder(
            settings.embedder,
            model=settings.embedder_model,
            dimension=settings.embedder_dimension,
            key=settings.embedder_key.get_secret_value(),
            threads=settings.embedder_threads,
        )
        stack.push_async_callback(embedder.close)
        await migrate(settings.documents)
        db = Postgres(settings.documents, timeout=settings.call_timeout_seconds)
        await db.open()
        stack.push_async_callback(db.close)
        await claim_installation(db, embedder=embedder.id, dimension=embedder.dimension)
        graph = open_graph(settings.graph, timeout=settings.call_timeout_seconds)
        stack.push_async_callback(graph.close)
        vectors = open_vectors(
            settings.vectors,
            embedder.dimension,
            timeout=settings.call_timeout_seconds,
            bm25_average_words=settings.bm25_average_words,
            api_key=settings.qdrant_api_key.get_secret_value(),
        )
        stack.push_async_callback(vectors.close)
        cache = Cache(settings.cache)
        stack.push_async_callback(cache.close)
        yield _wire(
            settings,
            db,
            graph,
            vectors,
            cache,
            loaded,
            Pipeline(embedder, chunk_chars=settings.chunk_chars),
        )


def _wire(
    settings: Settings,
    db: Postgres,
    graph: GraphStore,
    vectors: VectorStore,
    cache: Cache,
    loaded: dict[str, Source],
    pipeline: Pipeline,
) -> App:
    guards = {name: Guard(name, settings) for name in ("graph", "vectors")}
    publication = Publication(
        db, graph, vectors, cache, settings=settings, pipeline=pipeline.pipeline, guards=guards
    )
    stores: dict[str, Store] = {"documents": db, "graph": graph, "vectors": vectors, "cache": cache}
    return App(
        settings=settings,
        db=db,
        graph=graph,
        vectors=vectors,
        cache=cache,
        sources=loaded,
        pipeline=pipeline,
        inbox=Inbox(db),
        publication=publication,
        sweeper=Sweeper(db, graph, vectors, stores, guards),
        collector=Collector(db, graph, vectors, settings),
        recovery=Recovery(db, graph, vectors, publication),
        dead_letters=DeadLetters(db),
        guards=guards,
    )
