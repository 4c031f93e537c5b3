"""The statements of the read path use their indexes, on 100,000 documents: with a fifth of them other plans are the cheapest."""

import hashlib
import uuid
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from typing import Any, cast

import psycopg
import pytest
import pytest_asyncio
from psycopg.rows import dict_row

from apex_memory.model import Filters
from apex_memory.search.documents import (
    count_versions,
    documents_naming,
    from_cursor,
    list_query,
    newest_naming,
    newest_versions,
    to_cursor,
)
from apex_memory.search.results import DocumentSummary
from apex_memory.search.snapshot import (
    EXACT_LIMIT,
    RECENT_DOCUMENTS,
    WALKED_DOCUMENTS,
    SnapshotReader,
)
from apex_memory.stores.postgres import Connection
from tests.databases import Databases

DOCUMENTS = 100_000
AT = datetime.now(UTC)

# Document n has its own shipment and one of 40 trucks; all have the one carrier, the newest tenth and the oldest fifth a
# customer each. The newest is the last row, as documents come. One in 50 was replaced once. The oldest ten are of a source that sends no more.
FILL = """
CREATE TEMP TABLE made AS
  SELECT n, md5('doc' || n)::uuid AS doc, md5('stage' || n)::uuid AS stage, md5('event' || n)::uuid AS event,
         md5('manifest' || n)::uuid AS manifest, '{at}'::timestamptz - make_interval(mins => n) AS at
  FROM generate_series({n}, 1, -1) AS n;
INSERT INTO inbox (id, source, event_id, doc_id, doc_key, priority, version, occurred_at, content_type, state)
  SELECT event, 'turvo', 'e' || n, doc, 'd' || n, 0, n, at, 'application/json', 'done' FROM made;
INSERT INTO manifests (id, inbox_id, doc_id, source, doc_key, pipeline, kind, title, text, occurred_at, metadata,
                       deleted, chunks, vectors, assertions, entities, hash)
  SELECT manifest, event, doc, 'turvo', 'd' || n, 'p', 'shipment', 't', repeat('x ', 200), at, '{{}}', false,
         '\\x9192c2c2', '', '\\x90', '{{}}', '' FROM made;
INSERT INTO stages (stage_id, inbox_id, doc_id, version, event_id, manifest_id, state, owner, lease_until, chunks,
                    chunks_sum, edges, edges_sum, committed_at)
  SELECT stage, event, doc, n, 'e' || n, manifest, 'committed', event, at, 1, 1, 1, 1, at FROM made;
INSERT INTO stages (stage_id, inbox_id, doc_id, version, event_id, manifest_id, state, owner, lease_until, chunks,
                    chunks_sum, edges, edges_sum)
  SELECT md5('old' || n)::uuid, event, doc, n, 'e' || n, manifest, 'superseded', event, at, 1, 1, 1, 1
  FROM made WHERE n % 50 = 0;
INSERT INTO documents (doc_id, source, doc_key, kind, title, version, event_id, stage_id, manifest_id, deleted,
                       occurred_at, entities, hash, committed_at)
  SELECT doc, CASE WHEN n > {n} - 10 THEN 'edi' ELSE 'turvo' END, 'd' || n, CASE WHEN n > {n} - 10 THEN 'order' ELSE 'shipment' END,
         't', n, 'e' || n, stage, manifest, false, at,
         ARRAY['scac:JBHT', 'shipment:SHP-' || n, 'vehicle:' || n % 40]
           || CASE WHEN n > {n} * 0.8 THEN ARRAY['company:former'] WHEN n <= {n} * 0.1 THEN ARRAY['company:new'] END, '', at
  FROM made;
"""


def _doc(n: int) -> uuid.UUID:
    """The id of document n."""
    return uuid.UUID(hashlib.md5(f"doc{n}".encode(), usedforsecurity=False).hexdigest())


class Explaining:
    """A connection that also keeps the plan of each statement, made and measured with the values it runs with."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self.plans: list[dict[str, Any]] = []

    @asynccontextmanager
    async def cursor(self, **options: Any) -> AsyncIterator[Any]:
        async with self._connection.cursor(**options) as cursor:
            yield _ExplainingCursor(self, cursor)

    async def execute(self, query: Any, values: Any = (), **options: Any) -> Any:
        await self.explain(query, values)
        return await self._connection.execute(query, values, **options)

    async def explain(self, query: Any, values: Any) -> None:
        cursor = await self._connection.execute(f"EXPLAIN (ANALYZE, FORMAT JSON) {query}", values)
        row = await cursor.fetchone()
        assert row
        self.plans.append(row["QUERY PLAN"][0]["Plan"])

    def indexes(self) -> set[str]:
        return {node["Index Name"] for node in self.nodes() if "Index Name" in node}

    def walked(self) -> set[str]:
        """Tables read from end to end."""
        return {node["Relation Name"] for node in self.nodes() if node["Node Type"] == "Seq Scan"}

    def most_rows(self) -> int:
        """Return the most rows that one part of a plan read."""
        return max(
            int(
                node["Actual Loops"] * (node["Actual Rows"] + node.get("Rows Removed by Filter", 0))
            )
            for node in self.nodes()
        )

    def nodes(self) -> Iterator[dict[str, Any]]:
        waiting = list(self.plans)
        while waiting:
            node = waiting.pop()
            waiting += node.get("Plans", [])
            yield node


class _ExplainingCursor:
    def __init__(self, connection: Explaining, cursor: Any) -> None:
        self._connection = connection
        self._cursor = cursor

    async def execute(self, query: Any, values: Any = (), **options: Any) -> None:
        await self._connection.explain(query, values)
        await self._cursor.execute(query, values, **options)

    async def fetchall(self) -> Any:
        return await self._cursor.fetchall()


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def filled(databases: Databases) -> AsyncIterator[Connection]:
    async with (
        databases.database() as url,
        await psycopg.AsyncConnection.connect(
            url, autocommit=True, row_factory=dict_row
        ) as connection,
    ):
        await connection.execute(FILL.format(n=DOCUMENTS, at=AT.isoformat()))
        await connection.execute("VACUUM ANALYZE")
        yield connection


@pytest.fixture
def explaining(filled: Connection) -> Explaining:
    return Explaining(filled)


def reader(explaining: Explaining, filters: Filters | None = None) -> SnapshotReader:
    return SnapshotReader(cast(Connection, explaining), filters)


async def test_an_identifier_is_found_by_the_index_over_entities(explaining: Explaining) -> None:
    """However large the memory is: PostgreSQL would rather walk through all documents for what is none of the most common."""
    documents = await reader(explaining).identified(
        ["shipment:SHP-77", "shipment:SHP-1", "po:NONE"]
    )
    assert sorted(ref for ref, _ in documents) == ["shipment:SHP-1", "shipment:SHP-77"]
    assert "documents_entities" in explaining.indexes() and not explaining.walked()
    assert explaining.most_rows() <= 3 * RECENT_DOCUMENTS


@pytest.mark.parametrize(
    ("ref", "first"),
    [("scac:JBHT", 1), ("vehicle:7", 7), ("company:new", 1), ("company:former", None)],
)
async def test_a_common_identifier_is_found_among_the_newest(
    explaining: Explaining, ref: str, first: int | None
) -> None:
    """Also one that no new document has: then some of its documents are found, and the walk ends."""
    documents = await reader(explaining).identified([ref])
    assert len(documents) == EXACT_LIMIT
    assert first is None or documents[0][1] == _doc(first)
    assert explaining.most_rows() <= WALKED_DOCUMENTS


@pytest.mark.parametrize("entities", [("shipment:SHP-77",), ("po:NONE",), ("vehicle:7",)])
async def test_the_newest_documents_of_an_entity(
    explaining: Explaining, entities: tuple[str, ...]
) -> None:
    newest = await reader(explaining, Filters(entities=entities)).newest(2)
    expected = {"shipment:SHP-77": [77], "po:NONE": [], "vehicle:7": [7, 47]}[entities[0]]
    assert [document.doc_id for document in newest] == [_doc(n) for n in expected]
    assert explaining.most_rows() <= WALKED_DOCUMENTS


async def test_an_identifier_within_filters(explaining: Explaining) -> None:
    for filters, n in ((Filters(sources=("turvo",)), 1), (Filters(kinds=("email",)), 0)):
        assert len(await reader(explaining, filters).identified(["shipment:SHP-5"])) == n
    assert (
        "documents_entities" in explaining.indexes() and explaining.most_rows() <= RECENT_DOCUMENTS
    )


@pytest.mark.parametrize(
    "filters", [None, Filters(sources=("turvo",), since=datetime(2020, 1, 1, tzinfo=UTC))]
)
async def test_live_documents_are_read_by_key(
    explaining: Explaining, filters: Filters | None
) -> None:
    cursor = await explaining._connection.execute(
        "SELECT doc_id FROM documents ORDER BY md5(doc_key) LIMIT 100"
    )
    ids = [row["doc_id"] for row in await cursor.fetchall()]
    live = await reader(explaining, filters).live([*ids, uuid.uuid4()])
    assert set(live) == set(ids) and live[ids[0]].passages == 1
    assert explaining.indexes() == {"documents_pkey", "stages_pkey"} and not explaining.walked()


async def test_stages_that_readers_do_not_see_are_read_from_their_index(
    explaining: Explaining,
) -> None:
    assert len(await reader(explaining).hidden_stages(DOCUMENTS)) == DOCUMENTS // 50
    assert await reader(explaining).hidden_stages(100) == [], "too many to leave out by name"
    assert explaining.indexes() == {"stages_unsettled"}


async def test_text_is_read_by_key(explaining: Explaining) -> None:
    cursor = await explaining._connection.execute("SELECT doc_id FROM documents LIMIT 10")
    ids = [row["doc_id"] for row in await cursor.fetchall()]
    texts = await reader(explaining).snippets([(id, 2, 7) for id in ids])
    assert [snippet.snippet for snippet in texts] == ["x x x"] * 10
    assert explaining.indexes() == {"documents_pkey", "manifests_pkey", "inbox_pkey"}
    assert not explaining.walked()


async def test_the_newest_documents_are_read_from_their_index(explaining: Explaining) -> None:
    newest = await reader(explaining, Filters(kinds=("shipment",))).newest(5)
    assert [document.doc_id for document in newest] == [_doc(n) for n in range(1, 6)]
    assert explaining.indexes() == {"documents_kind", "manifests_pkey"}
    assert explaining.most_rows() <= 5 + 2, "and once the kinds that there are"


@pytest.mark.parametrize(
    ("filters", "expected"),
    [
        (Filters(sources=("edi",)), DOCUMENTS - 9),
        (Filters(kinds=("order",)), DOCUMENTS - 9),
        (Filters(kinds=("none",)), None),
        (Filters(until=AT - timedelta(minutes=DOCUMENTS - 50)), DOCUMENTS - 49),
        (Filters(since=AT + timedelta(days=1)), None),
        (Filters(sources=("edi",), until=AT - timedelta(minutes=DOCUMENTS - 5)), DOCUMENTS - 4),
    ],
)
async def test_the_newest_documents_of_what_no_new_document_has(
    explaining: Explaining, filters: Filters, expected: int | None
) -> None:
    newest = await reader(explaining, filters).newest(2)
    first = [] if expected is None else [_doc(expected), _doc(expected + 1)]
    assert [document.doc_id for document in newest] == first
    assert explaining.most_rows() <= WALKED_DOCUMENTS


@pytest.mark.parametrize(
    ("ref", "pages", "most"),
    [
        ("scac:JBHT", 3, 1_000),
        ("company:new", 3, 1_000),
        ("company:former", 40, WALKED_DOCUMENTS),
        ("vehicle:7", 60, 3_000),
        ("shipment:SHP-77777", 60, 1_000),
        ("po:NONE", 60, 1_000),
    ],
)
async def test_every_page_of_a_timeline_is_bounded_and_none_is_missing(
    explaining: Explaining, ref: str, pages: int, most: int
) -> None:
    """As the statement says that sorts all documents of the entity. A page of a hub that no new document names is empty, and goes on."""
    connection = cast(Connection, explaining)
    listed: list[uuid.UUID] = []
    after, following = None, None
    for _ in range(pages):
        page = await documents_naming(connection, ref, 50, after)
        listed += [document.doc_id for document in page.documents]
        following = page.next
        if following is None:
            break
        after = from_cursor(following)
    assert explaining.most_rows() <= most and not explaining.walked()
    cursor = await explaining._connection.execute(
        """SELECT doc_id FROM documents d WHERE NOT d.deleted AND d.entities && ARRAY[%s]
           ORDER BY d.occurred_at DESC, d.doc_id DESC""",
        (ref,),
    )
    everything = [row["doc_id"] for row in await cursor.fetchall()]
    assert listed == everything[: len(listed)] and len(listed) >= min(len(everything), 3 * 50)
    assert following or listed == everything


async def test_an_entity_that_no_new_document_names_has_some_documents(
    explaining: Explaining,
) -> None:
    newest = await newest_naming(cast(Connection, explaining), "company:former", 50)
    assert len({document.doc_id for document in newest}) == 50
    assert explaining.most_rows() <= WALKED_DOCUMENTS


@pytest.mark.parametrize(
    ("sources", "kinds", "expected"),
    [(("edi",), (), 10), ((), ("order",), 10), (("none",), (), 0), (("turvo",), ("order",), 0)],
)
async def test_a_list_of_what_no_new_document_has(
    explaining: Explaining, sources: tuple[str, ...], kinds: tuple[str, ...], expected: int
) -> None:
    query, values = list_query(sources, kinds, False, 50, None)
    rows = await (await explaining.execute(query, values)).fetchall()
    assert [row["version"] for row in rows] == list(range(DOCUMENTS - 9, DOCUMENTS + 1))[:expected]
    assert explaining.most_rows() <= 50 and not explaining.walked()


async def test_the_versions_of_a_document_that_has_very_many(explaining: Explaining) -> None:
    connection = cast(Connection, explaining)
    await explaining._connection.execute(
        """INSERT INTO stages (stage_id, inbox_id, doc_id, version, event_id, manifest_id, state, owner, lease_until, chunks,
                               chunks_sum, edges, edges_sum, committed_at)
           SELECT md5('many' || n)::uuid, event, %s, n, 'e' || n, manifest, 'reaped', event, at, 1, 1, 1, 1, at
           FROM made WHERE n BETWEEN 2 AND 20000""",
        (_doc(1),),
    )
    versions = await newest_versions(connection, _doc(1))
    assert [version.version for version in versions] == list(range(20_000, 19_900, -1))
    assert all(version.kept and version.received_at for version in versions)
    joined = [
        node for node in explaining.nodes() if node.get("Relation Name") in ("inbox", "manifests")
    ]
    assert joined and all(node["Actual Loops"] * node["Actual Rows"] <= 100 for node in joined)
    assert await count_versions(connection, _doc(1), versions) == 20_000
    few = await newest_versions(connection, _doc(3))
    assert await count_versions(connection, _doc(3), few) == len(few) == 1


async def test_every_page_of_the_list_is_read_from_its_index(explaining: Explaining) -> None:
    query, values = list_query((), (), False, 50, None)
    first = await (await explaining.execute(query, values)).fetchall()
    last = DocumentSummary(**first[-1])
    query, values = list_query(
        ("turvo",), ("shipment",), None, 50, to_cursor(last.committed_at, last.doc_id)
    )
    second = await (await explaining.execute(query, values)).fetchall()
    assert second[0]["version"] == 51
    assert explaining.indexes() == {"documents_recent", "documents_kind"}
    assert not explaining.walked() and explaining.most_rows() <= 52
    assert any("committed_at" in node.get("Index Cond", "") for node in explaining.nodes())
