"""What the Qdrant adapter makes of a server's responses, and which requests it sends. The servers are stand-ins, not a Qdrant."""

from __future__ import annotations

import asyncio
import json
import time
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from qdrant_client import models

from apex_memory.config import load_settings
from apex_memory.engines.base import HOST, free_port
from apex_memory.errors import ApexError, Misconfigured, Rejected, RetryLater, Unavailable
from apex_memory.stores.base import Replication
from apex_memory.stores.qdrant_server import QdrantVectors
from tests.points import point, unit
from tests.qdrant_http import QdrantHttp, check_wire, serving
from tests.vector_search import searched

DIMENSION = 4

pytestmark = [
    pytest.mark.filterwarnings("ignore:Payload indexes have no effect:UserWarning"),
    pytest.mark.filterwarnings("ignore:Api key is used with an insecure connection:UserWarning"),
]


def client(port: int, timeout: float = 5) -> QdrantVectors:
    return QdrantVectors(
        f"http://{HOST}:{port}/apex", DIMENSION, timeout=timeout, bm25_average_words=10
    )


@asynccontextmanager
async def answering(status: int, body: Any, *headers: str) -> AsyncIterator[int]:
    """A port where every request gets the same answer; none, if the status is 0."""
    text = json.dumps(body).encode()
    head = [
        f"HTTP/1.1 {status} Answer",
        "Content-Type: application/json",
        f"Content-Length: {len(text)}",
        *headers,
    ]

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while status and await reader.readuntil(b"\r\n\r\n"):
                writer.write("\r\n".join(head).encode() + b"\r\n\r\n" + text)
            await reader.read()
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()

    server = await asyncio.start_server(answer, HOST, 0)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()


@pytest.mark.parametrize(
    ("status", "headers", "expected"),
    [
        (400, (), Rejected),
        (422, (), Rejected),
        (401, (), Unavailable),
        (403, (), Unavailable),
        (404, (), Unavailable),
        (500, (), Unavailable),
        (503, (), Unavailable),
        (429, ("Retry-After: 7",), RetryLater),
    ],
)
async def test_refusals_get_our_names(
    status: int, headers: tuple[str, ...], expected: type[ApexError]
) -> None:
    async with answering(status, {"status": {"error": "no"}}, *headers) as port:
        store = client(port)
        with pytest.raises(expected) as refused:
            await store.delete_stages([uuid.uuid4()])
        await store.close()
    if isinstance(refused.value, RetryLater):
        assert refused.value.after == 7
    else:
        assert refused.value.remedy


async def test_nobody_there_is_unavailable_at_once() -> None:
    store = client(free_port())
    began = time.monotonic()
    for call in (store.ping, store.incarnation, store.points, store.prepare):
        with pytest.raises(Unavailable):
            await call()
    with pytest.raises(Unavailable):
        await store.upsert([point(uuid.uuid4(), 0)], unit(1, DIMENSION))
    assert time.monotonic() - began < 4
    await store.close()


async def test_no_response_is_unavailable_in_time() -> None:
    async with answering(0, None) as port:
        store = client(port, timeout=0.2)
        began = time.monotonic()
        with pytest.raises(Unavailable, match=r"no response to ping within 0\.2 s"):
            await store.ping()
        assert time.monotonic() - began < 2
        await store.close()


@asynccontextmanager
async def served(
    path: str = "apex", **more: Any
) -> AsyncIterator[tuple[QdrantHttp, QdrantVectors]]:
    """The stand-in of the contract suite, and a client of it."""
    server = QdrantHttp(api_key="key")
    async with serving(server) as url:
        store = QdrantVectors(
            f"{url}/{path}", DIMENSION, timeout=5, bm25_average_words=10, api_key="key", **more
        )
        yield server, store
        await store.close()
        check_wire(server.exchanges)


async def test_the_requests_of_all_calls() -> None:
    """Every kind of request that the adapter makes; the contract suite compares their content."""
    async with served() as (server, store):
        await store.prepare()
        await store.ping()
        assert (await store.version()).startswith("Qdrant 1.")
        await store.incarnation()
        written = point(uuid.uuid4(), 0)
        await store.upsert([written], unit(1, DIMENSION))
        await store.tally([written.stage])
        assert [row.stage async for row in store.walk()] == [written.stage]
        assert (await searched(store, dense=unit(1, DIMENSION)[0], words="truck", limit=3))["dense"]
        await store.delete_stages([written.stage])
        made = {
            (e.method, e.route.removeprefix("/collections/{collection_name}"))
            for e in server.exchanges
        }
        waited = [
            e.query.get("wait")
            for e in server.exchanges
            if e.route.endswith(("/points", "/delete", "/index"))
        ]
    assert made == {
        ("GET", "/"),
        ("GET", "/telemetry"),
        ("GET", "/aliases"),
        ("GET", "/exists"),
        ("GET", ""),
        ("PUT", ""),
        ("PUT", "/index"),
        ("PUT", "/points"),
        ("POST", "/points/query/batch"),
        ("POST", "/points/scroll"),
        ("POST", "/points/count"),
        ("POST", "/points/delete"),
    }
    assert set(waited) == {"true"}


async def test_a_collection_is_created_as_the_settings_say() -> None:
    async with served(replication=Replication(shards=6, replicas=2, confirmations=2)) as (
        server,
        store,
    ):
        await store.prepare()
        created = server.created["apex"]
    assert (created["shard_number"], created["replication_factor"]) == (6, 2)
    assert created["write_consistency_factor"] == 2
    async with served() as (server, store):
        await store.prepare()
        created = server.created["apex"]
    assert not {"shard_number", "replication_factor", "write_consistency_factor"} & {
        name for name, value in created.items() if value is not None
    }


async def test_a_key_that_is_wrong_is_named() -> None:
    async with served() as (server, store):
        server.api_key = "another"
        with pytest.raises(Unavailable, match="401") as refused:
            await store.prepare()
        assert "APEX_QDRANT_API_KEY" in refused.value.remedy


async def test_the_incarnation_is_the_server_process_and_the_collection() -> None:
    """Another process, another collection, and an alias that moves to one are other stores, which are checked."""
    async with served("current") as (server, store):
        for name in ("first", "second"):
            made = QdrantVectors(
                "http://unused/" + name,
                DIMENSION,
                timeout=5,
                bm25_average_words=10,
                client=store._client,
            )
            await made.prepare()
        await move_alias(store, "first")
        await store.prepare()  # which finds the collection, and creates none
        assert set(server.created) == {"first", "second"}
        seen = [await store.incarnation(), await store.incarnation()]
        await move_alias(store, "second")
        seen.append(await store.incarnation())
        server.started = "another process"
        seen.append(await store.incarnation())
    assert seen[0] == seen[1] and len(set(seen)) == 3


async def move_alias(store: QdrantVectors, collection: str) -> None:
    """Let the alias `current` stand for a collection, in one step."""
    alias = models.CreateAlias(collection_name=collection, alias_name="current")
    await store._client.update_collection_aliases([models.CreateAliasOperation(create_alias=alias)])


@pytest.mark.parametrize(
    ("given", "accepted"),
    [
        ({}, True),
        ({"qdrant_replication_factor": 3, "qdrant_write_consistency_factor": 2}, True),
        ({"qdrant_replication_factor": 2, "qdrant_write_consistency_factor": 3}, False),
        ({"qdrant_write_consistency_factor": 2}, False),
        ({"qdrant_shards": -1}, False),
    ],
)
def test_settings_that_could_not_work_are_refused(given: dict[str, int], accepted: bool) -> None:
    if accepted:
        load_settings(**given)
    else:
        with pytest.raises(Misconfigured, match="qdrant_"):
            load_settings(**given)
