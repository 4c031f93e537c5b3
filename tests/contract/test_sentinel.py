"""The cache through Sentinels: a primary, its replica and two Sentinels of the embedded Valkey; the primary dies."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from uuid import uuid4

import pytest
import redis.asyncio

from apex_memory.engines.base import HOST, free_port
from apex_memory.engines.process import Process, child_of
from apex_memory.engines.valkey import Valkey
from apex_memory.errors import Misconfigured, Unavailable
from apex_memory.stores.cache import Cache
from tests.conftest import PASSWORD
from tests.waiting import until

SERVICE = "apex-cache"


class Extended(Valkey):
    """A Valkey with further lines in its configuration."""

    more = ""
    mode: tuple[str, ...] = ()

    def prepare(self) -> None:
        super().prepare()
        with self._config.open("a", encoding="utf-8") as file:
            file.write(self.more)

    def command(self) -> list[str]:
        return [*super().command(), *self.mode]


class SentinelServer(Extended):
    """A Sentinel, whose password is that of the engine."""

    mode = ("--sentinel",)

    def prepare(self) -> None:
        super().prepare()
        self._config.write_text(
            f"bind {HOST}\nport {self.port}\nrequirepass {self.password}\n"
            f'dir "{self.directory}"\n{self.more}',
            encoding="utf-8",
        )


@dataclass
class Group:
    primary: Process
    primary_port: int
    replica_port: int
    sentinels: list[int] = field(default_factory=list)

    def url(self, *extra: int, password: str = PASSWORD) -> str:
        hosts = ",".join(f"{HOST}:{port}" for port in (*extra, *self.sentinels))
        return f"redis+sentinel://:{PASSWORD}@{hosts}/{SERVICE}/0?sentinel_password={password}"


@asynccontextmanager
async def started(engine: Extended) -> AsyncIterator[Process]:
    engine.prepare()
    process = Process(child_of(engine), engine.data_dir / "log")
    try:
        await process.until_ready()
        yield process
    finally:
        await process.kill()


@pytest.fixture
async def group(tmp_path: Path) -> AsyncIterator[Group]:
    ports = [free_port()]
    while len(ports) < 4:
        ports.append(free_port(taken=ports))
    primary = Extended(tmp_path / "primary", ports[0], PASSWORD)
    replica = Extended(tmp_path / "replica", ports[1], PASSWORD)
    primary.more = replica.more = f"masterauth {PASSWORD}\nrepl-diskless-sync-delay 0\n"
    replica.more += f"replicaof {HOST} {primary.port}\n"
    async with AsyncExitStack() as stack:
        process = await stack.enter_async_context(started(primary))
        await stack.enter_async_context(started(replica))
        group = Group(process, primary.port, replica.port, ports[2:])
        for number, port in enumerate(group.sentinels):
            sentinel = SentinelServer(tmp_path / f"sentinel{number}", port, PASSWORD)
            sentinel.more = (
                f"sentinel monitor {SERVICE} {HOST} {primary.port} 1\n"
                f"sentinel auth-pass {SERVICE} {PASSWORD}\n"
                f"sentinel sentinel-pass {PASSWORD}\n"
                f"sentinel down-after-milliseconds {SERVICE} 500\n"
                f"sentinel failover-timeout {SERVICE} 3000\n"
            )
            await stack.enter_async_context(started(sentinel))
        await until(lambda: knows_replica(group), "the Sentinels know the replica", seconds=60)
        yield group


async def knows_replica(group: Group) -> bool:
    for port in group.sentinels:
        async with redis.asyncio.Redis(host=HOST, port=port, password=PASSWORD) as client:
            [state] = (await client.sentinel_masters()).values()
            replicas = await client.sentinel_slaves(SERVICE)
            usable = [r for r in replicas if r["master-link-status"] == "ok"]
            if state["num-other-sentinels"] < 1 or not usable:
                return False
    return True


async def test_the_cache_follows_the_primary(group: Group) -> None:
    cache = Cache(group.url(), timeout=5)
    key = uuid4().hex
    await cache.put_many({key: b"v"}, 600)
    assert await cache.get_many([key]) == {key: b"v"}
    assert (await cache.version()).startswith("Valkey ")
    before = await cache.incarnation()
    await until(lambda: is_on(group.replica_port, key), "the replica has it")
    await group.primary.kill()

    async def goes_on() -> bool:
        try:
            await cache.ping()  # as readiness and doctor do; it also ends a pause
        except Unavailable:
            return False
        await cache.put_many({f"{key}2": b"w"}, 600)
        return bool(await cache.get_many([f"{key}2"]))

    await until(goes_on, "it uses the new primary", seconds=60, every=0.2)
    assert await cache.get_many([key, f"{key}2"]) == {key: b"v", f"{key}2": b"w"}
    assert await cache.incarnation() != before
    assert await is_on(group.replica_port, f"{key}2")
    await cache.close()


async def is_on(port: int, key: str) -> bool:
    async with redis.asyncio.Redis(host=HOST, port=port, password=PASSWORD) as client:
        return bool(await client.exists(f"apex:cache:{key}"))


async def test_a_sentinel_that_is_away_or_refuses_is_passed_over(group: Group) -> None:
    cache = Cache(group.url(free_port()), timeout=5)
    await cache.ping()
    await cache.close()
    refused = Cache(group.url(password="wrong"), timeout=5)
    with pytest.raises(Unavailable, match="no Sentinel names it"):
        await refused.ping()
    await refused.close()
    unknown = Cache(group.url().replace(SERVICE, "another"), timeout=5)
    with pytest.raises(Unavailable, match="knows no such service") as error:
        await unknown.ping()
    assert PASSWORD not in str(error.value).replace("apex-cache", "")
    await unknown.close()


async def test_a_node_of_a_cluster_is_refused_by_name(tmp_path: Path) -> None:
    node = Extended(tmp_path, free_port(), PASSWORD)
    node.more = "cluster-enabled yes\n"
    async with started(node):
        cache = Cache(node.url, timeout=5)
        with pytest.raises(Unavailable, match="a node of a cluster"):
            await cache.ping()
        assert await cache.get_many(["a"]) == {}
        await cache.close()


@pytest.mark.parametrize(
    "url",
    [
        "redis+sentinel://:pw@a:26379",
        "redis+sentinel://:pw@/service",
        "redis+sentinel://:pw@a:port/service",
        "falkordb+sentinel://:pw@a/service",
    ],
)
def test_a_url_without_sentinels_or_service_is_refused(url: str) -> None:
    with pytest.raises(Misconfigured) as refused:
        Cache(url)
    assert "pw" not in str(refused.value)
