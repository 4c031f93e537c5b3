"""One suite over all graph adapters."""

from __future__ import annotations

import asyncio
import random
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any
from urllib.parse import urlsplit
from uuid import UUID, uuid4, uuid5

import pytest
import pytest_asyncio

from apex_memory.engines.base import Engine, free_port
from apex_memory.engines.falkordb import FalkorDB
from apex_memory.engines.postgres import PostgreSQL
from apex_memory.engines.process import Process, child_of
from apex_memory.errors import Misconfigured, Rejected, RetryLater, Unavailable
from apex_memory.model import GraphAssertion, Tally, content_hash31
from apex_memory.stores import cypher, postgres_graph
from apex_memory.stores.base import GraphStore
from apex_memory.stores.graph import open_graph
from tests.faulty import Fault, Faulty

SHIPMENT, CARRIER, INVOICE = "shipment:SHP-100045", "carrier:MC-123456", "invoice:INV-9"


SCHEMES = ["falkordb", "postgresql", *(["neo4j"] if find_spec("neo4j") else [])]


SERVERS = ["falkordb", "postgres", pytest.param("neo4j", marks=pytest.mark.server)]


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Every adapter."""
    for fixture in ("graph_url", "server"):
        if fixture in metafunc.fixturenames:
            metafunc.parametrize(fixture, SERVERS, indirect=True)


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def neo4j_url(engine_data: Path) -> AsyncIterator[str]:
    server = Server(neo4j(engine_data))
    await server.start()
    yield server.engine.url
    await server.process.stop()


def fresh(url: str) -> str:
    """Return the URL of a graph that nobody else uses, on the same server. The free Neo4j has a single one."""
    if url.startswith("postgresql:"):
        return f"{url}?schema=t{uuid4().hex}"
    return url if url.startswith(("neo4j", "bolt")) else url.rpartition("/")[0] + f"/t{uuid4().hex}"


@pytest.fixture(params=["falkordb", "postgres"])
def embedded_url(request: pytest.FixtureRequest) -> str:
    """Of a graph on each of the engines that `apex up` can start."""
    return fresh(request.getfixturevalue(f"{request.param}_url"))


@pytest.fixture
def graph_url(request: pytest.FixtureRequest) -> str:
    return fresh(request.getfixturevalue(f"{request.param}_url"))


@pytest_asyncio.fixture
async def graph(graph_url: str) -> AsyncIterator[GraphStore]:
    """An empty graph, prepared."""
    store = open_graph(graph_url, timeout=60)
    if isinstance(store, cypher.CypherGraph):
        await store._write("MATCH (n) DETACH DELETE n")
    await store.prepare()
    yield store
    await store.close()


class Version:
    """A document under a stage, and its assertions."""

    def __init__(self, doc: UUID | None = None) -> None:
        self.doc = doc or uuid4()
        self.stage = uuid4()
        self.assertions: list[GraphAssertion] = []

    def says(
        self,
        predicate: str,
        subject: str,
        object: str | None = None,
        value: str | None = None,
        start: int | None = None,
    ) -> Version:
        self.assertions.append(
            GraphAssertion(
                id=uuid5(self.stage, str(len(self.assertions))),
                stage=self.stage,
                doc=self.doc,
                predicate=predicate,
                subject=subject,
                object=object,
                value=value,
                start=start,
                hash=content_hash31(predicate, subject, object, value, start),
            )
        )
        return self

    def mentions(self, *refs: str, start: int | None = None) -> Version:
        for ref in refs:
            self.says("mentions", f"document:{self.doc}", ref, ref, start)
        return self

    @property
    def tally(self) -> Tally:
        edges = [
            a.hash for a in self.assertions for end in (a.subject, a.object) if end is not None
        ]
        return Tally(len(edges), sum(edges))


def sizes(graph: GraphStore) -> ModuleType:
    """Return the module with the sizes of the adapter's statements."""
    return cypher if isinstance(graph, cypher.CypherGraph) else postgres_graph


async def written(graph: GraphStore, *versions: Version) -> None:
    await graph.upsert([a for version in versions for a in version.assertions])


async def test_the_same_upsert_twice_is_once(graph: GraphStore) -> None:
    mail = Version().mentions(SHIPMENT, CARRIER).says("carried_by", SHIPMENT, CARRIER)
    for _ in range(2):
        await written(graph, mail)
    assert await graph.tally([mail.stage]) == {mail.stage: mail.tally}
    assert await graph.known([SHIPMENT, CARRIER]) == {SHIPMENT: 2, CARRIER: 2}
    assert len(await graph.facts(SHIPMENT, limit=10)) == 2


async def test_documents_share_entities(graph: GraphStore) -> None:
    mails = [Version().mentions(SHIPMENT) for _ in range(3)]
    await asyncio.gather(*(written(graph, mail) for mail in mails))
    assert await graph.known([SHIPMENT, "shipment:none"]) == {SHIPMENT: 3}


async def test_writers_at_once_make_an_entity_once(graph: GraphStore) -> None:
    refs = [f"company:c-{n}" for n in range(40)]
    mails = [Version().mentions(*random.sample(refs, 20)) for _ in range(30)]
    expected = Counter(a.object for mail in mails for a in mail.assertions)
    await asyncio.gather(*(written(graph, mail) for mail in mails))
    assert await graph.known(refs) == expected


async def test_tally_distinguishes_whole_from_partial(graph: GraphStore) -> None:
    whole, half, unwritten = (
        Version().mentions(SHIPMENT).says("status", SHIPMENT, value="late") for _ in range(3)
    )
    await written(graph, whole)
    await graph.upsert(half.assertions[:1])
    tallies = await graph.tally([whole.stage, half.stage, unwritten.stage])
    assert tallies == {whole.stage: whole.tally, half.stage: Tally(2, half.assertions[0].hash * 2)}
    assert tallies[half.stage] != half.tally


async def test_tally_is_exact_for_large_sums(graph: GraphStore) -> None:
    """One bit off in 10^12 must show; also more than one batch is written."""
    big = Version().mentions(*(f"load:{n}" for n in range(sizes(graph).UPSERT_ROWS * 2 + 1)))
    big.assertions = [replace(a, hash=2**31 - 1 - n % 2) for n, a in enumerate(big.assertions)]
    await written(graph, big)
    assert big.tally.checksum > 2**41
    assert await graph.tally([big.stage]) == {big.stage: big.tally}


async def test_delete_takes_the_stage_and_nothing_else(
    graph: GraphStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sizes(graph), "DELETE_ROWS", 3)  # several statements
    old = Version().mentions(SHIPMENT, CARRIER, INVOICE).says("carried_by", SHIPMENT, CARRIER)
    new = Version(old.doc).mentions(SHIPMENT)
    await written(graph, old, new)
    for _ in range(2):
        await graph.delete_stages([old.stage, uuid4()])
    assert await graph.tally([old.stage, new.stage]) == {new.stage: new.tally}
    assert await graph.known([SHIPMENT, CARRIER]) == {SHIPMENT: 1, CARRIER: 0}
    assert [hit.stage for hit in await graph.linked([SHIPMENT], limit=9)] == [new.stage]


async def test_forget_removes_only_untouched_entities(graph: GraphStore) -> None:
    old, other = Version().mentions(SHIPMENT, CARRIER), Version().mentions(SHIPMENT)
    await written(graph, old, other)
    await graph.forget_entities([SHIPMENT, CARRIER])
    assert await graph.known([SHIPMENT, CARRIER]) == {SHIPMENT: 2, CARRIER: 1}
    await graph.delete_stages([old.stage])
    await graph.forget_entities([SHIPMENT, CARRIER, "shipment:none"])
    assert await graph.known([SHIPMENT, CARRIER]) == {SHIPMENT: 1}


async def _in_the_end(call: Callable[[], Awaitable[None]]) -> None:
    """Call a store as the saga and the sweeper do: one that asks for it is called again."""
    for attempt in range(5):
        try:
            await call()
            return
        except RetryLater:
            assert attempt < 4, "each attempt lost the race"


async def test_forgetting_entities_that_are_being_named_again_keeps_them(
    graph: GraphStore,
) -> None:
    refs = [f"person:p-{n}" for n in range(10)]
    for _ in range(15):
        mail = Version().mentions(*refs)
        forget = partial(graph.forget_entities, refs)
        await asyncio.gather(
            _in_the_end(forget), _in_the_end(partial(written, graph, mail)), _in_the_end(forget)
        )
        assert await graph.tally([mail.stage]) == {mail.stage: mail.tally}
        assert await graph.known(refs) == dict.fromkeys(refs, 1)
        await graph.delete_stages([mail.stage])


async def test_linked_gives_what_names_it_then_what_names_its_neighbours(graph: GraphStore) -> None:
    mail = Version().mentions(SHIPMENT, start=40).mentions(SHIPMENT, start=7)
    turvo = Version().says("carried_by", SHIPMENT, CARRIER)
    carrier = Version().mentions(CARRIER, start=3)
    await written(graph, mail, turvo, carrier)
    hits = await graph.linked([SHIPMENT], limit=10)
    assert {(hit.stage, hit.doc, hit.hops, hit.start) for hit in hits} == {
        (mail.stage, mail.doc, 0, 7),
        (turvo.stage, turvo.doc, 0, None),
        (carrier.stage, carrier.doc, 1, 3),
    }
    assert [hit.hops for hit in hits] == [0, 0, 1]
    assert {hit.entity for hit in hits} == {SHIPMENT}
    back = await graph.linked([CARRIER], limit=10)  # relations are followed both ways
    assert {(hit.stage, hit.hops) for hit in back} == {
        (turvo.stage, 0),
        (carrier.stage, 0),
        (mail.stage, 1),
    }


async def test_a_document_is_no_bridge(graph: GraphStore) -> None:
    """Two things in one mail are not related, and neither are two mails about one thing's document."""
    mail, other = Version().mentions(SHIPMENT, CARRIER), Version().mentions(CARRIER)
    replied = Version().says("answers", f"document:{uuid4()}", f"document:{mail.doc}")
    noted = Version().says("noted_in", SHIPMENT, f"document:{other.doc}")
    await written(graph, mail, other, replied, noted)
    hits = await graph.linked([SHIPMENT], limit=10)
    assert {(hit.stage, hit.hops) for hit in hits} == {(mail.stage, 0), (noted.stage, 0)}


async def test_linked_follows_no_excluded_stage(graph: GraphStore) -> None:
    dead = Version().mentions(SHIPMENT).says("carried_by", SHIPMENT, CARRIER)
    live = Version().says("billed_on", SHIPMENT, INVOICE)
    carrier, invoice = Version().mentions(CARRIER), Version().mentions(INVOICE)
    dying = Version().mentions(INVOICE)
    await written(graph, dead, live, carrier, invoice, dying)
    hits = await graph.linked([SHIPMENT], limit=10, exclude=[dead.stage, dying.stage])
    assert {(hit.stage, hit.hops) for hit in hits} == {(live.stage, 0), (invoice.stage, 1)}


async def test_linked_limits_each_entity_and_hop(graph: GraphStore) -> None:
    mails = [Version().mentions(SHIPMENT) for _ in range(8)]
    near = [Version().mentions(CARRIER) for _ in range(8)]
    bridge = Version().says("carried_by", SHIPMENT, CARRIER)
    await written(graph, *mails, *near)
    await written(
        graph, bridge
    )  # the newest document of both, so that it takes none of hop 1's places
    hits = await graph.linked([SHIPMENT, CARRIER, SHIPMENT, "shipment:none"], limit=5)
    assert Counter((hit.entity, hit.hops) for hit in hits) == {
        (SHIPMENT, 0): 5,
        (SHIPMENT, 1): 5,
        (CARRIER, 0): 5,
        (CARRIER, 1): 5,
    }
    assert [hit.hops for hit in hits] == [0] * 10 + [1] * 10


async def test_a_document_of_many_words_crowds_none_out(graph: GraphStore) -> None:
    long = Version()
    for n in range(100):
        long.mentions(SHIPMENT, start=n)
    short = [Version().mentions(SHIPMENT) for _ in range(4)]
    await written(graph, long)
    await written(graph, *short)
    hits = await graph.linked([SHIPMENT], limit=5)
    assert {hit.stage for hit in hits} == {long.stage, *(mail.stage for mail in short)}
    assert next(hit.start for hit in hits if hit.stage == long.stage) is not None


async def test_rare_neighbours_come_first(graph: GraphStore) -> None:
    """An entity of few documents is better evidence than one of many."""
    crowd = [Version().mentions("company:everyone") for _ in range(30)]
    rare = Version().mentions(INVOICE)
    shipment = Version().says("billed_to", SHIPMENT, "company:everyone")
    shipment.says("billed_on", SHIPMENT, INVOICE)
    await written(graph, *crowd, rare, shipment)
    hits = await graph.linked([SHIPMENT], limit=3)
    assert next(hit.stage for hit in hits if hit.hops == 1) == rare.stage


async def test_facts(graph: GraphStore) -> None:
    old = Version().says("status", SHIPMENT, value="picked up", start=5)
    await written(graph, old)
    at = time.time_ns() // 1_000_000
    while time.time_ns() // 1_000_000 == at:
        await asyncio.sleep(0.001)  # until the next millisecond, which the store's clock counts
    new = Version().says("carried_by", SHIPMENT, CARRIER)
    new.says("names", f"document:{new.doc}", SHIPMENT)
    await written(graph, new)
    facts = await graph.facts(SHIPMENT, limit=10)
    assert [fact.stage for fact in facts] == [new.stage, new.stage, old.stage]
    assert {(f.predicate, f.subject, f.object, f.value, f.start) for f in facts} == {
        ("status", SHIPMENT, None, "picked up", 5),
        ("carried_by", SHIPMENT, CARRIER, None, None),
        ("names", f"document:{new.doc}", SHIPMENT, None, None),
    }
    assert {fact.doc for fact in facts} == {old.doc, new.doc}
    assert [f.stage for f in await graph.facts(SHIPMENT, limit=2)] == [new.stage] * 2
    assert [f.stage for f in await graph.facts(SHIPMENT, limit=9, exclude=[new.stage])] == [
        old.stage
    ]
    assert [f.predicate for f in await graph.facts(CARRIER, limit=9)] == ["carried_by"]


@pytest.mark.parametrize("rows", [5_000, 50])  # one page, 256 pages
async def test_walk_gives_every_stage_once(
    graph: GraphStore, monkeypatch: pytest.MonkeyPatch, rows: int
) -> None:
    monkeypatch.setattr(sizes(graph), "WALK_ROWS", rows)
    mails = [Version().mentions(SHIPMENT, CARRIER).says("x", INVOICE) for _ in range(600)]
    await written(graph, *mails)
    walked = [(item.stage, item.tally) async for item in graph.walk()]
    assert len(walked) == 600
    assert dict(walked) == {mail.stage: mail.tally for mail in mails}


NASTY = [
    "\"'`\\",
    "ends in \\",
    '"}] MATCH (n) DETACH DELETE n //',
    '"] UNWIND [1] AS r MATCH (n) DETACH DELETE n WITH r RETURN r; /*',
    "$rows $stages {id: 1}",
    '\\u0041 \\n \\" \\\\',
    "line\nline\r\nline\ttab",
    "é e\u0301 ß İ \u202e 日本 👩‍🚚 \u2028\u2029\ufeff\uffff",
    "\x01\x02\x1b\x7f\x85",
    "",
    " ",
    "null",
    "x" * 100_000,
]


async def test_strings_come_back_as_they_went(graph: GraphStore) -> None:
    rng = random.Random(7)
    alphabet = "ab \\\"'`$/*{}[]()\n\r\t\x01\x7fé😀\u2028"
    values = [*NASTY, *("".join(rng.choices(alphabet, k=rng.randrange(30))) for _ in range(300))]
    mail = Version()
    for value in values:
        mail.says(value[:60] or "p", SHIPMENT, value=value)
    await written(graph, mail)
    facts = await graph.facts(SHIPMENT, limit=1_000)
    assert Counter((f.predicate, f.value) for f in facts) == Counter(
        (value[:60] or "p", value) for value in values
    )


NASTY_REFS = [
    "company:\"'`\\",
    "company:\\",
    'company:"}) MATCH (n) DETACH DELETE n //',
    "Company:x",
    "company:x",
    "company:X",
    "company:a b,c|{d}*%_-@",
    "company:é",
    "company:e\u0301",
    "company:日本👩‍🚚",
    "company:\u00a0x\u00a0",
    "company:in\nside",
    "company:" + "y" * 1_900,
    "no-colon",
    ":",
]


async def test_entity_keys_are_distinct(graph: GraphStore) -> None:
    for _ in range(2):  # what an index does not find would be made anew
        for n, ref in enumerate(NASTY_REFS):
            await written(graph, Version().mentions(*[ref] * (n + 1)))
    expected = {ref: 2 * (n + 1) for n, ref in enumerate(NASTY_REFS)}
    assert await graph.known(NASTY_REFS) == expected
    hits = await graph.linked(NASTY_REFS, limit=5)
    assert Counter(hit.entity for hit in hits) == {ref: 2 for ref in NASTY_REFS}


@pytest.mark.parametrize(
    "change",
    [
        {"value": "a\x00b"},
        {"value": "\ud800"},
        {"predicate": "\x00"},
        {"subject": ""},
        {"subject": "company:\x00"},
        {"subject": "company:\udfff"},
        {"object": ""},
        {"object": "company:end "},
        {"object": "\tcompany:start"},
        {"object": "company:a\x01b"},
        {"object": "company:" + "é" * 1_000},
        {"start": 2**63},
        {"start": -(2**63) - 1},
        {"hash": 2**31},
        {"hash": -1},
    ],
    ids=ascii,
)
async def test_what_a_graph_would_garble_is_refused(
    graph: GraphStore, change: dict[str, Any]
) -> None:
    (good,) = Version().says("p", SHIPMENT, CARRIER, "v", 1).assertions
    bad = replace(good, **change)
    with pytest.raises(Rejected, match=str(bad.id)) as caught:
        await graph.upsert([bad])
    assert caught.value.remedy
    assert await graph.tally([bad.stage]) == {}
    await graph.upsert([replace(good, start=2**63 - 1, hash=2**31 - 1)])
    (fact,) = await graph.facts(SHIPMENT, limit=2)
    assert fact.start == 2**63 - 1


async def test_what_cannot_be_stored_is_unknown_when_asked(graph: GraphStore) -> None:
    refs = ["", " ", "a\x00b", "\ud800", "x" * 9_000]
    assert await graph.known(refs) == {}
    assert await graph.linked(refs, limit=3) == []
    assert await graph.facts(refs[0], limit=3) == []
    await graph.forget_entities(refs)


async def test_no_request_no_call(graph: GraphStore) -> None:
    await graph.upsert([])
    await graph.delete_stages([])
    await graph.forget_entities([])
    assert await graph.tally([]) == {}
    assert await graph.known([]) == {}
    assert await graph.linked([], limit=3) == []
    assert [item async for item in graph.walk()] == []


async def test_an_unwritten_graph_answers(embedded_url: str) -> None:
    """As after the loss of all data: the repair must see that the store is empty."""
    store = open_graph(embedded_url, timeout=10)
    await store.delete_stages([uuid4()])
    await store.forget_entities([SHIPMENT])
    assert await store.tally([uuid4()]) == {}
    assert [item async for item in store.walk()] == []
    assert await store.linked([SHIPMENT], limit=1) == []
    await store.close()


async def test_it_identifies_itself(graph: GraphStore) -> None:
    await graph.prepare()
    await graph.ping()
    assert any(char.isdigit() for char in await graph.version())
    assert await graph.incarnation() == await graph.incarnation()
    assert graph.name == "graph"


async def test_a_graph_of_another_version_is_refused(graph: GraphStore) -> None:
    """In Cypher its assertions have no stage. If it were accepted, everything in it would be written a second time."""
    if isinstance(graph, cypher.CypherGraph):
        former = "CREATE (:Assertion {id: 'a', stage: 's'})-[:SUBJECT]->(:Entity {id: 'x'})"
        await graph._write(former)
    else:
        assert isinstance(graph, postgres_graph.PostgresGraph)
        async with graph._writing() as session:
            await graph._send(session, "UPDATE GRAPH.versions SET version = 99", {})
    with pytest.raises(Misconfigured, match="version") as refused:
        await graph.prepare()
    assert "start: it is" in refused.value.remedy


def test_a_url_without_adapter_is_refused() -> None:
    for url in (
        "redis://localhost",
        "",
        "falkordb://host:port/x",
        "postgresql://host:port/x",
        "postgresql://host/x?nonsense=1",
        "postgresql://host/x?schema=public;drop",
    ):
        with pytest.raises(Misconfigured):
            open_graph(url, timeout=1)


@asynccontextmanager
async def silent_server() -> AsyncIterator[int]:
    """A server that accepts connections and never responds."""
    ended = asyncio.Event()

    async def ignore(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await ended.wait()
        writer.close()

    async with await asyncio.start_server(ignore, "127.0.0.1", 0) as server:
        yield server.sockets[0].getsockname()[1]
        ended.set()


def calls(graph: GraphStore) -> list[Callable[[], Any]]:
    (assertion,) = Version().says("p", SHIPMENT).assertions
    return [
        graph.ping,
        graph.version,
        graph.incarnation,
        graph.prepare,
        lambda: graph.upsert([assertion]),
        lambda: graph.tally([uuid4()]),
        lambda: graph.delete_stages([uuid4()]),
        lambda: anext(graph.walk()),
        lambda: graph.known([SHIPMENT]),
        lambda: graph.linked([SHIPMENT], limit=1),
        lambda: graph.facts(SHIPMENT, limit=1),
        lambda: graph.forget_entities([SHIPMENT]),
    ]


@pytest.mark.parametrize("scheme", SCHEMES)
async def test_unreachable_is_reported_at_once(scheme: str) -> None:
    graph = open_graph(f"{scheme}://user:secret@127.0.0.1:{free_port()}/x", timeout=5)
    started = time.monotonic()
    for call in calls(graph):
        with pytest.raises(Unavailable) as caught:
            await call()
        assert caught.value.store == "graph"
        assert caught.value.remedy
        assert "secret" not in str(caught.value)
    assert time.monotonic() - started < 5
    await graph.close()


@pytest.mark.parametrize("scheme", SCHEMES)
async def test_silence_is_given_up_in_time(scheme: str) -> None:
    async with silent_server() as port:
        graph = open_graph(f"{scheme}://user:secret@127.0.0.1:{port}/x", timeout=0.03)
        for call in calls(graph):
            started = time.monotonic()
            with pytest.raises(Unavailable):
                await call()
            assert time.monotonic() - started < 1
        await graph.close()


@asynccontextmanager
async def freezing_way(target: int) -> AsyncIterator[tuple[int, Callable[[], None]]]:
    """Forward a port to a local one. Yields the port, and a call that silences the connections made before it."""
    generation = 0

    async def pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, born: int) -> None:
        while data := await reader.read(65_536):
            if born == generation:
                writer.write(data)
        writer.close()

    async def join(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        onward_reader, onward = await asyncio.open_connection("127.0.0.1", target)
        born = generation
        await asyncio.gather(pump(reader, onward, born), pump(onward_reader, writer, born))

    def freeze() -> None:
        nonlocal generation
        generation += 1

    async with await asyncio.start_server(join, "127.0.0.1", 0) as server:
        yield server.sockets[0].getsockname()[1], freeze


async def test_one_dead_connection_condemns_the_older_ones(embedded_url: str) -> None:
    """As after a host vanished. Otherwise each connection of the pool would cost a time-out."""
    target = urlsplit(embedded_url).port
    assert target is not None
    async with freezing_way(target) as (port, freeze):
        graph = open_graph(embedded_url.replace(f":{target}/", f":{port}/"), timeout=0.5)
        await asyncio.gather(*(graph.known([SHIPMENT]) for _ in range(5)))
        freeze()
        with pytest.raises(Unavailable):
            await graph.known([SHIPMENT])
        await asyncio.gather(*(graph.known([SHIPMENT]) for _ in range(5)))
        await graph.close()


async def test_a_wrong_password_is_named(graph_url: str) -> None:
    password = urlsplit(graph_url).password
    graph = open_graph(graph_url.replace(f":{password}@", ":mistaken@"), timeout=20)
    with pytest.raises(Unavailable) as caught:
        await graph.ping()
    assert "password" in caught.value.remedy
    assert "mistaken" not in str(caught.value)
    await graph.close()


class Server:
    """A server that only this test uses, to kill."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        engine.prepare()

    async def start(self) -> None:
        child = replace(child_of(self.engine), ready_seconds=100)
        self.process = Process(child, self.engine.directory / "log")
        await self.process.until_ready()


def falkordb(folder: Path) -> Engine:
    return FalkorDB(folder, free_port(), "pw")


def neo4j(folder: Path) -> Engine:
    from tests.servers.neo4j import Neo4j  # needs the driver

    return Neo4j(folder, free_port(), "apex-pass")


def postgres(folder: Path) -> Engine:
    return PostgreSQL(folder, free_port(), "pw")


ENGINES = {"falkordb": falkordb, "postgres": postgres, "neo4j": neo4j}


@pytest_asyncio.fixture
async def server(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Server]:
    started = Server(ENGINES[request.param](tmp_path))
    await started.start()
    yield started
    await started.process.kill()


async def write_until_killed(server: Server) -> bool:
    """Return whether everything acknowledged is there after the restart. The incarnation must differ then."""
    graph = open_graph(server.engine.url, timeout=20)
    await graph.prepare()
    before = await graph.incarnation()
    acknowledged: dict[UUID, Tally] = {}
    enough = asyncio.Event()

    async def write() -> None:
        while True:
            mail = Version().mentions(SHIPMENT, CARRIER, INVOICE)
            await written(graph, mail)
            acknowledged[mail.stage] = mail.tally
            if len(acknowledged) == 50:
                enough.set()

    writers = [asyncio.create_task(write()) for _ in range(3)]
    await enough.wait()
    await server.process.kill()
    for ended in await asyncio.gather(*writers, return_exceptions=True):
        assert isinstance(ended, Unavailable)
    with pytest.raises(Unavailable):
        await graph.incarnation()
    await server.start()
    assert await graph.incarnation() != before
    tallies = await graph.tally(list(acknowledged))
    await graph.close()
    return tallies == acknowledged


@pytest.mark.timeout(300)
async def test_kill_loses_nothing_acknowledged(server: Server) -> None:
    assert await write_until_killed(server)


async def test_without_its_log_a_kill_loses(tmp_path: Path) -> None:
    """The control: the test above can fail."""
    server = Server(falkordb(tmp_path))
    config = server.engine.directory / "falkordb.conf"
    config.write_text(config.read_text().replace("appendonly yes", "appendonly no"))
    await server.start()
    assert not await write_until_killed(server)
    await server.process.kill()


@pytest.mark.timeout(300)
async def test_a_restart_between_two_calls_is_seen(server: Server) -> None:
    graph = open_graph(server.engine.url, timeout=20)
    await graph.prepare()
    await asyncio.gather(*(graph.known([SHIPMENT]) for _ in range(6)))  # several connections
    seen = [await graph.incarnation()]
    await server.process.kill()
    await server.start()
    seen += [await graph.incarnation() for _ in range(8)]
    assert len(set(seen)) == 2
    assert len(set(seen[1:])) == 1
    await graph.close()


async def test_planned_faults_show_in_the_tally(graph: GraphStore) -> None:
    """The wrapper on a real store: a dropped write is missing, a write that lost its reply is there once."""
    faulty = Faulty(graph)
    faulty.plan(Fault.FAIL, "upsert", times=1)
    faulty.plan(Fault.LOSE_REPLY, "upsert", times=1)
    faulty.plan(Fault.DROP, "upsert", times=1)
    mail = Version().mentions(SHIPMENT)
    with pytest.raises(Unavailable):
        await faulty.upsert(mail.assertions)
    assert await faulty.tally([mail.stage]) == {}
    with pytest.raises(Unavailable):
        await faulty.upsert(mail.assertions)
    assert await faulty.tally([mail.stage]) == {mail.stage: mail.tally}
    dropped = Version().mentions(SHIPMENT)
    assert await faulty.upsert(dropped.assertions) is None
    await faulty.upsert(mail.assertions)
    assert [item.stage async for item in faulty.walk()] == [mail.stage]
    assert faulty.counts == {
        ("upsert", Fault.FAIL): 1,
        ("upsert", Fault.LOSE_REPLY): 1,
        ("upsert", Fault.DROP): 1,
    }
    faulty.plan(Fault.FAIL, "ping", probability=0.5)
    successes = 0
    for _ in range(100):
        with suppress(Unavailable):
            await faulty.ping()
            successes += 1
    assert successes == 100 - faulty.counts["ping", Fault.FAIL]
    assert 30 < successes < 70
