"""W2: header floods and connections without a key cost little memory and little time."""

from __future__ import annotations

import asyncio
import tracemalloc
from collections.abc import AsyncIterator

import pytest

from apex_memory.config import Settings
from tests.attacks.server import Server, connection, serving
from tests.waiting import until

GET = b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\n"
FLOOD = 20_000_000  # bytes that an attacker tries to send


@pytest.fixture
async def server() -> AsyncIterator[Server]:
    limits = Settings(header_seconds=1, max_connections=30, max_connections_per_peer=20)
    async with serving(limits) as server:
        yield server


@pytest.fixture
async def impatient_server() -> AsyncIterator[Server]:
    """For what is never complete in time: however slow the machine is, the deadline cannot come too early."""
    async with serving(Settings(header_seconds=0.2)) as server:
        yield server


@pytest.mark.parametrize(
    ("start", "repeated"),
    [
        (GET, b"X-A: b\r\n" * 1_000),
        (GET + b"X-Long: ", b"x" * 60_000),
        (GET + b"X-", b"n" * 60_000),
        (b"GET /", b"x" * 60_000),
        (b"GET /?", b"q" * 60_000),
    ],
    ids=["many headers", "one long value", "one long name", "long path", "long query"],
)
async def test_w2_header_floods_are_cut_off(server: Server, start: bytes, repeated: bytes) -> None:
    tracemalloc.start()
    try:
        async with connection(server) as attack:
            assert await attack.send(start)
            sent = await attack.flood(repeated, FLOOD)
            assert sent < FLOOD, "the server closes long before the flood ends"
        assert tracemalloc.get_traced_memory()[1] < 8_000_000
    finally:
        tracemalloc.stop()


async def test_w2_a_request_with_too_many_headers_gets_431(server: Server) -> None:
    async with connection(server) as client:
        await client.send(GET + b"X-A: b\r\n" * 200 + b"\r\n")
        assert await client.status() == 431
        assert await client.closed()


async def test_w2_trailers_do_not_get_round_the_limits(server: Server) -> None:
    head = b"POST /v1/keyed HTTP/1.1\r\nHost: 127.0.0.1\r\nX-API-Key: apex_valid\r\n"
    for trailer in (b"X-Long: " + b"x" * 60_000, b"X-A: b\r\n" * 5_000):
        async with connection(server) as attack:
            await attack.send(head + b"Transfer-Encoding: chunked\r\n\r\n1\r\na\r\n0\r\n")
            assert await attack.flood(trailer, FLOOD) < FLOOD
            assert await attack.closed()


@pytest.mark.parametrize("sent", [b"", GET, GET + b"X-Half: "], ids=["nothing", "some", "half"])
async def test_w2_headers_must_arrive_in_time(impatient_server: Server, sent: bytes) -> None:
    began = asyncio.get_running_loop().time()
    async with connection(impatient_server) as attack:
        await attack.send(sent)
        assert await attack.status() == 408
        assert await attack.closed()
    assert asyncio.get_running_loop().time() - began < 5


async def test_w2_one_byte_at_a_time_does_not_extend_the_deadline(
    impatient_server: Server,
) -> None:
    async with connection(impatient_server) as attack:
        while await attack.send(b"G" if not attack.sent else b"E"):
            await asyncio.sleep(0.01)  # the attack: a byte from time to time
            assert attack.sent < 100, "a connection that trickles is closed"


async def test_w2_the_deadline_holds_for_a_second_request_too(server: Server) -> None:
    async with connection(server) as attack:
        await attack.send(GET + b"\r\n")
        assert await attack.status() == 200
        await attack.send(GET)
        assert await attack.status() == 408


async def test_w2_connections_of_one_peer_are_limited_and_given_back(server: Server) -> None:
    async with asyncio.TaskGroup() as tasks:
        release = asyncio.Event()
        statuses: list[int] = []

        async def hold() -> None:
            async with connection(server) as client:
                await client.send(GET + b"\r\n")
                statuses.append(await client.status())
                await release.wait()

        for _ in range(25):
            tasks.create_task(hold())
        await until(lambda: len(statuses) == 25, "every request has its status")
        release.set()
    assert sorted(statuses) == [200] * 20 + [503] * 5
    await until(lambda: not server.connections.by_peer, "no connection is left")
    async with connection(server) as client:
        await client.send(GET + b"\r\n")
        assert await client.status() == 200


async def test_w2_honest_requests_pass(server: Server) -> None:
    """The negative control: long but allowed headers, pipelining, keep-alive and small chunks."""
    async with connection(server) as client:
        await client.send(GET + b"X-A: b\r\n" * 90 + b"X-Long: " + b"x" * 20_000 + b"\r\n\r\n")
        assert await client.status() == 200
        await client.send((GET + b"\r\n") * 3)
        assert [await client.status() for _ in range(3)] == [200] * 3
        head = b"POST /v1/keyed HTTP/1.1\r\nHost: 127.0.0.1\r\nX-API-Key: apex_valid\r\n"
        await client.send(head + b"Transfer-Encoding: chunked\r\n\r\n")
        for _ in range(20):
            await client.send(b"1\r\na\r\n" * 1_000)
        await client.send(b"0\r\nX-Trailer: t\r\n\r\n")
        assert await client.status() == 200
        assert server.bodies == [20_000]
