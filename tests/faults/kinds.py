"""The faults, by kind: what is done to the running stack."""

from __future__ import annotations

import asyncio
import itertools
import json
import os
import random
import shutil
import signal
import struct
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, ExitStack, asynccontextmanager, suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from uuid import UUID

import httpx2

from apex_memory.app import App, open_app
from apex_memory.config import EMBEDDED, IN_DOCUMENTS
from apex_memory.engines.base import free_port
from apex_memory.engines.process import child_of
from apex_memory.engines.state import ChildState, read_stack
from apex_memory.engines.supervisor import Supervisor
from apex_memory.errors import ApexError
from apex_memory.model import document_uuid, micros
from apex_memory.simulate.server import serve_simulators
from apex_memory.simulate.turvo.records import removed, twin_id
from apex_memory.simulate.turvo.simulator import Turvo
from apex_memory.simulate.vendor import Chaos
from apex_memory.simulate.world import Clock, World
from tests.e2e.stack import Stack
from tests.faults import foreign
from tests.faults.proxy import Proxy
from tests.faults.story import Send
from tests.faults.volumes import filled
from tests.faults.worker import STORES_NAME, VENDOR_NAME
from tests.waiting import until

ROOT = Path(__file__).parents[2]
CLOCK = Path(__file__).with_name("clock.c")
HOUR = 3_600
CLOCK_JUMPS = "the clock jumps by an hour"
DISK_FULL = "no space is left on the disk of"
# Megabytes of the volume of each engine's folder where disks are filled: room for what a long run writes.
DISKS = {"postgres": 768, "falkordb": 256, "vectors": 256, "valkey": 64, "temporal": 256}
VENDOR_HANGS = "connections to a vendor hang"
VENDOR_POLL_SECONDS = 2
VENDOR_BACK_SECONDS = (
    60  # until a vendor that is back is pulled again: a step waits up to 30 s before its next try
)
OTHERS_SECONDS = (
    100  # until an event of another source can be found while a vendor is away: most of it for load
)
POISON = 12  # broken inputs of a fault
LEASE_SECONDS = 3
STEPS = ("claim", "manifests", "begin", "graph", "vectors", "verify", "commit")
# Where the graph is; the first as by default, in the PostgreSQL of the documents.
GRAPHS = {"postgres": IN_DOCUMENTS, "falkordb": EMBEDDED, "neo4j": ""}
DEFAULT_GRAPH = "postgres"
RESTART_SECONDS = 120  # for a process to end or a server to come back, one in Java too, beside a stack that takes both processors
STORES = ("documents", "graph", "vectors")
# What stands in the requests whose replies are lost, by the server.
WRITES = {
    "postgres": b"COMMIT",
    "falkordb": b"GRAPH.QUERY",
    "neo4j": b"MERGE",
    "vectors": b"upsert",
}


class FaultyStack(Stack):
    """The stack with a worker that can be killed at a step, and whose stores lie behind proxies.

    The `graph` Neo4j is a server beside the stack, kept running from here.
    """

    module = "tests.faults.up"

    def __init__(
        self,
        data_dir: Path,
        folder: Path,
        *,
        graph: str,
        settable_clock: bool = False,
        vendor: bool = False,
        gateways: int = 1,
        workers: int = 1,
        **settings: str,
    ) -> None:
        super().__init__(data_dir, **settings)
        self.folder = folder
        self.graph = graph
        self.graph_url = ""
        """Of a server beside the stack; empty where the graph is one of its own."""
        self.set(GRAPH=GRAPHS[graph])
        self.vendor: Turvo | None = None
        """A vendor that is polled, behind `vendor_proxy`. Its world stands still but for what a fault adds."""
        if vendor:
            world = World.make()
            self.vendor = Turvo(world, Clock(world.start), Chaos())
        self._vendor_port = 0
        self.vendor_proxy = Proxy(lambda: self._vendor_port)
        self.acknowledged: Mapping[UUID, Send] = {}
        self.poisoned: dict[UUID, Send] = {}
        """Events of broken inputs that a fault sent. They have an end, whatever it is."""
        self._clock = folder / "clock"
        self._clock.write_bytes(bytes(8))
        library = clock_library(folder) if settable_clock else None
        if library:
            self._given |= {"LD_PRELOAD": str(library), "CLOCK_FILE": str(self._clock)}
        self._given |= {"PYTHONPATH": str(ROOT), "FAULTS_DIR": str(folder)}
        self._given |= {"FAULTS_GATEWAYS": str(gateways), "FAULTS_WORKERS": str(workers)}
        self.gateways = ("gateway", *(f"gateway-{n}" for n in range(2, gateways + 1)))
        self.workers = ("worker", *(f"worker-{n}" for n in range(2, workers + 1)))
        self.proxies = {
            store: Proxy(self._port_of(name), WRITES[name])
            for store, name in zip(STORES, ("postgres", graph, "vectors"), strict=True)
        }

    def _port_of(self, name: str) -> Callable[[], int]:
        return lambda: self.children()[name].port

    @property
    def _beside(self) -> Path:
        return self.data_dir.with_name("beside")

    def children(self) -> dict[str, ChildState]:
        beside = read_stack(self._beside) if self.graph_url else None
        return super().children() | (beside.children if beside else {})

    @asynccontextmanager
    async def surrounded(self) -> AsyncIterator[None]:
        """What the stack needs around it: the graph's server, if it is none of the stack's own, and the proxies."""
        async with AsyncExitStack() as around:
            if self.graph == "neo4j":
                from tests.servers.neo4j import Neo4j  # needs the driver

                engine = Neo4j(self._beside, free_port(), "beside-the-stack")
                keeper = await around.enter_async_context(Supervisor(self._beside, _unsaid))
                engine.prepare()
                await keeper.start(replace(child_of(engine), ready_seconds=RESTART_SECONDS))
                self.graph_url = engine.url
                self.set(GRAPH=engine.url)
            await around.enter_async_context(self._proxied())
            if self.vendor:
                await around.enter_async_context(self._sold_to(self.vendor))
            yield

    @asynccontextmanager
    async def _sold_to(self, vendor: Turvo) -> AsyncIterator[None]:
        """The vendor's API, which the worker reaches by name and through a proxy."""
        async with serve_simulators([vendor]) as server:
            self._vendor_port = int(server.url.rpartition(":")[2])
            port = await self.vendor_proxy.start()
            table = vendor.settings(f"http://{VENDOR_NAME}:{port}/{vendor.name}")
            table["poll_seconds"] = VENDOR_POLL_SECONDS
            for name, value in table.items():
                text = json.dumps(value) if isinstance(value, list) else str(value)
                self.set(**{f"SOURCES__{vendor.name}__{name}".upper(): text})
            try:
                yield
            finally:
                await self.vendor_proxy.stop()

    def vendor_deletions(self) -> dict[UUID, int]:
        """Return the shipment that the vendor's list shows as deleted from some time on, and its first version that is a deletion."""
        if self.vendor is None:
            return {}
        twin = self.vendor.flagged_twin
        document = document_uuid(self.vendor.name, f"shipment:{twin_id(twin)}")
        return {document: micros(removed(twin))}

    async def pulled_at(self) -> datetime | None:
        """When the vendor was last pulled to the end."""
        assert self.vendor
        sources = (await self.get("/v1/sources"))["sources"]
        [row] = [row for row in sources if row["name"] == self.vendor.name]
        return datetime.fromisoformat(row["pulled_at"]) if row["pulled_at"] else None

    @asynccontextmanager
    async def _proxied(self) -> AsyncIterator[None]:
        """Proxies that listen, noted where the worker looks for them."""
        ports = {store: await proxy.start() for store, proxy in self.proxies.items()}
        (self.folder / "proxies.json").write_text(str(ports).replace("'", '"'))
        try:
            yield
        finally:
            for proxy in self.proxies.values():
                await proxy.stop()

    def set_clock(self, seconds: int) -> None:
        """Set the clock of PostgreSQL and of the workers that many seconds ahead of the right time."""
        with self._clock.open("r+b") as file:  # in place: processes have it mapped
            file.write(struct.pack("q", seconds))

    def restarts(self) -> int:
        """Return how often the workers, of which each may meet an order, were restarted, all together."""
        children = self.children()
        return sum(children[name].restarts for name in ("bulk", *self.workers))

    def client(self, key: str = "") -> httpx2.AsyncClient:
        """A client whose requests go to the gateways in turns, as behind a load balancer."""
        urls = [httpx2.URL(self.children()[name].url) for name in self.gateways]
        headers = {"authorization": f"Bearer {key}"} if key else {}
        transport = InTurns(urls)
        return httpx2.AsyncClient(
            base_url=urls[0], headers=headers, timeout=30, transport=transport
        )


class InTurns(httpx2.AsyncHTTPTransport):
    """Sends each request to the next of several servers."""

    def __init__(self, urls: Sequence[httpx2.URL]) -> None:
        super().__init__()
        self._urls = itertools.cycle(urls)

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        to = next(self._urls)
        request.url = request.url.copy_with(host=to.host, port=to.port)
        return await super().handle_async_request(request)


def clock_library(folder: Path) -> Path | None:
    """`clock.c`, compiled; None where there is no compiler, or no Linux. Then no clock is set."""
    compiler, library = shutil.which("cc"), folder / "clock.so"
    if compiler is None or sys.platform != "linux":
        return None
    command = [compiler, "-shared", "-fPIC", "-O1", "-o", str(library), str(CLOCK), "-ldl"]
    return None if subprocess.run(command, check=False).returncode else library


def _unsaid(name: str, what: str, detail: str) -> None:
    """What becomes of the server beside the stack shows in `children`."""


@dataclass(frozen=True, slots=True)
class Fault:
    name: str
    strike: Callable[[FaultyStack, random.Random], Awaitable[None]]


def kill(child: str) -> Fault:
    async def strike(stack: FaultyStack, chance: random.Random) -> None:
        await stack.kill_child(child, seconds=RESTART_SECONDS)

    return Fault(f"kill -9 {child}", strike)


def stop(child: str, least: float, most: float) -> Fault:
    async def strike(stack: FaultyStack, chance: random.Random) -> None:
        with stack.held(child):
            await asyncio.sleep(chance.uniform(least, most))  # the fault lasts

    return Fault(f"stop {child}", strike)


def lose_replies(store: str) -> Fault:
    async def strike(stack: FaultyStack, chance: random.Random) -> None:
        proxy = stack.proxies[store]
        before = proxy.lost
        proxy.lose(chance.randrange(1, 4))
        try:
            await until(lambda: proxy.lost > before, seconds=20, what=stack.log_tail)
            await asyncio.sleep(0.5)  # the fault lasts
        finally:
            proxy.heal()

    return Fault(f"lose replies of {store}", strike)


def acknowledge_late(store: str) -> Fault:
    """In part later than the worker waits: it tries again what took effect."""

    async def strike(stack: FaultyStack, chance: random.Random) -> None:
        proxy = stack.proxies[store]
        before = proxy.late
        proxy.delay(chance.uniform(1, 4))
        try:
            await until(lambda: proxy.late > before, seconds=20, what=stack.log_tail)
            await asyncio.sleep(chance.uniform(1, 4))  # the fault lasts
        finally:
            proxy.heal()

    return Fault(f"late acknowledgements of {store}", strike)


def die_after(step: str) -> Fault:
    async def strike(stack: FaultyStack, chance: random.Random) -> None:
        order, before = stack.folder / "die", stack.restarts()
        order.write_text(step)
        try:
            await until(lambda: stack.restarts() > before, seconds=20, what=stack.log_tail)
        finally:
            order.unlink(missing_ok=True)

    return Fault(f"worker dies after {step}", strike)


async def _kill_all(stack: FaultyStack, chance: random.Random) -> None:
    await stack.kill(seconds=RESTART_SECONDS)
    await stack.start()


async def _kill_two(stack: FaultyStack, chance: random.Random) -> None:
    """A store and the worker at the same moment: a power cut in small."""
    for child in ("worker", chance.choice((stack.graph, "vectors"))):
        os.kill(stack.children()[child].pid, signal.SIGKILL)
    await asyncio.sleep(0.3)  # the supervisor starts neither of them again before


def hang(store: str) -> Fault:
    """The way to a store swallows all packets, so that connecting and waiting never end by themselves."""

    async def strike(stack: FaultyStack, chance: random.Random) -> None:
        proxy = stack.proxies[store]
        proxy.hang()
        try:
            await asyncio.sleep(chance.uniform(3, 6))  # the fault lasts
        finally:
            proxy.heal()

    return Fault(f"connections to {store} hang", strike)


def fill_disk(child: str) -> Fault:
    """The volume of an engine is full to its last byte, as when something else on it grows."""

    async def strike(stack: FaultyStack, chance: random.Random) -> None:
        with ExitStack() as full:
            await asyncio.to_thread(full.enter_context, filled(stack.data_dir / child))
            await asyncio.sleep(chance.uniform(3, 6))  # the fault lasts

    return Fault(f"{DISK_FULL} {child}", strike)


async def _vendor_hangs(stack: FaultyStack, chance: random.Random) -> None:
    """The vendor accepts connections and never responds."""
    async with _vendor_away(stack):
        proxy = stack.vendor_proxy
        before = proxy.held
        proxy.hang()
        try:
            await until(lambda: proxy.held > before, seconds=40, what=stack.log_tail)
            await _others_go_on(stack, chance)
        finally:
            proxy.heal()


def name_breaks(how: str, name: str) -> Fault:
    """The worker cannot resolve a name, of the vendor or of all stores, just when connections must be made again."""

    async def strike(stack: FaultyStack, chance: random.Random) -> None:
        order, met = stack.folder / "names", stack.folder / "names.met"
        met.unlink(missing_ok=True)
        order.write_text(f"{how} {name}")
        try:
            for proxy in [stack.vendor_proxy] if name == VENDOR_NAME else stack.proxies.values():
                proxy.cut()
            await until(met.exists, seconds=40, what=stack.log_tail)
            if name == VENDOR_NAME:
                await _others_go_on(stack, chance)
            else:
                await asyncio.sleep(chance.uniform(3, 6))  # the fault lasts
        finally:
            order.unlink()

    async def strike_vendor(stack: FaultyStack, chance: random.Random) -> None:
        async with _vendor_away(stack):
            await strike(stack, chance)

    if name == VENDOR_NAME:
        return Fault(f"the name of a vendor {how}", strike_vendor)
    return Fault(f"the name of the stores {how}", strike)


@asynccontextmanager
async def _vendor_away(stack: FaultyStack) -> AsyncIterator[None]:
    """Around a fault of the vendor. Something changes there meanwhile; afterwards pulls come back by themselves."""
    assert stack.vendor, "this kind needs a vendor"
    await until(stack.pulled_at, seconds=60, every=0.2, what=stack.log_tail)
    clock = stack.vendor.clock
    clock.advance_to(clock.now + timedelta(minutes=30))
    yield
    ended = datetime.now(UTC)

    async def pulled_again() -> bool:
        with suppress(httpx2.TransportError):
            pulled = await stack.pulled_at()
            return bool(pulled and pulled > ended)
        return False

    await until(pulled_again, seconds=VENDOR_BACK_SECONDS, every=0.2, what=stack.log_tail)


async def _others_go_on(stack: FaultyStack, chance: random.Random) -> None:
    """An event of another source becomes searchable while the fault lasts.

    A chat, because the writers' own sources have a backlog on a busy machine.
    """
    chat = {
        "id": f"chatcmpl-beside{chance.randrange(10**9)}",
        "object": "chat.completion",
        "created": 1_741_569_952,
        "choices": [
            {
                "index": 0,
                "message": {"role": "assistant", "content": "The truck waits at door four."},
                "finish_reason": "stop",
            }
        ],
    }

    async def is_found() -> bool:
        response = await stack.http.post("/v1/conversations?wait=searchable&timeout=10", json=chat)
        assert response.is_success or response.status_code in (429, 503), response.text
        return bool(response.is_success and response.json()["searchable"])

    await until(is_found, seconds=OTHERS_SECONDS, every=0.2, what=stack.log_tail)


async def _set_clock(stack: FaultyStack, chance: random.Random) -> None:
    """The clock jumps by an hour, and back: what is leased in between is leased far ahead."""
    for seconds in (chance.choice((HOUR, -HOUR)), 0):
        stack.set_clock(seconds)
        await asyncio.sleep(chance.uniform(1, 2))  # work goes on under this clock


async def _send_poison(stack: FaultyStack, chance: random.Random) -> None:
    """Broken inputs of many kinds, beside the load."""
    inputs = [foreign.broken_file(name, chance) for name in foreign.BROKEN_FILES]
    inputs += [make(f"poison{n}", chance) for n, make in enumerate(foreign.BROKEN.values())]
    inputs = chance.sample(inputs, POISON)
    for n, item in enumerate(inputs):
        query = dict(item.query)
        if "key" in query:
            query["key"] = f"poison-{chance.randrange(10**9)}-{n}"
        with suppress(httpx2.TransportError):
            response = await stack.http.post(
                item.path, content=item.body, headers=item.headers, params=query
            )
            assert response.status_code < 500 or response.status_code == 503, (item, response.text)
            if response.is_success:
                for event in response.json()["events"]:
                    stack.poisoned[UUID(event["id"])] = Send("poison", f"poison{n}", 0)


async def _two_workers(stack: FaultyStack, chance: random.Random) -> None:
    """Another worker drains the same sources by the direct path, and is stopped in the middle."""
    from tests.faults.loop import settings_of  # imports this module

    async with open_app(settings_of(stack)) as app:
        tasks = [
            asyncio.create_task(_drain_again(app, source))
            for source in ("documents", "documents", "frontapp")
        ]
        await asyncio.sleep(chance.uniform(3, 5))  # the fault lasts
        for task in tasks:
            task.cancel()
        ended = await asyncio.gather(*tasks, return_exceptions=True)
    for error in ended:
        assert isinstance(error, asyncio.CancelledError | ApexError), error


async def _change_shares(stack: FaultyStack, chance: random.Random) -> None:
    """Documents move between the two paths under load, up and down, and in the end all go through Temporal again."""
    shares = [chance.choice((0, 10, 50, 90, 100)) for _ in range(8)]
    for share in (*shares, 100):
        for source in ("documents", "frontapp"):
            response = await stack.http.put(
                f"/v1/rollouts/{source}", json={"share": share, "reason": "a fault"}
            )
            assert response.status_code == 200, response.text
        await asyncio.sleep(chance.uniform(0.2, 1))  # both paths work under this share


async def _drain_again(app: App, source: str) -> None:
    while True:
        await app.direct.drain(source)
        await asyncio.sleep(0.02)  # a worker's pause between two looks


def kinds(graph: str) -> Sequence[Fault]:
    """Every kind there is, with this graph."""
    engines = dict.fromkeys(("postgres", graph, "valkey", "vectors", "temporal"))
    return (
        Fault("kill -9 apex up", _kill_all),
        Fault("kill -9 worker and a store", _kill_two),
        *(kill(child) for child in ("worker", "gateway", *engines)),
        stop("worker", LEASE_SECONDS + 1, LEASE_SECONDS + 2.5),
        *(stop(child, 1.5, 4) for child in engines),
        *(lose_replies(store) for store in STORES),
        *(acknowledge_late(store) for store in STORES),
        *(die_after(step) for step in STEPS),
    )


def vendor_kinds() -> Sequence[Fault]:
    """Those that need a vendor which is pulled."""
    return (
        Fault(VENDOR_HANGS, _vendor_hangs),
        *(name_breaks(how, VENDOR_NAME) for how in ("fails", "hangs")),
    )


def name_kinds() -> Sequence[Fault]:
    """Those in which the worker cannot resolve the name of its stores."""
    return [name_breaks(how, STORES_NAME) for how in ("fails", "hangs")]


def disk_kinds(graph: str) -> Sequence[Fault]:
    """Those that need a volume of its own for each engine of the stack. A graph beside the stack has none."""
    return [fill_disk(name) for name in DISKS if name != "falkordb" or name == graph]


def long_kinds(graph: str) -> Sequence[Fault]:
    """Every kind, also those that take long to recover from. The gate's loop leaves these out."""
    return (
        *kinds(graph),
        *(hang(store) for store in STORES),
        *vendor_kinds(),
        *name_kinds(),
        *disk_kinds(graph),
        Fault("poison of every kind", _send_poison),
        Fault(CLOCK_JUMPS, _set_clock),
        Fault("two workers on one source", _two_workers),
        Fault("flag changed in mid-load", _change_shares),
    )


def kinds_of_many(graph: str, gateways: int, workers: int) -> Sequence[Fault]:
    """Each process killed, and workers stopped and killed at a step, where there are several gateways and workers."""
    several = [f"gateway-{n}" for n in range(2, gateways + 1)]
    several += [f"worker-{n}" for n in range(2, workers + 1)]
    left_out = ("stop ", "lose ", "late ", "kill -9 worker and")
    return (
        *(fault for fault in kinds(graph) if not fault.name.startswith(left_out)),
        *(kill(child) for child in ("bulk", *several)),
        stop(f"worker-{workers}", LEASE_SECONDS + 1, LEASE_SECONDS + 2.5),
        Fault("kill -9 all workers but one", _kill_workers),
        Fault("kill -9 a gateway and a worker", _kill_gateway_and_worker),
    )


async def _kill_workers(stack: FaultyStack, chance: random.Random) -> None:
    """All but one at the same moment: it takes over what they were at."""
    await _kill_at_once(stack, chance.sample(stack.workers, len(stack.workers) - 1))


async def _kill_gateway_and_worker(stack: FaultyStack, chance: random.Random) -> None:
    await _kill_at_once(stack, [chance.choice(stack.gateways), chance.choice(stack.workers)])


async def _kill_at_once(stack: FaultyStack, names: Sequence[str]) -> None:
    for name in names:
        if pid := stack.children()[name].pid:
            os.kill(pid, signal.SIGKILL)


def kinds_of_graph(graph: str) -> Sequence[Fault]:
    """Those that the choice of the graph makes a difference to."""
    names = (
        f"kill -9 {graph}",
        f"stop {graph}",
        "lose replies of graph",
        "late acknowledgements of graph",
        "worker dies after graph",
    )
    return [fault for fault in kinds(graph) if fault.name in names]


def schedule(seed: str, count: int, of: Sequence[Fault]) -> list[Fault]:
    """`count` faults: each kind once in an order of the seed's, then over again in another."""
    chance = random.Random(f"{seed}/schedule")
    planned: list[Fault] = []
    while len(planned) < count:
        planned += chance.sample(of, len(of))
    return planned[:count]
