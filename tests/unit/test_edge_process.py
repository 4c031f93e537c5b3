"""The vector process from outside: its end and return, its refusals, its deadlines."""

from __future__ import annotations

import asyncio
import shutil
import signal
import time
import uuid
from collections.abc import AsyncIterator, Iterator
from functools import partial
from pathlib import Path
from typing import cast

import pytest
import pytest_asyncio

from apex_memory.disk_space import disk_space
from apex_memory.edge.connection import connect
from apex_memory.edge.corpus import Corpus
from apex_memory.edge.protocol import MAX_FRAME, BrokenFrame, read_frame, to_frame
from apex_memory.edge.server import VectorServer
from apex_memory.engines.base import HOST, free_port
from apex_memory.errors import Misconfigured, NoWrites, Rejected, Unavailable
from apex_memory.stores.edge import EdgeVectors
from apex_memory.stores.vectors import open_vectors
from tests.edge_process import DIMENSION, EdgeProcess, edge_client, edge_process
from tests.faults.volumes import filled, small_disk, small_volume
from tests.points import axis, point, stage_points, tally_of, unit
from tests.vector_search import searched


@pytest.fixture
def process(tmp_path: Path) -> Iterator[EdgeProcess]:
    with edge_process(tmp_path / "edge") as started:
        yield started


@pytest_asyncio.fixture
async def store(process: EdgeProcess) -> AsyncIterator[EdgeVectors]:
    opened = edge_client(process)
    await process.ready(opened)
    yield opened
    await opened.close()


async def test_kill_9_after_a_flush_loses_nothing(process: EdgeProcess, store: EdgeVectors) -> None:
    stages = [uuid.uuid4() for _ in range(5)]
    points = {stage: stage_points(stage, ["a truck"] * 60) for stage in stages}
    for turn in range(3):
        for rows in points.values():
            await store.upsert(rows, unit(60, DIMENSION, seed=turn))
        await store.delete_stages(stages[:1])
        await store.flush()
        process.end(signal.SIGKILL)
        process.start()
        await process.ready(store)
        expected = {stage: tally_of(points[stage]) for stage in stages[1:]}
        assert await store.tally(stages) == expected
        by_leg = await searched(store, dense=axis(0, DIMENSION), words="truck", limit=300)
        assert {leg: len(hits) for leg, hits in by_leg.items()} == dict.fromkeys(by_leg, 240)


async def test_a_nearly_full_disk_refuses_writes_and_ends_nothing(tmp_path: Path) -> None:
    """The engine maps its files: a page that the disk has no block for would end the process with SIGBUS."""
    before, refused = uuid.uuid4(), uuid.uuid4()
    passages = ["a truck waits at the dock " * 30] * 250
    with small_volume(tmp_path / "edge", 120), edge_process(tmp_path / "edge") as process:
        store = edge_client(process)
        await process.ready(store)
        incarnation = await store.incarnation()
        await store.upsert(stage_points(before, passages), unit(250, DIMENSION))
        await store.flush()
        with filled(process.folder):
            with pytest.raises(NoWrites, match=r"0 MB of 126 MB are free, and 13 MB are needed"):
                await store.upsert(stage_points(refused, passages), unit(250, DIMENSION))
            assert set(await store.tally([before, refused])) == {before}
            hits = await searched(store, dense=axis(0, DIMENSION), words="truck", limit=5)
            assert hits["words"]
        await store.upsert(stage_points(refused, passages), unit(250, DIMENSION))
        await store.flush()
        assert set(await store.tally([before, refused])) == {before, refused}
        assert await store.incarnation() == incarnation
        await store.close()


async def test_a_disk_that_fills_up_with_vectors_refuses_them_in_time(tmp_path: Path) -> None:
    """Nothing but the store itself fills the volume. Shards are sealed and indexed on the way."""
    passages = ["a truck waits at the dock " * 30] * 250
    with (
        small_disk(tmp_path / "edge", 24) as volume,
        edge_process(volume, seal_points=2_000) as process,
    ):
        store = edge_client(process)
        await process.ready(store)
        incarnation = await store.incarnation()
        written: list[uuid.UUID] = []
        least = disk_space(volume).free
        with pytest.raises(NoWrites):
            for _ in range(1_000):
                stage = uuid.uuid4()
                await store.upsert(stage_points(stage, passages), unit(250, DIMENSION))
                written.append(stage)
                least = min(least, disk_space(volume).free)
        assert least > 0
        assert "exit code" not in process.log()  # of a build that met a full disk
        assert len(await store.tally(written)) == len(written) > 0
        await store.delete_stages(written[:1])
        assert await store.incarnation() == incarnation
        await store.close()


async def test_a_restart_shows_before_anything_else_is_asked(
    process: EdgeProcess, store: EdgeVectors
) -> None:
    former = await store.incarnation()
    assert former == await store.incarnation()
    process.end(signal.SIGKILL)
    process.start()
    time.sleep(0.01)  # this loop has had no chance to read that the connection ended
    with pytest.raises(Unavailable):
        while await store.incarnation() == former:
            pass
    await process.ready(store)
    assert await store.incarnation() != former


async def test_what_a_lost_log_held_is_gone_and_what_a_kept_one_holds_comes_back(
    process: EdgeProcess, store: EdgeVectors, tmp_path: Path
) -> None:
    """A power cut may leave the engine's files as they were: the log, which `flush` put on the disk, must do."""
    before, after = uuid.uuid4(), uuid.uuid4()
    await store.upsert(stage_points(before, ["one"] * 300), unit(300, DIMENSION))
    process.end()
    shutil.copytree(process.folder, tmp_path / "old")
    process.start()
    await process.ready(store)
    await store.upsert(stage_points(after, ["two"] * 300), unit(300, DIMENSION))
    await store.delete_stages([before])
    process.end(signal.SIGKILL)
    shutil.copytree(process.folder, tmp_path / "new")

    tallies = {}
    for log in ("old", "new"):
        shutil.rmtree(process.folder)
        shutil.copytree(tmp_path / "old", process.folder)
        for engine in (tmp_path / log).glob("shards/*/engine"):
            here = process.folder / engine.relative_to(tmp_path / log)
            shutil.rmtree(here / "wal")
            shutil.copytree(engine / "wal", here / "wal")
        process.start()
        await process.ready(store)
        tallies[log] = {s: t.count for s, t in (await store.tally([before, after])).items()}
        process.end(signal.SIGKILL)
    assert tallies == {"old": {before: 300}, "new": {after: 300}}


async def test_a_process_that_stands_still_is_unavailable_in_time(process: EdgeProcess) -> None:
    store = edge_client(process, timeout=0.3)
    try:
        await process.ready(store)
        former = await store.incarnation()
        process.send(signal.SIGSTOP)
        began = time.monotonic()
        with pytest.raises(Unavailable, match="no response"):
            await store.tally([uuid.uuid4()])
        with pytest.raises(Unavailable, match="no response"):
            await searched(store, dense=axis(0, DIMENSION), words=None, limit=1)
        assert time.monotonic() - began < 2
        process.send(signal.SIGCONT)
        await process.ready(store)
        assert await store.incarnation() == former
    finally:
        process.send(signal.SIGCONT)
        await store.close()


async def test_nobody_there_is_unavailable_at_once() -> None:
    store = EdgeVectors(
        f"edge://:x@{HOST}:{free_port()}", DIMENSION, timeout=5, bm25_average_words=10
    )
    began = time.monotonic()
    for call in (store.ping, store.incarnation, store.points, store.flush):
        with pytest.raises(Unavailable) as refused:
            await call()
        assert refused.value.store == "vectors"
        assert refused.value.remedy
    assert time.monotonic() - began < 2


async def test_a_call_under_way_when_the_process_dies_is_unavailable(
    process: EdgeProcess, store: EdgeVectors
) -> None:
    process.send(signal.SIGSTOP)
    call = asyncio.create_task(store.tally([uuid.uuid4()]))
    await asyncio.sleep(0)  # one turn of the loop, in which it is sent
    process.end(signal.SIGKILL)
    with pytest.raises(Unavailable):
        await call


async def test_searches_overtake_a_large_write(store: EdgeVectors) -> None:
    points = [p for _ in range(20) for p in stage_points(uuid.uuid4(), ["a truck"] * 250)]
    writing = asyncio.create_task(store.upsert(points, unit(5000, DIMENSION)))
    answered = 0
    while not writing.done():
        await searched(store, dense=axis(0, DIMENSION), words="truck", limit=10)
        answered += not writing.done()
    await writing
    assert answered > 5
    assert await store.points() == 5000


async def test_a_wrong_password_is_named_as_such(process: EdgeProcess, store: EdgeVectors) -> None:
    stranger = EdgeVectors(
        f"edge://:guess@{HOST}:{process.port}", DIMENSION, timeout=5, bm25_average_words=10
    )
    with pytest.raises(Unavailable, match="wrong password") as refused:
        await stranger.ping()
    assert "APEX_VECTORS" in refused.value.remedy
    await stranger.close()


@pytest.mark.parametrize(
    "greeting",
    [
        b"GET / HTTP/1.1\r\n\r\n",
        b"\xff\xff\xff\xff",
        to_frame({"password": "x" * 5000}),
        to_frame(["p@ss"]),
        to_frame({"password": 7}),
        b"\x00\x00\x00\x01\xc1",
    ],
)
async def test_strangers_are_shown_the_door(
    process: EdgeProcess, store: EdgeVectors, greeting: bytes
) -> None:
    reader, writer = await asyncio.open_connection(HOST, process.port)
    writer.write(greeting)
    assert b"incarnation" not in await asyncio.wait_for(reader.read(), 5)
    writer.close()
    await store.ping()


async def smoke_test(process: EdgeProcess) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    reader, writer = await asyncio.open_connection(HOST, process.port)
    writer.write(to_frame({"password": "p@ss"}))
    assert (await read_frame(reader))["dimension"] == DIMENSION
    return reader, writer


async def test_malformed_requests_get_a_response_and_harm_nobody(
    process: EdgeProcess, store: EdgeVectors
) -> None:
    reader, writer = await smoke_test(process)
    batch = {"points": [["x", "y", "z", 1, []]], "dense": b"123", "lengths": b"", "ids": b""}
    short = {**batch, "dense": bytes(4 * (DIMENSION + 1)), "lengths": bytes(4), "weights": b""}
    for request, kind in (
        ([1, "steal", None], "unavailable"),  # as a client of another build would ask
        ([2, "upsert", batch], "rejected"),
        ([3, "upsert", short], "rejected"),
    ):
        writer.write(to_frame(request))
        number, answered, _ = await read_frame(reader)
        assert (number, answered) == (request[0], kind)
    writer.close()
    assert await store.points() == 0


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (AssertionError(), "unavailable"),
        (KeyError("a point that the catalogue of its shard does not hold"), "unavailable"),
        (ValueError("a fault of this process"), "unavailable"),
        (OSError(122, "Disk quota exceeded"), "unavailable"),
        (Exception("Service runtime error: no such segment"), "unavailable"),
        (Exception("Vector dimension error: expected dim: 16, got 3"), "rejected"),
    ],
)
async def test_a_fault_of_the_process_is_never_the_requests_fault(
    error: Exception, kind: str
) -> None:
    """A batch that is `rejected` becomes dead letters; one that met an unavailable store is tried again."""

    class FailingCorpus:
        dimension = DIMENSION

        async def delete_stages(self, _: object) -> None:
            raise error

    server = VectorServer(cast(Corpus, FailingCorpus()), "p@ss")
    listener = await asyncio.start_server(server.serve, HOST, 0)
    port = listener.sockets[0].getsockname()[1]
    connection = await connect(HOST, port, "p@ss")
    try:
        with pytest.raises(Rejected if kind == "rejected" else Unavailable):
            await connection.call("delete", [uuid.uuid4().bytes])
        with pytest.raises(Rejected, match="malformed request"):
            await connection.call("delete", [b"no id"])
    finally:
        await connection.close()
        listener.close()
        await server.close()


async def test_a_frame_too_large_ends_its_connection_alone(
    process: EdgeProcess, store: EdgeVectors
) -> None:
    reader, writer = await smoke_test(process)
    writer.write((MAX_FRAME + 1).to_bytes(4, "big"))
    assert await asyncio.wait_for(reader.read(), 5) == b""
    writer.close()
    await store.ping()


def test_no_frame_above_the_limit_is_made() -> None:
    with pytest.raises(BrokenFrame):
        to_frame(bytes(MAX_FRAME))


async def test_a_text_too_large_to_send_is_refused(store: EdgeVectors) -> None:
    huge = stage_points(uuid.uuid4(), ["x"], entities=("e" * MAX_FRAME,))
    with pytest.raises(Rejected):
        await store.upsert(huge, unit(1, DIMENSION))
    await store.ping()


async def test_a_second_process_on_the_folder_is_refused(
    process: EdgeProcess, store: EdgeVectors
) -> None:
    second = EdgeProcess(process.folder)
    assert second.start().wait(20) == 1
    assert "is in use by another vector server" in second.log()
    await store.ping()


async def test_another_dimension_is_refused_at_start(
    process: EdgeProcess, store: EdgeVectors
) -> None:
    process.end()
    other = EdgeProcess(process.folder, dimension=DIMENSION + 8)
    assert other.start().wait(20) == 1
    assert f"holds vectors of {DIMENSION} dimensions" in other.log()


async def test_texts_are_not_kept(process: EdgeProcess, store: EdgeVectors) -> None:
    secret = point(uuid.uuid4(), 0, "xyzzy plugh")
    await store.upsert([secret], unit(1, DIMENSION))
    await store.flush()
    data = [file.read_bytes() for file in process.folder.rglob("*") if file.is_file()]
    assert any(str(secret.stage).encode() in content for content in data)
    assert not any(b"xyzzy" in content for content in data)


async def test_sigterm_ends_it_cleanly(process: EdgeProcess, store: EdgeVectors) -> None:
    stage = uuid.uuid4()
    await store.upsert(stage_points(stage, ["one"]), unit(1, DIMENSION))  # and no flush
    assert process.end() == 0
    process.start()
    await process.ready(store)
    assert (await store.tally([stage]))[stage].count == 1
    assert "Traceback" not in process.log()


def test_the_scheme_chooses_the_adapter() -> None:
    opened = partial(open_vectors, timeout=1.0, bm25_average_words=10.0)
    assert isinstance(opened("edge://:x@h:1", 8), EdgeVectors)
    assert opened("https://h:6333/c", 8, api_key="k").dimension == 8
    for wrong in ("", "redis://h", "edge://h", "http://h:6333", "http://h:6333/a/b"):
        with pytest.raises(Misconfigured) as refused:
            opened(wrong, 8)
        assert refused.value.remedy
