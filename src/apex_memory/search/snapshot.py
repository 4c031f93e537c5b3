"""What a search reads from PostgreSQL, all in one snapshot: which documents are live, and their text."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, LiteralString
from uuid import UUID

import msgpack

from apex_memory.model import Filters
from apex_memory.stores.postgres import Connection, Row

EXACT_LIMIT = 50  # newest documents looked up for one identifier
SNIPPET_CHARS = 2_000

_ROW: LiteralString = "d.doc_id, d.stage_id, d.manifest_id, d.source, d.kind, d.title, d.occurred_at, d.version, d.event_id"


def conditions(filters: Filters | None) -> tuple[LiteralString, dict[str, Any]]:
    """`WHERE` conditions over `documents d` for what is live and passes the filters, with their parameters."""
    parts: list[LiteralString] = ["NOT d.deleted"]
    values: dict[str, Any] = {}
    if filters:
        clauses: Sequence[tuple[LiteralString, str, Any]] = (
            ("d.source = ANY(%(sources)s)", "sources", list(filters.sources)),
            ("d.kind = ANY(%(kinds)s)", "kinds", list(filters.kinds)),
            ("d.occurred_at >= %(since)s", "since", filters.since),
            ("d.occurred_at < %(until)s", "until", filters.until),
            ("d.entities && %(entities)s", "entities", list(filters.entities)),
        )
        for clause, name, value in clauses:
            if value:
                parts.append(clause)
                values[name] = value
    return " AND ".join(parts), values


@dataclass(frozen=True, slots=True)
class Opening:
    """About how many documents there are, and which incarnation of each store is known to be whole."""

    documents: int
    verified: Mapping[str, str]


class SnapshotReader:
    """The reads of one search, over the connection that holds its snapshot."""

    def __init__(self, connection: Connection, filters: Filters | None) -> None:
        self._connection = connection
        self._where, self._values = conditions(filters)

    async def opening(self) -> Opening:
        """What a search knows before it asks any store.

        The first statement of a search: PostgreSQL takes the snapshot here, not when the transaction begins.
        """
        cursor = await self._connection.execute(
            """SELECT CASE WHEN c.reltuples < 1000 THEN (SELECT count(*) FROM (SELECT FROM documents LIMIT 1000) d)
                           ELSE c.reltuples END::bigint AS documents,
                      (SELECT coalesce(jsonb_object_agg(store, incarnation), '{}') FROM store_state
                       WHERE state = 'ready') AS verified
               FROM pg_class c WHERE c.oid = 'documents'::regclass"""
        )
        row = await cursor.fetchone()
        assert row is not None
        return Opening(int(row["documents"]), row["verified"])

    async def identified(self, refs: Sequence[str]) -> list[tuple[str, Row]]:
        """(ref, document) for the newest live documents that hold an identifier, up to `EXACT_LIMIT` each."""
        if not refs:
            return []
        # A branch for each ref, with its value in the plan: the statistics of the very identifier
        # decide between the index over entities and a walk over the newest documents.
        branches: list[LiteralString] = [
            f"""(SELECT {_ROW}, {n} AS n FROM documents d WHERE {self._where} AND d.entities && ARRAY[%(ref{n})s]
                 ORDER BY d.committed_at DESC LIMIT {EXACT_LIMIT})"""
            for n in range(len(refs))
        ]
        values = {f"ref{n}": ref for n, ref in enumerate(refs)}
        cursor = await self._connection.execute(
            " UNION ALL ".join(branches), self._values | values, prepare=False
        )
        return [(refs[row["n"]], row) for row in await cursor.fetchall()]

    async def live(self, docs: Collection[UUID]) -> dict[UUID, Row]:
        """What ranking needs of the documents among `docs` that readers see and the filters pass.

        `passages` says how many each has. The rest is read for the few that are shown: rows of a
        hundred documents are much of what a search costs.
        """
        cursor = await self._connection.execute(
            f"""SELECT d.doc_id, d.stage_id, d.occurred_at, coalesce(s.chunks, 0) AS passages FROM documents d
                LEFT JOIN stages s ON s.stage_id = d.stage_id
                WHERE d.doc_id = ANY(%(docs)b) AND {self._where}""",
            self._values | {"docs": list(docs)},
        )
        return {row["doc_id"]: row for row in await cursor.fetchall()}

    async def contents(self, docs: Collection[UUID]) -> dict[UUID, Row]:
        """`kind`, `title`, and `spans` and `assertions` as manifests pack them, by document."""
        if not docs:
            return {}
        cursor = await self._connection.execute(
            """SELECT d.doc_id, d.kind, d.title, m.chunks AS spans, m.assertions
               FROM documents d JOIN manifests m ON m.id = d.manifest_id WHERE d.doc_id = ANY(%b)""",
            (list(docs),),
        )
        return {row["doc_id"]: row for row in await cursor.fetchall()}

    async def unsettled(self, most: int) -> list[UUID]:
        """Stages that this snapshot does not show, but the stores may hold; none if there are more than `most`."""
        cursor = await self._connection.execute(
            """SELECT stage_id FROM stages
               WHERE state IN ('staging', 'aborted', 'superseded', 'reaping') LIMIT %s""",
            (most + 1,),
        )
        rows = await cursor.fetchall()
        return [row["stage_id"] for row in rows] if len(rows) <= most else []

    async def newest(self, limit: int) -> Sequence[Row]:
        """The documents that pass the filters, newest first, with `spans`."""
        cursor = await self._connection.execute(
            f"""SELECT {_ROW}, m.chunks AS spans FROM
                  (SELECT * FROM documents d WHERE {self._where} ORDER BY d.committed_at DESC LIMIT %(limit)s) d
                JOIN manifests m ON m.id = d.manifest_id ORDER BY d.committed_at DESC""",
            self._values | {"limit": limit},
            prepare=False,
        )
        return await cursor.fetchall()

    async def snippets(self, places: Sequence[tuple[UUID, int, int]]) -> Sequence[Row]:
        """Documents, text and origin for (document, start, end), in order: with `snippet`, `inbox_id`, `received_at`."""
        docs, starts, ends = zip(*places, strict=True) if places else ((), (), ())
        cursor = await self._connection.execute(
            f"""SELECT {_ROW}, substr(m.text, t.start + 1, t.length) AS snippet, m.inbox_id, i.received_at
               FROM unnest(%s::uuid[], %s::integer[], %s::integer[]) WITH ORDINALITY AS t (id, start, length, n)
               JOIN documents d ON d.doc_id = t.id JOIN manifests m ON m.id = d.manifest_id
               JOIN inbox i ON i.id = m.inbox_id ORDER BY t.n""",
            (
                list(docs),
                list(starts),
                [min(end - start, SNIPPET_CHARS) for start, end in zip(starts, ends, strict=True)],
            ),
        )
        return await cursor.fetchall()


def spans_of(row: Row) -> list[tuple[int, int]]:
    """(start, end) of the passages of a document, from its manifest's row."""
    return list(map(tuple, msgpack.unpackb(row["spans"])))


def starts_of(row: Row, refs: Collection[str]) -> list[int]:
    """Where the text of a document names one of the entities, from its manifest's row, in order."""
    return sorted(
        start
        for _, subject, object, _, start in msgpack.unpackb(row["assertions"])
        if start is not None and (subject in refs or object in refs)
    )
