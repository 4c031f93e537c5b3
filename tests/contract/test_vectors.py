"""One suite over every vector store.

Qdrant Edge in its own process; the Qdrant adapter on local mode, over HTTP to a stand-in that checks each request, and on
the Qdrant server that `APEX_TEST_QDRANT` names (`http://host:6333`, with `--servers`).
"""

from __future__ import annotations

import contextlib
import os
import uuid
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import AsyncExitStack
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest
import pytest_asyncio
from qdrant_client import AsyncQdrantClient

from apex_memory.errors import CHANGED_EMBEDDER, Misconfigured, Rejected
from apex_memory.model import Filters, Tally, Vectors
from apex_memory.stores.base import VectorQuery, VectorStore
from apex_memory.stores.edge import EdgeVectors
from apex_memory.stores.qdrant_server import QdrantVectors
from tests.edge_process import DIMENSION, EdgeProcess, edge_client, edge_process
from tests.points import axis, point, stage_points, tally_of, unit
from tests.qdrant_http import QdrantHttp, check_wire, serving
from tests.vector_search import searched

LEGS = {"dense", "words", "nearby"}


@pytest.fixture(scope="module")
def process(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EdgeProcess]:
    with edge_process(tmp_path_factory.mktemp("vectors") / "edge") as started:
        yield started


SERVER = os.environ.get("APEX_TEST_QDRANT", "")
KEY = os.environ.get("APEX_TEST_QDRANT_API_KEY", "")
ON_SERVER = pytest.param("server", marks=pytest.mark.server(address="APEX_TEST_QDRANT"))


@pytest_asyncio.fixture(params=["edge", "qdrant", "http", ON_SERVER])
async def store(request: pytest.FixtureRequest) -> AsyncIterator[VectorStore]:
    """An empty store."""
    async with AsyncExitStack() as stack:
        yield await opened(request, stack)


async def opened(request: pytest.FixtureRequest, stack: AsyncExitStack) -> VectorStore:
    if request.param == "http":
        server = QdrantHttp()
        url = await stack.enter_async_context(serving(server))
        stack.callback(check_wire, server.exchanges)
        return await prepared(http_client(f"{url}/apex"), stack)
    if request.param == "server":
        opened = http_client(f"{SERVER.rstrip('/')}/apex_contract_{uuid.uuid4().hex}", KEY)
        stack.push_async_callback(opened._client.close)
        stack.push_async_callback(opened._client.delete_collection, opened._collection)
        await opened.prepare()
        return opened
    if request.param == "edge":
        edge: EdgeProcess = request.getfixturevalue("process")
        client = edge_client(edge)
        await edge.ready(client)
        return await prepared(client, stack)
    return await prepared(local_qdrant(DIMENSION, AsyncQdrantClient(":memory:")), stack)


async def prepared(store: VectorStore, stack: AsyncExitStack) -> VectorStore:
    stack.push_async_callback(store.close)
    await store.prepare()
    await store.delete_stages([row.stage async for row in store.walk()])
    return store


def http_client(url: str, key: str = "") -> QdrantVectors:
    return QdrantVectors(url, DIMENSION, timeout=20, bm25_average_words=10, api_key=key)


def local_qdrant(
    dimension: int, client: AsyncQdrantClient, collection: str = "apex"
) -> QdrantVectors:
    url = f"http://127.0.0.1:6333/{collection}"
    return QdrantVectors(url, dimension, timeout=20, bm25_average_words=10, client=client)


pytestmark = [
    pytest.mark.filterwarnings("ignore:Payload indexes have no effect:UserWarning"),
    pytest.mark.filterwarnings("ignore:Local mode performs exact:UserWarning"),
]


async def put(store: VectorStore, *texts: str, vectors: Vectors | None = None) -> uuid.UUID:
    stage = uuid.uuid4()
    rows = unit(len(texts), DIMENSION, seed=stage.int % 1000) if vectors is None else vectors
    await store.upsert(stage_points(stage, texts), rows)
    await store.flush()
    return stage


async def stages_for(
    store: VectorStore,
    words: str,
    filters: Filters | None = None,
    exclude: Sequence[uuid.UUID] = (),
) -> list[uuid.UUID]:
    legs = await searched(
        store, dense=None, words=words, limit=10, filters=filters, exclude=exclude
    )
    return [hit.stage for hit in legs["words"]]


async def test_a_point_comes_back_as_it_was_written(store: VectorStore) -> None:
    stage = uuid.uuid4()
    written = point(stage, 7, "The reefer broke down")
    await store.upsert([written], axis(3, DIMENSION)[np.newaxis])
    hits = await searched(store, dense=axis(3, DIMENSION), words="reefers breaking", limit=5)
    assert set(hits) == LEGS
    for leg, (hit,) in hits.items():
        fields = (hit.id, hit.stage, hit.doc, hit.n, hit.start, hit.end)
        assert fields == (written.id, stage, written.doc, 7, 70, 80), leg
    assert hits["dense"][0].score == pytest.approx(1, abs=1e-5)


async def test_the_same_upsert_twice_is_once(store: VectorStore) -> None:
    stage, rows = uuid.uuid4(), unit(300, DIMENSION)
    points = stage_points(stage, ["a truck"] * 300)
    for _ in range(2):
        await store.upsert(points, rows)
    await store.flush()
    assert await store.tally([stage]) == {stage: tally_of(points)}
    assert await store.points() == 300
    by_leg = await searched(store, dense=rows[5], words="truck", limit=400)
    assert all(len({hit.id for hit in hits}) == len(hits) == 300 for hits in by_leg.values())


async def test_a_rewritten_point_holds_the_new_content(store: VectorStore) -> None:
    stage = uuid.uuid4()
    await store.upsert([point(stage, 0, "pallet")], axis(0, DIMENSION)[np.newaxis])
    await store.upsert([point(stage, 0, "invoice", hash=5)], axis(1, DIMENSION)[np.newaxis])
    assert await store.tally([stage]) == {stage: Tally(1, 5)}
    assert await stages_for(store, "pallet") == []
    assert await stages_for(store, "invoice") == [stage]


async def test_a_tally_leaves_out_stages_with_nothing(store: VectorStore) -> None:
    stage = await put(store, "one", "two")
    other = await put(store, "three")
    assert await store.tally([stage, uuid.uuid4(), other]) == {
        stage: Tally(2, 1000 + 1001),
        other: Tally(1, 1000),
    }


async def test_a_partly_written_stage_shows_in_its_tally(store: VectorStore) -> None:
    stage = uuid.uuid4()
    points = stage_points(stage, ["one", "two", "three"])
    await store.upsert(points[:2], unit(2, DIMENSION))
    assert (await store.tally([stage]))[stage] == tally_of(points[:2]) != tally_of(points)


async def test_large_checksums_are_exact(store: VectorStore) -> None:
    stage = uuid.uuid4()
    points = stage_points(stage, ["x"] * 20, hash=0x7FFFFFFF)
    await store.upsert(points, unit(20, DIMENSION))
    assert await store.tally([stage]) == {stage: Tally(20, 20 * 0x7FFFFFFF)}


async def test_many_stages_are_tallied_at_once(store: VectorStore) -> None:
    stages = [uuid.uuid4() for _ in range(600)]
    await store.upsert([point(stage, 0) for stage in stages], unit(600, DIMENSION))
    assert await store.tally(stages) == dict.fromkeys(stages, Tally(1, 1000))


async def test_a_delete_takes_its_stages_alone(store: VectorStore) -> None:
    gone, kept, gone_too = [await put(store, "one", "two") for _ in range(3)]
    await store.delete_stages([gone, gone_too, uuid.uuid4()])
    await store.delete_stages([gone])  # again: nothing left to do
    assert set(await store.tally([gone, kept, gone_too])) == {kept}
    assert await store.points() == 2
    assert set(await stages_for(store, "one two")) == {kept}


async def test_a_walk_meets_every_stage_once(store: VectorStore) -> None:
    stages = [uuid.uuid4() for _ in range(600)]
    points = [point(stage, n) for stage in stages for n in (0, 1)]
    await store.upsert(points, unit(len(points), DIMENSION))
    await store.delete_stages(stages[:1])
    seen = [row async for row in store.walk()]
    assert len(seen) == 599
    assert {row.stage: row.tally for row in seen} == dict.fromkeys(stages[1:], Tally(2, 2001))


async def test_the_dense_leg_ranks_by_cosine(store: VectorStore) -> None:
    near, far = axis(0, DIMENSION), axis(1, DIMENSION)
    rows = np.stack([far, 5 * near, near + far])  # length does not count
    stage = await put(store, "far", "near", "between", vectors=rows)
    hits = await searched(store, dense=near, words=None, limit=3)
    assert set(hits) == {"dense"}
    assert [(hit.n, round(hit.score, 3)) for hit in hits["dense"]] == [
        (1, 1.0),
        (2, 0.707),
        (0, 0.0),
    ]
    assert {hit.stage for hit in hits["dense"]} == {stage}


async def test_the_word_leg_ranks_rare_words_above_common_ones(store: VectorStore) -> None:
    common = [await put(store, "the driver of the truck called") for _ in range(20)]
    rare = await put(store, "demurrage for the truck")
    ranked = await stages_for(store, "truck driver demurrage")
    assert ranked[0] == rare
    assert set(ranked[1:]) <= set(common)


async def test_the_word_leg_prefers_more_mentions_in_less_text(store: VectorStore) -> None:
    texts = ["lumper", "lumper and many other words of no use for this", "lumper lumper"]
    stage = uuid.uuid4()
    await store.upsert(stage_points(stage, texts), unit(3, DIMENSION))
    hits = await searched(store, dense=None, words="Lumpers", limit=3)
    assert [hit.n for hit in hits["words"]] == [2, 0, 1]


async def test_scores_are_those_of_bm25_over_the_whole_corpus(
    store: VectorStore, tmp_path: Path
) -> None:
    """Of two matches among ten passages, in a store that has seen nothing else."""
    with contextlib.ExitStack() as stack:
        if isinstance(store, EdgeVectors):
            fresh = stack.enter_context(edge_process(tmp_path / "fresh", seal_points=4))
            await fresh.ready(store := edge_client(fresh))
        await put(store, "chassis " * 10)  # of average length
        for _ in range(8):
            await put(store, "empty trailer")
        await put(store, "chassis " * 10)
        hits = (await searched(store, dense=None, words="chassis", limit=5))["words"]
        expected = np.log((10 - 2 + 0.5) / (2 + 0.5) + 1) * 10 * 2.2 / (10 + 1.2)
        assert [hit.score for hit in hits] == pytest.approx([expected] * 2, rel=1e-4)
        if isinstance(store, EdgeVectors):
            assert (await store.stats())["shards"] > 1
            await store.close()


async def test_neighbours_words_are_a_leg_of_their_own(store: VectorStore) -> None:
    stage = uuid.uuid4()
    reply = point(stage, 0, "It was late.", nearby="Where is the reefer? It was late. By how much?")
    await store.upsert([reply], unit(1, DIMENSION))
    hits = await searched(store, dense=None, words="reefer", limit=5)
    assert [hit.id for hit in hits["nearby"]] == [reply.id]
    assert hits["words"] == []


async def test_identifiers_are_found_whatever_their_case_and_dashes(store: VectorStore) -> None:
    stage = await put(store, "Update on SHP-100045, please")
    await put(store, "Update on SHP-100046, please")
    assert (await stages_for(store, "shp 100045"))[0] == stage


async def test_stopwords_alone_find_nothing(store: VectorStore) -> None:
    await put(store, "the truck", "")
    nothing: dict[str, list[object]] = {"words": [], "nearby": []}
    for words in ("", "the of and", "zymurgy"):
        assert await searched(store, dense=None, words=words, limit=5) == nothing
    assert await searched(store, dense=None, words=None, limit=5) == {}


async def test_a_passage_without_words_is_found_by_its_vector(store: VectorStore) -> None:
    stage = await put(store, "", vectors=axis(2, DIMENSION)[np.newaxis])
    hits = await searched(store, dense=axis(2, DIMENSION), words="truck", limit=5)
    assert [hit.stage for hit in hits["dense"]] == [stage]


def moment(second: float) -> datetime:
    return datetime.fromtimestamp(second, UTC)


@pytest.mark.parametrize(
    ("filters", "expected"),
    [
        (Filters(), {0, 1, 2, 3}),
        (Filters(sources=("turvo",)), {1}),
        (Filters(sources=("turvo", "edi")), {1, 2}),
        (Filters(kinds=("email",)), {0, 3}),
        (Filters(kinds=("shipment", "email"), sources=("frontapp",)), {0, 3}),
        (Filters(entities=("shipment:SHP-1",)), {0, 1}),
        (Filters(entities=("shipment:SHP-1", "carrier:x")), {0, 1, 2}),
        (Filters(entities=("SHP-1",)), set()),
        (Filters(since=moment(200)), {1, 2, 3}),
        (Filters(since=moment(200.5)), {1, 2, 3}),
        (Filters(until=moment(300)), {0, 1}),
        (Filters(since=moment(200), until=moment(300)), {1}),
        (Filters(since=moment(0), until=moment(1)), set()),
        (Filters(sources=("frontapp",), entities=("shipment:SHP-1",), until=moment(999)), {0}),
        (Filters(sources=("email",)), set()),
        (Filters(people=("person:ann",)), {2}),
        (Filters(entities=("carrier:x",), people=("person:ann", "person:bo")), {2}),
        (Filters(entities=("shipment:SHP-1",), people=("person:ann",)), set()),
    ],
)
async def test_filters_hold_for_every_leg(
    store: VectorStore, filters: Filters, expected: set[int]
) -> None:
    stage = uuid.uuid4()
    points = [
        point(stage, 0, time=100, entities=("shipment:SHP-1",)),
        point(stage, 1, time=200, source="turvo", kind="shipment", entities=("shipment:SHP-1",)),
        point(
            stage, 2, time=300, source="edi", kind="tender", entities=("carrier:x", "person:ann")
        ),
        point(stage, 3, time=400),
    ]
    await store.upsert(points, unit(4, DIMENSION))
    by_leg = await searched(
        store, dense=axis(0, DIMENSION), words="truck", limit=10, filters=filters
    )
    assert {leg: {hit.n for hit in hits} for leg, hits in by_leg.items()} == dict.fromkeys(
        LEGS, expected
    )


async def test_excluded_stages_are_not_found(store: VectorStore) -> None:
    stages = [await put(store, "a truck") for _ in range(4)]
    hidden = [*stages[:3], *(uuid.uuid4() for _ in range(300))]
    by_leg = await searched(
        store, dense=axis(0, DIMENSION), words="truck", limit=10, exclude=hidden
    )
    assert {leg: [hit.stage for hit in hits] for leg, hits in by_leg.items()} == {
        leg: [stages[3]] for leg in LEGS
    }


async def test_a_search_may_be_limited_to_stages(store: VectorStore) -> None:
    stages = [await put(store, "a truck") for _ in range(4)]
    wanted = Filters(stages=(stages[1], stages[2], *(uuid.uuid4() for _ in range(300))))
    by_leg = await searched(
        store, dense=axis(0, DIMENSION), words="truck", limit=10, filters=wanted
    )
    assert by_leg.keys() == LEGS
    for hits in by_leg.values():
        assert {hit.stage for hit in hits} == set(stages[1:3])
    absent = Filters(stages=(uuid.uuid4(),))
    by_leg = await searched(
        store, dense=axis(0, DIMENSION), words="truck", limit=10, filters=absent
    )
    assert by_leg == {leg: [] for leg in LEGS}
    assert await stages_for(store, "truck", wanted, exclude=[stages[1]]) == [stages[2]]


async def test_points_are_compared_exactly_among_those_named(store: VectorStore) -> None:
    texts = ["a reefer to Dallas", "a dry van to Dallas", "a reefer to Reno", "nothing at all"]
    stage = await put(store, *texts, vectors=unit(4, DIMENSION, seed=5))
    question = axis(0, DIMENSION)
    whole = await searched(store, dense=question, words="reefer Dallas", limit=10)
    among = [(stage, 1), (stage, 3), (uuid.uuid4(), 0)]
    named = await searched(store, dense=question, words="reefer Dallas", limit=10, among=among)
    for leg in LEGS:
        expected = {hit.n: hit.score for hit in whole[leg] if hit.n in (1, 3)}
        assert {hit.n: hit.score for hit in named[leg]} == pytest.approx(expected), leg
    assert {hit.n for hit in named["dense"]} == {1, 3}
    only_unknown = await searched(
        store, dense=question, words="van", limit=10, among=[(uuid.uuid4(), 0)]
    )
    assert all(hits == [] for hits in only_unknown.values()) and set(only_unknown) == LEGS


async def test_queries_of_one_call_are_answered_each_by_itself(store: VectorStore) -> None:
    stage = await put(
        store, "a reefer to Dallas", "a dry van to Reno", vectors=unit(2, DIMENSION, seed=6)
    )
    other = await put(store, "a reefer to Reno")
    answers = await store.search(
        [
            VectorQuery(words="reefer", limit=5),
            VectorQuery(words="reefer", nearby=False, limit=5, filters=Filters(stages=(stage,))),
            VectorQuery(dense=axis(0, DIMENSION), limit=1, exclude=[stage]),
            VectorQuery(words="the", dense=axis(0, DIMENSION), limit=0),
            VectorQuery(words="reno", limit=5, among=[(stage, 1)]),
        ]
    )
    hits = [
        {leg: {(hit.stage, hit.n) for hit, _ in leg_hits} for leg, leg_hits in answer.items()}
        for answer in answers
    ]
    assert hits[0] == {"words": {(stage, 0), (other, 0)}, "nearby": {(stage, 0), (other, 0)}}
    assert hits[1] == {"words": {(stage, 0)}}
    assert hits[2] == {"dense": {(other, 0)}}
    assert hits[3] == {"dense": set(), "words": set(), "nearby": set()}
    assert hits[4] == {"words": {(stage, 1)}, "nearby": {(stage, 1)}}
    assert await store.search([]) == []


async def test_a_point_keeps_what_is_known_of_its_turn(store: VectorStore) -> None:
    stage = uuid.uuid4()
    flags = [(False, False), (True, False), (False, True), (True, True)]
    points = [
        point(stage, n, f"passage {n}", continues=continues, asks=asks)
        for n, (continues, asks) in enumerate(flags)
    ]
    await store.upsert(points, unit(4, DIMENSION))
    await store.flush()
    hits = (await searched(store, dense=axis(0, DIMENSION), words=None, limit=9))["dense"]
    assert {hit.n: (hit.continues, hit.asks) for hit in hits} == dict(enumerate(flags))


async def test_exclusion_and_filters_work_together(store: VectorStore) -> None:
    stage = await put(store, "a truck")
    only = Filters(sources=("frontapp",))
    assert await stages_for(store, "truck", filters=only) == [stage]
    assert await stages_for(store, "truck", filters=only, exclude=[stage]) == []


async def test_the_limit_holds_for_each_leg(store: VectorStore) -> None:
    await put(store, *["a truck"] * 20)
    by_leg = await searched(store, dense=axis(0, DIMENSION), words="truck", limit=7)
    assert {leg: len(hits) for leg, hits in by_leg.items()} == dict.fromkeys(LEGS, 7)
    for hits in by_leg.values():
        assert [hit.score for hit in hits] == sorted((hit.score for hit in hits), reverse=True)


@pytest.mark.parametrize(
    "vectors",
    [
        np.full((2, DIMENSION), np.nan, dtype=np.float32),
        np.full((2, DIMENSION), np.inf, dtype=np.float32),
        np.zeros((2, DIMENSION + 1), dtype=np.float32),
        np.zeros((1, DIMENSION), dtype=np.float32),
        np.zeros(DIMENSION, dtype=np.float32),
    ],
    ids=["nan", "inf", "dimension", "too few", "flat"],
)
async def test_bad_vectors_are_refused_and_leave_nothing(
    store: VectorStore, vectors: Vectors
) -> None:
    stage = uuid.uuid4()
    with pytest.raises(Rejected) as refused:
        await store.upsert(stage_points(stage, ["one", "two"]), vectors)
    assert refused.value.remedy
    assert await store.tally([stage]) == {}


@pytest.mark.parametrize("bad", [np.nan, np.inf])
async def test_a_question_with_nan_is_refused(store: VectorStore, bad: float) -> None:
    with pytest.raises(Rejected):
        await searched(store, dense=np.full(DIMENSION, bad, dtype=np.float32), words=None, limit=1)


async def test_a_question_of_another_dimension_is_refused(store: VectorStore) -> None:
    with pytest.raises(Rejected):
        await searched(store, dense=axis(0, DIMENSION + 1), words=None, limit=1)


async def test_text_that_is_not_unicode_is_refused(store: VectorStore) -> None:
    with pytest.raises(Rejected):
        await store.upsert([point(uuid.uuid4(), 0, "half \ud800")], unit(1, DIMENSION))


async def test_empty_inputs_do_nothing(store: VectorStore) -> None:
    await store.upsert([], np.zeros((0, DIMENSION), dtype=np.float32))
    await store.flush()
    await store.delete_stages([])
    assert await store.tally([]) == {}
    assert [row async for row in store.walk()] == []
    assert await store.points() == 0
    empty: dict[str, list[object]] = {leg: [] for leg in LEGS}
    assert await searched(store, dense=axis(0, DIMENSION), words="truck", limit=5) == empty
    assert await searched(store, dense=axis(0, DIMENSION), words="truck", limit=0) == empty


async def test_it_identifies_itself(store: VectorStore) -> None:
    await store.ping()
    await store.prepare()  # again
    assert store.name == "vectors"
    assert (await store.version()).startswith("Qdrant")
    assert await store.incarnation() == await store.incarnation() != ""


async def test_another_dimension_is_refused_by_name(
    process: EdgeProcess, store: VectorStore
) -> None:
    if isinstance(store, QdrantVectors):
        other: VectorStore = local_qdrant(DIMENSION * 2, store._client, store._collection)
    else:
        other = EdgeVectors(process.url, DIMENSION * 2, timeout=20, bm25_average_words=10)
    try:
        with pytest.raises(Misconfigured, match=f"{DIMENSION} dimensions") as refused:
            await other.prepare()
        assert refused.value.remedy == CHANGED_EMBEDDER
    finally:
        if isinstance(other, EdgeVectors):
            await other.close()
