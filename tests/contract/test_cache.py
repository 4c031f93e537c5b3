"""The cache helps when it is there, and harms nothing when it is not."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from pathlib import Path
from uuid import UUID, uuid4

import pytest
import pytest_asyncio
import redis.asyncio
from structlog.testing import capture_logs

from apex_memory.engines.base import free_port
from apex_memory.engines.process import Process, child_of
from apex_memory.engines.valkey import Valkey
from apex_memory.errors import Misconfigured, Unavailable
from apex_memory.stores.cache import LOG_SECONDS, PAUSE_SECONDS, Cache
from apex_memory.telemetry import CACHE_FAILURES
from tests.waiting import until


@pytest_asyncio.fixture
async def cache(valkey_url: str) -> AsyncIterator[Cache]:
    store = Cache(valkey_url, timeout=5)
    yield store
    await store.close()


@pytest_asyncio.fixture
async def client(valkey_url: str) -> AsyncIterator[redis.asyncio.Redis]:
    """A look behind the adapter."""
    async with redis.asyncio.Redis.from_url(valkey_url) as raw:
        yield raw


class Clock:
    now = 1_000.0

    def __call__(self) -> float:
        return self.now


def failures() -> float:
    return sum(
        sample.value
        for metric in CACHE_FAILURES.collect()
        for sample in metric.samples
        if sample.name.endswith("_total")
    )


async def ask_everything(cache: Cache) -> None:
    """Make every call; each must return the value that means "unknown"."""
    ids, owner = [uuid4(), uuid4()], uuid4()
    assert await cache.lock(ids, owner, 5) == set(ids)
    await cache.unlock(ids, owner)
    assert await cache.get_many(["a"]) == {}
    await cache.put_many({"a": b"1"}, 5)
    await cache.drop(["a"])


EVERYTHING = 5  # calls


async def ttl(client: redis.asyncio.Redis, key: str) -> float:
    return float(await client.pttl(key)) / 1000


async def test_a_lock_has_one_owner(cache: Cache, client: redis.asyncio.Redis) -> None:
    docs, owner, other = [uuid4() for _ in range(3)], uuid4(), uuid4()
    assert await cache.lock(docs[:2], owner, 30) == set(docs[:2])
    assert await cache.lock(docs, other, 30) == {docs[2]}
    assert await cache.lock(docs, owner, 30) == set(
        docs[:2]
    )  # a second call of the owner: the locks stay its own
    assert 29 < await ttl(client, f"apex:lock:{docs[0]}") <= 30
    await cache.unlock(docs, other)
    third = uuid4()
    assert await cache.lock(docs, third, 30) == {docs[2]}
    await cache.unlock(docs, third)
    assert await cache.lock(docs, owner, 30) == set(docs)
    await cache.unlock(docs, owner)
    assert await cache.lock(docs, other, 30) == set(docs)


async def test_only_one_of_many_gets_a_lock(cache: Cache) -> None:
    doc = uuid4()
    granted = await asyncio.gather(*(cache.lock([doc], uuid4(), 30) for _ in range(20)))
    assert sorted(map(len, granted)) == [0] * 19 + [1]


async def test_a_lock_runs_out(cache: Cache) -> None:
    doc = uuid4()
    await cache.lock([doc], uuid4(), 0.05)
    await until(lambda: cache.lock([doc], uuid4(), 0.05), "the lock is free", every=0.005)


async def test_cached_answers(cache: Cache, client: redis.asyncio.Redis) -> None:
    prefix = uuid4().hex
    items = {f"{prefix}:{n}": bytes([n, 0, 255]) for n in range(5)}
    await cache.put_many(items, 60)
    keys = [*items, f"{prefix}:none"]
    assert await cache.get_many(keys) == items
    assert 59 < await ttl(client, f"apex:cache:{keys[0]}") <= 60
    await cache.put_many({keys[0]: b"new"}, 60)
    await cache.drop([*keys[1:3], "none"])
    assert await cache.get_many(keys[:4]) == {keys[0]: b"new", keys[3]: items[keys[3]]}
    await cache.put_many({keys[0]: b"short"}, 0.01)

    async def gone() -> bool:
        return not await cache.get_many(keys[:1])

    await until(gone, "it ran out", every=0.005)


async def test_no_request_no_call(cache: Cache) -> None:
    assert await cache.lock([], uuid4(), 1) == set()
    assert await cache.get_many([]) == {}
    await cache.unlock([], uuid4())
    await cache.put_many({}, 1)
    await cache.drop([])


async def test_a_flush_in_between_is_no_failure(cache: Cache, client: redis.asyncio.Redis) -> None:
    doc, owner, before = uuid4(), uuid4(), failures()
    await cache.lock([doc], owner, 30)
    await cache.put_many({"k": b"v"}, 30)
    await cache.unlock([uuid4()], owner)  # the script is loaded now
    await client.flushall()
    await client.script_flush()
    assert await cache.get_many(["k"]) == {}
    await cache.unlock([doc], owner)
    assert await cache.lock([doc], uuid4(), 30) == {doc}
    assert failures() == before


async def test_it_identifies_itself(cache: Cache) -> None:
    await cache.ping()
    assert (await cache.version()).startswith("Valkey ")
    assert await cache.incarnation() == await cache.incarnation()
    assert cache.name == "cache"


def test_another_url_is_refused() -> None:
    for url in ("falkordb://localhost", "", "redis://localhost:port"):
        with pytest.raises(Misconfigured):
            Cache(url)


async def test_a_dead_cache_costs_one_try_a_pause() -> None:
    clock, before = Clock(), failures()
    cache = Cache(f"redis://:secret@127.0.0.1:{free_port()}/0", clock=clock)
    with capture_logs() as logs:
        await ask_everything(cache)
        assert failures() - before == EVERYTHING
        started = time.perf_counter()
        for _ in range(100):
            await ask_everything(cache)
        assert (time.perf_counter() - started) / 100 / EVERYTHING < 0.000_5
        clock.now += LOG_SECONDS
        await ask_everything(cache)
    assert [line["call"] for line in logs] == ["lock", "lock"]
    assert "secret" not in str(logs)
    for call in (cache.ping, cache.version, cache.incarnation):
        with pytest.raises(Unavailable) as caught:
            await call()
        assert caught.value.store == "cache"
    await cache.close()


async def test_a_silent_cache_costs_one_time_out_a_pause() -> None:
    """After the pause one caller probes; those beside it do not wait with it."""
    ended, met = asyncio.Event(), 0

    async def ignore(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal met
        met += 1
        await ended.wait()
        writer.close()

    clock = Clock()
    async with await asyncio.start_server(ignore, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        cache = Cache(f"redis://127.0.0.1:{port}/0", timeout=0.1, clock=clock)
        started = time.monotonic()
        await ask_everything(cache)
        clock.now += PAUSE_SECONDS
        await asyncio.gather(*(ask_everything(cache) for _ in range(20)))
        assert 0.2 <= time.monotonic() - started < 1
        assert met == 2
        await cache.close()
        ended.set()


async def test_it_is_used_again_when_it_is_back(tmp_path: Path) -> None:
    engine = Valkey(tmp_path, free_port(), "pw")
    engine.prepare()

    async def start() -> Process:
        process = Process(child_of(engine), tmp_path / "log")
        await process.until_ready()
        return process

    process, clock = await start(), Clock()
    cache = Cache(engine.url, timeout=5, clock=clock)
    key, before = uuid4().hex, failures()
    await cache.put_many({key: b"v"}, 60)
    assert await cache.get_many([key]) == {key: b"v"}
    incarnation = await cache.incarnation()
    assert failures() == before
    await process.kill()
    await ask_everything(cache)
    assert failures() == before + EVERYTHING
    process = await start()
    await ask_everything(cache)  # still pausing: nothing is kept
    assert failures() == before + EVERYTHING * 2
    clock.now += PAUSE_SECONDS
    await cache.put_many({key: b"v"}, 60)
    assert await cache.get_many([key]) == {key: b"v"}
    assert failures() == before + EVERYTHING * 2
    assert await cache.incarnation() != incarnation
    await cache.close()
    await process.stop()


async def test_ping_ends_the_pause(valkey_url: str) -> None:
    clock, before = Clock(), failures()
    cache = Cache(valkey_url, timeout=5, clock=clock)
    cache._paused_until = clock.now + PAUSE_SECONDS
    assert await cache.lock([doc := uuid4()], uuid4(), 30) == {doc}
    assert failures() == before + 1
    await cache.ping()
    assert await cache.lock([doc], uuid4(), 30) == {doc}
    assert await cache.lock([doc], uuid4(), 30) == set()
    assert failures() == before + 1
    await cache.close()


async def test_a_cancelled_call_leaves_no_response_behind(cache: Cache) -> None:
    """A connection whose caller went away must not hand its answer to the next one."""
    keys = {f"{uuid4().hex}": bytes(8) for _ in range(200)}
    await cache.put_many(keys, 60)
    for wait in range(40):
        task = asyncio.create_task(cache.get_many(list(keys)))
        for _ in range(wait % 8):
            await asyncio.sleep(0)  # turns of the loop: each round cancels the call a little later
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        ids: list[UUID] = [uuid4()]
        assert await cache.lock(ids, uuid4(), 1) == set(ids)
        assert await cache.get_many(["absent"]) == {}
