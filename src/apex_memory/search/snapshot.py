"""Reads from PostgreSQL, all in one snapshot: which documents are live, and their text."""

from __future__ import annotations

from collections.abc import Collection, Container, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, LiteralString, TypeVar
from uuid import UUID

import msgpack

from apex_memory.model import Filters
from apex_memory.stores.postgres import Connection, fetch_rows

EXACT_LIMIT = 50  # newest documents looked up for one identifier
RECENT_DOCUMENTS = 200  # newest documents that are looked at first for those of an entity
HUB_DOCUMENTS = 2_000  # documents of an entity that are read to find its newest
WALKED_DOCUMENTS = 50_000  # newest documents that are looked at for an entity that has so many
SNIPPET_CHARS = 2_000

R = TypeVar("R")


@dataclass(frozen=True, slots=True)
class SnapshotSummary:
    """The approximate number of documents, the verified incarnation of each store that is complete, and the version of memory.

    Two snapshots with the same version show the same documents. No version comes back once documents have changed.
    """

    documents: int
    verified: Mapping[str, str]
    version: str


@dataclass(frozen=True, slots=True, eq=False)
class LiveDocument:
    """A document that readers see, with the number of its passages.

    A search has one object of each, compared by identity: a ranking looks passages up thousands of times, and the hash of
    a `UUID` would be its main cost.
    """

    doc_id: UUID
    stage_id: UUID
    occurred_at: datetime
    source: str
    kind: str
    passages: int


@dataclass(frozen=True, slots=True)
class DocumentContent:
    """Kind, title, passages and assertions of a document. `spans` and `assertions` are packed as in its manifest."""

    doc_id: UUID
    kind: str
    title: str
    spans: bytes
    assertions: bytes

    def passage_spans(self) -> list[tuple[int, int]]:
        """Return (start, end) character offsets of the passages, in order."""
        return unpack_spans(self.spans)

    def evidence_starts(self, refs: Collection[str]) -> list[int]:
        """Return the character offsets at which the text names one of the entities, in order."""
        return sorted(
            start
            for _, subject, object, _, start in msgpack.unpackb(self.assertions)
            if start is not None and (subject in refs or object in refs)
        )


@dataclass(frozen=True, slots=True)
class NewestDocument:
    """A document with its passages, packed as in its manifest."""

    doc_id: UUID
    spans: bytes


@dataclass(frozen=True, slots=True)
class Snippet:
    """Text of a passage with its document and origin."""

    doc_id: UUID
    stage_id: UUID
    manifest_id: UUID
    inbox_id: UUID
    source: str
    kind: str
    title: str
    occurred_at: datetime
    version: int
    event_id: str
    received_at: datetime
    snippet: str
    turn: tuple[int, int, int, str, str | None] | None
    """Of the turn that the passage begins in: number, offsets (start, end), speaker, time (ISO 8601)."""
    link: str | None


@dataclass(frozen=True, slots=True)
class TextWindow:
    """A part of a document's text, which begins at the character `start` and has `text_length` characters as a whole."""

    start: int
    text_length: int
    text: str


@dataclass(frozen=True, slots=True)
class _IdentifierRow:
    doc_id: UUID
    n: int


@dataclass(frozen=True, slots=True)
class _SpeakerRow:
    speaker: str


@dataclass(frozen=True, slots=True)
class _VectorsRow:
    vectors: bytes


@dataclass(frozen=True, slots=True)
class _StageRow:
    stage_id: UUID


def unpack_spans(spans: bytes) -> list[tuple[int, int]]:
    """Return (start, end) character offsets of passages from a manifest's column `chunks`."""
    return [(start, end) for start, end in msgpack.unpackb(spans)]


def live_conditions(filters: Filters | None) -> tuple[LiteralString, dict[str, Any]]:
    """Return `WHERE` conditions over `documents d` for live documents that pass the filters, and their parameters."""
    conditions: list[LiteralString] = ["NOT d.deleted"]
    parameters: dict[str, Any] = {}
    if filters:
        clauses: Sequence[tuple[LiteralString, str, Any]] = (
            ("d.source = ANY(%(sources)s)", "sources", list(filters.sources)),
            ("d.kind = ANY(%(kinds)s)", "kinds", list(filters.kinds)),
            ("d.occurred_at >= %(since)s", "since", filters.since),
            ("d.occurred_at < %(until)s", "until", filters.until),
            ("d.entities && %(entities)s", "entities", list(filters.entities)),
            ("d.entities && %(people)s", "people", list(filters.people)),
            ("d.stage_id = ANY(%(stages)b)", "stages", list(filters.stages)),
        )
        for clause, name, value in clauses:
            if value:
                conditions.append(clause)
                parameters[name] = value
    return " AND ".join(conditions), parameters


NEWEST: LiteralString = f"""newest AS MATERIALIZED (
  SELECT * FROM documents ORDER BY committed_at DESC LIMIT {RECENT_DOCUMENTS}) """


def newest_of(where: LiteralString, entities: LiteralString, limit: int) -> LiteralString:
    """Return a query for the newest `limit` rows of `documents d` that pass `where` and have one of the parameter `entities`.

    PostgreSQL takes an entity that is none of the most common for one of every 200 documents, and takes the documents of any for
    spread evenly. So it would walk through all of a large memory, newest first, to find fifty of a shipment that has three. Here
    each part has a bound of its own: the very newest documents (`NEWEST`, which stands before the statement), which have those that
    are everywhere; then the index over entities; and for an entity that is found `HUB_DOCUMENTS` times there, the newest
    `WALKED_DOCUMENTS`.
    """
    holds: LiteralString = f"{where} AND d.entities && {entities}"

    # The condition stands there twice, since the planner multiplies what it expects of each: so it takes the index over
    # entities, and does not read the table from its beginning, where documents of a new customer are last.
    return f"""
      WITH recent AS MATERIALIZED (
        SELECT d.* FROM newest d WHERE {holds} ORDER BY d.committed_at DESC LIMIT {limit}),
      held AS MATERIALIZED (
        SELECT d.* FROM documents d
        WHERE (SELECT count(*) FROM recent) < {limit} AND {holds} AND {entities} && d.entities LIMIT {HUB_DOCUMENTS}),
      walked AS (
        SELECT d.* FROM (SELECT * FROM documents ORDER BY committed_at DESC LIMIT {WALKED_DOCUMENTS}) d
        WHERE (SELECT count(*) FROM held) = {HUB_DOCUMENTS} AND {holds} ORDER BY d.committed_at DESC LIMIT {limit})
      SELECT DISTINCT ON (committed_at, doc_id) *
      FROM (SELECT * FROM recent UNION ALL SELECT * FROM held UNION ALL SELECT * FROM walked) d
      ORDER BY committed_at DESC, doc_id LIMIT {limit}"""


# The sources and kinds that documents have, each pair read from the index with one look. There are some dozens of them.
KINDS: LiteralString = """kinds AS (
  (SELECT source, kind FROM documents ORDER BY source, kind LIMIT 1)
  UNION ALL
  SELECT following.source, following.kind FROM kinds CROSS JOIN LATERAL (
    SELECT d.source, d.kind FROM documents d WHERE (d.source, d.kind) > (kinds.source, kinds.kind)
    ORDER BY d.source, d.kind LIMIT 1) following)"""


def newest_of_kinds(chosen: LiteralString, where: LiteralString, limit: int) -> LiteralString:
    """Return a query for the newest `limit` rows of `documents d` that pass `where`, of the sources and kinds (`k`) that pass `chosen`.

    `KINDS` stands before the statement, as `WITH RECURSIVE`. Of each pair the newest are read from the index over it: PostgreSQL
    takes documents of a kind for spread evenly, and would walk through all of a large memory, newest first, to find those of a
    source that sends no more (1.9 s of a million). The range and the order name the pair, since with `=` that walk would be in
    the order that is asked for. The parameter `before` bounds `committed_at`; NULL is no bound.
    """
    return f"""
      SELECT d.* FROM kinds k CROSS JOIN LATERAL (
        SELECT d.* FROM documents d
        WHERE (d.source, d.kind, d.committed_at) <= (k.source, k.kind, coalesce(%(before)s::timestamptz, 'infinity'))
          AND (d.source, d.kind) >= (k.source, k.kind) AND {where}
        ORDER BY d.source DESC, d.kind DESC, d.committed_at DESC, d.doc_id DESC LIMIT {limit}) d
      WHERE {chosen} ORDER BY d.committed_at DESC, d.doc_id DESC LIMIT {limit}"""


def chosen_kinds(filters: Container[str]) -> LiteralString:
    """Return the condition over `kinds k` for the filters `sources` and `kinds`, where they are among the names."""
    conditions: list[LiteralString] = ["true"]
    if "sources" in filters:
        conditions.append("k.source = ANY(%(sources)s)")
    if "kinds" in filters:
        conditions.append("k.kind = ANY(%(kinds)s)")
    return " AND ".join(conditions)


def newest_within(where: LiteralString, limit: int) -> LiteralString:
    """Return a query for the newest `limit` rows of `documents d` that pass `where`, which bounds `occurred_at` by `since` or `until`.

    They are looked for among the newest `WALKED_DOCUMENTS`, and only if these have too few among the latest `WALKED_DOCUMENTS`
    that occurred in that time. A walk through all to find those before a time long ago took 1.7 s of a million.
    """
    return f"""
      WITH recent AS MATERIALIZED (
        SELECT d.* FROM (SELECT * FROM documents ORDER BY committed_at DESC LIMIT {WALKED_DOCUMENTS}) d
        WHERE {where} ORDER BY d.committed_at DESC LIMIT {limit}),
      occurred AS (
        SELECT d.* FROM (
          SELECT * FROM documents d
          WHERE NOT d.deleted AND d.occurred_at < coalesce(%(until)s::timestamptz, 'infinity')
            AND d.occurred_at >= coalesce(%(since)s::timestamptz, '-infinity')
          ORDER BY d.occurred_at DESC, d.doc_id DESC LIMIT {WALKED_DOCUMENTS}) d
        WHERE (SELECT count(*) FROM recent) < {limit} AND {where} ORDER BY d.committed_at DESC LIMIT {limit})
      SELECT DISTINCT ON (committed_at, doc_id) *
      FROM (SELECT * FROM recent UNION ALL SELECT * FROM occurred) d
      ORDER BY committed_at DESC, doc_id LIMIT {limit}"""


class SnapshotReader:
    """The reads of one search, over the connection that holds its snapshot."""

    def __init__(self, connection: Connection, filters: Filters | None) -> None:
        self._connection = connection
        self._where, self._parameters = live_conditions(filters)

    async def summary(self) -> SnapshotSummary:
        """Return what a search needs before it queries any store.

        It comes before any store is queried: PostgreSQL takes the snapshot with the first statement of a
        transaction, not at its begin.
        """
        [summary] = await self._rows(
            SnapshotSummary,
            """SELECT CASE WHEN c.reltuples < 1000 THEN (SELECT count(*) FROM (SELECT FROM documents LIMIT 1000) d)
                           ELSE c.reltuples END::bigint AS documents,
                      (SELECT coalesce(jsonb_object_agg(store, incarnation), '{}') FROM store_state
                       WHERE state = 'ready') AS verified,
                      (SELECT coalesce(md5(string_agg(version::text, ' ' ORDER BY version)), '') FROM memory_versions) AS version
               FROM pg_class c WHERE c.oid = 'documents'::regclass""",
            {},
        )
        return summary

    async def identified(
        self, refs: Sequence[str], own_ids: Mapping[UUID, str] | None = None
    ) -> list[tuple[str, UUID]]:
        """Return (ref, document id) of live documents that hold an identifier, the newest `EXACT_LIMIT` of each, or have an id.

        `own_ids` holds ids that documents may have, each with its ref.
        """
        own_ids = own_ids or {}
        if not refs and not own_ids:
            return []
        branches: list[LiteralString] = [
            f"""SELECT found.doc_id, r.n::integer - 1 AS n FROM unnest(%(refs)s::text[]) WITH ORDINALITY AS r (ref, n)
                CROSS JOIN LATERAL ({newest_of(self._where, "ARRAY[r.ref]", EXACT_LIMIT)}) found"""
        ]
        if own_ids:
            branches.append(
                f"SELECT d.doc_id, -1 AS n FROM documents d WHERE {self._where} AND d.doc_id = ANY(%(own)s)"
            )
        rows = await self._rows(
            _IdentifierRow,
            f"WITH {NEWEST}" + " UNION ALL ".join(branches),
            {**self._parameters, "refs": list(refs), "own": list(own_ids)},
        )
        return [(own_ids[row.doc_id] if row.n < 0 else refs[row.n], row.doc_id) for row in rows]

    async def live(self, docs: Collection[UUID]) -> dict[UUID, LiveDocument]:
        """Return those of the documents that readers see and that pass the filters.

        They hold only what ranking needs. The rest is read for the few documents that are shown: the
        rows of a hundred documents are a large part of a search's cost.
        """
        rows = await self._rows(
            LiveDocument,
            f"""SELECT d.doc_id, d.stage_id, d.occurred_at, d.source, d.kind, coalesce(s.chunks, 0) AS passages FROM documents d
                LEFT JOIN stages s ON s.stage_id = d.stage_id
                WHERE d.doc_id = ANY(%(docs)b) AND {self._where}""",
            self._parameters | {"docs": list(docs)},
        )
        return {row.doc_id: row for row in rows}

    async def contents(self, docs: Collection[UUID]) -> dict[UUID, DocumentContent]:
        """Return the contents of documents, by document id."""
        if not docs:
            return {}
        rows = await self._rows(
            DocumentContent,
            """SELECT d.doc_id, d.kind, d.title, m.chunks AS spans, m.assertions
               FROM documents d JOIN manifests m ON m.id = d.manifest_id WHERE d.doc_id = ANY(%(docs)b)""",
            {"docs": list(docs)},
        )
        return {row.doc_id: row for row in rows}

    async def speakers(self, docs: Collection[UUID]) -> set[str]:
        """Return how documents of one turn, such as mails, name who wrote them."""
        rows = await self._rows(
            _SpeakerRow,
            """SELECT m.metadata #>> '{apex_turns,0,2}' AS speaker
               FROM documents d JOIN manifests m ON m.id = d.manifest_id
               WHERE d.doc_id = ANY(%(docs)b) AND jsonb_array_length(m.metadata -> 'apex_turns') = 1""",
            {"docs": list(docs)},
        )
        return {row.speaker for row in rows}

    async def sample_vectors(self, documents: int, passages: int, dimension: int) -> list[bytes]:
        """Return the vectors of the first `passages` of the `documents` with the lowest ids, float32 row after row."""
        rows = await self._rows(
            _VectorsRow,
            """SELECT substr(m.vectors, 1, %(bytes)s) AS vectors
               FROM (SELECT manifest_id FROM documents WHERE NOT deleted ORDER BY doc_id LIMIT %(limit)s) d
               JOIN manifests m ON m.id = d.manifest_id""",
            {"limit": documents, "bytes": 4 * dimension * passages},
        )
        return [row.vectors for row in rows]

    async def hidden_stages(self, most: int) -> list[UUID]:
        """Return the stages that this snapshot hides but the stores may hold; none if they are more than `most`."""
        rows = await self._rows(
            _StageRow,
            """SELECT stage_id FROM stages
               WHERE state IN ('staging', 'aborted', 'superseded', 'reaping') LIMIT %(limit)s""",
            {"limit": most + 1},
        )
        if len(rows) > most:
            return []
        return [row.stage_id for row in rows]

    async def newest(self, limit: int) -> list[NewestDocument]:
        """Return the documents that pass the filters, newest first."""
        chosen: LiteralString = f"SELECT * FROM documents d WHERE {self._where}"
        if "since" in self._parameters or "until" in self._parameters:
            chosen = newest_within(self._where, limit)
        elif "sources" in self._parameters or "kinds" in self._parameters:
            chosen = newest_of_kinds(chosen_kinds(self._parameters), self._where, limit)
        for entities in ("people", "entities"):
            if entities in self._parameters:
                chosen = newest_of(self._where, f"%({entities})s", limit)
        return await self._rows(
            NewestDocument,
            f"""WITH RECURSIVE {KINDS}, {NEWEST} SELECT d.doc_id, m.chunks AS spans FROM
                  (SELECT * FROM ({chosen}) d ORDER BY d.committed_at DESC LIMIT %(limit)s) d
                JOIN manifests m ON m.id = d.manifest_id ORDER BY d.committed_at DESC""",
            {"since": None, "until": None, "before": None, **self._parameters, "limit": limit},
            prepare=False,
        )

    async def snippets(self, passages: Sequence[tuple[UUID, int, int]]) -> list[Snippet]:
        """Return the texts of passages, (document id, start, end), in the same order. Each is cut at `SNIPPET_CHARS`."""
        return await self._rows(
            Snippet,
            """SELECT d.doc_id, d.stage_id, d.manifest_id, m.inbox_id, d.source, d.kind, d.title, d.occurred_at,
                      d.version, d.event_id, i.received_at, substr(m.text, t.start + 1, t.length) AS snippet, m.metadata ->> 'apex_link' AS link,
                      (SELECT to_jsonb(turns.n) || turns.turn
                       FROM jsonb_array_elements(m.metadata -> 'apex_turns') WITH ORDINALITY AS turns (turn, n)
                       WHERE (turns.turn ->> 0)::integer <= t.start AND t.start < (turns.turn ->> 1)::integer
                       LIMIT 1) AS turn
               FROM unnest(%(docs)s::uuid[], %(starts)s::integer[], %(lengths)s::integer[])
                    WITH ORDINALITY AS t (id, start, length, n)
               JOIN documents d ON d.doc_id = t.id JOIN manifests m ON m.id = d.manifest_id
               JOIN inbox i ON i.id = m.inbox_id ORDER BY t.n""",
            {
                "docs": [doc for doc, _, _ in passages],
                "starts": [start for _, start, _ in passages],
                "lengths": [min(end - start, SNIPPET_CHARS) for _, start, end in passages],
            },
        )

    async def windows(
        self, passages: Sequence[tuple[UUID, int, int]], *, margin: int
    ) -> list[TextWindow]:
        """Return the texts of passages, (document id, start, end), with `margin` characters around them, in the same order."""
        return await self._rows(
            TextWindow,
            """SELECT t.start, length(m.text) AS text_length, substr(m.text, t.start + 1, t.length) AS text
               FROM unnest(%(docs)s::uuid[], %(starts)s::integer[], %(lengths)s::integer[])
                    WITH ORDINALITY AS t (id, start, length, n)
               JOIN documents d ON d.doc_id = t.id JOIN manifests m ON m.id = d.manifest_id ORDER BY t.n""",
            {
                "docs": [doc for doc, _, _ in passages],
                "starts": [max(0, start - margin) for _, start, _ in passages],
                "lengths": [end + margin - max(0, start - margin) for _, start, end in passages],
            },
        )

    async def _rows(
        self,
        row_type: type[R],
        query: LiteralString,
        parameters: Mapping[str, Any],
        *,
        prepare: bool | None = None,
    ) -> list[R]:
        return await fetch_rows(self._connection, row_type, query, parameters, prepare=prepare)
