"""Ten times more than can be taken: which responses clients get, what it costs the processes, and how long catching up takes."""

from __future__ import annotations

import asyncio
import json
import re
import time
import uuid
from collections import Counter
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Self
from urllib.parse import urlsplit

from tests.e2e.stack import Stack
from tests.waiting import seconds_until

HANDS_CALM, HANDS_OVERLOAD = 6, 700  # the first is what the gateway lands at once
ROOM = {"MAX_CONNECTIONS": "1600", "MAX_CONNECTIONS_PER_PEER": "1600"}
"""Settings of the stack: all hands come from one address, and its limit is not what is tested here."""
CALM_SECONDS = 2.0
TIMES = 10
# PostgreSQL gets a share of its time, in one piece of each period. A commit carries hundreds of
# requests, so that many short pieces would do for all that one machine can send.
SHARE, PERIOD_SECONDS = 0.03, 8.0
AGAIN_SECONDS = 0.1  # a tenth of the time that Retry-After states
CATCH_UP_SECONDS = 120
MEMORY_MB = 200  # more than that for 700 requests under way is a leak
WATCHED = ("gateway", "worker")


@dataclass(slots=True)
class Overloaded:
    """What came of it. Rates are requests a second, memory is megabytes over what it was before."""

    seconds: float
    calm: float
    """Landed when nothing is slow and nobody is in excess."""
    taken: float = 0
    """Landed under overload: as much as could be sustained."""
    offered: float = 0
    statuses: dict[int, int] = field(default_factory=dict)
    unsaid: int = 0
    """Refusals without Retry-After."""
    memory: dict[str, float] = field(default_factory=dict)
    caught_up_seconds: float = 0
    states: dict[str, int] = field(default_factory=dict)

    def wrong(self, *, times: float = TIMES) -> list[str]:
        """What must not be, in words. `times` of what was taken must have been offered."""
        refused = sum(self.statuses.get(status, 0) for status in (429, 503))
        findings = {
            f"offered {self.offered:.0f}/s, less than {times} times {self.taken:.0f}/s: no overload": self.offered
            < times * self.taken,
            f"answers {self.statuses}": not set(self.statuses) <= {202, 429, 503} or not refused,
            f"{self.unsaid} refusals without Retry-After": self.unsaid > 0,
            f"memory grew by {self.memory} MB": max(self.memory.values()) > MEMORY_MB,
            f"what was accepted became {self.states}": set(self.states) != {"done"},
        }
        return [what for what, holds in findings.items() if holds]

    def report(self) -> dict[str, Any]:
        return asdict(self) | {"wrong": self.wrong()}


async def overload(stack: Stack, seconds: float) -> Overloaded:
    """Offer more than ten times what can be taken with a PostgreSQL that gets but a share of its time."""
    calm, ids, _ = await pressed(stack, HANDS_CALM, CALM_SECONDS)
    assert set(calm) == {202}, f"not overloaded, and refused: {calm}"
    result = Overloaded(seconds, calm[202] / CALM_SECONDS)
    async with grown(stack) as result.memory, slowed(stack, "postgres", SHARE):
        statuses, more, result.unsaid = await pressed(stack, HANDS_OVERLOAD, seconds)
    result.statuses, result.offered = dict(statuses), statuses.total() / seconds
    result.taken = statuses[202] / seconds
    ids += more
    back = await seconds_until(
        lambda: _is_ready(stack), seconds=CATCH_UP_SECONDS, what=stack.log_tail
    )
    result.caught_up_seconds = back + await stack.ended(ids, seconds=CATCH_UP_SECONDS)
    result.states = dict(Counter((await stack.states(ids)).values()))
    return result


async def _is_ready(stack: Stack) -> bool:
    return bool((await stack.http.get("/readyz")).is_success)


class Client:
    """One connection that sends a request at a time: a hundred times cheaper than a real client."""

    def __init__(self, stack: Stack) -> None:
        self._stack = stack
        self._address = urlsplit(stack.children()["gateway"].url)

    async def __aenter__(self) -> Self:
        self._reader, self._writer = await asyncio.open_connection(
            self._address.hostname, self._address.port
        )
        return self

    async def __aexit__(self, *raised: object) -> None:
        self._writer.close()

    async def post(self, body: bytes, *, hook: bool = False) -> tuple[int, str, bytes]:
        """Status, head in lower case, and body of the answer to a document, or to a webhook of Front's."""
        headers = {
            "Host": self._address.netloc,
            "Authorization": f"Bearer {self._stack.key}",
            "Content-Type": "application/json",
            "Content-Length": str(len(body)),
        } | (self._stack.signed(body) if hook else {})
        lines = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
        path = "/hooks/frontapp" if hook else "/v1/documents"
        self._writer.write(f"POST {path} HTTP/1.1\r\n{lines}\r\n".encode() + body)
        head = (await self._reader.readuntil(b"\r\n\r\n")).decode().lower()
        length = re.search(r"content-length: (\d+)", head)
        assert length
        return int(head.split()[1]), head, await self._reader.readexactly(int(length[1]))

    async def send(self, until: float) -> tuple[Counter[int], list[str], int]:
        """Send until then; return responses by status, ids of landed events, refusals without Retry-After."""
        statuses: Counter[int] = Counter()
        ids: list[str] = []
        unsaid = 0
        while time.monotonic() < until:
            key = uuid.uuid4().hex
            body = {"key": key, "text": f"Overload {key}.", "version": 1}
            status, head, answer = await self.post(json.dumps(body).encode())
            statuses[status] += 1
            if status == 202:
                ids += ids_of(answer)
            else:
                unsaid += "retry-after: " not in head
                await asyncio.sleep(AGAIN_SECONDS)  # a client's pause before its next request
        return statuses, ids, unsaid


def ids_of(answer: bytes) -> list[str]:
    return [event["id"] for event in json.loads(answer)["events"]]


async def pressed(stack: Stack, hands: int, seconds: float) -> tuple[Counter[int], list[str], int]:
    """Let all hands send for `seconds`; return the sums of what `Client.send` returns."""
    until = time.monotonic() + seconds

    async def hand() -> tuple[Counter[int], list[str], int]:
        async with Client(stack) as client:
            return await client.send(until)

    answers = await asyncio.gather(*(hand() for _ in range(hands)))
    statuses: Counter[int] = Counter()
    for counted, _, _ in answers:
        statuses += counted
    return statuses, [id for _, ids, _ in answers for id in ids], sum(a[2] for a in answers)


@asynccontextmanager
async def grown(stack: Stack) -> AsyncIterator[dict[str, float]]:
    """Most megabytes that each process had more than at first, by name; watched five times a second."""
    first = _resident(stack.children())
    most = dict.fromkeys(WATCHED, 0.0)

    async def watch() -> None:
        while True:
            for name, megabytes in _resident(stack.children()).items():
                most[name] = round(max(most[name], megabytes - first[name]), 1)
            await asyncio.sleep(0.2)  # the interval between two samples

    task = asyncio.create_task(watch())
    try:
        yield most
    finally:
        task.cancel()


def _resident(children: Mapping[str, Any]) -> dict[str, float]:
    texts = {
        name: Path(f"/proc/{children[name].pid}/status").read_text()
        for name in WATCHED
        if children[name].pid
    }
    resident = {name: re.search(r"VmRSS:\s+(\d+)", text) for name, text in texts.items()}
    return {name: int(match[1]) / 1024 for name, match in resident.items() if match}


@asynccontextmanager
async def slowed(stack: Stack, child: str, share: float) -> AsyncIterator[None]:
    """A child that gets this share of the time, in one piece of each period: it falls behind, as a disk that stalls does."""

    async def alternate() -> None:
        while True:
            with stack.held(child):
                await asyncio.sleep(PERIOD_SECONDS * (1 - share))  # the fault itself: it is stopped
            await asyncio.sleep(PERIOD_SECONDS * share)  # and runs for the rest of the period

    task = asyncio.create_task(alternate())
    try:
        yield
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
