"""What the Qdrant adapter makes of a server's responses. The server is a stand-in with fixed responses, not a Qdrant."""

from __future__ import annotations

import asyncio
import json
import time
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from apex_memory.engines.base import HOST, free_port
from apex_memory.errors import ApexError, Rejected, RetryLater, Unavailable
from apex_memory.stores.qdrant_server import QdrantVectors
from tests.points import point, unit

DIMENSION = 4


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


async def test_the_incarnation_is_the_server_process() -> None:
    seen = set()
    for name in ("one", "two"):
        app = {"name": "qdrant", "version": "1.17.0", "startup": "2026-01-01T00:00:00Z"}
        telemetry = {
            "result": {"id": name, "app": app, "collections": {"number_of_collections": 1}}
        }
        async with answering(200, telemetry) as port:
            store = client(port)
            seen.add(await store.incarnation())
            await store.close()
    assert seen == {"one", "two"}
