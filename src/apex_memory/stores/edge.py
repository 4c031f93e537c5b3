"""The client of the embedded vector server, whose process is `edge/server.py`."""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager
from functools import lru_cache
from typing import Any
from urllib.parse import unquote, urlsplit
from uuid import UUID

import numpy as np

from apex_memory.edge.connection import Connection, connect
from apex_memory.edge.protocol import PLACE, BrokenFrame
from apex_memory.errors import CHANGED_EMBEDDER, Misconfigured, Rejected, Unavailable
from apex_memory.model import Filters, Tally, VectorPoint, Vectors, chunk_point_bytes
from apex_memory.stores.base import LegHits, StageTally, VectorPassage, VectorQuery
from apex_memory.stores.bm25 import Words

SCHEMES = ("edge",)
# Flags in a passage's number: it continues the turn of the passage before; it ends as a question.
CONTINUES, ASKS = 1 << 31, 1 << 30
SLICE = 250  # points per request: the server serves waiting searches between requests


class EdgeVectors:
    """Vectors in the embedded server at `edge://:password@host:port`.

    Two connections: one for searches, one for everything else, so that no search waits behind a large write.
    Deletes are durable on return, upserts after `flush`.
    """

    name = "vectors"

    def __init__(
        self, url: str, dimension: int, *, timeout: float, bm25_average_words: float
    ) -> None:
        """Connect with the first call. `timeout` is in seconds per call."""
        parts = urlsplit(url)
        if not parts.hostname or not parts.port:
            raise Misconfigured(
                "vectors: the address lacks host or port",
                remedy="use edge://:password@127.0.0.1:port, or embedded:",
            )
        self._address = (parts.hostname, parts.port, unquote(parts.password or ""))
        self.dimension = dimension
        self._timeout = timeout
        self._words = Words(bm25_average_words)
        self._connections: dict[str, Connection] = {}
        self._connecting = asyncio.Lock()

    async def ping(self) -> None:
        await self._call("ping")

    async def version(self) -> str:
        return str((await self._greeting())["version"])

    async def incarnation(self) -> str:
        return str((await self._greeting())["incarnation"])

    async def close(self) -> None:
        while self._connections:
            await self._connections.popitem()[1].close()

    async def prepare(self) -> None:
        held = (await self._greeting())["dimension"]
        if held != self.dimension:
            raise Misconfigured(
                f"vectors: the store holds {held} dimensions, the embedder makes {self.dimension}",
                remedy=CHANGED_EMBEDDER,
            )

    async def upsert(self, points: Sequence[VectorPoint], vectors: Vectors) -> None:
        check_vectors(points, vectors, self.dimension)
        sending: asyncio.Task[Any] | None = None
        try:
            for first in range(0, len(points), SLICE):
                part = slice(first, first + SLICE)
                # In a thread while the batch before is written: counting words releases the interpreter lock.
                batch = await asyncio.to_thread(self._batch, points[part], vectors[part])
                if sending:
                    await sending
                sending = asyncio.create_task(self._call("upsert", batch))
                await asyncio.sleep(0)  # so that it is sent before the next one is made
            if sending:
                await sending
        finally:
            if sending:
                sending.cancel()

    async def flush(self) -> None:
        await self._call("flush")

    async def tally(self, stages: Sequence[UUID]) -> Mapping[UUID, Tally]:
        if not stages:
            return {}
        rows = await self._call("tally", [stage.bytes for stage in stages])
        return {row.stage: row.tally for row in _stage_tallies(rows)}

    async def delete_stages(self, stages: Sequence[UUID]) -> None:
        if stages:
            await self._call("delete", [stage.bytes for stage in stages])

    async def walk(self) -> AsyncIterator[StageTally]:
        cursor: int | None = None
        while True:
            rows, cursor = await self._call("walk", cursor)
            for row in _stage_tallies(rows):
                yield row
            if cursor is None:
                return

    async def search(self, queries: Sequence[VectorQuery]) -> list[LegHits]:
        if not queries:
            return []
        request = [self._question(query) for query in queries]
        async with self._bounded("search"):
            connection = await self._connection("searches")
            if not connection.greeting.get("search_all"):
                raise Unavailable(
                    self.name,
                    "the vector process is of an earlier build",
                    remedy="start it anew with this build",
                )
            response = await connection.call("search_all", request)
        passages = [_passage(*row) for row in PLACE.iter_unpack(response["places"])]
        return [
            {leg: _hits(passages, *packed) for leg, packed in legs.items()}
            for legs in response["queries"]
        ]

    async def points(self) -> int:
        return (await self.stats())["points"]

    async def stats(self) -> dict[str, int]:
        """Return `points`, `shards`, `unindexed` (points without an index yet), `unmerged`, `failures` of indexing in a row."""
        stats: dict[str, int] = await self._call("stats")
        return stats

    def _question(self, query: VectorQuery) -> dict[str, Any]:
        dense, words = query.dense, query.words
        if dense is not None:
            check_vectors((None,), dense[np.newaxis], self.dimension)
        return {
            "dense": None if dense is None else dense.astype("<f4").tobytes(),
            "terms": None if words is None else self._words.question(words).ids.tobytes(),
            "nearby": query.nearby,
            "limit": query.limit,
            "exclude": [stage.bytes for stage in query.exclude],
            "among": b"".join(chunk_point_bytes(stage, n) for stage, n in query.among),
            **_conditions(query.filters or Filters()),
        }

    def _batch(self, points: Sequence[VectorPoint], vectors: Vectors) -> dict[str, Any]:
        terms = self._words.rows(points)
        return {
            "points": [
                (str(p.id), str(p.stage), _place(p), p.time, list(_tags(p))) for p in points
            ],
            "dense": vectors.astype("<f4").tobytes(),
            "lengths": terms.lengths.astype("<u4").tobytes(),
            "ids": terms.ids.astype("<u4").tobytes(),
            "weights": terms.weights.astype("<f4").tobytes(),
        }

    async def _greeting(self) -> dict[str, Any]:
        async with self._bounded("connect"):
            return (await self._connection("writes")).greeting

    async def _call(self, method: str, argument: Any = None) -> Any:
        async with self._bounded(method):
            return await (await self._connection("writes")).call(method, argument)

    @asynccontextmanager
    async def _bounded(self, method: str) -> AsyncIterator[None]:
        try:
            async with asyncio.timeout(self._timeout):
                yield
        except TimeoutError as error:
            raise Unavailable(
                self.name, f"no response to {method} within {self._timeout:g} s"
            ) from error
        except (BrokenFrame, UnicodeEncodeError) as error:
            raise Rejected(
                f"vectors: {method} cannot be sent ({error})", remedy="send less at once"
            ) from error

    async def _connection(self, use: str) -> Connection:
        async with self._connecting:
            known = self._connections.get(use)
            if known and known.alive:
                return known
            if known:
                await self._connections.pop(use).close()
            fresh = await connect(*self._address)
            self._connections[use] = fresh
            return fresh


def check_vectors(points: Sequence[object], vectors: Vectors, dimension: int) -> None:
    """Raise `Rejected` unless there is one finite vector of the right dimension for every point.

    The engines accept NaN, and refuse a whole batch for one wrong shape.
    """
    if vectors.shape != (len(points), dimension):
        raise Rejected(
            f"vectors: shape {vectors.shape} for {len(points)} points of {dimension} dimensions",
            remedy="use the embedder that this store was made with",
        )
    if not np.isfinite(vectors).all():
        row = int(np.flatnonzero(~np.isfinite(vectors).all(axis=1))[0])
        raise Rejected(
            f"vectors: vector {row} holds NaN or infinity",
            remedy="check the embedder: it returns values that are no numbers",
        )


def _tags(point: VectorPoint) -> Iterator[str]:
    yield f"source={point.source}"
    yield f"kind={point.kind}"
    yield from (f"entity={entity}" for entity in point.entities)


def _place(point: VectorPoint) -> str:
    n = point.n | (CONTINUES if point.continues else 0) | (ASKS if point.asks else 0)
    return f"{point.doc} {n} {point.start} {point.end} {point.hash}"


def _conditions(filters: Filters) -> dict[str, Any]:
    groups = (
        ("source", filters.sources),
        ("kind", filters.kinds),
        ("entity", filters.entities),
        ("entity", filters.people),
    )
    return {
        "tags": [[f"{name}={value}" for value in group] for name, group in groups if group],
        "stages": [stage.bytes for stage in filters.stages],
        # Points hold whole seconds: the second that contains `since` belongs to the result.
        "since": math.floor(filters.since.timestamp()) if filters.since else None,
        "until": filters.until.timestamp() if filters.until else None,
    }


def _passage(stage: bytes, doc: bytes, n: int, start: int, end: int) -> VectorPassage:
    flags = n & CONTINUES != 0, n & ASKS != 0
    return VectorPassage(_uuid(stage), _uuid(doc), n & (ASKS - 1), start, end, *flags)


def _hits(
    passages: Sequence[VectorPassage], numbers: bytes, scores: bytes
) -> list[tuple[VectorPassage, float]]:
    """Return the hits of a leg: `numbers` are places in `passages`."""
    hit_passages = map(passages.__getitem__, np.frombuffer(numbers, dtype="<u4").tolist())
    return list(zip(hit_passages, np.frombuffer(scores, dtype="<f4").tolist(), strict=True))


@lru_cache(maxsize=10_000)
def _uuid(value: bytes) -> UUID:
    """Return the same object for the same bytes: passages of a document, and its hits of several legs, share it."""
    return UUID(bytes=value)


def _stage_tallies(rows: Sequence[tuple[bytes, int, int]]) -> Iterator[StageTally]:
    for stage, count, checksum in rows:
        yield StageTally(UUID(bytes=stage), Tally(count, checksum))
