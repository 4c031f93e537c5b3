"""The graph in Cypher that FalkorDB and Neo4j both speak; adapters add transport and their errors.

    (:Stage {id})-[:SAYS]->(:Assertion {id, stage, doc, predicate, value, start, hash, at})
    (:Assertion)-[:SUBJECT]->(:Entity {id, type})
    (:Assertion)-[:OBJECT]->(:Entity)     both ends are things: a relation, which hop 1 follows
    (:Assertion)-[:MENTIONS]->(:Entity)   one end is a document

Assertions are reached through their stage or an entity, never by an index of their own: FalkorDB builds
its indexes anew at each start, and two over assertions took most of that time.
Relations have an edge type of their own so that hop 1 never walks through the mentions of a hub.
Patterns name a label only where they enter the graph: FalkorDB starts at any label it sees, and
would scan all assertions instead of following one entity's edges.
"""

from __future__ import annotations

import asyncio
import re
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from typing import Any, ClassVar
from uuid import UUID

from apex_memory.errors import Misconfigured
from apex_memory.model import GraphAssertion, Tally
from apex_memory.stores.base import GraphFact, GraphHit, StageTally
from apex_memory.stores.graph_values import is_relation, require_storable, valid_refs

Row = Sequence[Any]
Evidence = dict[tuple[UUID, UUID], int | None]  # (document, stage) → offset of the evidence

UPSERT_ROWS = 500
DELETE_ROWS = 5_000
WALK_ROWS = 5_000  # assertions per page, roughly
OVERFETCH = (
    3  # rows read per wanted hit, as a document may have several assertions about one entity
)

# A statement is applied whole, so an assertion exists with its edges or not at all. Existing ones are
# skipped and the rest created: a MERGE for each assertion and its edges costs twice as much.
UPSERT = """
UNWIND $stages AS id
MERGE (t:Stage {id: id})
WITH t
OPTIONAL MATCH (t)-[:SAYS]->(old)
WITH collect(old.id) AS known
UNWIND $rows AS r
WITH r WHERE NOT r[0] IN known
MATCH (t:Stage {id: r[1]})
MERGE (s:Entity {id: r[4]}) ON CREATE SET s.type = split(r[4], ':')[0]
CREATE (t)-[:SAYS]->(a:Assertion {
  id: r[0], stage: r[1], doc: r[2], predicate: r[3], value: r[7], start: r[8], hash: r[9], at: timestamp()
})-[:SUBJECT]->(s)
FOREACH (ref IN r[5] |
  MERGE (o:Entity {id: ref}) ON CREATE SET o.type = split(ref, ':')[0]
  CREATE (a)-[:OBJECT]->(o))
FOREACH (ref IN r[6] |
  MERGE (m:Entity {id: ref}) ON CREATE SET m.type = split(ref, ':')[0]
  CREATE (a)-[:MENTIONS]->(m))
"""
TALLY = """
MATCH (t:Stage) WHERE t.id IN $stages
MATCH (t)-[:SAYS]->(a)-[r]->(e)
RETURN t.id, count(r), toInteger(sum(a.hash))
"""
DELETE = """
MATCH (t:Stage) WHERE t.id IN $stages
MATCH (t)-[:SAYS]->(a)
WITH a LIMIT $rows
DETACH DELETE a
RETURN count(*)
"""
DELETE_EMPTY = """
MATCH (t:Stage) WHERE t.id IN $stages AND NOT (t)-->()
DELETE t
"""
COUNT = "MATCH (a:Assertion) RETURN count(a)"
PAGE = """
MATCH (t:Stage) WHERE t.id >= $low AND t.id < $high AND t.id STARTS WITH $low
OPTIONAL MATCH (t)-[:SAYS]->(a)-[r]->(e)
RETURN t.id, count(r), toInteger(sum(CASE WHEN r IS NULL THEN 0 ELSE a.hash END))
"""
FORMER = """
MATCH (a:Assertion)
WITH a LIMIT 1
OPTIONAL MATCH (a)<-[s:SAYS]-()
RETURN count(a) - count(s)
"""
KNOWN = """
UNWIND $refs AS ref
MATCH (e:Entity {id: ref})
RETURN ref, DEGREE(e)
"""
NAMING = """
UNWIND $refs AS ref
MATCH (e:Entity {id: ref})
CALL {
  WITH e
  MATCH (e)<--(a) WHERE NOT a.stage IN $exclude
  WITH DISTINCT a.doc AS doc, a.stage AS stage, EVIDENCE AS start
  LIMIT $rows
  RETURN doc, stage, start
}
RETURN ref, doc, stage, start
"""
# Neighbours with few assertions come first: they are more specific. 32 are considered, as a hub has thousands.
# Each direction has a pattern of its own: in `[:SUBJECT|OBJECT]` a hub's names, which lead to nothing, count too.
NEAR = """
UNWIND $refs AS ref
MATCH (e:Entity {id: ref})
CALL {
  WITH e
  CALL {
    WITH e
    MATCH (e)<-[:SUBJECT]-(r)-[:OBJECT]->(n) WHERE NOT r.stage IN $exclude
    RETURN DISTINCT n LIMIT 33
    UNION
    WITH e
    MATCH (e)<-[:OBJECT]-(r)-[:SUBJECT]->(n) WHERE NOT r.stage IN $exclude
    RETURN DISTINCT n LIMIT 33
  }
  WITH e, n WHERE n <> e
  WITH n LIMIT 32
  WITH n, DEGREE(n) AS degree ORDER BY degree LIMIT 8
  MATCH (n)<--(a) WHERE NOT a.stage IN $exclude
  WITH DISTINCT a.doc AS doc, a.stage AS stage, EVIDENCE AS start
  LIMIT $rows
  RETURN doc, stage, start
}
RETURN ref, doc, stage, start
"""
# With nothing to exclude the relation is not read, and FalkorDB takes both hops in one step: on a hub of
# 10,000 names 1 ms, not 16.
NEAR_ALL = NEAR.replace("(r)", "()").replace(" WHERE NOT r.stage IN $exclude", "")
FACTS = """
MATCH (e:Entity {id: $ref})<--(a) WHERE NOT a.stage IN $exclude
WITH DISTINCT a, a.at AS at ORDER BY at DESC LIMIT $rows
MATCH (a)-[:SUBJECT]->(s)
OPTIONAL MATCH (a)-[:OBJECT|MENTIONS]->(o)
RETURN a.doc, a.stage, a.predicate, s.id, o.id, a.value, a.start, at, a.id ORDER BY at DESC, a.id
"""
FORGET = """
UNWIND $refs AS ref
MATCH (e:Entity {id: ref}) WHERE DEGREE(e) = 0
DELETE e
"""


class CypherGraph(ABC):
    """`GraphStore` in Cypher. Adapters add the connection."""

    name = "graph"
    degree: ClassVar[str]
    """The dialect's expression for the number of edges into the node `{}`."""

    @abstractmethod
    async def _read(self, statement: str, **parameters: Any) -> Sequence[Row]: ...

    @abstractmethod
    async def _write(self, statement: str, **parameters: Any) -> Sequence[Row]: ...

    async def _refuse_former(self) -> None:
        """Raise `Misconfigured` for a graph without stages: everything would be created a second time beside it."""
        if any(without for (without,) in await self._read(FORMER)):
            raise Misconfigured(
                "graph: an earlier version created it, without stages",
                remedy="remove it (or, embedded, the folder `falkordb` in the data folder) and start: it is rebuilt from PostgreSQL",
            )

    async def upsert(self, assertions: Sequence[GraphAssertion]) -> None:
        by_id = {assertion.id: _row(assertion) for assertion in assertions}
        rows = sorted(by_id.values(), key=_order)
        for start in range(0, len(rows), UPSERT_ROWS):
            part = rows[start : start + UPSERT_ROWS]
            await self._write(UPSERT, stages=sorted({row[1] for row in part}), rows=part)

    async def tally(self, stages: Sequence[UUID]) -> Mapping[UUID, Tally]:
        if not stages:
            return {}
        rows = await self._read(TALLY, stages=_texts(stages))
        return {UUID(stage): Tally(count, checksum) for stage, count, checksum in rows}

    async def delete_stages(self, stages: Sequence[UUID]) -> None:
        """Delete in statements of bounded size, so that a huge stage does not block other writers."""
        deleted = DELETE_ROWS if stages else 0
        while deleted == DELETE_ROWS:
            ((deleted,),) = await self._write(DELETE, stages=_texts(stages), rows=DELETE_ROWS)
        if stages:
            await self._write(DELETE_EMPTY, stages=_texts(stages))

    async def walk(self) -> AsyncIterator[StageTally]:
        """Read pages by prefix of the stage id, which is random: each page reads only its part of the index."""
        ((held,),) = await self._read(COUNT) or [(0,)]
        digits = next(n for n in range(8) if 16**n * WALK_ROWS >= held)
        for low, high in _prefixes(digits):
            for stage, count, checksum in await self._read(PAGE, low=low, high=high):
                yield StageTally(UUID(stage), Tally(count, checksum))

    async def known(self, refs: Sequence[str]) -> Mapping[str, int]:
        """Return also entities that no assertion touches any more, with 0."""
        valid = valid_refs(refs)
        rows = await self._read(self._dialect(KNOWN), refs=valid) if valid else []
        return {ref: assertions for ref, assertions in rows}

    async def linked(
        self, refs: Sequence[str], *, limit: int, exclude: Sequence[UUID] = ()
    ) -> list[GraphHit]:
        """Return hits whose `entity` is always a queried one. Of a hub's documents, any `limit` are returned."""
        valid = valid_refs(refs)
        naming, near = await asyncio.gather(
            self._documents(NAMING, valid, limit, exclude),
            self._documents(NEAR if exclude else NEAR_ALL, valid, limit, exclude),
        )
        for ref, evidence in near.items():
            for document in naming[ref]:
                evidence.pop(document, None)
        return [*_hits(naming, 0, limit), *_hits(near, 1, limit)]

    async def _documents(
        self, statement: str, refs: Sequence[str], limit: int, exclude: Sequence[UUID]
    ) -> dict[str, Evidence]:
        """Return at least `limit` documents per entity, if there are so many, each with its earliest evidence.

        Where one document has so many assertions about an entity that it crowds others out, a second
        query lists documents alone.
        """
        documents: dict[str, Evidence] = {ref: {} for ref in refs}
        for offset, limit_rows in (("a.start", limit * OVERFETCH), ("null", limit)):
            if not refs:
                break
            text = self._dialect(statement).replace("EVIDENCE", offset)
            rows = await self._read(text, refs=refs, rows=limit_rows, exclude=_texts(exclude))
            for ref, doc, stage, start in rows:
                document = UUID(doc), UUID(stage)
                known = documents[ref].get(document)
                starts = [value for value in (known, start) if value is not None]
                documents[ref][document] = min(starts, default=None)
            rows_of = Counter(row[0] for row in rows)
            refs = [
                ref for ref in refs if rows_of[ref] == limit_rows and len(documents[ref]) < limit
            ]
        return documents

    async def facts(self, ref: str, *, limit: int, exclude: Sequence[UUID] = ()) -> list[GraphFact]:
        """Return the newest first, by the time of writing to the graph."""
        if not valid_refs([ref]):
            return []
        rows = await self._read(FACTS, ref=ref, rows=limit, exclude=_texts(exclude))
        return [GraphFact(UUID(doc), UUID(stage), *rest) for doc, stage, *rest, _, _ in rows]

    async def forget_entities(self, refs: Sequence[str]) -> None:
        if valid := valid_refs(refs):
            await self._write(self._dialect(FORGET), refs=valid)

    def _dialect(self, statement: str) -> str:
        return re.sub(r"DEGREE\((\w+)\)", lambda m: self.degree.format(m[1]), statement)


def _hits(documents: Mapping[str, Evidence], hops: int, limit: int) -> Iterator[GraphHit]:
    for ref, evidence in documents.items():
        for (doc, stage), start in list(evidence.items())[:limit]:
            yield GraphHit(doc=doc, stage=stage, entity=ref, hops=hops, start=start)


def _row(item: GraphAssertion) -> list[Any]:
    """Return an assertion as a row of the upsert. Raises `Rejected` for values that a graph would garble."""
    require_storable(item)
    objects = [] if item.object is None else [item.object]
    relation = is_relation(item)
    return [
        str(item.id),
        str(item.stage),
        str(item.doc),
        item.predicate,
        item.subject,
        objects if relation else [],
        [] if relation else objects,
        item.value,
        item.start,
        item.hash,
    ]


def _order(row: Row) -> tuple[Any, ...]:
    """Sort by entity, then id: writers that meet at the same entities lock them in the same order."""
    return row[4], row[5], row[6], row[0]


def _texts(ids: Sequence[UUID]) -> list[str]:
    return [str(id) for id in ids]


def _prefixes(digits: int) -> Iterator[tuple[str, str]]:
    """Yield all hexadecimal prefixes of a length, each with a bound above all ids that start with it.

    Prefix and `g`, not the next prefix: between `0f` and `10` FalkorDB's index finds all of `1…` too.
    """
    for n in range(16**digits):
        prefix = f"{n:0{digits}x}" if digits else ""
        yield prefix, prefix + "g"
