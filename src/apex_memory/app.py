"""The composition root: opens every part, wires it, and offers the steps that `flows` and `gateway` sequence.

The steps of a batch are `claim`, `prepare`, `publish`; each is safe to run again. `drain` runs them
in a plain loop: the direct path, without Temporal.
"""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncIterator, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta
from time import monotonic
from typing import Any
from uuid import UUID

import httpx2

from apex_memory.config import Settings
from apex_memory.credentials.overlay import Credentials, secret_keys
from apex_memory.credentials.tokens import VaultTokens
from apex_memory.credentials.vault import Vault, read_keys
from apex_memory.errors import Misconfigured, RetryLater
from apex_memory.fetching.backfills import Backfills
from apex_memory.fetching.files import Files
from apex_memory.fetching.pulls import Backfill, OnPage, PullResult, Pulls
from apex_memory.fetching.source_states import SourceStates
from apex_memory.fetching.windows import Readings
from apex_memory.inbox import Batch, Inbox, Run
from apex_memory.model import Event, LandResult, now
from apex_memory.pipeline import Embedder, Pipeline, extract_query, open_embedder
from apex_memory.pipeline.batch_sizer import BatchSizer
from apex_memory.saga import recovery
from apex_memory.saga.collector import Collector
from apex_memory.saga.dead_letters import DeadLetters
from apex_memory.saga.failures import Failure
from apex_memory.saga.publication import BatchResult, Publication
from apex_memory.saga.recovery import Recovery
from apex_memory.saga.retries import ResilientStore
from apex_memory.saga.sweeper import Sweeper, SweepResult
from apex_memory.search import Search
from apex_memory.sources import registry
from apex_memory.sources.base import Source
from apex_memory.sources.http import VendorClient
from apex_memory.stores.base import GraphStore, Store, VectorStore
from apex_memory.stores.cache import Cache
from apex_memory.stores.graph import open_graph
from apex_memory.stores.postgres import Postgres, claim_installation, migrate
from apex_memory.stores.vectors import open_vectors
from apex_memory.telemetry import BATCH_EVENTS, STEP_SECONDS, logger


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
    vault: Vault
    credentials: Credentials
    links: dict[str, VendorClient]
    pulls: Pulls
    files: Files
    readings: Readings
    states: SourceStates
    backfills: Backfills
    publication: Publication
    sweeper: Sweeper
    collector: Collector
    recovery: Recovery
    dead_letters: DeadLetters
    search: Search
    resilient_stores: dict[str, ResilientStore]
    batch_sizer: BatchSizer
    log: Any

    async def land(self, events: Sequence[Event]) -> list[LandResult]:
        """Commit events to the inbox; only then may a source be answered 2xx."""
        return await self.inbox.land(events)

    async def pull(
        self, name: str, *, on_page: OnPage | None = None, backfill: Backfill | None = None
    ) -> PullResult:
        """Fetch what a vendor has for us, page by page. Nothing of a paused, disabled or unconfigured source."""
        source = self.sources[name]
        if not source.pulled or source.missing_settings or not await self.states.may_pull(name):
            return PullResult()
        return await self.pulls.run(source, self.links[name], on_page=on_page, backfill=backfill)

    async def process_files(self, name: str) -> int:
        """Land and answer the files of a source that are not at an end; answers how many. The direct path."""
        return await self.files.process(self.sources[name], self.links[name])

    async def aggregate_windows(self, name: str, *, everything: bool = False) -> int:
        """Land the windows of a stream that are due; answers how many."""
        source = self.sources[name]
        return (
            await self.readings.aggregate(source, everything=everything)
            if source.window_seconds
            else 0
        )

    async def claim(
        self, source: str, *, batch: UUID | None = None, run: Run | None = None
    ) -> Batch:
        """Lease what is ready of a source, up to `batch_max`; the same `batch` again answers the same events.

        An empty batch means nothing is ready.
        """
        batch = batch or uuid.uuid4()
        limit = self.batch_sizer.limit(source)
        events = await self.inbox.claim(
            source, batch=batch, limit=limit, lease=self.settings.lease_seconds, run=run
        )
        if events:
            BATCH_EVENTS.labels(source).observe(len(events))
        return Batch(batch, source, events, more=len(events) >= limit)

    def _held(self, *batches: UUID) -> AbstractAsyncContextManager[None]:
        return self.inbox.keeping(*batches, lease=self.settings.lease_seconds)

    async def prepare(self, source: str, batch: UUID) -> BatchResult:
        """Parse, extract and embed the events of a batch that have no manifest yet, and store the manifests."""
        events = await self.inbox.unprepared(batch)
        if not events:
            return BatchResult()
        began = monotonic()
        async with self._held(batch):
            with STEP_SECONDS.labels("prepare").time():
                document = self.sources[source].document
                results = await self.pipeline.prepare([(event, document) for event in events])
            report = await self.publication.store_manifests(
                batch, list(zip(events, results, strict=True))
            )
        self.batch_sizer.took(source, len(events), monotonic() - began)
        return report

    async def publish(self, batch: UUID, *, behind: UUID | None = None) -> BatchResult:
        """Stage, verify and flip the prepared events of a batch; the one that waits behind it keeps its lease, too."""
        async with self._held(*([batch, behind] if behind else [batch])):
            return await self.publication.publish(batch)

    async def give_up(self, source: str, batch: UUID, step: str, reason: str) -> None:
        """Take back a batch that a step failed on for a reason nobody foresaw.

        One event alone has failed an attempt, and in the end becomes a dead letter. Of many, one may
        be to blame: they are ready again at once, and claimed one at a time, so it fails alone.
        """
        events = await self.inbox.owned(batch)
        self.log.error("batch given up", source=source, step=step, events=len(events))
        if len(events) == 1:
            error = RetryLater(reason, remedy="the worker's log says where")
            await self.publication.failures.handle(batch, step, [Failure(events[0], error)])
        else:
            self.batch_sizer.isolate(source, len(events))
            await self.inbox.release(batch, events, seconds=0)

    async def drain(self, source: str, *, run: Run | None = None) -> int:
        """The direct path: batches until nothing is ready; answers the number of events carried.

        While a full batch is published the next is prepared, never more than the one: batches of a
        source are published in the order they were claimed in.
        """
        carried = 0
        publishing: asyncio.Task[BatchResult] | None = None
        try:
            while True:
                batch = await self.claim(source, run=run)
                carried += len(batch.events)
                if batch.events:
                    await self.prepare(source, batch.id)
                elif publishing is None:
                    return carried
                if publishing:
                    await self._published(publishing, behind=batch.id)
                publishing = asyncio.create_task(self.publish(batch.id)) if batch.events else None
                if publishing and not batch.more:
                    await publishing
                    publishing = None
        except asyncio.CancelledError:
            if publishing:
                publishing.cancel()
            raise
        finally:
            if publishing:
                await publishing

    async def _published(self, publishing: asyncio.Task[BatchResult], *, behind: UUID) -> None:
        """Wait for a batch to be published. If it fails, the one behind it is ready for others at once."""
        async with self._held(behind):
            await asyncio.wait([publishing])
        if publishing.exception():
            await self.inbox.release(behind, await self.inbox.owned(behind), seconds=0)
        await publishing

    async def sweep(self) -> SweepResult:
        """Check stores that restarted, abort and remove what expired, let parked events go on."""
        await self.recovery.check_restarted_stores()
        return await self.sweeper.sweep()

    async def collect(self) -> int:
        """Remove superseded stages past their grace, and what retention has outlived; answers the number of stages."""
        gone = await self.readings.forget(now() - timedelta(days=self.settings.reading_days))
        if gone:
            self.log.info("readings forgotten", partitions=gone)
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
        loaded = registry.load(settings.sources, settings.source_path)
        embedder = open_embedder(
            settings.embedder,
            model=settings.embedder_model,
            dimension=settings.embedder_dimension,
            key=settings.embedder_key.get_secret_value(),
            threads=settings.embedder_threads,
        )
        stack.push_async_callback(embedder.close)
        await migrate(settings.documents)
        db = Postgres(
            settings.documents,
            timeout=settings.call_timeout_seconds,
            snapshot_seconds=settings.snapshot_seconds,
        )
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
        vault = Vault(db, read_keys(secret_keys(settings)))
        http = await stack.enter_async_context(
            httpx2.AsyncClient(timeout=settings.call_timeout_seconds)
        )
        pipeline = Pipeline(embedder, chunk_chars=settings.chunk_chars)
        stack.push_async_callback(pipeline.close)
        app = _wire(settings, db, graph, vectors, cache, vault, http, loaded, pipeline, embedder)
        with suppress(Misconfigured):  # `keep_fresh` says so again; the other sources work
            await app.credentials.apply()
        yield app


def _wire(
    settings: Settings,
    db: Postgres,
    graph: GraphStore,
    vectors: VectorStore,
    cache: Cache,
    vault: Vault,
    http: httpx2.AsyncClient,
    loaded: dict[str, Source],
    pipeline: Pipeline,
    embedder: Embedder,
) -> App:
    inbox, tokens = Inbox(db), VaultTokens(vault)
    links = {
        name: VendorClient(
            name, http, tokens, calls=source.rate_limit[0], seconds=source.rate_limit[1]
        )
        for name, source in loaded.items()
    }
    resilient_stores = {name: ResilientStore(name, settings) for name in ("graph", "vectors")}
    publication = Publication(
        db,
        graph,
        vectors,
        cache,
        settings=settings,
        pipeline=pipeline.pipeline,
        resilient_stores=resilient_stores,
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
        inbox=inbox,
        vault=vault,
        credentials=Credentials(vault, loaded, settings),
        links=links,
        pulls=Pulls(db),
        files=Files(db),
        readings=Readings(db),
        states=SourceStates(db, loaded),
        backfills=Backfills(db),
        publication=publication,
        sweeper=Sweeper(db, graph, vectors, stores, resilient_stores),
        collector=Collector(db, graph, vectors, settings),
        recovery=Recovery(db, graph, vectors, publication),
        dead_letters=DeadLetters(db),
        search=Search(
            db,
            graph,
            vectors,
            cache,
            embed_query=embedder.query,
            embedder_id=embedder.id,
            extract_query=extract_query,
        ),
        resilient_stores=resilient_stores,
        batch_sizer=BatchSizer(most=settings.batch_max, seconds=settings.batch_seconds),
        log=logger(component="app"),
    )
