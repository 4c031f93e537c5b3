"""The faults, by kind: what is done to the running stack."""

from __future__ import annotations

import asyncio
import os
import random
import signal
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from uuid import UUID

from tests.e2e.stack import Stack, until
from tests.faults.proxy import Proxy
from tests.faults.story import Send

ROOT = Path(__file__).parents[2]
LEASE_SECONDS = 3
STEPS = ("claim", "manifests", "begin", "graph", "vectors", "verify", "commit")
PROXIED = {"documents": "postgres", "graph": "falkordb", "vectors": "vectors"}
# What stands in the requests whose replies are lost.
WRITES = {"documents": b"COMMIT", "graph": b"GRAPH.QUERY", "vectors": b"upsert"}


class FaultyStack(Stack):
    """The stack with a worker that can be killed at a step, and whose stores lie behind proxies."""

    module = "tests.faults.up"

    def __init__(self, data_dir: Path, folder: Path, **settings: str) -> None:
        super().__init__(data_dir, **settings)
        self.folder = folder
        self.acknowledged: Mapping[UUID, Send] = {}
        self._given |= {"PYTHONPATH": str(ROOT), "FAULTS_DIR": str(folder)}
        self.proxies = {
            store: Proxy(self._port_of(name), WRITES[store]) for store, name in PROXIED.items()
        }

    def _port_of(self, name: str) -> Callable[[], int]:
        return lambda: self.children()[name].port

    @asynccontextmanager
    async def proxied(self) -> AsyncIterator[None]:
        """Proxies that listen, noted where the worker looks for them."""
        ports = {store: await proxy.start() for store, proxy in self.proxies.items()}
        (self.folder / "proxies.json").write_text(str(ports).replace("'", '"'))
        try:
            yield
        finally:
            for proxy in self.proxies.values():
                await proxy.stop()

    def restarts(self) -> int:
        return self.children()["worker"].restarts


@dataclass(frozen=True, slots=True)
class Fault:
    name: str
    strike: Callable[[FaultyStack, random.Random], Awaitable[None]]


def kill(child: str) -> Fault:
    async def strike(stack: FaultyStack, chance: random.Random) -> None:
        await stack.kill_child(child)

    return Fault(f"kill -9 {child}", strike)


def stop(child: str, least: float, most: float) -> Fault:
    async def strike(stack: FaultyStack, chance: random.Random) -> None:
        with stack.held(child):
            await asyncio.sleep(chance.uniform(least, most))

    return Fault(f"stop {child}", strike)


def lose_replies(store: str) -> Fault:
    async def strike(stack: FaultyStack, chance: random.Random) -> None:
        proxy = stack.proxies[store]
        before = proxy.lost
        proxy.lose(chance.randrange(1, 4))
        try:
            await until(lambda: proxy.lost > before, seconds=20, what=stack.told)
            await asyncio.sleep(0.5)
        finally:
            proxy.heal()

    return Fault(f"lose replies of {store}", strike)


def die_after(step: str) -> Fault:
    async def strike(stack: FaultyStack, chance: random.Random) -> None:
        order, before = stack.folder / "die", stack.restarts()
        order.write_text(step)
        try:
            await until(lambda: stack.restarts() > before, seconds=20, what=stack.told)
        finally:
            order.unlink(missing_ok=True)

    return Fault(f"worker dies after {step}", strike)


async def _kill_all(stack: FaultyStack, chance: random.Random) -> None:
    await stack.kill()
    await stack.start()


async def _kill_two(stack: FaultyStack, chance: random.Random) -> None:
    """A store and the worker at the same moment: a power cut in small."""
    for child in ("worker", chance.choice(("falkordb", "vectors"))):
        os.kill(stack.children()[child].pid, signal.SIGKILL)
    await asyncio.sleep(0.3)


ENGINES = ("postgres", "falkordb", "valkey", "vectors", "temporal")
KINDS: tuple[Fault, ...] = (
    Fault("kill -9 apex up", _kill_all),
    Fault("kill -9 worker and a store", _kill_two),
    *(kill(child) for child in ("worker", "gateway", *ENGINES)),
    stop("worker", LEASE_SECONDS + 1, LEASE_SECONDS + 2.5),
    *(stop(child, 1.5, 4) for child in ENGINES),
    *(lose_replies(store) for store in PROXIED),
    *(die_after(step) for step in STEPS),
)


def schedule(seed: str, count: int) -> list[Fault]:
    """`count` faults: each kind once in an order of the seed's, then over again in another."""
    chance = random.Random(f"{seed}/schedule")
    planned: list[Fault] = []
    while len(planned) < count:
        planned += chance.sample(KINDS, len(KINDS))
    return planned[:count]
