"""What a process opens for its work: stores, models and the HTTP client of vendors, closed again at the end."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from uuid import UUID

import httpx2

from apex_memory.config import Settings
from apex_memory.pipeline import Embedder, open_embedder
from apex_memory.saga.retries import ResilientStore
from apex_memory.search.reranker import Reranker
from apex_memory.stores.base import GraphStore, Replication, Store, VectorStore
from apex_memory.stores.cache import Cache
from apex_memory.stores.graph import open_graph
from apex_memory.stores.objects import ObjectStore, open_objects
from apex_memory.stores.postgres import Postgres, claim_installation, read_installation
from apex_memory.stores.schema import migrate
from apex_memory.stores.standby import Standby
from apex_memory.stores.vectors import open_vectors


@dataclass(frozen=True, slots=True)
class Connections:
    """Open with `open_connections`. `standby`, `objects` and `reranker` are None where the settings name none."""

    db: Postgres
    standby: Standby | None
    graph: GraphStore
    vectors: VectorStore
    cache: Cache
    objects: ObjectStore | None
    embedder: Embedder
    embedder_server: ResilientStore
    """Retries and breaker of the embedder, if it is a server."""
    reranker: Reranker | None
    reranker_server: ResilientStore
    http: httpx2.AsyncClient
    installation: UUID
    """The id of the installation whose memory PostgreSQL holds."""

    @property
    def stores(self) -> list[Store]:
        """The stores whose state the status of an installation shows."""
        stores: list[Store] = [self.db, self.graph, self.vectors, self.cache]
        return [*stores, self.objects] if self.objects else stores


@asynccontextmanager
async def open_connections(
    settings: Settings, *, any_embedder: bool = False, answers: bool = False
) -> AsyncIterator[Connections]:
    """Open everything that the settings name. Migrates PostgreSQL's schema first.

    `any_embedder` and `answers` are those of `open_app`. Raises `Misconfigured` for settings that cannot work,
    `Unavailable` without PostgreSQL.
    """
    async with AsyncExitStack() as stack:
        objects = open_objects(settings)
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
        yield Connections(
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
            installation=installation,
        )


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
