"""The scope of a search: documents, conversations and people as a caller names them, resolved in the search's snapshot.

A document's scope is its live version and those of the documents in it (the files of a mail); a conversation's is all that
belongs to it: the turns of a chat are one document, the messages of a thread are documents with one parent.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, LiteralString
from uuid import UUID

import msgpack

from apex_memory.errors import NotFound, Rejected, Unavailable
from apex_memory.model import Filters, document_uuid, event_uuid, slug, uuid_range
from apex_memory.search.own_ids import pairs_of
from apex_memory.search.time_limits import Degraded, TimeLimiter
from apex_memory.stores.base import VectorQuery, VectorStore
from apex_memory.stores.postgres import Connection, fetch_rows

NAMES_MAX = 20  # documents, conversations and people in one scope
DOCUMENTS_MAX = 5_000  # documents in one scope: its versions go to the vector store by id
NAMED_MAX = (
    50  # passages with a person's name, in whose documents addresses of that person are looked up
)

_REF = re.compile(r"[a-z][a-z0-9_]{0,99}:\S")
_PHONE = re.compile(r"\+?[\d ().-]{7,25}\Z", re.ASCII)
_NO_PEOPLE = frozenset({"company", "location"})
_NOT_FOUND = "check the spelling; what arrived a moment ago is found once it is processed"

_BY_ID: LiteralString = """
SELECT doc_id, source FROM documents
WHERE NOT deleted AND (doc_id = ANY(%(ids)s) OR doc_id BETWEEN %(low)s AND %(high)s)
UNION
SELECT d.doc_id, d.source
FROM inbox i JOIN documents d ON d.doc_id = i.doc_id
WHERE NOT d.deleted AND (i.id = ANY(%(events)s) OR i.id BETWEEN %(low)s AND %(high)s)
LIMIT 6"""
# A conversation need not be a document itself: its messages name it as their parent.
_BY_PARENT: LiteralString = """
SELECT DISTINCT parent_id FROM documents WHERE NOT deleted AND parent_id = ANY(%(ids)s) LIMIT 6"""
_ROOTS: LiteralString = """
WITH RECURSIVE upward AS (
  SELECT doc_id, parent_id FROM documents WHERE doc_id = ANY(%(ids)s)
  UNION
  SELECT d.doc_id, d.parent_id FROM documents d JOIN upward u ON d.doc_id = u.parent_id
)
SELECT DISTINCT coalesce(u.parent_id, u.doc_id) AS doc_id FROM upward u
WHERE u.parent_id IS NULL OR NOT EXISTS (SELECT FROM documents d WHERE d.doc_id = u.parent_id)"""
_VERSIONS: LiteralString = """
WITH RECURSIVE family AS (
  SELECT doc_id, stage_id FROM documents
  WHERE NOT deleted AND (doc_id = ANY(%(ids)s) OR parent_id = ANY(%(ids)s) OR entities && %(refs)s)
  UNION
  SELECT d.doc_id, d.stage_id FROM documents d JOIN family f ON d.parent_id = f.doc_id WHERE NOT d.deleted
)
SELECT stage_id FROM family LIMIT %(limit)s"""
_KNOWN: LiteralString = """
SELECT ref FROM unnest(%(refs)s::text[]) AS ref
WHERE EXISTS (SELECT FROM documents d WHERE NOT d.deleted AND d.entities && ARRAY[ref])"""
_ASSERTIONS: LiteralString = """
SELECT m.assertions FROM documents d JOIN manifests m ON m.id = d.manifest_id
WHERE NOT d.deleted AND d.doc_id = ANY(%(ids)s)"""


@dataclass(frozen=True, slots=True)
class _NamedDocument:
    doc_id: UUID
    source: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Scope:
    """What a search is restricted to, by any id or name. An empty field restricts nothing."""

    documents: tuple[str, ...] = ()
    """Ids of documents or their events, the first 8 characters of one, keys, or vendors' own ids."""
    conversations: tuple[str, ...] = ()
    """The same of a conversation or thread, or of a message in it."""
    people: tuple[str, ...] = ()
    """Names, e-mail addresses, phone numbers, or refs such as `person:dana-ortiz`."""

    @property
    def is_of_documents(self) -> bool:
        """Return whether it restricts the search to certain documents."""
        return bool(self.documents or self.conversations)

    def check(self) -> None:
        """Raise `Rejected` for a scope over its limits, or with a blank name."""
        names = [*self.documents, *self.conversations, *self.people]
        if len(names) > NAMES_MAX:
            raise Rejected(
                f"the search is restricted to {len(names)} documents, conversations and people",
                remedy=f"name {NAMES_MAX} at most",
            )
        if not all(name.strip() for name in names):
            raise Rejected(
                "a document, conversation or person has a blank name",
                remedy="leave it out, or name it",
            )


class ScopeResolver:
    """Turns a scope into filters of one snapshot.

    `key_prefixes` holds by source what may stand before a vendor's own id in a document's key. `canonical_ref` returns
    the ref that documents have.
    """

    def __init__(
        self,
        vectors: VectorStore,
        time_limiter: TimeLimiter,
        *,
        key_prefixes: Mapping[str, Sequence[str]],
        canonical_ref: Callable[[str], str],
    ) -> None:
        self._vectors = vectors
        self._time_limiter = time_limiter
        self._sources = tuple(key_prefixes)
        self._prefixes = pairs_of(key_prefixes)
        self._canonical_ref = canonical_ref

    async def resolve(
        self, connection: Connection, scope: Scope, filters: Filters | None, degraded: Degraded
    ) -> Filters | None:
        """Return the filters with the scope in them.

        Raises `NotFound` for a document, conversation or person that no live document is or names, and `Rejected` for an id
        that several have.
        """
        if scope == Scope():
            return filters
        filters = filters or Filters()
        if scope.people:
            people: list[str] = []
            for person in scope.people:
                people += await self._refs_of_person(connection, person, degraded)
            filters = replace(filters, people=tuple(dict.fromkeys(people)))
        if scope.is_of_documents:
            stages: dict[UUID, None] = {}
            for name in scope.documents:
                stages |= dict.fromkeys(await self._versions_of_document(connection, name.strip()))
            for name in scope.conversations:
                stages |= dict.fromkeys(
                    await self._versions_of_conversation(connection, name.strip())
                )
            if len(stages) > DOCUMENTS_MAX:
                raise _too_many()
            filters = replace(filters, stages=tuple(stages))
        return filters

    async def unknown_entities(
        self, connection: Connection, filters: Filters | None
    ) -> Sequence[str]:
        """Return those of the filters' entities that no live document names."""
        if not filters or not filters.entities:
            return ()
        known = await self._known(connection, filters.entities)
        return [ref for ref in filters.entities if ref not in known]

    async def _known(self, connection: Connection, refs: Sequence[str]) -> set[str]:
        rows = await _rows(connection, _KNOWN, {"refs": list(refs)})
        return {row["ref"] for row in rows}

    async def _versions_of_document(self, connection: Connection, name: str) -> list[UUID]:
        ids = await self._documents(connection, name)
        if not ids:
            raise NotFound(f"document {name[:80]}: not found", remedy=_NOT_FOUND)
        return await _versions(connection, ids, ())

    async def _versions_of_conversation(self, connection: Connection, name: str) -> list[UUID]:
        ids = await self._documents(connection, name)
        if ids:
            rows = await _rows(connection, _ROOTS, {"ids": ids})
            roots = [row["doc_id"] for row in rows]
        else:
            rows = await _rows(connection, _BY_PARENT, {"ids": self._derived_ids(name)})
            roots = [row["parent_id"] for row in rows]
        refs = [name] if _REF.match(name) else [f"conversation:{name}", f"thread:{name}"]
        versions = await _versions(connection, roots, refs)
        if not versions:
            raise NotFound(f"conversation {name[:80]}: not found", remedy=_NOT_FOUND)
        return versions

    async def _documents(self, connection: Connection, name: str) -> list[UUID]:
        """Return the live document with an id, at most one. Raises `Rejected` if several documents have it."""
        low, high = uuid_range(name)
        documents = await fetch_rows(
            connection,
            _NamedDocument,
            _BY_ID,
            {
                "ids": self._derived_ids(name),
                "events": [event_uuid(source, name) for source in self._sources],
                "low": low,
                "high": high,
            },
            prepare=False,
        )
        if len(documents) > 1:
            examples = "; ".join(
                f"{document.doc_id} ({document.source})" for document in documents[:5]
            )
            raise Rejected(
                f"{name[:80]}: several documents have this id", remedy=f"name one: {examples}"
            )
        return [document.doc_id for document in documents]

    def _derived_ids(self, name: str) -> list[UUID]:
        """Return the ids that documents with a key, or with a vendor's own id in their key, have."""
        return [document_uuid(source, f"{prefix}{name}") for source, prefix in self._prefixes]

    async def _refs_of_person(
        self, connection: Connection, person: str, degraded: Degraded
    ) -> list[str]:
        """Return the refs by which documents name a person."""
        person = " ".join(person.split())
        address = _address(person)
        refs = [self._canonical_ref(address or f"person:{person}")]
        if address is None:
            refs += await self._refs_with_name(connection, person, degraded)
        known = await self._known(connection, refs)
        if not known and "vectors" in degraded.names():
            raise Unavailable("vectors", f"person {person[:80]} cannot be looked up by name")
        if not known:
            raise NotFound(
                f"person {person[:80]}: no document names this person",
                remedy=f"give the whole name or the e-mail address; {_NOT_FOUND}",
            )
        return [ref for ref in dict.fromkeys(refs) if ref in known]

    async def _refs_with_name(
        self, connection: Connection, person: str, degraded: Degraded
    ) -> list[str]:
        """Return refs, such as e-mail addresses, that documents give a name: the whole one, or the only one that holds it.

        Raises `Rejected` for a part of several people's names.
        """
        pages = await self._time_limiter.run(
            "vectors",
            degraded,
            lambda: self._vectors.search(
                [VectorQuery(words=person, nearby=False, limit=NAMED_MAX)]
            ),
        )
        docs = {passage.doc for passage, _ in pages[0]["words"]} if pages else set()
        if not docs:
            return []
        wanted = slug(person)
        words = set(wanted.split("-"))
        refs_by_name: dict[str, list[str]] = {}
        for row in await _rows(connection, _ASSERTIONS, {"ids": list(docs)}):
            for predicate, ref, _, value, _ in msgpack.unpackb(row["assertions"]):
                if predicate != "name" or ref.partition(":")[0] in _NO_PEOPLE:
                    continue
                name = slug(value or "")
                if words <= set(name.split("-")):
                    refs_by_name.setdefault(name, []).append(ref)
        if wanted in refs_by_name or len(refs_by_name) < 2:
            return refs_by_name.get(wanted) or next(iter(refs_by_name.values()), [])
        names = ", ".join(sorted(refs_by_name)[:5])
        raise Rejected(f"person {person[:80]}: several people", remedy=f"name one: {names}")


def _address(person: str) -> str | None:
    """Return the ref of an address, None for a name."""
    if _REF.match(person):
        return person
    if "@" in person:
        return f"email:{person}"
    return f"phone:{person}" if _PHONE.match(person) else None


async def _versions(connection: Connection, ids: Sequence[UUID], refs: Sequence[str]) -> list[UUID]:
    """Return the stages of live documents: these, those in them, and those that name one of the refs."""
    rows = await _rows(
        connection,
        _VERSIONS,
        {"ids": list(ids), "refs": list(refs), "limit": DOCUMENTS_MAX + 1},
    )
    if len(rows) > DOCUMENTS_MAX:
        raise _too_many()
    return [row["stage_id"] for row in rows]


def _too_many() -> Rejected:
    return Rejected(
        f"the search is restricted to more than {DOCUMENTS_MAX:,} documents",
        remedy="name fewer conversations or documents, or restrict it by entity, source or time instead",
    )


async def _rows(
    connection: Connection, query: LiteralString, parameters: dict[str, Any]
) -> list[dict[str, Any]]:
    cursor = await connection.execute(query, parameters, prepare=False)
    return await cursor.fetchall()
