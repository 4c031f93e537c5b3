"""The whole stack at a tenth of the machine: it starts, takes events, survives kills in mid-load, and ends its work.

Every process of the stack runs a tenth of each second and is stopped for the rest, as if the machine were ten times slower.
"""

from __future__ import annotations

import os
import signal
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.e2e.stack import Stack, belonging, data_folder
from tests.waiting import seconds_until

SHARE, PERIOD_SECONDS = 0.1, 1.0
EVENTS = 40  # before, between and after the kills
START_SECONDS = 900
LONGEST_SECONDS = 1800  # a limit of this run, not of the stack
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


@dataclass(slots=True)
class Slowed:
    """What came of it, in seconds."""

    start: float = 0
    worker_back: float = 0
    start_after_kill: float = 0
    ended: float = 0
    states: dict[str, int] = field(default_factory=dict)
    doctor: list[str] = field(default_factory=list)
    """What `apex doctor` noted while everything was slow."""
    wrong: list[str] = field(default_factory=list)


async def slow(say: Callable[[str], None]) -> Slowed:
    """Start, land, kill the worker, land, kill the whole stack, start, land; wait for every event, all at a tenth."""
    result, ids = Slowed(), list[str]()
    async with data_folder() as folder:
        stack = Stack(folder, **ORDINARY)
        try:
            with slowed_to(SHARE, folder):
                result.start = await stack.start(seconds=START_SECONDS)
                say(f"up after {result.start:.0f} s")
                ids += await landed(stack, "before")
                result.worker_back = await worker_back(stack)
                say(f"the killed worker is back after {result.worker_back:.0f} s")
                ids += await landed(stack, "between")
                await stack.kill(seconds=60)
                result.start_after_kill = await stack.start(seconds=START_SECONDS)
                say(f"up again after {result.start_after_kill:.0f} s")
                ids += await landed(stack, "after")
                result.doctor = await noted(stack)
                result.ended = await stack.ended(ids, seconds=LONGEST_SECONDS)
                say(f"{len(ids)} events ended after {result.ended:.0f} s")
            await stack.whole(seconds=120)
            result.states = dict(Counter((await stack.states(ids)).values()))
        finally:
            await stack.stop()
    result.wrong = what_is_wrong(result, len(ids))
    return result


def what_is_wrong(result: Slowed, events: int) -> list[str]:
    """Return what must not be, in words."""
    wrong = []
    if result.states != {"done": events}:
        wrong.append(f"of {events} events there are {result.states}")
    if not any(line.startswith("machine: slow") for line in result.doctor):
        wrong.append(f"doctor does not say that the machine is slow: {result.doctor}")
    return wrong


async def landed(stack: Stack, when: str) -> list[str]:
    """Land documents without waiting for them; their ids."""
    ids = []
    for n in range(EVENTS):
        event = await stack.remember(f"{when}-{n}", f"Shipment SHP-{n:06} was {when}", wait=False)
        ids.append(event["id"])
    return ids


async def worker_back(stack: Stack) -> float:
    """Kill the worker in the midst of its work; the seconds until it runs again."""
    former = stack.children()["worker"].pid
    os.kill(former, signal.SIGKILL)

    def is_back() -> bool:
        child = stack.children()["worker"]
        return child.ready and child.pid not in (0, former)

    return await seconds_until(is_back, seconds=START_SECONDS, what=stack.log_tail)


async def noted(stack: Stack) -> list[str]:
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


@contextmanager
def slowed_to(share: float, data_dir: Path) -> Iterator[None]:
    """Let every process of a data folder run for this share of each second, also those that start meanwhile."""
    over = threading.Event()
    thread = threading.Thread(target=_alternate, args=(share, data_dir, over))
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
        _signal(belonging(data_dir), signal.SIGCONT)


def _alternate(share: float, data_dir: Path, over: threading.Event) -> None:
    while not over.is_set():
        pids = belonging(data_dir)
        _signal(pids, signal.SIGSTOP)
        over.wait((1 - share) * PERIOD_SECONDS)
        _signal(pids, signal.SIGCONT)
        over.wait(
            share * PERIOD_SECONDS
        )  # the fault itself: of each period they run for this share


def _signal(pids: list[int], number: signal.Signals) -> None:
    for pid in pids:
        with suppress(ProcessLookupError):
            os.kill(pid, number)
