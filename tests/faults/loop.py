"""One run: the stack works, faults strike, everything heals, and then the stores are compared with what was acknowledged."""

from __future__ import annotations

import asyncio
import random
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx2

from apex_memory.app import open_app
from apex_memory.config import Settings
from apex_memory.engines.base import Engine
from apex_memory.engines.edge import Edge
from apex_memory.engines.falkordb import FalkorDB
from apex_memory.engines.postgres import PostgreSQL
from apex_memory.engines.state import secret
from apex_memory.engines.valkey import Valkey
from tests.e2e.stack import Stack, data_folder
from tests.faults.checks import Findings, examine, settle
from tests.faults.controls import Controlled, controls
from tests.faults.kinds import (
    CLOCK_JUMPS,
    DEFAULT_GRAPH,
    DISK_FULL,
    DISKS,
    GRAPHS,
    LEASE_SECONDS,
    Fault,
    FaultyStack,
    kinds,
    schedule,
    vendor_kinds,
)
from tests.faults.readers import Readers
from tests.faults.story import Story, document
from tests.faults.volumes import small_volumes
from tests.faults.writers import Writers

DIMENSION = 256  # the hashing embedder's
SETTINGS = {
    "LEASE_SECONDS": str(LEASE_SECONDS),
    "GRACE_SECONDS": "6",
    "SNAPSHOT_SECONDS": "2.5",
    "COLLECT_SECONDS": "1",
    "CHUNK_CHARS": "200",
    "BATCH_MAX": "32",
}
HEAL_SECONDS = 120
JSON = {"content-type": "application/json"}
Say = Callable[[str], None]


@dataclass(slots=True)
class Result:
    """What a run found and measured. `violations` is empty when the promise was kept and the checkers can see."""

    seed: str
    graph: str
    gateways: int = 1
    workers: int = 1
    faults: Counter[str] = field(default_factory=Counter)
    recovery: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    """Seconds from the end of a fault until something written after it could be found, by kind."""
    accepted: int = 0
    duplicates: int = 0
    sent_again: int = 0
    reads: Counter[str] = field(default_factory=Counter)
    partial_reads: list[str] = field(default_factory=list)
    unexpected: list[str] = field(default_factory=list)
    findings: Findings = field(default_factory=Findings)
    settled_seconds: float = 0
    seconds: float = 0
    controls: Controlled | None = None

    @property
    def violations(self) -> list[str]:
        blind = self.controls.blind if self.controls else ["the controls were not run"]
        read = [f"read: {what}" for what in self.partial_reads]
        return [*blind, *read, *self.unexpected, *self.findings.all()]


@asynccontextmanager
async def faulty_stack(
    *,
    graph: str = DEFAULT_GRAPH,
    settable_clock: bool = False,
    vendor: bool = True,
    gateways: int = 1,
    workers: int = 1,
    disks: bool = False,
    **settings: str,
) -> AsyncIterator[FaultyStack]:
    """A stack to strike at, in folders of its own, with `SETTINGS` and these. Not started yet; stopped at the end.

    With `disks` each engine's folder is a small volume, which takes the right to mount.
    """
    with tempfile.TemporaryDirectory(prefix="apex-faults-") as orders:
        async with data_folder() as folder:
            volumes = small_volumes(folder, DISKS if disks else {})
            stack = FaultyStack(
                folder,
                Path(orders),
                graph=graph,
                settable_clock=settable_clock,
                vendor=vendor,
                gateways=gateways,
                workers=workers,
                **SETTINGS | settings,
            )
            with volumes:
                async with stack.surrounded():
                    try:
                        yield stack
                    finally:
                        await stack.stop()


async def run(
    seed: str,
    count: int,
    *,
    graph: str = DEFAULT_GRAPH,
    gateways: int = 1,
    workers: int = 1,
    of: Sequence[Fault] = (),
    say: Say = print,
    seconds: float | None = None,
) -> Result:
    """`count` faults, or as many as begin within `seconds` after the stack is up. The seed alone plans.

    `of` are the faults to draw from: every kind, if not given.
    """
    began, result = time.monotonic(), Result(seed, graph, gateways, workers)
    planned = schedule(seed, count, of or kinds(graph))
    clock = any(fault.name == CLOCK_JUMPS for fault in planned)
    vendor = {fault.name for fault in vendor_kinds()} & {fault.name for fault in planned}
    async with faulty_stack(
        graph=graph,
        settable_clock=clock,
        disks=any(fault.name.startswith(DISK_FULL) for fault in planned),
        vendor=bool(vendor),
        gateways=gateways,
        workers=workers,
    ) as stack:
        try:
            say(f"seed {seed}: stack up after {await stack.start():.1f} s")
            deadline = None if seconds is None else time.monotonic() + seconds
            await _strike(stack, planned, result, say, deadline)
            await _judge(stack, result, say)
        except BaseException:  # also when interrupted: what the stack did last explains it
            say(stack.log_tail())
            raise
    result.seconds = time.monotonic() - began
    return result


async def _strike(
    stack: FaultyStack, planned: list[Fault], result: Result, say: Say, deadline: float | None
) -> None:
    story, chance = Story(result.seed), random.Random(f"{result.seed}/faults")
    writers, readers, reported = (
        Writers(stack, story),
        Readers(stack, story.keys, seed=result.seed),
        0,
    )
    async with asyncio.TaskGroup() as group:
        group.create_task(writers.run())
        group.create_task(readers.run())
        try:
            for n, fault in enumerate(planned, 1):
                if deadline and time.monotonic() > deadline:
                    break
                await asyncio.sleep(chance.uniform(0.3, 1.5))  # the plan's pause between two faults
                await fault.strike(stack, chance)
                took = await works_again(stack, n)
                result.faults[fault.name] += 1
                result.recovery[fault.name].append(took)
                ledger = writers.ledger
                for what in readers.wrong[reported:]:
                    say(f"      WRONG: {what}")
                reported = len(readers.wrong)
                say(
                    f"{n:4d}/{len(planned)}  {fault.name:32s} found again after {took:5.1f} s   "
                    f"{len(ledger.acknowledged)} acknowledged, {readers.requests.total()} reads, {len(readers.wrong)} wrong"
                )
        finally:
            writers.close()
            await asyncio.sleep(0)  # one turn of the loop, in which the writers see it
            readers.close()
    result.accepted = len(writers.ledger.acknowledged)
    result.duplicates, result.sent_again = writers.ledger.duplicates, writers.ledger.sent_again
    result.reads, result.partial_reads = readers.requests, readers.wrong
    result.unexpected = writers.ledger.unexpected
    result.findings = Findings()
    stack.acknowledged = {**stack.poisoned, **writers.ledger.acknowledged}


async def works_again(stack: Stack, n: int) -> float:
    """Write something new until it is acknowledged and can be found; the seconds that took."""
    began = time.monotonic()
    body = document(f"probe{n}", 1).body
    while time.monotonic() - began < HEAL_SECONDS:
        try:
            path = "/v1/documents?wait=searchable&timeout=20"
            answer = await stack.http.post(path, content=body, headers=JSON)
            if answer.is_success and answer.json()["searchable"]:
                return time.monotonic() - began
        except httpx2.TransportError:
            pass
        await asyncio.sleep(0.1)  # a bounded poll, which measures
    raise AssertionError(
        f"nothing can be written {HEAL_SECONDS} s after the fault. {stack.log_tail()}"
    )


async def _judge(stack: FaultyStack, result: Result, say: Say) -> None:
    try:
        await stack.whole(seconds=HEAL_SECONDS)
    except AssertionError:  # what is not at its end is found below, by name
        say(f"not whole after {HEAL_SECONDS} s: {(await stack.get('/v1/status'))['backlog']}")
    async with open_app(settings_of(stack)) as app:
        result.settled_seconds = await settle(app, seconds=HEAL_SECONDS)
        result.findings = await examine(app, stack.acknowledged, stack.vendor_deletions())
        say(f"settled after {result.settled_seconds:.1f} s: {result.findings.ends}")
        result.controls = await controls(app, stack.folder)
        for line in result.controls.caught:
            say(f"control: {line}")


def settings_of(stack: FaultyStack) -> Settings:
    """How a process beside the stack reaches its engines."""
    folder, children = stack.data_dir, stack.children()
    engines: list[Engine] = [
        PostgreSQL(folder, children["postgres"].port, secret(folder, "documents")),
        Valkey(folder, children["valkey"].port, secret(folder, "cache")),
        Edge(folder, children["vectors"].port, secret(folder, "vectors"), DIMENSION),
    ]
    if stack.graph == "falkordb":
        engines.append(FalkorDB(folder, children["falkordb"].port, secret(folder, "graph")))
    urls: dict[str, Any] = {"graph": stack.graph_url or GRAPHS[stack.graph]}
    urls |= {engine.role: engine.url for engine in engines}
    return Settings(data_dir=folder, embedder="hashing", chunk_chars=200, **urls)
