"""The composition root: opens every part, wires it, and offers the steps that `flows` and `gateway` sequence.

The steps of a batch are `claim`, `prepare`, `publish`; each is safe to run again. `drain` runs them
in a plain loop: the direct path, without Temporal.
"""

from __future__ import annotations

import asyncio
import math
import uuid
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass, field
from datetime import timedelta
from time import monotonic
from typing import Any
from uuid import UUID

import httpx2

from apex_memory import sources
from apex_memory.arrivals import (
    Backfills,
    Files,
    Pulled,
    Pulls,
    Readings,
    SourceStates,
    VaultTokens,
)
from apex_memory.arrivals.pulls import Backfill, OnPage
from apex_memory.config import Settings
from apex_memory.errors import ApexError, Misconfigured, RetryLater
from apex_memory.inbox import Claimed, Inbox, Run
from apex_memory.model import Event, Landed, now
from apex_memory.pipeline import Embedder, Pipeline, extract_query, open_embedder
from apex_memory.saga import recovery
from apex_memory.saga.collector import Collector
from apex_memory.saga.dead_letters import DeadLetters
from apex_memory.saga.guard import Guard
from apex_memory.saga.outcomes import Failure
from apex_memory.saga.publication import Publication, Report
from apex_memory.saga.recovery import Recovery
from apex_memory.saga.sweeper import Sweeper, Swept
from apex_memory.search import Search
from apex_memory.sources import Link, Nudge, Source
from apex_memory.stores import GraphStore, Store, VectorStore
from apex_memory.stores.graph import open_graph
from apex_memory.stores.postgres import Postgres, claim_installation, migrate
from apex_memory.stores.redis import Cache
from apex_memory.stores.secrets import Vault, read_keys
from apex_memory.stores.vectors import open_vectors
from apex_memory.telemetry import BATCH_EVENTS, STEP_SECONDS, logger

SECRETS_SECONDS = 1.0  # how soon every process knows a secret that was set


@dataclass(frozen=True, slots=True)
class Batch:
    """A claimed batch: its id (the lease's owner) and its events."""

    id: UUID
    source: str
    events: list[Claimed]
    more: bool
    """The batch came back full: there is probably more."""


@dataclass(slots=True)
class Pace:
    """How many events make a batch: as many as are prepared in about `seconds`, so that an urgent one waits no longer."""

    most: int
    seconds: float
    _rates: dict[str, float] = field(default_factory=dict)
    _alone: dict[str, int] = field(default_factory=dict)

    def isolate(self, source: str, events: int) -> None:
        """Claim the next events of a source one at a time."""
        self._alone[source] = events

    def limit(self, source: str) -> int:
        if self._alone.get(source):
            self._alone[source] -= 1
            return 1
        rate = self._rates.get(source)
        return self.most if rate is None else max(1, min(self.most, math.ceil(rate * self.seconds)))

    def took(self, source: str, events: int, seconds: float) -> None:
        """Learn from a batch. Small ones say little about large ones: they never lower the pace."""
        rate = events / max(seconds, 1e-6)
        known = self._rates.get(source, rate)
        if seconds > self.seconds / 4 or rate > known:
            self._rates[source] = (known + rate) / 2


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
    links: dict[str, Link]
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
    guards: dict[str, Guard]
    pace: Pace
    log: Any

    async def land(self, events: Sequence[Event]) -> list[Landed]:
        """Commit events to the inbox; only then may a source be answered 2xx."""
        landed = await self.inbox.land(events)
        await self.cache.remember([item.id for item in landed])
        return landed

    async def keep_secrets_fresh(self) -> None:
        """For ever: take over, within a second, what is set in the vault. Wrong values are logged and left out."""
        known = None
        while True:
            try:
                if (changed := await self.vault.changed_at()) != known:
                    known = changed
                    await apply_secrets(self.vault, self.sources, self.settings)
            except ApexError as error:
                self.log.warning("secrets not read", reason=str(error))
            await asyncio.sleep(SECRETS_SECONDS)

    async def note(self, source: str, nudges: Sequence[Nudge]) -> None:
        """Keep what a vendor says has changed, until a pull fetches it."""
        await self.pulls.note(source, nudges)

    async def pull(
        self, name: str, *, on_page: OnPage | None = None, backfill: Backfill | None = None
    ) -> Pulled:
        """Fetch what a vendor has for us, page by page. Nothing of a paused, disabled or unconfigured source."""
        source = self.sources[name]
        if not source.pulled or source.missing or not await self.states.may_pull(name):
            return Pulled()
        return await self.pulls.run(source, self.links[name], on_page=on_page, backfill=backfill)

    async def carry_files(self, name: str) -> int:
        """Land and answer the files of a source that are not at an end; answers how many. The direct path."""
        source, ids = self.sources[name], await self.files.open_files(name)
        for id in ids:
            while (await self.files.land_chunk(source, id)).more:
                pass
            await self.files.answer(source, id, self.links[name])
        return len(ids)

    async def fold(self, name: str, *, everything: bool = False) -> int:
        """Land the windows of a stream that are due; answers how many."""
        source = self.sources[name]
        return (
            await self.readings.fold(source, everything=everything) if source.window_seconds else 0
        )

    async def claim(
        self, source: str, *, batch: UUID | None = None, run: Run | None = None
    ) -> Batch:
        """Lease what is ready of a source, up to `batch_max`; the same `batch` again answers the same events.

        An empty batch means nothing is ready.
        """
        batch = batch or uuid.uuid4()
        limit = self.pace.limit(source)
        events = await self.inbox.claim(
            source, batch=batch, limit=limit, lease=self.settings.lease_seconds, run=run
        )
        if events:
            BATCH_EVENTS.labels(source).observe(len(events))
        return Batch(batch, source, events, more=len(events) >= limit)

    async def prepare(self, source: str, batch: UUID) -> Report:
        """Parse, extract and embed the events of a batch that have no manifest yet, and store the manifests."""
        events = [event for event, _ in await self.inbox.events(batch)]
        if not events:
            return Report()
        began = monotonic()
        async with self._held(batch):
            with STEP_SECONDS.labels("prepare").time():
                document = self.sources[source].document
                results = await self.pipeline.prepare([(event, document) for event in events])
            report = await self.publication.store_manifests(
                batch, list(zip(events, results, strict=True))
            )
        self.pace.took(source, len(events), monotonic() - began)
        return report

    async def publish(self, batch: UUID, *, behind: UUID | None = None) -> Report:
        """Stage, verify and flip the prepared events of a batch; the one that waits behind it keeps its lease, too."""
        async with self._held(*([batch, behind] if behind else [batch])):
            return await self.publication.publish(batch)

    async def give_up(self, source: str, batch: UUID, step: str, reason: str) -> None:
        """Take back a batch that a step failed on for a reason nobody foresaw.

        One event alone has failed an attempt, and in the end becomes a dead letter. Of many, one may
        be to blame: they are ready again at once, and claimed one at a time, so it fails alone.
        """
        events = await self.inbox.held(batch)
        self.log.error("batch given up", source=source, step=step, events=len(events))
        if len(events) == 1:
            error = RetryLater(reason, remedy="the worker's log says where")
            await self.publication.outcomes.settle(batch, step, [Failure(events[0], error)])
        else:
            self.pace.isolate(source, len(events))
            await self.publication.release(batch, events, seconds=0)

    @asynccontextmanager
    async def _held(self, *batches: UUID) -> AsyncIterator[None]:
        """Renew the batches' leases while a step works, however long the embedding takes."""
        keeping = asyncio.create_task(self._keep(batches))
        try:
            yield
        finally:
            keeping.cancel()

    async def _keep(self, batches: Sequence[UUID]) -> None:
        while True:
            await asyncio.sleep(self.settings.lease_seconds / 3)
            try:
                await self.inbox.renew(*batches, lease=self.settings.lease_seconds)
            except ApexError as error:
                self.log.warning("lease not renewed", batch=str(batches[0]), reason=str(error))

    async def drain(self, source: str, *, run: Run | None = None) -> int:
        """The direct path: batches until nothing is ready; answers the number of events carried.

        While a full batch is published the next is prepared, never more than the one: batches of a
        source are published in the order they were claimed in.
        """
        carried = 0
        publishing: asyncio.Task[Report] | None = None
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

    async def _published(self, publishing: asyncio.Task[Report], *, behind: UUID) -> None:
        """Wait for a batch to be published. If it fails, the one behind it is ready for others at once."""
        async with self._held(behind):
            await asyncio.wait([publishing])
        if publishing.exception():
            await self.publication.release(behind, await self.inbox.held(behind), seconds=0)
        await publishing

    async def sweep(self) -> Swept:
        """Check stores that restarted, abort and remove what expired, let parked events go on."""
        await self.recovery.gate()
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
        with suppress(Misconfigured):  # `keep_secrets_fresh` says so again; the other sources work
            await apply_secrets(vault, loaded, settings)
        http = await stack.enter_async_context(
            httpx2.AsyncClient(timeout=settings.call_timeout_seconds)
        )
        pipeline = Pipeline(embedder, chunk_chars=settings.chunk_chars)
        stack.push_async_callback(pipeline.close)
        yield _wire(settings, db, graph, vectors, cache, vault, http, loaded, pipeline, embedder)


async def apply_secrets(vault: Vault, loaded: Mapping[str, Source], settings: Settings) -> None:
    """Lay the vault's values over the settings of each source. Raises `Misconfigured` for one that cannot be right."""
    kept = await vault.all(sources.SECRETS)
    for name, source in loaded.items():
        given = {**settings.sources.get(name, {}), **sources.secrets_of(name, kept)}
        source.settings = sources.settings_of(type(source), given)


def secret_keys(settings: Settings) -> list[str]:
    """The texts of the keys that seal secrets: the setting first, then the file's lines."""
    file = settings.secret_key_file or settings.data_dir / "secret.key"
    try:
        lines = file.read_text().splitlines()
    except FileNotFoundError:
        if settings.secret_key_file:
            raise Misconfigured(
                f"secret_key_file: {file} is not there", remedy="make a key with `apex secrets key`"
            ) from None
        lines = []
    return [settings.secret_key.get_secret_value(), *lines]


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
        name: Link(name, http, tokens, calls=source.calls[0], seconds=source.calls[1])
        for name, source in loaded.items()
    }
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
        inbox=inbox,
        vault=vault,
        links=links,
        pulls=Pulls(db, inbox),
        files=Files(db, inbox),
        readings=Readings(db, inbox),
        states=SourceStates(db, loaded),
        backfills=Backfills(db, inbox),
        publication=publication,
        sweeper=Sweeper(db, graph, vectors, stores, guards),
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
        guards=guards,
        pace=Pace(most=settings.batch_max, seconds=settings.batch_seconds),
        log=logger(room="app"),
    )
