"""The graph in tables of PostgreSQL, in a schema of its own: of the server that holds the documents, or of another one.

    stages (n, id, doc)     entities (n, ref)     assertions (stage, id, subject, object, relates, …)

`n` numbers stages and entities in the order of their writing, so that an assertion is narrow and the newest stages of an
entity are the last ones in its index. `relates` is true where both ends are things: hop 1 follows only these.

It is a store like the others: connections of its own, writes that are committed and on disk on return, and an incarnation. No
transaction spans it and the documents, and the commit protocol needs none.
"""

from __future__ import annotations

import asyncio
import itertools
import re
from collections import Counter
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from typing import Any
from urllib.parse import parse_qsl, quote, urlencode, urlsplit, urlunsplit
from uuid import UUID

from apex_memory.errors import Misconfigured, RetryLater
from apex_memory.model import GraphAssertion, Tally
from apex_memory.stores.base import GraphFact, GraphHit, StageTally
from apex_memory.stores.graph_values import is_relation, require_storable, valid_refs
from apex_memory.stores.sessions import MISSING, Session, Sessions

Row = tuple[Any, ...]

SCHEMES = ("postgresql", "postgres")
SCHEMA = "apex_graph"
SCHEMA_NAME = re.compile(r"[a-z_][a-z0-9_]{0,62}")
VERSION = 1  # of the tables
CONNECTIONS = 8
UPSERT_ROWS = 2_000  # assertions of a transaction
DELETE_ROWS = 5_000
WALK_ROWS = 5_000  # assertions per page, roughly: stages of ten
ASSERTIONS_PER_STAGE = 10
COUNTED = 1_000  # assertions of one end that are counted: a hub has no less, and how many more hardly changes a rank
NEAR_COUNTED = 100  # of a neighbour: enough to tell a rare one from a hub
NEAR_ROWS = 250  # newest relations of an entity, in each direction, whose other ends are considered
LINKED_ROWS = 3  # documents read per wanted one of hop 1, as some name the entity itself
STATEMENT_SHARE = 0.9  # of the time limit: PostgreSQL ends a statement before its connection is cut

# A session plans each statement once, so the plan must be right for tables of any size. The statements leave no choice: they look
# up each key that they are given in a subquery of its own (`LATERAL … LIMIT`), which only an index can serve. A bitmap loses
# the order of an index, and would read all of a hub.
PLANS = {
    "plan_cache_mode": "force_generic_plan",
    "enable_seqscan": "off",
    "enable_bitmapscan": "off",
    "jit": "off",
}
DURABLE = {"synchronous_commit": "on", "default_transaction_isolation": r"read\ committed"}

TABLES = """
CREATE TABLE GRAPH.stages (
    n bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, id uuid NOT NULL UNIQUE, doc uuid NOT NULL);
CREATE TABLE GRAPH.entities (
    n bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, ref text COLLATE "C" NOT NULL UNIQUE);
CREATE TABLE GRAPH.assertions (
    stage bigint NOT NULL, subject bigint NOT NULL, object bigint, start bigint, id uuid NOT NULL, hash integer NOT NULL,
    relates boolean NOT NULL, predicate text NOT NULL, value text, PRIMARY KEY (stage, id));
CREATE INDEX assertions_subject ON GRAPH.assertions (subject, relates, stage);
CREATE INDEX assertions_object ON GRAPH.assertions (object, relates, stage) WHERE object IS NOT NULL;
CREATE TABLE GRAPH.versions (version integer NOT NULL);
"""

# Reads the catalogue itself: what PostgreSQL's functions remember of it can be older than the lock that was waited for.
HAS_TABLES = """
SELECT FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace WHERE n.nspname = %(schema)s AND c.relname = 'versions'
"""
UPSERT_STAGES = """
INSERT INTO GRAPH.stages (id, doc) SELECT * FROM unnest(%(ids)s::uuid[], %(docs)s::uuid[]) ON CONFLICT DO NOTHING
"""
# Holds off a removal of the same stages, which would leave their new assertions without a stage.
SHARE = """
SELECT FROM unnest(%(ids)s::uuid[]) AS r (id)
CROSS JOIN LATERAL (SELECT n FROM GRAPH.stages WHERE id = r.id LIMIT 1 FOR KEY SHARE) t
"""
UPSERT_ENTITIES = """
INSERT INTO GRAPH.entities (ref) SELECT * FROM unnest(%(refs)s::text[]) ON CONFLICT DO NOTHING
"""
UPSERT_ASSERTIONS = """
INSERT INTO GRAPH.assertions (stage, id, subject, object, start, hash, relates, predicate, value)
SELECT (SELECT n FROM GRAPH.stages WHERE id = r.stage), r.id, (SELECT n FROM GRAPH.entities WHERE ref = r.subject),
       (SELECT n FROM GRAPH.entities WHERE ref = r.object), r.start, r.hash, r.relates, r.predicate, r.value
FROM unnest(%(ids)s::uuid[], %(stages)s::uuid[], %(subjects)s::text[], %(objects)s::text[], %(starts)s::bigint[],
            %(hashes)s::integer[], %(relates)s::boolean[], %(predicates)s::text[], %(texts)s::text[])
     AS r (id, stage, subject, object, start, hash, relates, predicate, value)
ON CONFLICT DO NOTHING
"""
# Ends of an assertion count where their entity exists, so that a lost entity shows.
ENDS = """
LEFT JOIN LATERAL (
  SELECT a.hash::bigint AS hash, coalesce((SELECT 1 FROM GRAPH.entities WHERE n = a.subject), 0)
    + coalesce((SELECT 1 FROM GRAPH.entities WHERE n = a.object), 0) AS edges
  FROM GRAPH.assertions a WHERE a.stage = s.n OFFSET 0) ends ON true
"""
TALLY = f"""
SELECT r.id, sum(edges)::bigint, sum(edges * hash)::bigint
FROM unnest(%(stages)s::uuid[]) AS r (id) CROSS JOIN LATERAL (SELECT n FROM GRAPH.stages WHERE id = r.id LIMIT 1) s {ENDS}
GROUP BY r.id HAVING sum(edges) > 0
"""
PAGE = f"""
SELECT s.n, s.id, coalesce(sum(edges), 0)::bigint, coalesce(sum(edges * hash), 0)::bigint
FROM (SELECT n, id FROM GRAPH.stages WHERE n > %(after)s ORDER BY n LIMIT %(stages)s) s {ENDS}
GROUP BY s.n, s.id ORDER BY s.n
"""
HOLD = """
SELECT t.n FROM unnest(%(stages)s::uuid[]) AS r (id)
CROSS JOIN LATERAL (SELECT n FROM GRAPH.stages WHERE id = r.id LIMIT 1 FOR UPDATE) t
"""
DELETE = """
DELETE FROM GRAPH.assertions WHERE ctid = ANY (ARRAY(
  SELECT a.row FROM unnest(%(numbers)s::bigint[]) AS r (n)
  CROSS JOIN LATERAL (SELECT ctid AS row FROM GRAPH.assertions WHERE stage = r.n LIMIT %(rows)s) a LIMIT %(rows)s))
"""
DELETE_STAGES = """
DELETE FROM GRAPH.stages WHERE ctid = ANY (ARRAY(
  SELECT (SELECT ctid FROM GRAPH.stages WHERE n = r.n) FROM unnest(%(numbers)s::bigint[]) AS r (n)))
"""
ASKED = """
unnest(%(refs)s::text[]) WITH ORDINALITY AS r (ref, place)
CROSS JOIN LATERAL (SELECT n FROM GRAPH.entities WHERE ref = r.ref LIMIT 1) e
"""
DEGREE = """((SELECT count(*) FROM (SELECT FROM GRAPH.assertions WHERE subject = ENTITY LIMIT MOST) a)
  + (SELECT count(*) FROM (SELECT FROM GRAPH.assertions WHERE object = ENTITY LIMIT MOST) a))"""
KNOWN = f"""
SELECT r.ref, {DEGREE.replace("ENTITY", "e.n").replace("MOST", str(COUNTED))} FROM {ASKED}
"""
EXCLUDED = (
    "WITH excluded AS MATERIALIZED (SELECT n FROM GRAPH.stages WHERE id = ANY(%(exclude)s::uuid[]))"
)
SIDES = ("subject", "object")


def _each_index(branch: str) -> str:
    """Return the union of a query over each range of the indexes, in which an entity's assertions lie by stage."""
    ranges = itertools.product(SIDES, ("relates", "NOT relates"))
    return "\nUNION ALL\n".join(
        f"({branch.replace('SIDE', side).replace('RELATES', relates)})" for side, relates in ranges
    )


# The newest stages that name ENTITY, each with the first place of its evidence.
NAMING = f"""
SELECT stage, min(start) AS start FROM (
{
    _each_index('''SELECT stage, min(start) AS start FROM GRAPH.assertions WHERE SIDE = ENTITY AND RELATES AND ALLOWED
GROUP BY stage ORDER BY stage DESC LIMIT %(limit)s''')
}
) each_index GROUP BY stage ORDER BY stage DESC LIMIT %(limit)s
"""
DOCUMENT = "CROSS JOIN LATERAL (SELECT id, doc FROM GRAPH.stages WHERE n = h.stage LIMIT 1) s"
NAMED = f"""
SELECT r.ref, s.doc, s.id, h.start
FROM {ASKED} CROSS JOIN LATERAL ({NAMING.replace("ENTITY", "e.n")}) h {DOCUMENT} ORDER BY r.place, h.stage DESC
"""
NEAR_NAMING = NAMING.replace("ENTITY", "rare.n").replace("%(limit)s", f"{LINKED_ROWS} * %(limit)s")
# Neighbours with few assertions come first: they are more specific. 32 are considered, as a hub has thousands.
NEAR = f"""
SELECT r.ref, s.doc, s.id, h.start
FROM {ASKED}
CROSS JOIN LATERAL (
  SELECT stage, min(start) AS start, min(degree) AS degree FROM (
    SELECT near.n, {DEGREE.replace("ENTITY", "near.n").replace("MOST", str(NEAR_COUNTED))} AS degree FROM (
      SELECT DISTINCT n FROM (
        (SELECT object AS n FROM GRAPH.assertions WHERE subject = e.n AND relates AND ALLOWED ORDER BY stage DESC LIMIT {NEAR_ROWS})
        UNION ALL
        (SELECT subject AS n FROM GRAPH.assertions WHERE object = e.n AND relates AND ALLOWED ORDER BY stage DESC LIMIT {NEAR_ROWS})
      ) ends WHERE n <> e.n LIMIT 32
    ) near ORDER BY degree LIMIT 8
  ) rare CROSS JOIN LATERAL ({NEAR_NAMING}) naming
  GROUP BY stage ORDER BY min(degree), stage DESC LIMIT {LINKED_ROWS} * %(limit)s
) h {DOCUMENT} ORDER BY r.place, h.degree, h.stage DESC
"""
FACTS = f"""
SELECT s.doc, s.id, h.predicate, (SELECT ref FROM GRAPH.entities WHERE n = h.subject),
       (SELECT ref FROM GRAPH.entities WHERE n = h.object), h.value, h.start
FROM (SELECT DISTINCT stage, id, subject, object, predicate, value, start FROM (
{
    _each_index('''SELECT stage, id, subject, object, predicate, value, start FROM GRAPH.assertions
WHERE SIDE = (SELECT n FROM GRAPH.entities WHERE ref = %(ref)s) AND RELATES AND ALLOWED ORDER BY stage DESC LIMIT %(limit)s''')
}
) each_index ORDER BY stage DESC, id LIMIT %(limit)s) h {DOCUMENT} ORDER BY h.stage DESC, h.id
"""
UNTOUCHED = """WHERE ref = ANY(%(refs)s::text[])
  AND NOT EXISTS (SELECT FROM GRAPH.assertions WHERE subject = e.n)
  AND NOT EXISTS (SELECT FROM GRAPH.assertions WHERE object = e.n)
"""
FORGETTABLE = f"SELECT ref FROM GRAPH.entities e {UNTOUCHED}"
FORGET = f"DELETE FROM GRAPH.entities e {UNTOUCHED}"
IDENTITY = """
SELECT extract(epoch FROM pg_postmaster_start_time())::text, current_database(),
       (SELECT c.oid FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
        WHERE n.nspname = %(schema)s AND c.relname = 'stages')
"""
# Writers share it. Removing entities takes it alone: one that a writer has just seen must not vanish.
WRITERS = "SELECT pg_advisory_xact_lock_shared(hashtextextended(%(schema)s, 0))"
ALONE = "SELECT pg_advisory_xact_lock(hashtextextended(%(schema)s, 0))"


class PostgresGraph:
    """`url` is `postgresql://user:password@host:port/database`, with `?schema=NAME` for another schema; `timeout` in seconds a call.

    It is the address of PostgreSQL itself or of a pooler in session mode: what a statement needs is set for its session.
    """

    name = "graph"

    def __init__(self, url: str, *, timeout: float) -> None:
        parts = urlsplit(url)
        parameters = dict(parse_qsl(parts.query, keep_blank_values=True))
        self._schema = parameters.pop("schema", SCHEMA)
        if not SCHEMA_NAME.fullmatch(self._schema):
            raise Misconfigured(
                "graph: the schema has no plain name",
                remedy="name it with small letters, digits and _, as in ?schema=apex_graph",
            )
        limit = f"{max(1, round(timeout * STATEMENT_SHARE * 1000))}"
        self._sessions = Sessions(
            self.name,
            urlunsplit(parts._replace(query=urlencode(parameters, quote_via=quote))),
            size=CONNECTIONS,
            timeout=timeout,
            options={**PLANS, **DURABLE, "statement_timeout": limit},
        )

    async def prepare(self) -> None:
        """Create the schema and its tables, unless they are there. Raises `Misconfigured` for those of another version."""
        async with self._sessions.session() as session:
            if await self._version(session) is None:
                async with session.transaction():
                    await self._send(session, ALONE, {"schema": self._schema})
                    if await self._version(session) is None:  # nobody else was faster
                        await self._create(session)
            version = await self._version(session)
        if version != VERSION:
            raise Misconfigured(
                f"graph: the tables in schema {self._schema} are of version {version}, this build knows {VERSION}",
                remedy=f"drop the schema and start: it is filled again from the documents (DROP SCHEMA {self._schema} CASCADE)",
            )

    async def _version(self, session: Session) -> int | None:
        """Return the version of the tables; None where there are none."""
        if not await self._rows(session, HAS_TABLES, {"schema": self._schema}):
            return None
        rows = await self._rows(session, "SELECT max(version) FROM GRAPH.versions", {})
        return int(rows[0][0])

    async def _create(self, session: Session) -> None:
        names = "SELECT FROM pg_namespace WHERE nspname = %(schema)s"
        if not await self._rows(session, names, {"schema": self._schema}):
            await self._send(session, f"CREATE SCHEMA {self._schema}", {})
        for statement in filter(str.strip, TABLES.split(";")):
            await self._send(session, statement, {})
        await self._send(
            session, "INSERT INTO GRAPH.versions VALUES (%(version)s)", {"version": VERSION}
        )

    async def ping(self) -> None:
        await self._read("SELECT 1")

    async def version(self) -> str:
        ((version,),) = await self._read("SELECT current_setting('server_version')")
        return f"PostgreSQL {version}"

    async def incarnation(self) -> str:
        """Return when the server started, with database, schema and the number of a table.

        Another one of these is another graph, also when somebody dropped the tables and they were created again.
        """
        ((started, database, table),) = await self._read(IDENTITY, schema=self._schema)
        return f"{started} {database} {self._schema} {table}"

    async def close(self) -> None:
        await self._sessions.close()

    async def upsert(self, assertions: Sequence[GraphAssertion]) -> None:
        for item in assertions:
            require_storable(item)
        try:
            for start in range(0, len(assertions), UPSERT_ROWS):
                await self._upsert(assertions[start : start + UPSERT_ROWS])
        except _TablesMissing:
            await self.prepare()
            raise RetryLater("graph: its tables were missing, and are created again") from None

    async def _upsert(self, assertions: Sequence[GraphAssertion]) -> None:
        """Write some assertions in one transaction, with all statements in one round trip.

        Keys are sorted, so that writers that meet at the same ones wait for each other in one order.
        """
        docs = {item.stage: item.doc for item in assertions}
        stages = sorted(docs)
        objects = [item.object for item in assertions]
        refs = {item.subject for item in assertions}.union(
            ref for ref in objects if ref is not None
        )
        columns = {
            "ids": [item.id for item in assertions],
            "stages": [item.stage for item in assertions],
            "subjects": [item.subject for item in assertions],
            "objects": objects,
            "starts": [item.start for item in assertions],
            "hashes": [item.hash for item in assertions],
            "relates": [item.object is not None and is_relation(item) for item in assertions],
            "predicates": [item.predicate for item in assertions],
            "texts": [item.value for item in assertions],
        }
        async with self._writing() as session, session.pipeline(), session.transaction():
            await self._send(session, WRITERS, {"schema": self._schema})
            stage_columns = {"ids": stages, "docs": [docs[stage] for stage in stages]}
            await self._send(session, UPSERT_STAGES, stage_columns)
            await self._send(session, SHARE, {"ids": stages})
            await self._send(session, UPSERT_ENTITIES, {"refs": sorted(refs)})
            await self._send(session, UPSERT_ASSERTIONS, columns)

    async def tally(self, stages: Sequence[UUID]) -> Mapping[UUID, Tally]:
        if not stages:
            return {}
        rows = await self._read(TALLY, stages=list(stages))
        return {stage: Tally(count, checksum) for stage, count, checksum in rows}

    async def delete_stages(self, stages: Sequence[UUID]) -> None:
        """Delete in transactions of bounded size, so that a huge stage holds no other writer for long."""
        deleted = DELETE_ROWS if stages else 0
        with suppress(_TablesMissing):  # then nothing is to be deleted
            while deleted == DELETE_ROWS:
                deleted = await self._delete_some(stages)

    async def _delete_some(self, stages: Sequence[UUID]) -> int:
        """Remove some assertions of the stages, and the stages with the last ones. Return the number of assertions."""
        async with self._writing() as session, session.transaction():
            held = await self._rows(session, HOLD, {"stages": sorted(stages)})
            numbers = {"numbers": [n for (n,) in held]}
            deleted = await self._send(session, DELETE, {**numbers, "rows": DELETE_ROWS})
            if deleted < DELETE_ROWS:  # they have no more, and held as they are get no more
                await self._send(session, DELETE_STAGES, numbers)
            return deleted

    async def walk(self) -> AsyncIterator[StageTally]:
        """Read pages by the number of the stage, so that each page reads its own part of the table."""
        page_stages = max(1, WALK_ROWS // ASSERTIONS_PER_STAGE)
        after = 0
        while rows := await self._read(PAGE, after=after, stages=page_stages):
            for _, stage, edges, checksum in rows:
                yield StageTally(stage, Tally(edges, checksum))
            after = rows[-1][0]

    async def known(self, refs: Sequence[str]) -> Mapping[str, int]:
        """Return also entities that no assertion touches any more, with 0. Of a hub's assertions `COUNTED` at each end are counted."""
        valid = valid_refs(refs)
        rows = await self._read(KNOWN, refs=valid) if valid else []
        return {ref: assertions for ref, assertions in rows}

    async def linked(
        self, refs: Sequence[str], *, limit: int, exclude: Sequence[UUID] = ()
    ) -> list[GraphHit]:
        """Return hits whose `entity` is always a queried one. Of a hub's documents, the newest `limit` are returned."""
        valid = valid_refs(refs)
        if not valid:
            return []
        given = {"refs": valid, "limit": limit, "exclude": list(exclude)}
        named, near = await asyncio.gather(
            self._read(_allowing(NAMED, exclude), **given),
            self._read(_allowing(NEAR, exclude), **given),
        )
        own = {(ref, stage) for ref, _, stage, _ in named}
        others = [row for row in near if (row[0], row[2]) not in own]
        return [*_hits(named, 0, limit), *_hits(others, 1, limit)]

    async def facts(self, ref: str, *, limit: int, exclude: Sequence[UUID] = ()) -> list[GraphFact]:
        """Return the newest first, by the time their stage was first written to the graph."""
        if not valid_refs([ref]):
            return []
        rows = await self._read(
            _allowing(FACTS, exclude), ref=ref, limit=limit, exclude=list(exclude)
        )
        return [GraphFact(*row) for row in rows]

    async def forget_entities(self, refs: Sequence[str]) -> None:
        """Writers are kept waiting only where there is something to remove."""
        valid = valid_refs(refs)
        rows = await self._read(FORGETTABLE, refs=valid) if valid else []
        if untouched := [ref for (ref,) in rows]:
            with suppress(_TablesMissing):
                async with self._writing() as session, session.transaction():
                    await self._send(session, ALONE, {"schema": self._schema})
                    await self._send(session, FORGET, {"refs": untouched})

    async def _read(self, statement: str, **parameters: Any) -> list[Row]:
        """Return the rows of a statement; none where the tables are not there: nothing was ever written, or it was lost."""
        async with self._sessions.session() as session:
            try:
                return await self._rows(session, statement, parameters)
            except MISSING:
                return []

    @asynccontextmanager
    async def _writing(self) -> AsyncIterator[Session]:
        async with self._sessions.session() as session:
            try:
                yield session
            except MISSING:
                raise _TablesMissing from None

    async def _rows(
        self, session: Session, statement: str, parameters: Mapping[str, Any]
    ) -> list[Row]:
        cursor = await session.execute(self._text(statement), parameters)
        return await cursor.fetchall()

    async def _send(self, session: Session, statement: str, parameters: Mapping[str, Any]) -> int:
        """Run a statement without a result; return the number of rows it touched (in a pipeline, not known yet)."""
        return (await session.execute(self._text(statement), parameters)).rowcount

    def _text(self, statement: str) -> bytes:
        return statement.replace("GRAPH.", f"{self._schema}.").encode()


class _TablesMissing(Exception):
    """A write found no tables."""


def _allowing(statement: str, exclude: Sequence[UUID]) -> str:
    if not exclude:
        return statement.replace("ALLOWED", "true")
    return EXCLUDED + statement.replace("ALLOWED", "stage NOT IN (SELECT n FROM excluded)")


def _hits(rows: Sequence[Row], hops: int, limit: int) -> Iterator[GraphHit]:
    count: Counter[str] = Counter()
    for ref, doc, stage, start in rows:
        count[ref] += 1
        if count[ref] <= limit:
            yield GraphHit(doc=doc, stage=stage, entity=ref, hops=hops, start=start)
