"""Reading single things: a document, its older versions, an entity, the list of documents."""

from __future__ import annotations

import base64
import binascii
from collections import Counter
from collections.abc import Sequence
from datetime import datetime
from typing import Any, LiteralString
from uuid import UUID

import msgpack

from apex_memory.errors import NotFound, Rejected
from apex_memory.search.answers import (
    DocumentRow,
    DocumentView,
    EntityView,
    Page,
    Provenance,
    Relation,
    Said,
    Version,
)
from apex_memory.search.snapshot import SnapshotReader, spans_of
from apex_memory.search.time_limits import Degraded, TimeLimiter
from apex_memory.search.visibility import SnapshotView, StoreQuery
from apex_memory.stores.base import GraphFact, GraphStore
from apex_memory.stores.cache import Cache
from apex_memory.stores.postgres import Connection, Postgres, Row

VIEW_SECONDS = 3_600  # a version's content stays in the cache
PAGE_MAX = 200

_LIST: LiteralString = "d.doc_id, d.source, d.doc_key, d.kind, d.title, d.version, d.deleted, d.occurred_at, d.committed_at"


class DocumentReader:
    def __init__(
        self,
        db: Postgres,
        graph: GraphStore,
        cache: Cache,
        *,
        bounded: TimeLimiter,
    ) -> None:
        self._db = db
        self._graph = graph
        self._cache = cache
        self._bounded = bounded

    async def document(self, doc_id: UUID) -> DocumentView:
        async with self._db.snapshot() as connection:
            row = await _one(
                connection,
                "SELECT stage_id, manifest_id, version, event_id, deleted FROM documents WHERE doc_id = %s",
                (doc_id,),
            )
            if row is None or row["deleted"]:
                raise NotFound(
                    f"document {doc_id}: {'deleted' if row else 'not here'}",
                    remedy="ask for an older version" if row else "check the id",
                )
            return await self._view(connection, doc_id, row)

    async def document_version(
        self, doc_id: UUID, version: int, event_id: str | None
    ) -> DocumentView:
        async with self._db.snapshot() as connection:
            row = await _one(
                connection,
                """SELECT s.stage_id, s.manifest_id, s.version, s.event_id
                   FROM stages s JOIN manifests m ON m.id = s.manifest_id
                   WHERE s.doc_id = %s AND s.version = %s AND s.event_id = coalesce(%s, s.event_id)
                     AND s.committed_at IS NOT NULL AND NOT m.deleted
                   ORDER BY s.event_id DESC, s.committed_at DESC LIMIT 1""",
                (doc_id, version, event_id),
            )
            if row is None:
                raise NotFound(
                    f"document {doc_id}: no version {version} is kept",
                    remedy="see the document's versions; texts are kept for payload_days",
                )
            return await self._view(connection, doc_id, row)

    async def _view(self, connection: Connection, doc_id: UUID, pointer: Row) -> DocumentView:
        content = await self._content(connection, pointer)
        return DocumentView(
            doc_id=doc_id,
            source=content["source"],
            key=content["doc_key"],
            kind=content["kind"],
            title=content["title"],
            text=content["text"],
            occurred_at=datetime.fromisoformat(content["occurred_at"]),
            parent_id=UUID(content["parent_id"]) if content["parent_id"] else None,
            metadata=content["metadata"],
            entities=content["entities"],
            passages=[(start, end) for start, end in content["passages"]],
            provenance=Provenance(
                inbox_id=UUID(content["inbox_id"]),
                event_id=pointer["event_id"],
                version=pointer["version"],
                received_at=datetime.fromisoformat(content["received_at"]),
                manifest_id=pointer["manifest_id"],
                stage_id=pointer["stage_id"],
            ),
            versions=await _versions(connection, doc_id),
        )

    async def _content(self, connection: Connection, pointer: Row) -> dict[str, Any]:
        """What a stage shows, which never changes: from the cache, or from PostgreSQL."""
        key = f"document:{pointer['stage_id']}"
        cached = (await self._cache.get_many([key])).get(key)
        if cached:
            held: dict[str, Any] = msgpack.unpackb(cached)
            return held
        row = await _one(
            connection,
            """SELECT m.source, m.doc_key, m.kind, m.title, m.text, m.occurred_at, m.parent_id, m.metadata, m.entities,
                      m.chunks AS spans, m.inbox_id, i.received_at
               FROM manifests m JOIN inbox i ON i.id = m.inbox_id WHERE m.id = %s""",
            (pointer["manifest_id"],),
        )
        assert row is not None  # documents and stages in this snapshot point at manifests in it
        content = {name: _plain(value) for name, value in row.items() if name != "spans"}
        content["passages"] = spans_of(row)
        await self._cache.put_many({key: msgpack.packb(content)}, VIEW_SECONDS)
        return content

    async def entity(self, ref: str, *, limit: int) -> EntityView:
        degraded = Degraded()
        async with self._db.snapshot() as connection:
            opening = await (reader := SnapshotReader(connection, None)).opening()
            rows = await _naming(connection, ref, limit)
            facts = await self._facts(
                StoreQuery(SnapshotView(reader), self._bounded, degraded), ref, limit
            )
        await self._bounded.mark([self._graph], opening.verified, degraded)
        if not rows and not facts:
            raise NotFound(f"{ref}: no document names it", remedy="check the type and the spelling")
        return _entity_view(ref, facts, rows, degraded.names())

    async def _facts(self, asker: StoreQuery, ref: str, limit: int) -> list[GraphFact]:
        """The live assertions among the newest."""
        shows = asker.live.shows
        facts = await asker.fill(
            "graph",
            lambda exclude: self._graph.facts(ref, limit=limit, exclude=exclude),
            hits=lambda facts: facts,
            short=lambda facts: len(facts) >= limit and not all(map(shows, facts)),
        )
        return [fact for fact in facts or () if shows(fact)]

    async def documents(
        self,
        *,
        sources: Sequence[str],
        kinds: Sequence[str],
        deleted: bool | None,
        limit: int,
        after: str | None,
    ) -> Page:
        if not 1 <= limit <= PAGE_MAX:
            raise Rejected(f"limit {limit}", remedy=f"ask for 1 to {PAGE_MAX} documents")
        query, values = _list_query(sources, kinds, deleted, limit + 1, after)
        rows = await self._db.fetch(query, values)
        shown = [_row(row) for row in rows[:limit]]
        return Page(shown, _cursor(shown[-1]) if len(rows) > limit else None)


def _list_query(
    sources: Sequence[str],
    kinds: Sequence[str],
    deleted: bool | None,
    limit: int,
    after: str | None,
) -> tuple[LiteralString, dict[str, Any]]:
    parts: list[LiteralString] = ["true"]
    values: dict[str, Any] = {"limit": limit}
    if sources:
        parts.append("d.source = ANY(%(sources)s)")
        values["sources"] = list(sources)
    if kinds:
        parts.append("d.kind = ANY(%(kinds)s)")
        values["kinds"] = list(kinds)
    if deleted is not None:
        parts.append("d.deleted" if deleted else "NOT d.deleted")
    if after:
        parts.append("(d.committed_at, d.doc_id) < (%(at)s, %(id)s)")
        values["at"], values["id"] = _position(after)
    query: LiteralString = f"""SELECT {_LIST} FROM documents d WHERE {" AND ".join(parts)}
        ORDER BY d.committed_at DESC, d.doc_id DESC LIMIT %(limit)s"""
    return query, values


async def _one(
    connection: Connection, query: LiteralString, values: Sequence[Any]
) -> dict[str, Any] | None:
    return await (await connection.execute(query, values)).fetchone()


async def _versions(connection: Connection, doc_id: UUID) -> list[Version]:
    """What readers have seen and what is being staged, newest first; of several stages of a version, the last."""
    cursor = await connection.execute(
        """SELECT DISTINCT ON (s.version, s.event_id) s.version, s.event_id, s.inbox_id, s.state, s.committed_at,
                  i.received_at, m.id IS NOT NULL AS kept
           FROM stages s LEFT JOIN inbox i ON i.id = s.inbox_id LEFT JOIN manifests m ON m.id = s.manifest_id
           WHERE s.doc_id = %s AND (s.committed_at IS NOT NULL OR s.state = 'staging')
           ORDER BY s.version DESC, s.event_id DESC, s.created_at DESC""",
        (doc_id,),
    )
    return [Version(**row) for row in await cursor.fetchall()]


async def _naming(connection: Connection, ref: str, limit: int) -> list[DocumentRow]:
    """The newest live documents that name an entity."""
    cursor = await connection.execute(
        f"""SELECT {_LIST} FROM documents d WHERE NOT d.deleted AND d.entities && ARRAY[%s]
            ORDER BY d.committed_at DESC LIMIT %s""",
        (ref, limit),
        prepare=False,
    )
    return [_row(row) for row in await cursor.fetchall()]


def _entity_view(
    ref: str, facts: Sequence[GraphFact], rows: Sequence[DocumentRow], degraded: Sequence[str]
) -> EntityView:
    names: Counter[str] = Counter()
    roles: Counter[str] = Counter()
    neighbours: Counter[str] = Counter()
    attributes: list[Said] = []
    relations: list[Relation] = []
    for fact in facts:
        if fact.subject == ref and fact.value is not None:
            if fact.predicate == "name":
                names[fact.value] += 1
            else:
                attributes.append(Said(fact.predicate, fact.value, fact.doc, fact.start))
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
        documents=rows,
        degraded=degraded,
    )


def _row(row: Row) -> DocumentRow:
    return DocumentRow(key=row["doc_key"], **{k: v for k, v in row.items() if k != "doc_key"})


def _plain(value: Any) -> Any:
    if isinstance(value, datetime):
        return value.isoformat()
    return str(value) if isinstance(value, UUID) else value


def _cursor(row: DocumentRow) -> str:
    place = f"{row.committed_at.isoformat()} {row.doc_id}"
    return base64.urlsafe_b64encode(place.encode()).decode()


def _position(cursor: str) -> tuple[datetime, UUID]:
    try:
        at, _, doc_id = base64.urlsafe_b64decode(cursor).decode().partition(" ")
        return datetime.fromisoformat(at), UUID(doc_id)
    except (binascii.Error, ValueError) as error:
        raise Rejected(
            "the cursor is not one that a page gave", remedy="start from the first page"
        ) from error
