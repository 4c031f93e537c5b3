"""The composition root: opens every part against the settings and wires them together."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from datetime import timedelta
from functools import partial
from itertools import chain
from uuid import UUID

import httpx2

from apex_memory.build import build_id
from apex_memory.config import Settings
from apex_memory.credentials.key_sources import read_keyring
from apex_memory.credentials.overlay import Credentials
from apex_memory.credentials.tokens import VaultTokens
from apex_memory.credentials.vault import Vault
from apex_memory.engines.postgres_space import PROCESSING, PostgresSpace
from apex_memory.errors import Misconfigured
from apex_memory.fetching.backfills import Backfills
from apex_memory.fetching.fetcher import Fetcher
from apex_memory.inbox import Inbox
from apex_memory.inbox.payload_store import PayloadStore
from apex_memory.mirror import Mirror
from apex_memory.pipeline import (
    Embedder,
    Pipeline,
    QueryReader,
    ReaderLimits,
    canonical,
    open_embedder,
)
from apex_memory.rollout.build_watch import BuildWatch
from apex_memory.rollout.candidate import promoting
from apex_memory.rollout.controller import Controller
from apex_memory.rollout.runs import BUILD, Runs
from apex_memory.rollout.shadow_gate import copies_of
from apex_memory.rollout.shadow_steps import ShadowSteps
from apex_memory.rollout.shares import Shares
from apex_memory.saga.collector import Collector
from apex_memory.saga.dead_letters import DeadLetters
from apex_memory.saga.manifests import live_manifests
from apex_memory.saga.publication import Publication
from apex_memory.saga.rebuild import Rebuild
from apex_memory.saga.recovery import Recovery
from apex_memory.saga.retries import BreakerProbes, ResilientStore
from apex_memory.saga.sweeper import Sweeper
from apex_memory.sealing import Keyring
from apex_memory.search import Search
from apex_memory.search.reranker import Reranker
from apex_memory.sources import registry
from apex_memory.sources.base import PulledSource, Source
from apex_memory.sources.http import VendorClient
from apex_memory.steps.batches import BatchSteps
from apex_memory.steps.direct import DirectPath
from apex_memory.steps.upkeep import Upkeep
from apex_memory.stores.base import GraphStore, Replication, Store, VectorStore
from apex_memory.stores.cache import Cache
from apex_memory.stores.graph import open_graph
from apex_memory.stores.objects import ObjectStore, open_objects
from apex_memory.stores.postgres import Postgres, claim_installation, read_installation
from apex_memory.stores.schema import migrate
from apex_memory.stores.standby import Standby
from apex_memory.stores.vectors import open_vectors


class App:
    """Every part, opened and wired. Build it with `open_app`."""

    def __init__(
        self,
        settings: Settings,
        *,
        db: Postgres,
        standby: Standby | None,
        graph: GraphStore,
        vectors: VectorStore,
        cache: Cache,
        objects: ObjectStore | None,
        embedder: Embedder,
        embedder_server: ResilientStore,
        reranker: Reranker | None,
        reranker_server: ResilientStore,
        http: httpx2.AsyncClient,
        sources: Mapping[str, Source],
        keyring: Keyring,
        build: str,
        installation: UUID,
    ) -> None:
        self.settings = settings
        self.keyring = keyring
        self.build = build
        self.db = db
        self.standby = standby
        self.graph = graph
        self.vectors = vectors
        self.cache = cache
        self.stores: list[Store] = [db, graph, vectors, cache]
        if objects is not None:
            self.stores.append(objects)
        payloads = PayloadStore(
            db,
            objects,
            keyring,
            threshold=settings.payload_threshold_bytes,
            seals=settings.seal_payloads,
            require_space=PostgresSpace(settings).require,
        )
        self.sources = dict(sources)

        self.vault = Vault(db, keyring)
        self.credentials = Credentials(self.vault, self.sources, settings)
        tokens = VaultTokens(self.vault)
        clients = {
            name: _vendor_client(source, http, tokens)
            for name, source in self.sources.items()
            if isinstance(source, PulledSource)
        }

        self.inbox = Inbox(db, payloads)
        self.payloads = payloads
        self.fetcher = Fetcher(
            db,
            self.sources,
            clients,
            keep_readings=timedelta(days=settings.reading_days),
            payloads=payloads,
            max_attempts=settings.max_attempts,
        )
        self.backfills = Backfills(db, payloads)
        self.mirror = Mirror(db, self.sources, installation=installation, days=settings.mirror_days)

        resilient_stores = {name: ResilientStore(name, settings) for name in ("graph", "vectors")}
        self.pipeline = Pipeline(
            embedder,
            chunk_chars=settings.chunk_chars,
            limits=_reader_limits(settings),
            reader_processes=settings.reader_processes,
            reading_seconds=_reading_seconds(settings),
            build=build,
            live_manifests=partial(live_manifests, db),
            date_order=settings.date_order,
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
        copies_stores = {
            name: ResilientStore(f"shadow {name}", settings) for name in resilient_stores
        }
        pings = {"graph": graph.ping, "vectors": vectors.ping}
        self.breaker_probes = BreakerProbes(
            {resilient_stores[name]: ping for name, ping in pings.items()}
            | {copies_stores[name]: ping for name, ping in pings.items()}
            | {embedder_server: partial(embedder.query, "probe")}
            | ({reranker_server: reranker.probe} if reranker else {})
        )
        self.reranker = reranker
        self.reranker_server = reranker_server
        self.dead_letters = DeadLetters(db)
        self.recovery = Recovery(db, graph, vectors, self.publication)
        self.rebuild = Rebuild(db, graph, vectors, cache, self.publication, self.recovery)
        self.sweeper = Sweeper(
            db, graph, vectors, self.stores, resilient_stores, lease=settings.lease_seconds
        )
        self.collector = Collector(db, graph, vectors, settings)

        self.steps = BatchSteps(
            self.inbox,
            payloads,
            self.pipeline,
            self.publication,
            self.sources,
            settings,
            space=PostgresSpace(settings, share=PROCESSING),
            build=build,
        )
        self.direct = DirectPath(self.steps, self.inbox, self.sources)
        self.shadow = ShadowSteps(
            db,
            graph,
            vectors,
            self._shadow_publication(copies_stores),
            payloads,
            self.pipeline,
            self.sources,
            settings,
        )
        self.shares = Shares(db)
        self.upkeep = Upkeep(
            self.recovery,
            self.sweeper,
            self.collector,
            self.fetcher.readings,
            self.mirror,
            payloads,
        )
        self.runs = Runs(db, settings.rollout, self.sources)
        self.rollouts = Controller(db, self.runs, copies_of=copies_of)
        self.rollouts.on_change(BUILD, promoting(db))
        self.builds = BuildWatch(db, build)
        self.search = Search(
            db,
            graph,
            vectors,
            cache,
            embed_query=embedder.query,
            embedder_id=embedder.id,
            extract_query=QueryReader(source.numbered for source in sources.values()),
            canonical_ref=canonical,
            key_prefixes={name: source.own_key_prefixes() for name, source in sources.items()},
            id_refs=list(chain.from_iterable(source.id_refs for source in sources.values())),
            called={name: source.called for name, source in sources.items()},
            date_order=settings.date_order,
            reranker=reranker,
            standby=standby,
        )

    def _shadow_publication(self, stores: Mapping[str, ResilientStore]) -> Publication:
        """Publication for copies, with breakers of its own: what copies fail at does not stop live events."""
        return Publication(
            self.db,
            self.graph,
            self.vectors,
            self.cache,
            settings=self.settings,
            pipeline=self.pipeline.pipeline,
            resilient_stores=stores,
            step_prefix="shadow ",
        )


@asynccontextmanager
async def open_app(
    settings: Settings, *, build: str = "", any_embedder: bool = False, answers: bool = False
) -> AsyncIterator[App]:
    """Open every part against the URLs in the settings, and close them at the end. `build` defaults to that of the settings.

    `any_embedder` is for a worker that only processes copies: its embedder may differ from that of the memory. `answers` is
    for one that answers searches: only this reads from the standby of the settings, and has to run `Standby.run`.

    Raises `Misconfigured` for settings that cannot work, `Unavailable` without PostgreSQL. The other stores
    may be unavailable: what needs them waits.
    """
    async with AsyncExitStack() as stack:
        keyring = await asyncio.to_thread(read_keyring, settings)
        objects = open_objects(settings)
        if objects is not None:
            keyring.require_key()
        sources = registry.load(settings.sources, settings.source_path)
        embedder_server = ResilientStore("embedder", settings)
        embedder = open_embedder(
            settings.embedder,
            model=settings.embedder_model,
            dimension=settings.embedder_dimension,
            key=settings.embedder_key.get_secret_value(),
            threads=settings.embedder_threads,
            guard=embedder_server.call,
        )
        stack.push_async_callback(embedder.close)
        reranker_server = ResilientStore("reranker", settings)
        reranker = _open_reranker(settings, reranker_server)
        if reranker:
            stack.push_async_callback(reranker.close)
        await migrate(settings.session_documents)
        db = Postgres(
            settings.documents,
            pooled=bool(settings.documents_direct),
            timeout=settings.call_timeout_seconds,
            snapshot_seconds=settings.snapshot_seconds,
        )
        await db.open()
        stack.push_async_callback(db.close)
        standby = await _open_standby(settings, db) if answers else None
        if standby:
            stack.push_async_callback(standby.close)
        dimension = embedder.dimension
        if any_embedder:
            installation, stored = await read_installation(db)
            dimension = stored or dimension
        else:
            installation = await claim_installation(db, embedder=embedder.id, dimension=dimension)
        tls = settings.connections_tls
        graph = open_graph(settings.graph_url, timeout=settings.call_timeout_seconds, tls=tls)
        stack.push_async_callback(graph.close)
        vectors = open_vectors(
            settings.vectors,
            dimension,
            timeout=settings.call_timeout_seconds,
            bm25_average_words=settings.bm25_average_words,
            api_key=settings.qdrant_api_key.get_secret_value(),
            tls=tls,
            replication=Replication(
                settings.qdrant_shards,
                settings.qdrant_replication_factor,
                settings.qdrant_write_consistency_factor,
            ),
        )
        stack.push_async_callback(vectors.close)
        cache = Cache(settings.cache, tls=tls)
        stack.push_async_callback(cache.close)
        http = await stack.enter_async_context(
            httpx2.AsyncClient(timeout=settings.call_timeout_seconds)
        )
        app = App(
            settings,
            db=db,
            standby=standby,
            graph=graph,
            vectors=vectors,
            cache=cache,
            objects=objects,
            embedder=embedder,
            embedder_server=embedder_server,
            reranker=reranker,
            reranker_server=reranker_server,
            http=http,
            sources=sources,
            keyring=keyring,
            build=build or settings.build_id or build_id(),
            installation=installation,
        )
        stack.push_async_callback(app.pipeline.close)
        await app.payloads.choose_key()
        with suppress(Misconfigured):  # `keep_fresh` logs it again; the other sources work
            await app.credentials.apply()
        yield app


async def _open_standby(settings: Settings, db: Postgres) -> Standby | None:
    """Return the standby that the settings name, whether it responds or not; None without one."""
    if not settings.documents_standby:
        return None
    snapshots = Postgres(
        settings.documents_standby,
        pooled=bool(settings.documents_direct),
        size=2,
        timeout=settings.call_timeout_seconds,
        snapshot_seconds=settings.snapshot_seconds,
    )
    await snapshots.open(wait=False)
    return Standby(db, snapshots, bound=settings.documents_standby_seconds)


def _open_reranker(settings: Settings, server: ResilientStore) -> Reranker | None:
    """Return the reranker that the settings name, behind its breaker; None without one."""
    if not settings.reranker:
        return None
    return Reranker(
        settings.reranker,
        model=settings.reranker_model,
        key=settings.reranker_key.get_secret_value(),
        seconds=settings.reranker_milliseconds / 1000,
        guard=server.call_once,
    )


def _reading_seconds(settings: Settings) -> float:
    """Return how long the files of a batch are begun: as long as those of one event may take.

    So slow files hold the other events of their batch for twice that time at most, and preparing the batch does not
    reach its time limit, which would lose what was read.
    """
    left = settings.prepare_seconds - 2 * settings.reader_seconds
    return max(0.0, min(settings.reader_seconds, left))


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
