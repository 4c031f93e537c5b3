"""The whole stack at a tenth of the machine, in three parts that can be chosen.

`load` starts a stack, sends events, kills the worker and then the whole stack in mid-load, and starts it again. `demo`
runs `apex demo`. `day` plays a day of all nine vendors, who are as fast as ever, and compares memory with what happened.

Each part has to end with nothing lost. While it runs, the sources are watched for drains that stall, and `apex doctor`
has to name the machine as what is slow.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
from collections import Counter
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from time import monotonic
from typing import Any

import httpx2

from apex_memory.config import Settings
from apex_memory.errors import ApexError
from apex_memory.simulate.day import DayPlayback, end_of, yesterday
from apex_memory.simulate.delivery import Delivery
from apex_memory.simulate.registry import simulator_classes
from apex_memory.simulate.server import SimulatorServer, serve_simulators
from apex_memory.simulate.vendor import Chaos, Simulator
from apex_memory.simulate.world import Clock, World
from apex_memory.stores.postgres import Postgres
from tests.e2e.simulated import differences, documents_of
from tests.e2e.stack import Stack, data_folder
from tests.faults.slowing import slowed_to
from tests.waiting import seconds_until, until

SHARE = 0.1
EVENTS = 40  # before, between and after the kills
START_SECONDS = 900
LONGEST_SECONDS = 3600  # a limit of this run for one part, not of the stack
WATCH_SECONDS = 5.0  # between two looks at the sources
STALL_SECONDS = 300.0
"""Longest time in which nobody works on ready events: after a minute a worker takes them over, at a tenth of its speed."""
DAY_SECONDS = 300.0  # in which a whole day of the vendors goes by
SHIPMENTS = 6
POLL_SECONDS = 5
TICK_SECONDS = 0.25  # between two looks at what the vendors have to send
ORDINARY = {
    "LEASE_SECONDS": "60",
    "SWEEP_SECONDS": "5",
    "BREAKER_OPEN_SECONDS": "60",
    "RETRY_SECONDS": "1",
    "RETRY_ATTEMPTS": "4",
    "CALL_TIMEOUT_SECONDS": "20",
    "SNAPSHOT_SECONDS": "20",
    "GRACE_SECONDS": "60",
}
"""The defaults in the place of the short times that other tests set."""
DEMO_LINES = (
    "all done",
    "Temporal processes all documents after",
    "rolled back by itself",
    "nothing is lost",
    "All stopped.",
)
"""What the demo prints when each of its steps went as it should."""

Say = Callable[[str], None]


@dataclass(slots=True)
class Part:
    """What came of one part."""

    offered: float = 0
    """The share of the processors' time that the processes were offered."""
    seconds: dict[str, float] = field(default_factory=dict)
    """How long its steps took, in their order."""
    counts: dict[str, int] = field(default_factory=dict)
    """Events by state, or documents by source."""
    looks: int = 0
    """How many states of sources were seen."""
    stalled: dict[str, float] = field(default_factory=dict)
    """The longest time (s) in which nobody worked on the ready events of a source; sources that never stalled are left out."""
    doctor: list[str] = field(default_factory=list)
    """What `apex doctor` did not find good while everything was slow."""
    wrong: list[str] = field(default_factory=list)
    """What must not be, in words."""


async def load(part: Part, say: Say) -> None:
    """Start, send, kill the worker, send, kill the whole stack, start, send; wait for every event."""
    ids = list[str]()
    async with data_folder() as folder:
        stack = Stack(folder, **ORDINARY)
        try:
            with slowed_to(SHARE, folder) as slowing:
                async with watched(stack, part):
                    part.seconds["start"] = await stack.start(seconds=START_SECONDS)
                    say(f"up after {part.seconds['start']:.0f} s")
                    ids += await sent(stack, "before")
                    part.seconds["worker back"] = await worker_back(stack)
                    say(f"the killed worker is back after {part.seconds['worker back']:.0f} s")
                    ids += await sent(stack, "between")
                    await stack.kill(seconds=60)
                    part.seconds["start after kill"] = await stack.start(seconds=START_SECONDS)
                    say(f"up again after {part.seconds['start after kill']:.0f} s")
                    ids += await sent(stack, "after")
                    part.doctor = await diagnosis(stack)
                    part.seconds["ended"] = await stack.ended(ids, seconds=LONGEST_SECONDS)
                    say(f"{len(ids)} events ended after {part.seconds['ended']:.0f} s")
            part.offered = slowing.offered
            await stack.whole(seconds=120)
            part.counts = dict(Counter((await stack.states(ids)).values()))
        finally:
            await stack.stop()
    if part.counts != {"done": len(ids)}:
        part.wrong.append(f"of {len(ids)} events there are {part.counts}")


class Demo(Stack):
    """`apex demo` with its own settings, and the stack that it starts."""

    arguments = ("demo",)

    def __init__(self, data_dir: Path) -> None:
        super().__init__(data_dir)
        self._given = {"APEX_DATA_DIR": str(data_dir), "APEX_PORT": "0"}

    async def finished(self) -> int:
        """Wait for its end; return the exit code."""
        assert self._up
        await until(
            lambda: self._up and self._up.poll() is not None,
            seconds=LONGEST_SECONDS,
            every=0.5,
            what=self.log_tail,
        )
        return self._up.returncode


async def demo(part: Part, say: Say) -> None:
    """Run `apex demo` to its end."""
    async with data_folder() as folder:
        stack = Demo(folder.with_name(".apex-demo"))
        try:
            began = monotonic()
            with slowed_to(SHARE, stack.data_dir) as slowing:
                async with watched(stack, part):
                    part.seconds["start"] = await stack.start(seconds=START_SECONDS)
                    say(f"up after {part.seconds['start']:.0f} s")
                    part.doctor = await diagnosis(stack)
                    code = await stack.finished()
            part.seconds["ended"] = monotonic() - began
            part.offered = slowing.offered
        finally:
            await stack.stop()
        output = stack.log.read_text(encoding="utf-8")
    words = " ".join(output.split())
    say(f"ended with exit code {code} after {part.seconds['ended']:.0f} s")
    if known := re.search(r"(\d+) documents of \d+ sources", words):
        part.counts = {"documents": int(known[1])}
    part.wrong += [f"the demo never says {line!r}" for line in DEMO_LINES if line not in words]
    if code:
        part.wrong.append(f"the demo ended with exit code {code}")
    if part.wrong:
        say(output)


async def day(part: Part, say: Say) -> None:
    """Play a day of all vendors, as fast as ever; wait until memory holds what happened."""
    world = World.make(shipments=SHIPMENTS, start=yesterday())
    clock = Clock(world.start)
    simulators = [kind(world, clock, Chaos()) for kind in simulator_classes()]
    async with serve_simulators(simulators) as served, data_folder() as folder:
        stack = Stack(folder, **ORDINARY, **settings_of(served))
        try:
            with slowed_to(SHARE, folder) as slowing:
                async with watched(stack, part):
                    part.seconds["start"] = await stack.start(seconds=START_SECONDS)
                    say(f"up after {part.seconds['start']:.0f} s")
                    refused, diagnosed = await asyncio.gather(
                        played(stack, simulators), diagnosis(stack)
                    )
                    part.wrong += [f"not accepted: {line}" for line in refused]
                    part.doctor = diagnosed
                    say(f"the day is over, {sum(map(len, truths(simulators)))} documents expected")
                    async with stack.database() as db:
                        part.seconds["ended"] = await in_memory(stack, db, simulators)
                    say(f"memory holds the day after {part.seconds['ended']:.0f} s more")
            part.offered = slowing.offered
            await stack.whole(seconds=120)
            async with stack.database() as db:
                part.wrong += await amiss(stack, db, simulators)
                for simulator in simulators:
                    held = await documents_of(db, simulator.name)
                    part.counts[simulator.name] = len(held)
        finally:
            await stack.stop()


def settings_of(served: SimulatorServer) -> dict[str, str]:
    """Return the settings of a stack whose sources are these simulators, with the default embedder."""
    tables = served.settings()
    for name in tables.keys() - {"llm"}:
        tables[name].setdefault("poll_seconds", POLL_SECONDS)
    return {
        "EMBEDDER": Settings.model_fields["embedder"].default,
        "SOURCES": json.dumps(tables, default=str),
        "SOURCES__FRONTAPP__SIGNING_KEYS": json.dumps(tables["frontapp"]["signing_keys"]),
    }


async def played(stack: Stack, simulators: Sequence[Simulator]) -> list[str]:
    """Send what the vendors send in a day, which then stands still at its end; return what was not accepted."""
    clock, end = simulators[0].clock, end_of(simulators[0].world)
    async with httpx2.AsyncClient(timeout=120) as http:
        delivery = Delivery(stack.children()["gateway"].url, stack.key, http)
        playback = DayPlayback(simulators, delivery, clock)
        clock.run((end - clock.now).total_seconds() / DAY_SECONDS)
        while clock.now < end:
            await playback.send_due()
            await asyncio.sleep(TICK_SECONDS)  # the pace of the vendors
        clock.run(0)
        await playback.send_due()
        await delivery.flush()
    return delivery.refused


def truths(simulators: Sequence[Simulator]) -> list[Sequence[Any]]:
    return [simulator.truth(simulator.clock.now) for simulator in simulators]


async def in_memory(stack: Stack, db: Postgres, simulators: Sequence[Simulator]) -> float:
    """Wait until memory holds what happened, and nothing waits; return the seconds that took."""
    left = ["nothing was compared"]

    async def holds_all() -> bool:
        nonlocal left
        try:
            left = await amiss(stack, db, simulators)
        except ApexError as error:  # PostgreSQL is slow, too
            left = [str(error)]
        return not left

    return await seconds_until(
        holds_all, seconds=LONGEST_SECONDS, every=WATCH_SECONDS, what=lambda: "; ".join(left[:20])
    )


async def amiss(stack: Stack, db: Postgres, simulators: Sequence[Simulator]) -> list[str]:
    """Return what memory lacks or has too much of, and what still waits, by source."""
    lines = list[str]()
    for simulator in simulators:
        held = await documents_of(db, simulator.name)
        found = differences(held, simulator.truth(simulator.clock.now))
        lines += [f"{simulator.name}: {line}" for line in found]
    rows = await sources(stack)
    if not rows:
        lines.append("the gateway does not list the sources")
    for row in rows:
        waiting = {
            name: row[name]
            for name in ("backlog", "change_hints", "files", "dead_letters", "error")
            if row[name]
        }
        if waiting:
            lines.append(f"{row['name']}: {waiting}")
    return lines


PARTS: Mapping[str, Callable[[Part, Say], Coroutine[Any, Any, None]]] = {
    "load": load,
    "demo": demo,
    "day": day,
}


async def slow(chosen: Sequence[str], say: Say) -> dict[str, Part]:
    """Run these parts one after the other, each to its end or its failure; return what came of each."""
    parts = dict[str, Part]()
    task = asyncio.current_task()
    assert task
    for number in (
        signal.SIGINT,
        signal.SIGTERM,
    ):  # what a part has started ends, whatever ends the run
        asyncio.get_running_loop().add_signal_handler(number, task.cancel)
    for name in chosen:
        part = parts[name] = Part()
        say(f"{name}:")
        try:
            await PARTS[name](part, say)
        except AssertionError as error:
            part.wrong.append(str(error))
        part.offered = round(part.offered, 3)
        part.seconds = {step: round(seconds, 1) for step, seconds in part.seconds.items()}
        part.wrong += what_is_wrong(part)
    return parts


def what_is_wrong(part: Part) -> list[str]:
    """Return what must not be in any part, in words."""
    wrong = []
    if "ended" not in part.seconds:
        wrong.append("it did not end")
    if not part.looks:
        wrong.append("the sources were never seen")
    wrong += [
        f"nobody worked on the events of {name} for {seconds:.0f} s"
        for name, seconds in part.stalled.items()
        if seconds > STALL_SECONDS
    ]
    if not any(line.startswith("machine: slow") for line in part.doctor):
        wrong.append(f"doctor does not say that the machine is slow: {part.doctor}")
    return wrong


async def sent(stack: Stack, when: str) -> list[str]:
    """Land documents without waiting for them; return the ids of their events."""
    ids = []
    for n in range(EVENTS):
        event = await stack.remember(f"{when}-{n}", f"Shipment SHP-{n:06} was {when}", wait=False)
        ids.append(event["id"])
    return ids


async def worker_back(stack: Stack) -> float:
    """Kill the worker in the midst of its work; return the seconds until it runs again."""
    former = stack.children()["worker"].pid
    os.kill(former, signal.SIGKILL)

    def is_back() -> bool:
        child = stack.children()["worker"]
        return child.ready and child.pid not in (0, former)

    return await seconds_until(is_back, seconds=START_SECONDS, what=stack.log_tail)


@asynccontextmanager
async def watched(stack: Stack, part: Part) -> AsyncIterator[None]:
    """Note, until the end of the block, how long nobody worked on the ready events of a source."""

    async def watch() -> None:
        while True:
            for row in await sources(stack):
                part.looks += 1
                if row["stalled"]:
                    longest = max(row["stalled"], part.stalled.get(row["name"], 0))
                    part.stalled[row["name"]] = round(longest, 1)
            await asyncio.sleep(WATCH_SECONDS)  # the rhythm of the watch

    task = asyncio.create_task(watch())
    try:
        yield
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task


async def sources(stack: Stack) -> list[dict[str, Any]]:
    """Return the rows of `/v1/sources`; none while the gateway is away, or too slow to respond."""
    gateway = stack.children().get("gateway")
    if gateway is None or not gateway.ready:
        return []
    try:
        async with stack.client(stack.key) as http:
            response = await http.get("/v1/sources")
    except httpx2.TransportError:
        return []
    rows: list[dict[str, Any]] = response.json()["sources"] if response.is_success else []
    return rows


async def diagnosis(stack: Stack) -> list[str]:
    """Return the findings of `apex doctor` once it reports a slow machine, which takes some seconds to measure."""
    lines: list[str] = []

    async def says_slow() -> bool:
        nonlocal lines
        report = await stack.command("doctor", "--json", seconds=300)
        findings: list[dict[str, Any]] = report.json
        lines = [f"{row['what']}: {row['detail']}" for row in findings if row["state"] != "good"]
        return any(line.startswith("machine: slow") for line in lines)

    with suppress(AssertionError):  # `what_is_wrong` reports it with all lines
        await seconds_until(says_slow, seconds=60)
    return lines
