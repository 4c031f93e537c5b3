"""A full disk of each engine: the product reports it, nothing acknowledged is lost, and all heals with the space."""

from __future__ import annotations

import asyncio
import os
import secrets
import signal
import sys
import time
import uuid
from collections.abc import AsyncIterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx2
import pytest
import pytest_asyncio

from apex_memory.config import EMBEDDED
from apex_memory.disk_space import RESERVE_SHARE, disk_space
from apex_memory.engines import supervisor
from apex_memory.engines.base import free_port
from apex_memory.engines.falkordb import FalkorDB, send_command
from apex_memory.engines.postgres_space import LOOK_SECONDS
from apex_memory.engines.state import read_stack, secret
from apex_memory.errors import NoWrites, Unavailable
from apex_memory.model import GraphAssertion
from apex_memory.stores.graph import open_graph
from tests.e2e.stack import Stack, data_folder
from tests.faults.volumes import filled, small_volume, small_volumes
from tests.waiting import until

pytestmark = [
    pytest.mark.skipif(sys.platform != "linux", reason="mounts file systems in memory"),
    pytest.mark.timeout(300),  # the first test starts the stack
]

# Megabytes of the volume of each folder; `.` is the data folder, with logs and the supervisor's state.
VOLUMES = {".": 20, "postgres": 260, "falkordb": 60, "vectors": 120, "valkey": 10, "temporal": 60}
START_SECONDS = 120
HEAL_SECONDS = 100  # a step waits up to 30 s before its next try
PARK_SECONDS = 60
FEW = 5  # documents sent while a disk is full
MANY = 400  # with `TEXT_BYTES` each more than `LEFT_BYTES` and what a checkpoint frees meanwhile
TEXT_BYTES = 200_000
ENOUGH_REFUSALS = 3
# Free on PostgreSQL's volume, so that some events land before they are refused: a tenth of it is kept.
LEFT_BYTES = VOLUMES["postgres"] * (1 << 20) // RESERVE_SHARE + 2_000_000


LEAST_BYTES = VOLUMES["postgres"] * (1 << 20) // RESERVE_SHARE // 4  # too little for processing


class SmallStack(Stack):
    """A stack whose own output goes to the data folder, as that of `apex up --detach` does."""

    @property
    def log(self) -> Path:
        return self.data_dir / "log" / "up.log"


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def stack() -> AsyncIterator[SmallStack]:
    async with data_folder() as folder:
        with small_volumes(folder, VOLUMES):
            (folder / "log").mkdir()
            stack = SmallStack(folder, GRAPH=EMBEDDED)
            try:
                await stack.start()
                await stack.whole(seconds=START_SECONDS)
                await stack.remember("before", "SHP-100045 waits at door 4.")
                yield stack
            finally:
                await stack.stop()


@dataclass(slots=True)
class Sent:
    """What became of the documents that were sent: ids of the events, and the refusals."""

    landed: list[str] = field(default_factory=list)
    refused: int = 0


async def send(stack: Stack, name: str, count: int, *, text_bytes: int = 100) -> Sent:
    """Send documents until some were refused. A refusal must be a 429 or a 503 that states when to come back."""
    sent = Sent()
    for n in range(count):
        if sent.refused == ENOUGH_REFUSALS:
            break
        text = f"SHP-100045 {name} {n}. {secrets.token_hex(text_bytes // 2)}"
        document = {"key": f"{name}{n}", "version": 1, "text": text}
        response = await stack.http.post("/v1/documents", json=document)
        if response.status_code == 202:
            sent.landed += [event["id"] for event in response.json()["events"]]
        else:
            assert response.status_code in (429, 503), response.text
            assert int(response.headers["retry-after"]) > 0
            sent.refused += 1
    return sent


async def check_doctor(stack: Stack, name: str, folder: Path) -> None:
    """`apex doctor` names the volume, its free space and the remedy, and fails."""
    result = await stack.command("doctor", "--json")
    findings = {finding["what"]: finding for finding in result.json}
    finding = findings[name]
    assert finding["state"] == "bad", result.out
    assert "MB free of" in finding["detail"] and str(folder) in finding["detail"]
    assert "free space" in finding["remedy"]
    assert result.code == 1


async def hits(stack: Stack) -> list[Any]:
    """Return the hits of a search; none while nothing responds."""
    body = {"query": "SHP-100045 door", "limit": 5}
    try:
        response = await stack.http.post("/v1/search", json=body)
    except httpx2.TransportError:
        return []
    return list(response.json()["hits"]) if response.is_success else []


async def lands(stack: Stack, name: str) -> bool:
    """Return whether a new document is accepted and can be found."""
    body = {"key": f"after {name}", "version": 1, "text": "SHP-100045 left."}
    try:
        response = await stack.http.post("/v1/documents?wait=searchable&timeout=5", json=body)
    except httpx2.TransportError:
        return False
    return bool(response.is_success and response.json()["searchable"])


async def check_healed(stack: Stack, name: str, sent: Sent) -> None:
    """With space again, everything becomes searchable without anybody's help, and nothing is a dead letter."""
    began = time.monotonic()
    await until(lambda: lands(stack, name), stack.log_tail, seconds=HEAL_SECONDS, every=0.5)
    await stack.ended(sent.landed, seconds=HEAL_SECONDS)
    states = await stack.states(sent.landed)
    assert set(states.values()) <= {"done"}, states
    await stack.whole(seconds=HEAL_SECONDS)
    took = time.monotonic() - began
    print(f"{name}: {len(sent.landed)} landed, {sent.refused} refused, healed after {took:.0f} s")


async def parked(stack: Stack, store: str) -> bool:
    """Return whether events wait for the store, and nothing else has become of them."""
    backlog = (await stack.get("/v1/status"))["backlog"]
    return any(row["park_store"] == store for row in backlog)


async def refusal_of_writes(stack: Stack, engine: str) -> str:
    """Return the value of the supervisor's metric on the engine: "1.0" while it refuses writes."""
    state = read_stack(stack.data_dir)
    assert state
    async with httpx2.AsyncClient() as http:
        text = (await http.get(state.metrics)).text
    return text.partition(f'apex_engine_refuses_writes{{engine="{engine}"}} ')[2].split("\n")[0]


async def refuses_writes(stack: Stack, engine: str) -> bool:
    return await refusal_of_writes(stack, engine) == "1.0"


async def accepts_writes(stack: Stack, engine: str) -> bool:
    return await refusal_of_writes(stack, engine) == "0.0"


def some_assertion() -> GraphAssertion:
    """An assertion of a stage of its own."""
    return GraphAssertion(
        id=uuid.uuid4(),
        stage=uuid.uuid4(),
        doc=uuid.uuid4(),
        predicate="mentions",
        subject="shipment:SHP-100045",
        object=None,
        value=None,
        start=0,
        hash=1,
    )


async def test_what_has_landed_waits_while_postgresql_has_no_room(stack: Stack) -> None:
    """Processing writes too: it ends before the disk is full, and goes on with the space."""
    restarts = stack.children()["postgres"].restarts
    with ExitStack() as full:
        with stack.held("worker"), stack.held("bulk"):
            sent = await send(stack, "room", FEW)
            full.enter_context(filled(stack.data_dir / "postgres", left=LEAST_BYTES))
            await asyncio.sleep(2 * LOOK_SECONDS)  # how long an earlier look at the disk counts
        await asyncio.sleep(5)  # in which they would be processed otherwise
        states = await stack.states(sent.landed)
        assert len(states) == FEW and "done" not in states.values(), states
        assert await hits(stack)
    await check_healed(stack, "room", sent)
    assert stack.children()["postgres"].restarts == restarts


@pytest.mark.parametrize(("folder", "store"), [("falkordb", "graph"), ("vectors", "vectors")])
async def test_a_full_disk_of_a_store_parks_events_while_reads_go_on(
    stack: Stack, folder: str, store: str
) -> None:
    restarts = stack.children()[folder].restarts
    with filled(stack.data_dir / folder):
        await check_doctor(stack, f"disk of {folder}", stack.data_dir / folder)
        sent = await send(stack, folder, FEW)
        assert len(sent.landed) == FEW
        await until(lambda: parked(stack, store), stack.log_tail, seconds=PARK_SECONDS)
        assert await hits(stack)
        await until(lambda: refuses_writes(stack, folder), seconds=PARK_SECONDS)
    await check_healed(stack, folder, sent)
    await until(lambda: accepts_writes(stack, folder), seconds=PARK_SECONDS)
    assert stack.children()[folder].restarts == restarts, "the engine met the full disk"


async def test_a_graph_that_meets_a_full_disk_is_started_again_and_then_refuses_writes(
    engine_data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The disk fills up between two checks of it: FalkorDB ends itself at the next write."""
    monkeypatch.setattr(supervisor, "DISK_SECONDS", 5.0)
    folder = engine_data / "met"
    events: list[tuple[str, str]] = []

    def report(name: str, what: str, detail: str) -> None:
        events.append((name, what))

    with small_volume(folder / "falkordb", VOLUMES["falkordb"]):
        async with supervisor.Supervisor(folder, report) as keeper:
            engine = FalkorDB(folder, free_port(), "password")
            await keeper.start(engine)
            graph = open_graph(engine.url, timeout=5)
            await graph.prepare()
            await graph.upsert([some_assertion()])
            with filled(folder / "falkordb"):
                with pytest.raises(Unavailable):
                    while True:
                        await graph.upsert([some_assertion()])
                await until(lambda: ("falkordb", "disk low") in events, seconds=PARK_SECONDS)
                assert ("falkordb", "restarted") in events
                with pytest.raises(NoWrites):
                    await graph.upsert([some_assertion()])
                assert await graph.known(["shipment:SHP-100045"])
            await until(lambda: ("falkordb", "disk free") in events, seconds=PARK_SECONDS)
            await graph.upsert([some_assertion()])
            await graph.close()


async def test_a_full_disk_of_the_cache_changes_nothing(stack: Stack) -> None:
    with filled(stack.data_dir / "valkey"):
        sent = await send(stack, "valkey", FEW)
        assert len(sent.landed) == FEW
        await stack.ended(sent.landed, seconds=PARK_SECONDS)
        await check_doctor(stack, "disk of valkey", stack.data_dir / "valkey")
        assert await hits(stack)
    await check_healed(stack, "valkey", sent)


async def test_a_full_disk_of_temporal_lets_events_land_and_wait(stack: Stack) -> None:
    log = stack.data_dir / "log" / "temporal.log"
    start = log.stat().st_size
    with filled(stack.data_dir / "temporal"):
        sent = await send(stack, "temporal", FEW)
        assert len(sent.landed) == FEW
        await until(lambda: b"disk is full" in log.read_bytes()[start:], seconds=PARK_SECONDS)
        await check_doctor(stack, "disk of temporal", stack.data_dir / "temporal")
        assert await hits(stack)
    await check_healed(stack, "temporal", sent)


async def test_a_full_data_folder_loses_lines_of_logs_and_nothing_else(stack: Stack) -> None:
    """Logs, the supervisor's state and its output have no space, and an engine that dies is started again."""
    cache = stack.children()["valkey"]
    with filled(stack.data_dir):
        sent = await send(stack, "data", FEW)
        assert len(sent.landed) == FEW
        await stack.ended(sent.landed, seconds=PARK_SECONDS)
        os.kill(cache.pid, signal.SIGKILL)
        await send_command(cache.port, secret(stack.data_dir, "cache"), "PING")
        assert stack.children()["valkey"] == cache, "the state was recorded: the disk was not full"
        await check_doctor(stack, "disk", stack.data_dir)
        assert await hits(stack)
    await check_healed(stack, "data", sent)
    await until(lambda: stack.children()["valkey"].restarts == cache.restarts + 1)


async def test_events_are_refused_before_the_disk_of_postgresql_is_full(stack: Stack) -> None:
    """What landed is kept, and PostgreSQL never meets a full disk: searches go on."""
    restarts = stack.children()["postgres"].restarts
    with filled(stack.data_dir / "postgres", left=LEFT_BYTES):
        sent = await send(stack, "postgres", MANY, text_bytes=TEXT_BYTES)
        assert sent.landed and sent.refused, "the disk was full from the start, or never"
        await check_doctor(stack, "disk of postgres", stack.data_dir / "postgres")
        assert await hits(stack)
        assert disk_space(stack.data_dir / "postgres").free > 0
    await check_healed(stack, "postgres", sent)
    assert stack.children()["postgres"].restarts == restarts
