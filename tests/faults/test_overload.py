"""Too much at once, too much that is broken, and no room left: it is said, it is bounded, and it passes."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import secrets
import statistics
import subprocess
import sys
import time
import uuid
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from urllib.parse import urlsplit

import pytest
import pytest_asyncio

from apex_memory.app import open_app
from apex_memory.config import Settings
from apex_memory.errors import Unavailable
from apex_memory.stores.embedded import free_port
from apex_memory.stores.embedded.postgres import PostgreSQL
from apex_memory.stores.embedded.process import Process, child_of
from apex_memory.stores.postgres import migrate
from tests.conftest import PASSWORD
from tests.e2e import front
from tests.e2e.conftest import live, state, text_event
from tests.e2e.stack import Stack, running_stack
from tests.faults.story import document, poison

pytestmark = [
    pytest.mark.skipif(sys.platform != "linux", reason="reads /proc"),
    pytest.mark.timeout(300),
]

HANDS_SUSTAINABLE, HANDS_OVERLOAD = 6, 700  # the first is what the gateway lands at once
OVERLOAD_SECONDS = 8.0
PERIOD_SECONDS = 4.0
MEMORY_MB = 200  # more than that for 700 requests under way is a leak
STORM = 1_000
LITTLE = 3_000_000  # bytes


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def stack() -> AsyncIterator[Stack]:
    async with running_stack() as stack:
        yield stack


class Client:
    """One connection that sends a request at a time: a hundred times cheaper than a real client."""

    def __init__(self, stack: Stack) -> None:
        parts = urlsplit(stack.children()["gateway"].url)
        self._address = (parts.hostname, parts.port)
        self._head = (
            f"POST /v1/documents HTTP/1.1\r\nHost: {parts.netloc}\r\n"
            f"Authorization: Bearer {stack.key}\r\nContent-Type: application/json\r\n"
        )

    async def send(self, until: float) -> tuple[Counter[int], list[str], int]:
        """Send until then; answers by status, ids of events landed, refusals without Retry-After."""
        statuses: Counter[int] = Counter()
        ids: list[str] = []
        unsaid = 0
        reader, writer = await asyncio.open_connection(*self._address)
        try:
            while time.monotonic() < until:
                key = uuid.uuid4().hex
                body = json.dumps({"key": key, "text": f"Overload {key}.", "version": 1})
                writer.write(f"{self._head}Content-Length: {len(body)}\r\n\r\n{body}".encode())
                head = (await reader.readuntil(b"\r\n\r\n")).decode().lower()
                length = re.search(r"content-length: (\d+)", head)
                assert length
                answer = await reader.readexactly(int(length[1]))
                status = int(head.split()[1])
                statuses[status] += 1
                if status == 202:
                    ids.append(json.loads(answer)["events"][0]["id"])
                else:
                    unsaid += "retry-after: " not in head
                    await asyncio.sleep(0.1)  # ten times sooner than it was asked
        finally:
            writer.close()
        return statuses, ids, unsaid


async def pressed(stack: Stack, hands: int, seconds: float) -> tuple[Counter[int], list[str], int]:
    until = time.monotonic() + seconds
    answers = await asyncio.gather(*(Client(stack).send(until) for _ in range(hands)))
    statuses: Counter[int] = Counter()
    for counted, _, _ in answers:
        statuses += counted
    return statuses, [id for _, ids, _ in answers for id in ids], sum(a[2] for a in answers)


@asynccontextmanager
async def watched(pid: int) -> AsyncIterator[list[float]]:
    """Resident megabytes of a process, five times a second."""
    samples: list[float] = []

    async def watch() -> None:
        while True:
            told = Path(f"/proc/{pid}/status").read_text()
            resident = re.search(r"VmRSS:\s+(\d+)", told)
            assert resident
            samples.append(int(resident[1]) / 1024)
            await asyncio.sleep(0.2)

    task = asyncio.create_task(watch())
    try:
        yield samples
    finally:
        task.cancel()


@asynccontextmanager
async def slowed(stack: Stack, child: str, share: float) -> AsyncIterator[None]:
    """A child that gets this share of the time, in one piece of each period: it falls behind, as a disk that stalls does."""

    async def alternate() -> None:
        while True:
            with stack.held(child):
                await asyncio.sleep(PERIOD_SECONDS * (1 - share))
            await asyncio.sleep(PERIOD_SECONDS * share)

    task = asyncio.create_task(alternate())
    try:
        yield
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def test_overload_is_refused_with_a_time_to_come_back_and_then_caught_up(
    stack: Stack,
) -> None:
    calm, ids, _ = await pressed(stack, HANDS_SUSTAINABLE, 2.0)
    assert set(calm) == {202}, "not overloaded, and refused"
    rate = calm[202] / 2.0
    gateway = stack.children()["gateway"].pid
    async with watched(gateway) as megabytes, slowed(stack, "postgres", 0.1):
        statuses, more, unsaid = await pressed(stack, HANDS_OVERLOAD, OVERLOAD_SECONDS)
    print(f"sustains {rate:.0f}/s; at a tenth of that, {HANDS_OVERLOAD} clients get {statuses}")
    print(f"gateway: {min(megabytes):.0f} to {max(megabytes):.0f} MB")
    assert set(statuses) <= {202, 429, 503} and statuses[429] + statuses[503] > 0
    assert unsaid == 0, "refused without Retry-After"
    assert max(megabytes) - megabytes[0] < MEMORY_MB
    took = await stack.ended([*ids, *more], seconds=120)
    states = Counter((await stack.states([*ids, *more])).values())
    print(f"{len(more)} accepted under overload are searchable {took:.1f} s after it")
    assert set(states) == {"done"}


async def test_a_storm_of_poison_holds_up_its_neighbours_no_more_than_good_events_would(
    stack: Stack,
) -> None:
    """How long messages of another source wait while a thousand files come in: sound ones, then broken ones."""
    # A storm that is over before it could hold anyone up tells nothing: then a larger one.
    tries = []
    for round in range(3):
        size = STORM * (round + 1)
        quiet = await latencies(stack, 16)
        good = [document(uuid.uuid4().hex, 1).body for _ in range(size)]
        broken = [poison(10**9 * (round + 1) + n, 1).body for n in range(size)]
        beside_good, blew = await during(stack, good, "done")
        beside_broken, blew_too = await during(stack, broken, "dead")
        tries.append([round_ms(one) for one in (quiet, beside_good, beside_broken)])
        if blew and blew_too:
            assert beside_broken < max(quiet, beside_good) * 4 / 3, tries
            break
    else:
        pytest.fail(f"every storm was over too soon to tell: {tries}")
    print(f"median ms quiet, beside good events, beside poison: {tries}")


def round_ms(seconds: float) -> int:
    return round(seconds * 1000)


async def during(stack: Stack, posts: list[bytes], end: str) -> tuple[float, bool]:
    """The median wait of messages while these documents land and are carried to their end, and whether that lasted as long."""
    storm = asyncio.create_task(stormed(stack, posts))
    await asyncio.sleep(0.3)
    median = await latencies(stack, 16)
    still = not storm.done() or bool((await stack.get("/v1/status"))["backlog"])
    ids = await storm
    await stack.ended(ids, seconds=120)
    assert set((await stack.states(ids)).values()) == {end}
    return median, still


async def stormed(stack: Stack, posts: list[bytes]) -> list[str]:
    ids: list[str] = []
    headers = {"content-type": "application/json"}

    async def hand(some: list[bytes]) -> None:
        for body in some:
            answer = await stack.post("/v1/documents", content=body, headers=headers)
            ids.append(answer["events"][0]["id"])

    await asyncio.gather(*(hand(posts[n::4]) for n in range(4)))
    return ids


async def latencies(stack: Stack, count: int) -> float:
    """Median seconds from a webhook to its message being searchable, one after the other."""
    took = []
    for _ in range(count):
        name = uuid.uuid4().hex[:12]
        began = time.monotonic()
        body = front.message(f"msg_{name}", f"cnv_{name}", at=0, text=f"About {name}.")
        answer = await stack.hook(body, path="/hooks/frontapp?wait=searchable&timeout=30")
        assert answer.status_code == 200, answer.text
        took.append(time.monotonic() - began)
    return statistics.median(took)


@contextmanager
def small_disk(folder: Path, megabytes: int) -> Iterator[None]:
    """A file system of that size, in memory; skips the test where mounting is not allowed."""
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", f"size={megabytes}m,mode=711", "tmpfs", str(folder)]
    if os.geteuid() or subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("needs the right to mount: PostgreSQL on a full disk was not tested")
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


async def test_a_full_disk_is_said_and_nothing_acknowledged_is_lost(
    engine_data: Path, falkordb_url: str, valkey_url: str, own_vectors_url: str, tmp_path: Path
) -> None:
    folder = engine_data / "small"
    with small_disk(folder, 220):
        engine = PostgreSQL(folder, free_port(), PASSWORD)
        engine.prepare()
        process = Process(child_of(engine), tmp_path / "postgres.log")
        try:
            await process.until_ready()
            await migrate(engine.url)
            settings = Settings(
                documents=engine.url,
                graph=falkordb_url.rpartition("/")[0] + f"/t{uuid.uuid4().hex[:8]}",
                vectors=own_vectors_url,
                cache=valkey_url,
                embedder="hashing",
                data_dir=tmp_path,
                call_timeout_seconds=3,
            )
            async with open_app(settings) as app:
                await app.recovery.gate()
                [before] = await app.land([text_event(app, "before", "SHP-100045.", version=1)])
                await app.drain("documents")
                ballast = folder / "ballast"
                filled(ballast)
                kept = []
                with pytest.raises(Unavailable) as refused:
                    for n in range(400):
                        event = text_event(app, f"k{n}", secrets.token_hex(100_000), version=1)
                        kept += await app.land([event])
                print(f"{len(kept)} landed, then: {refused.value}")
                assert kept, "full from the start: this proves little"
                ballast.unlink()
                if process._popen.poll() is not None:  # it ends itself when its log cannot grow
                    process = Process(child_of(engine), tmp_path / "postgres.log")
                    await process.until_ready()
                for _ in range(50):
                    with contextlib.suppress(Unavailable):
                        [after] = await app.land([text_event(app, "after", "Door 4.", version=1)])
                        break
                    await asyncio.sleep(0.1)
                assert [await state(app, item) for item in kept] == ["received"] * len(kept)
                assert await state(app, before) == "done" and await live(app, "before")
                await app.db.execute(
                    "DELETE FROM inbox WHERE id = ANY(%s)", ([item.id for item in kept],)
                )
                await app.drain("documents")
                assert await state(app, after) == "done"
                stages = await app.db.fetch("SELECT stage_id FROM stages")
                await app.vectors.delete_stages([row["stage_id"] for row in stages])
        finally:
            await process.kill()


def filled(ballast: Path) -> None:
    """Write until there is no more room, then leave a little."""
    with contextlib.suppress(OSError), ballast.open("wb", buffering=0) as file:
        while True:
            file.write(bytes(1 << 20))
    os.truncate(ballast, ballast.stat().st_size - LITTLE)
