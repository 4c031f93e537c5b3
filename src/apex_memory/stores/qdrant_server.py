"""Vectors in a Qdrant server at `http://host:6333/collection`.

The requests are tested on qdrant-client's own local mode, which has the server's semantics, and over HTTP against the
models of Qdrant's OpenAPI document. No Qdrant server has been run with it: `docs/howto/qdrant.md`.
"""

from __future__ import annotations

import asyncio
import hashlib
import math
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any
from urllib.parse import urlsplit
from uuid import UUID

import numpy as np
from pydantic import ValidationError
from qdrant_client import AsyncQdrantClient, models
from qdrant_client.common.client_exceptions import ResourceExhaustedResponse
from qdrant_client.http.exceptions import ResponseHandlingException, UnexpectedResponse

from apex_memory.errors import CHANGED_EMBEDDER, Misconfigured, Rejected, RetryLater, Unavailable
from apex_memory.model import Filters, Tally, VectorPoint, Vectors, chunk_point
from apex_memory.stores.base import (
    SERVERS_CHOICE,
    LegHits,
    Replication,
    StageTally,
    VectorPassage,
    VectorQuery,
)
from apex_memory.stores.bm25 import Terms, Words
from apex_memory.stores.edge import check_vectors
from apex_memory.tls import NO_FILES, STORE_REMEDY, ClientTls, tls_reason

SLICE = 250  # points per request
PAGE = 10_000  # points per page
BUCKETS = 1 << 16  # stages are walked by the first 16 bits of their id

INDEXES = {
    "stage": models.PayloadSchemaType.UUID,
    "source": models.PayloadSchemaType.KEYWORD,
    "kind": models.PayloadSchemaType.KEYWORD,
    "entities": models.PayloadSchemaType.KEYWORD,
    "time": models.PayloadSchemaType.INTEGER,
    "bucket": models.PayloadSchemaType.INTEGER,
}


class QdrantVectors:
    """One collection: dense vector `dense` (cosine), sparse vectors `words` and `nearby` (with IDF).

    Every write waits for the server's log, so `flush` has nothing to do.
    """

    name = "vectors"

    def __init__(
        self,
        url: str,
        dimension: int,
        *,
        timeout: float,
        bm25_average_words: float,
        api_key: str = "",
        tls: ClientTls = NO_FILES,
        replication: Replication = SERVERS_CHOICE,
        client: AsyncQdrantClient | None = None,
    ) -> None:
        """Connect with the first call. `timeout` is in seconds per call; `client` is for tests.

        The collection may be an alias. `replication` counts where the collection is created.
        """
        parts = urlsplit(url)
        self._collection = parts.path.strip("/")
        if not self._collection or "/" in self._collection:
            raise Misconfigured(
                "vectors: the address names no collection", remedy="use http://host:6333/collection"
            )
        self.dimension = dimension
        self._timeout = timeout
        self._words = Words(bm25_average_words)
        self._replication = replication
        options: dict[str, Any] = {}
        if tls.given and parts.scheme == "https":
            options["verify"] = tls.context()
        self._client = client or AsyncQdrantClient(
            url=f"{parts.scheme}://{parts.netloc}",
            port=parts.port or 6333,
            api_key=api_key or None,
            timeout=math.ceil(timeout),
            check_compatibility=False,  # the check would connect at once
            **options,
        )

    async def ping(self) -> None:
        async with self._translated("ping"):
            await self._client.info()

    async def version(self) -> str:
        async with self._translated("version"):
            return f"Qdrant {(await self._client.info()).version}"

    async def incarnation(self) -> str:
        """Return the id that the server generates at every start, from its telemetry, and the collection behind an alias.

        So another collection shows, also when an alias moves to it. Each call asks the server, because HTTP shows no
        broken connection. Where telemetry is not available
        (a key without the right, a proxy, another version, local mode) the id derives from version and collection
        settings: another server or collection may then show, a restart does not. Behind a load balancer over
        several nodes it is that of the node that responded.
        """
        async with self._translated("incarnation"):
            process, collection = await asyncio.gather(self._process(), self._behind_alias())
            return process if collection == self._collection else f"{process} {collection}"

    async def _process(self) -> str:
        try:
            telemetry = await self._client.http.service_api.telemetry(details_level=0)
            if telemetry.result is not None:
                return str(telemetry.result.id)
        except NotImplementedError:
            pass
        except (UnexpectedResponse, ResponseHandlingException) as error:
            if not _is_withheld(error):
                raise
        server = await self._client.info()
        held = await self._client.get_collection(self._collection)
        description = f"{server.version} {server.commit} {held.config.model_dump_json()}"
        return hashlib.sha256(description.encode()).hexdigest()[:32]

    async def _behind_alias(self) -> str:
        """Return the collection that the name stands for: itself, unless it is an alias that this key may see."""
        try:
            listed = (await self._client.get_aliases()).aliases
        except (UnexpectedResponse, ResponseHandlingException) as error:
            if not _is_withheld(error):
                raise
            return self._collection
        of_alias = {alias.alias_name: alias.collection_name for alias in listed}
        return of_alias.get(self._collection, self._collection)

    async def close(self) -> None:
        await self._client.close()

    async def prepare(self) -> None:
        async with self._translated("prepare"):
            if not await self._client.collection_exists(self._collection):
                await self._create()
            held = (await self._client.get_collection(self._collection)).config.params
            self._check(held)
            for field, schema in INDEXES.items():
                await self._client.create_payload_index(
                    self._collection, field, field_schema=schema, wait=True
                )

    async def upsert(self, points: Sequence[VectorPoint], vectors: Vectors) -> None:
        check_vectors(points, vectors, self.dimension)
        for first in range(0, len(points), SLICE):
            part = slice(first, first + SLICE)
            rows = [
                self._point(point, vector.tolist())
                for point, vector in zip(points[part], vectors[part], strict=True)
            ]
            async with self._translated("upsert"):
                await self._client.upsert(self._collection, points=rows, wait=True)

    async def flush(self) -> None:
        """Do nothing: every write has waited for the server's log."""

    async def tally(self, stages: Sequence[UUID]) -> Mapping[UUID, Tally]:
        if not stages:
            return {}
        return await self._tally(models.Filter(must=[_of_stages(stages)]))

    async def delete_stages(self, stages: Sequence[UUID]) -> None:
        if stages:
            only = models.FilterSelector(filter=models.Filter(must=[_of_stages(stages)]))
            async with self._translated("delete"):
                await self._client.delete(self._collection, points_selector=only, wait=True)

    async def walk(self) -> AsyncIterator[StageTally]:
        width = max(
            1, BUCKETS * PAGE // max(PAGE, await self.points())
        )  # about a page per bucket range
        for first in range(0, BUCKETS, width):
            bounds = models.Range(gte=first, lt=first + width)
            only = models.Filter(must=[models.FieldCondition(key="bucket", range=bounds)])
            for stage, tally in (await self._tally(only)).items():
                yield StageTally(stage, tally)

    async def search(self, queries: Sequence[VectorQuery]) -> list[LegHits]:
        answers: list[dict[str, list[tuple[VectorPassage, float]]]] = []
        requests: list[models.QueryRequest] = []
        places: list[tuple[int, str]] = []
        for number, query in enumerate(queries):
            legs = self._legs(query)
            answers.append({leg: [] for leg in legs})
            for leg, wanted in legs.items():
                if query.limit < 1 or wanted is None:
                    continue
                places.append((number, leg))
                requests.append(_request(query, leg, wanted))
        if requests:
            async with self._translated("search"):
                responses = await self._client.query_batch_points(
                    self._collection, requests=requests
                )
            for (number, leg), response in zip(places, responses, strict=True):
                answers[number][leg] = [(_passage(point), point.score) for point in response.points]
        return list(answers)

    def _legs(self, query: VectorQuery) -> dict[str, Any]:
        """Return what each leg looks for; None for a leg that finds nothing."""
        legs: dict[str, Any] = {}
        if query.dense is not None:
            check_vectors((None,), query.dense[np.newaxis], self.dimension)
            legs["dense"] = query.dense.tolist()
        if query.words is not None:
            terms = self._words.question(query.words)
            for leg in ("words", "nearby") if query.nearby else ("words",):
                legs[leg] = _sparse(terms) if len(terms.ids) else None
        return legs

    async def points(self) -> int:
        async with self._translated("count"):
            return int((await self._client.count(self._collection, exact=True)).count)

    async def _create(self) -> None:
        sparse = models.SparseVectorParams(modifier=models.Modifier.IDF)
        try:
            await self._client.create_collection(
                self._collection,
                vectors_config={
                    "dense": models.VectorParams(
                        size=self.dimension, distance=models.Distance.COSINE
                    )
                },
                sparse_vectors_config={"words": sparse, "nearby": sparse},
                shard_number=self._replication.shards or None,
                replication_factor=self._replication.replicas or None,
                write_consistency_factor=self._replication.confirmations or None,
            )
        except UnexpectedResponse as error:
            if error.status_code != 409:  # another process created it meanwhile
                raise

    def _check(self, held: models.CollectionParams) -> None:
        dense = held.vectors.get("dense") if isinstance(held.vectors, dict) else None
        sparse = held.sparse_vectors or {}
        idf = all(
            leg in sparse and sparse[leg].modifier == models.Modifier.IDF
            for leg in ("words", "nearby")
        )
        if dense is None or not idf or dense.distance != models.Distance.COSINE:
            raise Misconfigured(
                f"vectors: collection {self._collection} was not created by Apex",
                remedy="name another collection in APEX_VECTORS; Apex creates it",
            )
        if dense.size != self.dimension:
            raise Misconfigured(
                f"vectors: collection {self._collection} holds {dense.size} dimensions, the embedder makes {self.dimension}",
                remedy=CHANGED_EMBEDDER,
            )

    def _point(self, point: VectorPoint, dense: list[float]) -> models.PointStruct:
        try:
            passage, nearby = self._words.passage(point.text), self._words.nearby(point.nearby)
        except UnicodeEncodeError as error:
            raise Rejected(
                f"vectors: the text of point {point.id} is not Unicode ({error.reason})",
                remedy="replace lone surrogates in the payload",
            ) from error
        return models.PointStruct(
            id=str(point.id),
            vector={"dense": dense, "words": _sparse(passage), "nearby": _sparse(nearby)},
            payload={
                "stage": str(point.stage),
                "bucket": point.stage.int >> 112,
                "doc": str(point.doc),
                "n": point.n,
                "continues": point.continues,
                "asks": point.asks,
                "start": point.start,
                "end": point.end,
                "hash": point.hash,
                "source": point.source,
                "kind": point.kind,
                "time": point.time,
                "entities": list(point.entities),
            },
        )

    async def _tally(self, only: models.Filter) -> dict[UUID, Tally]:
        tallies: dict[UUID, Tally] = {}
        page: Any = None
        while True:
            async with self._translated("tally"):
                records, page = await self._client.scroll(
                    self._collection,
                    scroll_filter=only,
                    limit=PAGE,
                    offset=page,
                    with_payload=["stage", "hash"],
                )
            for record in records:
                payload = record.payload or {}
                stage = UUID(payload["stage"])
                tally = tallies.get(stage, Tally())
                tallies[stage] = Tally(tally.count + 1, tally.checksum + payload["hash"])
            if page is None:
                return tallies

    @asynccontextmanager
    async def _translated(self, what: str) -> AsyncIterator[None]:
        """Bound a call in time, and translate its errors."""
        try:
            async with asyncio.timeout(self._timeout):
                yield
        except TimeoutError as error:
            raise Unavailable(
                self.name, f"no response to {what} within {self._timeout:g} s"
            ) from error
        except ResponseHandlingException as error:
            # Its text may quote parts of the response.
            if reason := tls_reason(error.source):
                raise Unavailable(
                    self.name, f"{what} failed, no TLS: {reason}", remedy=STORE_REMEDY
                ) from error
            kind = type(error.source).__name__
            raise Unavailable(self.name, f"{what} failed ({kind})") from error
        except ResourceExhaustedResponse as error:
            raise RetryLater(
                f"vectors: {what} exceeded the rate limit of the server", after=error.retry_after_s
            ) from error
        except UnexpectedResponse as error:
            raise self._refusal(what, error.status_code or 0) from error
        except ValueError as error:  # local mode, and the client's own checks
            raise Rejected(
                f"vectors: {what} was refused ({error})",
                remedy="check the version of the Qdrant server and its log",
            ) from error

    def _refusal(self, what: str, status: int) -> Rejected | Unavailable:
        if status in {400, 413, 422}:
            return Rejected(
                f"vectors: {what} was refused with status {status}",
                remedy="see the log of the Qdrant server",
            )
        remedies = {
            401: "check the key in APEX_QDRANT_API_KEY",
            403: "the key in APEX_QDRANT_API_KEY needs the right to write",
            404: f"collection {self._collection} does not exist: run `apex reconcile vectors`",
        }
        return Unavailable(
            self.name, f"{what} got status {status}", remedy=remedies.get(status, "")
        )


def _is_withheld(error: UnexpectedResponse | ResponseHandlingException) -> bool:
    """Return whether the server does not show something to this key, or shows it in the form of another version."""
    if isinstance(error, UnexpectedResponse):
        return error.status_code in {401, 403, 404}
    return isinstance(error.source, ValidationError)


def _sparse(terms: Terms) -> models.SparseVector:
    return models.SparseVector(indices=terms.ids.tolist(), values=terms.weights.tolist())


def _of_stages(stages: Sequence[UUID]) -> models.FieldCondition:
    return models.FieldCondition(
        key="stage", match=models.MatchAny(any=[str(stage) for stage in stages])
    )


def _request(query: VectorQuery, leg: str, wanted: Any) -> models.QueryRequest:
    return models.QueryRequest(
        query=wanted,
        using=leg,
        limit=query.limit,
        filter=_only(query),
        params=models.SearchParams(exact=True) if query.among else None,
        with_payload=["stage", "doc", "n", "start", "end", "continues", "asks"],
    )


def _only(query: VectorQuery) -> models.Filter | None:
    must: list[Any] = list(_conditions(query.filters or Filters()))
    if query.among:
        points = [str(chunk_point(stage, n)) for stage, n in query.among]
        must.append(models.HasIdCondition(has_id=points))
    must_not: list[Any] = [_of_stages(query.exclude)] if query.exclude else []
    return models.Filter(must=must, must_not=must_not) if must or must_not else None


def _conditions(filters: Filters) -> Iterator[models.FieldCondition]:
    if filters.stages:
        yield _of_stages(filters.stages)
    fields = (
        ("source", filters.sources),
        ("kind", filters.kinds),
        ("entities", filters.entities),
        ("entities", filters.people),
    )
    for key, values in fields:
        if values:
            yield models.FieldCondition(key=key, match=models.MatchAny(any=list(values)))
    if filters.since or filters.until:
        # Points hold whole seconds: the second that contains `since` belongs to the result.
        since = math.floor(filters.since.timestamp()) if filters.since else None
        until = filters.until.timestamp() if filters.until else None
        yield models.FieldCondition(key="time", range=models.Range(gte=since, lt=until))


def _passage(point: models.ScoredPoint) -> VectorPassage:
    payload = point.payload or {}
    return VectorPassage(
        UUID(payload["stage"]),
        UUID(payload["doc"]),
        payload["n"],
        payload["start"],
        payload["end"],
        payload.get("continues", False),
        payload.get("asks", False),
    )
