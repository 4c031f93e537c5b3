"""Single reads: a document, its older versions, an entity, the list of documents."""

from __future__ import annotations

import base64
import binascii
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, LiteralString, TypedDict, cast
from uuid import UUID

import msgpack

from apex_memory.errors import NotFound, Rejected
from apex_memory.model import DEGRADED, LINK, TURNS
from apex_memory.search.results import (
    AttributeValue,
    DocumentPage,
    DocumentSummary,
    DocumentVersion,
    DocumentView,
    EntityView,
    Provenance,
    Relation,
    SpokenTurn,
)
from apex_memory.search.snapshot import (
    HUB_DOCUMENTS,
    KINDS,
    WALKED_DOCUMENTS,
    SnapshotReader,
    chosen_kinds,
    newest_of_kinds,
    unpack_spans,
)
from apex_memory.search.time_limits import Degraded, TimeLimiter
from apex_memory.search.visibility import SnapshotView, StoreQuery
from apex_memory.stores.base import GraphFact, GraphStore
from apex_memory.stores.cache import Cache
from apex_memory.stores.postgres import Connection, Postgres, fetch_row, fetch_rows

KEEP_SECONDS = 3_600  # a version's content stays in the cache
PAGE_MAX = 200
LATEST_DOCUMENTS = 1_000  # looked through first for those of an entity
VERSIONS_MAX = 100  # versions in the view of a document

Position = tuple[datetime, UUID]
"""A place in a list of documents: the time by which it is ordered, and the id."""

_SUMMARY_COLUMNS: LiteralString = (
    "d.doc_id, d.source, d.doc_key AS key, d.kind, d.title, d.version, d.deleted, d.occurred_at,"
    " d.committed_at"
)


# That a document comes after the position `at`, `doc_id` in the order of time, the latest first. NULL is no position.
_AFTER: LiteralString = (
    "(d.occurred_at, d.doc_id) < (coalesce(%(at)s::timestamptz, 'infinity'),"
    " coalesce(%(doc_id)s, 'ffffffff-ffff-ffff-ffff-ffffffffffff')::uuid)"
)


@dataclass(frozen=True, slots=True)
class _WalkEnd:
    """The last document of a walk in the order of time."""

    occurred_at: datetime
    doc_id: UUID


@dataclass(frozen=True, slots=True)
class _StagePointer:
    """A stage of a document, and the manifest with its content."""

    stage_id: UUID
    manifest_id: UUID
    version: int
    event_id: str
    deleted: bool


class _StageContent(TypedDict):
    """The content of a stage, as the cache holds it: UUIDs as text, times in ISO 8601."""

    source: str
    doc_key: str
    kind: str
    title: str
    text: str
    occurred_at: str
    parent_id: str | None
    metadata: dict[str, Any]
    entities: list[str]
    inbox_id: str
    received_at: str
    passages: list[list[int]]


class DocumentReader:
    """Reads documents and entities."""

    def __init__(
        self,
        db: Postgres,
        graph: GraphStore,
        cache: Cache,
        *,
        time_limiter: TimeLimiter,
    ) -> None:
        self._db = db
        self._graph = graph
        self._cache = cache
        self._time_limiter = time_limiter

    async def document(self, doc_id: UUID) -> DocumentView:
        async with self._db.snapshot() as connection:
            pointer = await fetch_row(
                connection,
                _StagePointer,
                "SELECT stage_id, manifest_id, version, event_id, deleted FROM documents WHERE doc_id = %s",
                (doc_id,),
            )
            if pointer is None:
                raise NotFound(f"document {doc_id}: not found", remedy="check the id")
            if pointer.deleted:
                raise NotFound(
                    f"document {doc_id}: deleted",
                    remedy="an admin key can read former versions for as long as they are kept",
                )
            return await self._view(connection, doc_id, pointer)

    async def document_version(
        self, doc_id: UUID, version: int, event_id: str | None, *, of_deleted: bool
    ) -> DocumentView:
        async with self._db.snapshot() as connection:
            if not of_deleted:
                await _require_live(connection, doc_id)
            pointer = await fetch_row(
                connection,
                _StagePointer,
                """SELECT s.stage_id, s.manifest_id, s.version, s.event_id, false AS deleted
                   FROM stages s JOIN manifests m ON m.id = s.manifest_id
                   WHERE s.doc_id = %s AND s.version = %s AND s.event_id = coalesce(%s, s.event_id)
                     AND s.committed_at IS NOT NULL AND NOT m.deleted
                   ORDER BY s.event_id DESC, s.committed_at DESC LIMIT 1""",
                (doc_id, version, event_id),
            )
            if pointer is None:
                raise NotFound(
                    f"document {doc_id}: version {version} is not kept",
                    remedy="see the document's versions; texts are kept for payload_days",
                )
            return await self._view(connection, doc_id, pointer)

    async def _view(
        self, connection: Connection, doc_id: UUID, pointer: _StagePointer
    ) -> DocumentView:
        content = await self._content(connection, pointer)
        versions = await newest_versions(connection, doc_id)
        metadata = dict(content["metadata"])
        degraded = metadata.pop(DEGRADED, {})
        turns = metadata.pop(TURNS, ())
        link = metadata.pop(LINK, "")
        return DocumentView(
            doc_id=doc_id,
            source=content["source"],
            key=content["doc_key"],
            kind=content["kind"],
            title=content["title"],
            text=content["text"],
            occurred_at=datetime.fromisoformat(content["occurred_at"]),
            parent_id=UUID(content["parent_id"]) if content["parent_id"] else None,
            metadata=metadata,
            link=link or document_path(doc_id),
            turns=[
                spoken_turn((number, start, end, speaker, at))
                for number, (start, end, speaker, at) in enumerate(turns, start=1)
            ],
            degraded=degraded,
            entities=content["entities"],
            passages=[(start, end) for start, end in content["passages"]],
            provenance=Provenance(
                inbox_id=UUID(content["inbox_id"]),
                event_id=pointer.event_id,
                version=pointer.version,
                received_at=datetime.fromisoformat(content["received_at"]),
                manifest_id=pointer.manifest_id,
                stage_id=pointer.stage_id,
            ),
            versions=versions,
            version_count=await count_versions(connection, doc_id, versions),
        )

    async def _content(self, connection: Connection, pointer: _StagePointer) -> _StageContent:
        """Return the content of a stage, which never changes: from the cache, or from PostgreSQL."""
        key = f"document:{pointer.stage_id}"
        cached = (await self._cache.get_many([key])).get(key)
        if cached:
            return cast(_StageContent, msgpack.unpackb(cached))
        cursor = await connection.execute(
            """SELECT m.source, m.doc_key, m.kind, m.title, m.text, m.occurred_at, m.parent_id, m.metadata, m.entities,
                      m.chunks AS spans, m.inbox_id, i.received_at
               FROM manifests m JOIN inbox i ON i.id = m.inbox_id WHERE m.id = %s""",
            (pointer.manifest_id,),
        )
        row = await cursor.fetchone()
        assert row is not None  # documents and stages in this snapshot point at manifests in it
        spans = row.pop("spans")
        content = {name: _to_packable(value) for name, value in row.items()}
        content["passages"] = unpack_spans(spans)
        await self._cache.put_many({key: msgpack.packb(content)}, KEEP_SECONDS)
        return cast(_StageContent, content)

    async def entity(self, ref: str, *, limit: int) -> EntityView:
        degraded = Degraded()
        async with self._db.snapshot() as connection:
            reader = SnapshotReader(connection, None)
            summary = await reader.summary()
            documents = await newest_naming(connection, ref, limit)
            store_query = StoreQuery(SnapshotView(reader), self._time_limiter, degraded)
            facts = await self._live_facts(store_query, ref, limit)
        await self._time_limiter.check_incarnation(self._graph, summary.verified, degraded)
        if not documents and not facts:
            raise NotFound(f"{ref}: no document names it", remedy="check the type and the spelling")
        return _entity_view(ref, facts, documents, degraded.names())

    async def _live_facts(self, store_query: StoreQuery, ref: str, limit: int) -> list[GraphFact]:
        """Return the live assertions among the newest `limit` about an entity."""
        shows = store_query.snapshot.shows
        facts = await store_query.run_until_filled(
            "graph",
            lambda exclude: self._graph.facts(ref, limit=limit, exclude=exclude),
            items_of=lambda facts: facts,
            is_short=lambda facts: len(facts) >= limit and not all(map(shows, facts)),
        )
        return [fact for fact in facts or () if shows(fact)]

    async def timeline(self, ref: str, *, limit: int, after: str | None) -> DocumentPage:
        """Return live documents that name an entity, the latest occurrence first, after the cursor `after`."""
        _check_page(limit)
        async with self._db.snapshot() as connection:
            return await documents_naming(
                connection, ref, limit, from_cursor(after) if after else None
            )

    async def documents(
        self,
        *,
        sources: Sequence[str],
        kinds: Sequence[str],
        deleted: bool | None,
        limit: int,
        after: str | None,
    ) -> DocumentPage:
        _check_page(limit)
        query, parameters = list_query(sources, kinds, deleted, limit + 1, after)
        summaries = await self._db.fetch_rows(DocumentSummary, query, parameters)
        return _page(summaries, limit, at=lambda summary: summary.committed_at)


def document_path(doc_id: UUID) -> str:
    """Return the path of a document in the API."""
    return f"/v1/documents/{doc_id}"


def spoken_turn(turn: tuple[int, int, int, str, str | None]) -> SpokenTurn:
    """Return a turn of number, offsets (start, end), speaker and time (ISO 8601)."""
    number, start, end, speaker, at = turn
    return SpokenTurn(
        number=number,
        speaker=speaker,
        at=datetime.fromisoformat(at) if at else None,
        start=start,
        end=end,
    )


def _check_page(limit: int) -> None:
    if not 1 <= limit <= PAGE_MAX:
        raise Rejected(f"limit is {limit}", remedy=f"use a limit from 1 to {PAGE_MAX}")


def _page(
    summaries: Sequence[DocumentSummary], limit: int, *, at: Callable[[DocumentSummary], datetime]
) -> DocumentPage:
    """Return a page of a list that is ordered by the time `at` and the id, and has one more row if another page follows."""
    page = list(summaries[:limit])
    following = to_cursor(at(page[-1]), page[-1].doc_id) if len(summaries) > limit else None
    return DocumentPage(page, following)


def list_query(
    sources: Sequence[str],
    kinds: Sequence[str],
    deleted: bool | None,
    limit: int,
    after: str | None,
) -> tuple[LiteralString, dict[str, Any]]:
    """Return the statement of a page of documents, and its parameters. Raises `Rejected` for a wrong cursor."""
    conditions: list[LiteralString] = ["true"]
    parameters: dict[str, Any] = {"limit": limit}
    if sources:
        conditions.append("d.source = ANY(%(sources)s)")
        parameters["sources"] = list(sources)
    if kinds:
        conditions.append("d.kind = ANY(%(kinds)s)")
        parameters["kinds"] = list(kinds)
    if deleted is not None:
        conditions.append("d.deleted" if deleted else "NOT d.deleted")
    if after:
        conditions.append("(d.committed_at, d.doc_id) < (%(committed_at)s, %(doc_id)s)")
        parameters["committed_at"], parameters["doc_id"] = from_cursor(after)
    where: LiteralString = " AND ".join(conditions)
    documents: LiteralString = f"SELECT * FROM documents d WHERE {where}"
    if sources or kinds:
        parameters.setdefault("before", parameters.get("committed_at"))
        documents = newest_of_kinds(chosen_kinds(parameters), where, limit)
    query: LiteralString = f"""WITH RECURSIVE {KINDS} SELECT {_SUMMARY_COLUMNS} FROM ({documents}) d
        ORDER BY d.committed_at DESC, d.doc_id DESC LIMIT %(limit)s"""
    return query, parameters


_IS_VERSION: LiteralString = (
    "doc_id = %(doc_id)s AND NOT shadow AND (committed_at IS NOT NULL OR state = 'staging')"
)


async def _require_live(connection: Connection, doc_id: UUID) -> None:
    """Raise `NotFound` for a document that is deleted, also where its tombstone is gone already."""
    cursor = await connection.execute(
        "SELECT deleted, committed_at FROM documents WHERE doc_id = %s", (doc_id,)
    )
    row = await cursor.fetchone()
    if row is None:
        raise NotFound(f"document {doc_id}: not found, or deleted", remedy="check the id")
    if row["deleted"]:
        raise NotFound(
            f"document {doc_id}: deleted at {row['committed_at']:%Y-%m-%d %H:%M} UTC",
            remedy="an admin key can read former versions for as long as they are kept",
        )


async def newest_versions(connection: Connection, doc_id: UUID) -> list[DocumentVersion]:
    """Return the newest `VERSIONS_MAX` versions that readers have seen or that are in staging; of several stages of a version, the last.

    Their events and manifests are looked up after the limit: for a document of 50,000 versions, that of all of them took 3.5 s.
    """
    return await fetch_rows(
        connection,
        DocumentVersion,
        f"""SELECT s.version, s.event_id, s.inbox_id, s.state, s.committed_at, i.received_at, m.id IS NOT NULL AS kept
            FROM (SELECT DISTINCT ON (version, event_id) version, event_id, inbox_id, manifest_id, state, committed_at
                  FROM stages WHERE {_IS_VERSION}
                  ORDER BY version DESC, event_id DESC, created_at DESC LIMIT %(limit)s) s
            LEFT JOIN inbox i ON i.id = s.inbox_id LEFT JOIN manifests m ON m.id = s.manifest_id
            ORDER BY s.version DESC, s.event_id DESC""",
        {"doc_id": doc_id, "limit": VERSIONS_MAX},
    )


async def count_versions(
    connection: Connection, doc_id: UUID, newest: Sequence[DocumentVersion]
) -> int:
    """Return the number of versions of a document, of which `newest` are the newest."""
    if len(newest) < VERSIONS_MAX:
        return len(newest)
    cursor = await connection.execute(
        f"SELECT count(DISTINCT (version, event_id)) AS versions FROM stages WHERE {_IS_VERSION}",
        {"doc_id": doc_id},
    )
    row = await cursor.fetchone()
    assert row is not None  # an aggregate has one row
    return int(row["versions"])


async def newest_naming(connection: Connection, ref: str, limit: int) -> list[DocumentSummary]:
    """Return the newest `limit` live documents that name an entity, by the time at which they occurred.

    Of an entity that very many documents name, but too few of the latest, the rest are the newest of some of these.
    """
    page = await documents_naming(connection, ref, limit, None)
    documents = page.documents
    if page.next and len(documents) < limit:
        seen = {document.doc_id for document in documents}
        others = await _held(connection, ref, None, limit)
        documents += [document for document in others if document.doc_id not in seen]
    return documents[:limit]


async def documents_naming(
    connection: Connection, ref: str, limit: int, after: Position | None
) -> DocumentPage:
    """Return a page of the live documents that name an entity, the latest occurrence first, after a position in that order.

    To sort all documents of an entity that a third of a million name took 1.1 s a page. So the latest documents are looked
    through first; then the index over entities gives all documents of an entity that has fewer than `HUB_DOCUMENTS`; and for
    one that has more, the latest `WALKED_DOCUMENTS` are looked through. Where these have too few, the page ends with the last
    document that was looked at, and the next page goes on there: such a page is short or empty although others follow.
    """
    page = await _walked(connection, ref, after, limit, LATEST_DOCUMENTS)
    if page.next is None or len(page.documents) == limit:
        return page
    if await _is_hub(connection, ref):
        return await _walked(connection, ref, after, limit, WALKED_DOCUMENTS)
    summaries = await _held(connection, ref, after, limit + 1)
    return _page(summaries, limit, at=lambda summary: summary.occurred_at)


async def _walked(
    connection: Connection, ref: str, after: Position | None, limit: int, most: int
) -> DocumentPage:
    """Return a page of those of the next `most` live documents that name an entity, by the time at which they occurred."""
    following: LiteralString = f"""SELECT * FROM documents d WHERE NOT d.deleted AND {_AFTER}
        ORDER BY d.occurred_at DESC, d.doc_id DESC"""
    at, doc_id = after or (None, None)
    parameters = {"ref": ref, "at": at, "doc_id": doc_id, "limit": limit + 1, "most": most}
    summaries = await fetch_rows(
        connection,
        DocumentSummary,
        f"""SELECT {_SUMMARY_COLUMNS} FROM ({following} LIMIT %(most)s) d WHERE d.entities && ARRAY[%(ref)s]
            ORDER BY d.occurred_at DESC, d.doc_id DESC LIMIT %(limit)s""",
        parameters,
        prepare=False,
    )
    if len(summaries) > limit:
        return _page(summaries, limit, at=lambda summary: summary.occurred_at)
    last = await fetch_rows(
        connection,
        _WalkEnd,
        f"SELECT occurred_at, doc_id FROM ({following} OFFSET %(most)s - 1 LIMIT 1) d",
        parameters,
        prepare=False,
    )
    return DocumentPage(summaries, to_cursor(last[0].occurred_at, last[0].doc_id) if last else None)


# The condition over entities stands there twice, as in `newest_of`: so PostgreSQL takes the index over entities.
_HELD: LiteralString = f"""documents d
    WHERE NOT d.deleted AND d.entities && ARRAY[%(ref)s] AND ARRAY[%(ref)s] && d.entities LIMIT {HUB_DOCUMENTS}"""


async def _is_hub(connection: Connection, ref: str) -> bool:
    """Return whether at least `HUB_DOCUMENTS` live documents name an entity."""
    cursor = await connection.execute(
        f"SELECT count(*) AS held FROM (SELECT FROM {_HELD}) d", {"ref": ref}, prepare=False
    )
    row = await cursor.fetchone()
    assert row is not None  # an aggregate has one row
    return bool(row["held"] == HUB_DOCUMENTS)


async def _held(
    connection: Connection, ref: str, after: Position | None, limit: int
) -> list[DocumentSummary]:
    """Return the latest `limit` of the documents that name an entity, after a position; of a hub, of some of them."""
    at, doc_id = after or (None, None)
    return await fetch_rows(
        connection,
        DocumentSummary,
        f"""WITH held AS MATERIALIZED (SELECT d.* FROM {_HELD})
            SELECT {_SUMMARY_COLUMNS} FROM held d WHERE {_AFTER}
            ORDER BY d.occurred_at DESC, d.doc_id DESC LIMIT %(limit)s""",
        {"ref": ref, "at": at, "doc_id": doc_id, "limit": limit},
        prepare=False,
    )


def _entity_view(
    ref: str,
    facts: Sequence[GraphFact],
    documents: Sequence[DocumentSummary],
    degraded: Sequence[str],
) -> EntityView:
    names: Counter[str] = Counter()
    roles: Counter[str] = Counter()
    neighbours: Counter[str] = Counter()
    attributes: list[AttributeValue] = []
    relations: list[Relation] = []
    for fact in facts:
        if fact.subject == ref and fact.value is not None:
            if fact.predicate == "name":
                names[fact.value] += 1
            else:
                attributes.append(AttributeValue(fact.predicate, fact.value, fact.doc, fact.start))
        elif fact.subject.startswith("document:"):
            roles[fact.predicate] += 1
        elif fact.object is not None:
            relations.append(
                Relation(fact.subject, fact.predicate, fact.object, fact.doc, fact.start)
            )
            neighbours[fact.object if fact.subject == ref else fact.subject] += 1
    return EntityView(
        ref=ref,
        names=[name for name, _ in names.most_common()],
        attributes=attributes,
        relations=relations,
        neighbours=dict(neighbours.most_common()),
        roles=dict(roles.most_common()),
        documents=documents,
        degraded=degraded,
    )


def _to_packable(value: Any) -> Any:
    """Return a column as msgpack holds it. Metadata that was stored by an earlier version may have integers beyond 64 bits."""
    if isinstance(value, dict):
        return {name: _to_packable(item) for name, item in value.items()}
    if isinstance(value, list):
        return [_to_packable(item) for item in value]
    if isinstance(value, int) and not -(2**63) <= value < 2**63:
        return str(value)
    if isinstance(value, datetime):
        return value.isoformat()
    if isinstance(value, UUID):
        return str(value)
    return value


def to_cursor(at: datetime, doc_id: UUID) -> str:
    """Return the cursor of the page that follows a document, by the time by which its list is ordered."""
    position = f"{at.isoformat()} {doc_id}"
    return base64.urlsafe_b64encode(position.encode()).decode()


def from_cursor(cursor: str) -> Position:
    try:
        committed_at, _, doc_id = base64.urlsafe_b64decode(cursor).decode().partition(" ")
        return datetime.fromisoformat(committed_at), UUID(doc_id)
    except (binascii.Error, ValueError) as error:
        raise Rejected(
            "the cursor is not one of a page", remedy="start from the first page"
        ) from error
