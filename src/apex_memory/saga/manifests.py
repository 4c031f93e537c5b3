"""Manifests at rest: written once before anything is staged, and read to publish, repair or rebuild."""

from __future__ import annotations

import json
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, LiteralString
from uuid import UUID

import msgpack
import numpy as np

from apex_memory.model import Assertion, Chunk, Manifest
from apex_memory.stores.postgres import Connection, Postgres, fetch_rows

SEPARATOR = "\x1f"
# Manifests kept in memory between prepare and publish: so many, and of so many bytes together.
WARM = 2_000
WARM_BYTES = 256_000_000


_STORED: LiteralString = """m.id, m.inbox_id, m.doc_id, m.source, m.doc_key, m.pipeline, m.kind, m.title, m.text, m.occurred_at,
       m.metadata, m.parent_id, m.deleted, m.chunks, m.vectors, m.assertions, m.entities, m.about"""
"""The fields of `_StoredManifest`, of `manifests` as `m`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _StoredManifest:
    """A row of `manifests`."""

    id: UUID
    inbox_id: UUID
    doc_id: UUID
    source: str
    doc_key: str
    pipeline: str
    kind: str
    title: str
    text: str
    occurred_at: datetime
    metadata: dict[str, Any]
    parent_id: UUID | None
    deleted: bool
    chunks: bytes
    """msgpack: [start, end] of each chunk."""
    vectors: bytes
    """Little-endian float32, one vector after the other."""
    assertions: bytes
    """msgpack: [predicate, subject, object, value, start] of each assertion."""
    entities: list[str]
    about: str | None

    def manifest(self) -> Manifest:
        """Return the manifest that the row holds."""
        chunks = tuple(
            Chunk(n, start, end) for n, (start, end) in enumerate(msgpack.unpackb(self.chunks))
        )
        vectors = np.frombuffer(self.vectors, dtype="<f4")
        return Manifest(
            id=self.id,
            inbox_id=self.inbox_id,
            doc_id=self.doc_id,
            source=self.source,
            doc_key=self.doc_key,
            pipeline=self.pipeline,
            kind=self.kind,
            title=self.title,
            text=self.text,
            occurred_at=self.occurred_at,
            metadata=self.metadata,
            parent_id=self.parent_id,
            deleted=self.deleted,
            chunks=chunks,
            vectors=vectors.reshape(len(chunks), -1) if chunks else vectors.reshape(0, 0),
            assertions=tuple(
                Assertion(
                    predicate=predicate, subject=subject, object=object, value=value, start=start
                )
                for predicate, subject, object, value, start in msgpack.unpackb(self.assertions)
            ),
            entities=tuple(self.entities),
            about=self.about,
        )


class Manifests:
    """Stores manifests, and keeps the newest in memory so that publishing need not read them back.

    Every method uses the caller's connection: a second one from the same pool could wait for transactions
    that wait for a second one themselves.
    """

    def __init__(self) -> None:
        self._warm: OrderedDict[UUID, Manifest] = OrderedDict()
        self._warm_bytes = 0

    async def insert(self, connection: Connection, manifests: Sequence[Manifest]) -> None:
        """Insert manifests. One that exists stays as it is."""
        if not manifests:
            return
        # Binary parameters (`%b`): escaping vectors and texts byte by byte took a third of a batch's time.
        await connection.execute(
            f"""INSERT INTO manifests (id, inbox_id, doc_id, source, doc_key, pipeline, kind, title, text, occurred_at,
                                       metadata, parent_id, deleted, chunks, vectors, assertions, entities, hash, about)
                SELECT id, inbox_id, doc_id, source, doc_key, pipeline, kind, title, text, occurred_at, metadata::jsonb,
                       parent_id, deleted, chunks, vectors, assertions,
                       CASE entities WHEN '' THEN '{{}}' ELSE string_to_array(entities, E'{SEPARATOR}') END, hash, about
                FROM unnest(%b::uuid[], %b::uuid[], %b::uuid[], %b::text[], %b::text[], %b::text[], %b::text[], %b::text[],
                            %b::text[], %b::timestamptz[], %b::text[], %b::uuid[], %b::boolean[], %b::bytea[], %b::bytea[],
                            %b::bytea[], %b::text[], %b::bytea[], %b::text[])
                  AS t (id, inbox_id, doc_id, source, doc_key, pipeline, kind, title, text, occurred_at, metadata, parent_id,
                        deleted, chunks, vectors, assertions, entities, hash, about)
                ON CONFLICT DO NOTHING""",
            [list(column) for column in zip(*map(_columns, manifests), strict=True)],
        )
        for manifest in manifests:
            self.forget([manifest.id])
            self._warm[manifest.id] = manifest
            self._warm_bytes += _size(manifest)
        while len(self._warm) > WARM or self._warm_bytes > WARM_BYTES:
            self.forget([next(iter(self._warm))])

    async def load(self, connection: Connection, ids: Iterable[UUID]) -> dict[UUID, Manifest]:
        """Return manifests by id, with text, chunks, vectors and assertions."""
        wanted = set(ids)
        manifests = {id: self._warm[id] for id in wanted if id in self._warm}
        cold = list(wanted - manifests.keys())
        if cold:
            rows = await fetch_rows(
                connection,
                _StoredManifest,
                f"SELECT {_STORED} FROM manifests m WHERE m.id = ANY(%s)",
                (cold,),
            )
            manifests |= {row.id: row.manifest() for row in rows}
        return manifests

    def forget(self, ids: Iterable[UUID]) -> None:
        """Drop manifests from memory, once they are published or have failed."""
        for id in ids:
            manifest = self._warm.pop(id, None)
            if manifest is not None:
                self._warm_bytes -= _size(manifest)


async def manifests_of_events(connection: Connection, ids: Sequence[UUID]) -> dict[UUID, Manifest]:
    """Return by event what readers got of it: the manifest of its committed stage, else the newest.

    An event that changed its build has one of each build.
    """
    rows = await fetch_rows(
        connection,
        _StoredManifest,
        f"""SELECT DISTINCT ON (m.inbox_id) {_STORED} FROM manifests m
           LEFT JOIN stages s ON s.inbox_id = m.inbox_id AND s.manifest_id = m.id AND s.committed_at IS NOT NULL
           WHERE m.inbox_id = ANY(%s)
           ORDER BY m.inbox_id, s.committed_at DESC NULLS LAST, m.created_at DESC""",
        (list(ids),),
    )
    return {row.inbox_id: row.manifest() for row in rows}


async def live_manifests(db: Postgres, documents: Sequence[UUID], vectors: str) -> list[Manifest]:
    """Return the manifests that readers of these documents see and whose vectors are those of an id (`PassageVectors.id`)."""
    rows = await db.fetch_rows(
        _StoredManifest,
        f"""SELECT {_STORED} FROM documents d JOIN manifests m ON m.id = d.manifest_id
           WHERE d.doc_id = ANY(%s) AND NOT d.deleted AND split_part(m.pipeline, '/', 2) = %s""",
        (list(documents), vectors),
    )
    return [row.manifest() for row in rows]


def _size(manifest: Manifest) -> int:
    """Return about how many bytes a manifest takes in memory: its text, its vectors, and some for each item."""
    items = len(manifest.chunks) + len(manifest.assertions) + len(manifest.entities)
    return 4 * len(manifest.text) + manifest.vectors.nbytes + 300 * items


def _columns(manifest: Manifest) -> tuple[Any, ...]:
    return (
        manifest.id,
        manifest.inbox_id,
        manifest.doc_id,
        manifest.source,
        manifest.doc_key,
        manifest.pipeline,
        manifest.kind,
        manifest.title,
        manifest.text,
        manifest.occurred_at,
        json.dumps(manifest.metadata, default=str),
        manifest.parent_id,
        manifest.deleted,
        msgpack.packb([(chunk.start, chunk.end) for chunk in manifest.chunks]),
        np.ascontiguousarray(manifest.vectors, dtype="<f4").tobytes(),
        msgpack.packb(
            [(a.predicate, a.subject, a.object, a.value, a.start) for a in manifest.assertions]
        ),
        SEPARATOR.join(manifest.entities),
        manifest.content_hash(),
        manifest.about,
    )
