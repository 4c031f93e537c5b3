"""The composition root: opens every part against the settings and wires them together."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from datetime import timedelta

import httpx2

from apex_memory.config import Settings
from apex_memory.credentials.overlay import Credentials, secret_keys
from apex_memory.credentials.tokens import VaultTokens
from apex_memory.credentials.vault import Vault, read_keys
from apex_memory.errors import Misconfigured
from apex_memory.fetching.backfills import Backfills
from apex_memory.fetching.fetcher import Fetcher
from apex_memory.inbox import Inbox
from apex_memory.pipeline import (
    Embedder,
    Pipeline,
    ReaderLimits,
    canonical,
    extract_query,
    open_embedder,
)
from apex_memory.saga.collector import Collector
from apex_memory.saga.dead_letters import DeadLetters
from apex_memory.saga.publication import Publication
from apex_memory.saga.recovery import Recovery
from apex_memory.saga.retries import ResilientStore
from apex_memory.saga.sweeper import Sweeper
from apex_memory.search import Search
from apex_memory.sources import registry
from apex_memory.sources.base import PulledSource, Source
from apex_memory.sources.http import VendorClient
from apex_memory.steps.batches import BatchSteps
from apex_memory.steps.direct import DirectPath
from apex_memory.steps.upkeep import Upkeep
from apex_memory.stores.base import GraphStore, Store, VectorStore
from apex_memory.stores.cache import Cache
from apex_memory.stores.graph import open_graph
from apex_memory.stores.postgres import Postgres, claim_installation, migrate
from apex_memory.stores.vectors import open_vectors


class App:
    """Every part, opened and wired. Build it with `open_app`."""

    def __init__(
        self,
        settings: Settings,
        *,
        db: Postgres,
        graph: GraphStore,
        vectors: VectorStore,
        cache: Cache,
        embedder: Embedder,
        http: httpx2.AsyncClient,
        sources: Mapping[str, Source],
    ) -> None:
        self.settings = settings
        self.db = db
        self.graph = graph
        self.vectors = vectors
        self.cache = cache
        self.stores: list[Store] = [db, graph, vectors, cache]
        self.sources = dict(sources)

        self.vault = Vault(db, read_keys(secret_keys(settings)))
        self.credentials = Credentials(self.vault, self.sources, settings)
        tokens = VaultTokens(self.vault)
        clients = {
            name: _vendor_client(source, http, tokens)
            for name, source in self.sources.items()
            if isinstance(source, PulledSource)
        }

        self.inbox = Inbox(db)
        self.fetcher = Fetcher(
            db, self.sources, clients, keep_readings=timedelta(days=settings.reading_days)
        )
        self.backfills = Backfills(db)

        resilient_stores = {name: ResilientStore(name, settings) for name in ("graph", "vectors")}
        self.pipeline = Pipeline(
            embedder,
            chunk_chars=settings.chunk_chars,
            limits=_reader_limits(settings),
            reader_processes=settings.reader_processes,
        )
        self.publication = Publication(
            db,
            graph,
            vectors,
            cache,
            settings=settings,
            pipeline=self.pipeline.pipeline,
            resilient_stores=resilient_stores,
        )
        self.dead_letters = DeadLetters(db)
        self.recovery = Recovery(db, graph, vectors, self.publication)
        self.sweeper = Sweeper(
            db, graph, vectors, self.stores, resilient_stores, lease=settings.lease_seconds
        )
        self.collector = Collector(db, graph, vectors, settings)

        self.steps = BatchSteps(self.inbox, self.pipeline, self.publication, self.sources, settings)
        self.direct = DirectPath(self.steps, self.inbox, self.sources)
        self.upkeep = Upkeep(self.recovery, self.sweeper, self.collector, self.fetcher.readings)
        self.search = Search(
            db,
            graph,
            vectors,
            cache,
            embed_query=embedder.query,
            embedder_id=embedder.id,
            extract_query=extract_query,
            canonical_ref=canonical,
        )


@asynccontextmanager
async def open_app(settings: Settings) -> AsyncIterator[App]:
    """Open every part against the URLs in the settings, and close them at the end.

    Raises `Misconfigured` for settings that cannot work, `Unavailable` without PostgreSQL. The other stores
    may be unavailable: what needs them waits.
    """
    async with AsyncExitStack() as stack:
        sources = registry.load(settings.sources, settings.source_path)
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
        http = await stack.enter_async_context(
            httpx2.AsyncClient(timeout=settings.call_timeout_seconds)
        )
        app = App(
            settings,
            db=db,
            graph=graph,
            vectors=vectors,
            cache=cache,
            embedder=embedder,
            http=http,
            sources=sources,
        )
        stack.push_async_callback(app.pipeline.close)
        with suppress(Misconfigured):  # `keep_fresh` logs it again; the other sources work
            await app.credentials.apply()
        yield app


def _reader_limits(settings: Settings) -> ReaderLimits:
    return ReaderLimits(
        seconds=settings.reader_seconds,
        cpu_seconds=settings.reader_cpu_seconds,
        memory_bytes=settings.reader_memory_bytes,
        max_files=settings.reader_max_files,
        nesting=settings.reader_nesting,
        mime_nesting=settings.reader_mime_nesting,
        unpacked_bytes=settings.reader_unpacked_bytes,
        compression_ratio=settings.reader_compression_ratio,
    )


def _vendor_client(
    source: PulledSource, http: httpx2.AsyncClient, tokens: VaultTokens
) -> VendorClient:
    """The HTTP client for a source's vendor. It follows rate limits that are set at run time."""
    return VendorClient(source.name, http, tokens, rate_limits=lambda: source.rate_limits)
