"""The whole stack as users run it: `apex up`, signed webhooks over HTTP, kill -9, restarts."""

from __future__ import annotations

import asyncio
import json
import os
import random
import signal
import sys
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from uuid import UUID

from apex_memory.config import Settings
from apex_memory.inbox import Inbox
from apex_memory.stores.postgres import Postgres
from bench.corpus import Corpus
from bench.cpu import rss_mb, spent, usage
from bench.engines import GRAPH
from bench.rows import Row, at_most, percentile, scaled, stated
from tests.e2e import front
from tests.e2e.stack import SETTINGS, Stack, belonging, data_folder
from tests.waiting import seconds_until, until

RATE, RATE_SECONDS = 200, 15
SINGLE = 40
FULL = 200_000
DRAINED = 3_000
IN_FLIGHT = 1_500
PORTION = 20_000  # documents landed and processed at a time, so that progress shows
CATCH_UP_SECONDS = 600
DEFAULT_EMBEDDER: str = Settings.model_fields["embedder"].default
TESTS_OWN = {"PORT", "EMBEDDER", "SOURCES__FRONTAPP__SIGNING_KEYS"}


class Standing(Stack):
    """A stack with the default settings, where the stack of the tests has short intervals."""

    def set(self, **settings: str) -> None:
        defaults = {
            name: str(Settings.model_fields[name.lower()].default)
            for name in SETTINGS.keys() - TESTS_OWN
        }
        known = {name: value for name, value in settings.items() if name not in defaults}
        super().set(**{"GRAPH": GRAPH} | defaults | known)

    @asynccontextmanager
    async def inbox(self) -> AsyncIterator[tuple[Inbox, Postgres]]:
        """The inbox of the stack, for more events than HTTP lands in reasonable time."""
        async with self.database() as db:
            yield Inbox(db), db

    async def lands(self) -> float:
        """Return the seconds from now until the gateway is ready."""
        return await seconds_until(
            lambda: "gateway" in (seen := self.children()) and seen["gateway"].ready,
            seconds=CATCH_UP_SECONDS,
            what=self.log_tail,
        )

    async def kill_all(self) -> None:
        """Send SIGKILL to every process of the stack at once."""
        for pid in belonging(self.data_dir):
            os.kill(pid, signal.SIGKILL)
        assert self._up
        self._up.wait()
        await until(lambda: not belonging(self.data_dir), seconds=10)

    def cpu(self) -> float:
        """Return the CPU seconds of all processes since `apex up` was called."""
        assert self._up
        return usage({"up": self._up.pid})["up"].total

    def pids(self) -> dict[str, int]:
        return {name: child.pid for name, child in self.children().items()}


@asynccontextmanager
async def standing(embedder: str, **settings: str) -> AsyncIterator[tuple[Standing, float]]:
    """Run a stack in an empty folder; yield it and the seconds of its start."""
    async with data_folder() as folder:
        stack = Standing(folder, EMBEDDER=embedder, **settings)
        try:
            yield stack, await stack.start()
        finally:
            await stack.stop()


async def hooks() -> list[Row]:
    """Measure a cold start, single webhooks until searchable, and webhooks at 200/s, with the default model."""
    async with standing(DEFAULT_EMBEDDER) as (stack, cold):
        worked = stack.cpu()
        await stack.whole(seconds=60)
        single = await one_after_another(stack)
        pids = {**stack.pids(), "client": os.getpid()}
        before = usage(pids)
        answers = await at_a_rate(stack)
        used = spent(before, usage(pids))
    slow = percentile(answers, 0.99)
    parts = ", ".join(f"{n} {1000 * u.total / len(answers):.2f}" for n, u in used.items())
    return [
        at_most(
            "cold start of `apex up`",
            cold,
            "s",
            10,
            f"an empty folder until gateway and worker are ready; clusters are made, the default model is loaded; {worked:.1f} CPU s of all processes",
        ),
        at_most(
            "webhook → searchable, idle, p50",
            1000 * percentile(single, 0.5),
            "ms",
            150,
            f"{len(single)} signed Front webhooks with irregular pauses, from before the POST until the event is done (PostgreSQL is asked every 5 ms), by Temporal, default model; the last was searched for and found",
        ),
        at_most(
            "webhook → searchable, idle, p99",
            1000 * percentile(single, 0.99),
            "ms",
            500,
            f"the same {len(single)}; slowest {1000 * max(single):.0f} ms",
        ),
        at_most(
            "webhook answer p99 at 200/s",
            1000 * slow,
            "ms",
            20,
            f"open loop: {len(answers)} signed webhooks from another process on the same machine, each timed from when it was due, while the worker embeds them with the default model; p50 {1000 * percentile(answers, 0.5):.1f} ms; CPU ms a webhook: {parts}",
        ),
    ]


async def one_after_another(
    stack: Standing, name: str = "one", pauses: tuple[float, float] = (0.2, 0.9)
) -> list[float]:
    """Return the seconds from POST to done of single webhooks, with irregular pauses between them."""
    dice, taken = random.Random(1), []
    async with stack.inbox() as (inbox, _):
        for n in range(SINGLE + 3):
            body = front.message(f"{name}{n}", f"cnv_{name}{n}", at=n, text=f"On time? {name}{n}")
            began = time.perf_counter()
            answer = await stack.hook(body)
            assert answer.status_code == 202, answer.text
            id = UUID(answer.json()["events"][0]["id"])

            async def done(id: UUID = id) -> bool:
                return bool(await inbox.finished([id]))

            await until(done, seconds=60, every=0.005, what=stack.log_tail)
            if n >= 3:  # the first ones warm the stack
                taken.append(time.perf_counter() - began)
            assert (await stack.states([str(id)])) == {str(id): "done"}
            await asyncio.sleep(dice.uniform(*pauses))  # makes the stack idle
    results = await stack.search(f"{name}{SINGLE + 2}")
    assert f"{name}{SINGLE + 2}" in results["hits"][0]["snippet"], "done, but not found"
    return taken


async def at_a_rate(stack: Standing) -> list[float]:
    """Return response times in seconds of an open loop that another process drives."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "bench.shooter", stack.children()["gateway"].url),
        *(str(RATE), str(RATE_SECONDS)),
        stdout=asyncio.subprocess.PIPE,
    )
    out, _ = await process.communicate()
    answers: list[float] = json.loads(out)
    assert len(answers) == RATE * RATE_SECONDS
    return answers


async def load() -> list[Row]:
    """Measure CPU under load, memory, a restart, and recovery after kill -9 of everything in mid-load."""
    count, corpus = scaled(FULL), Corpus()
    async with standing("hashing") as (stack, _):
        await stack.whole(seconds=60)
        await bulk(stack, corpus, 0, 500)
        before, began = usage(stack.pids()), time.perf_counter()
        await bulk(stack, corpus, 500, DRAINED)
        used, seconds = spent(before, usage(stack.pids())), time.perf_counter() - began
        few = max(500 + DRAINED, count // 10)
        await bulk(stack, corpus, 500 + DRAINED, few - 500 - DRAINED)
        first = {name: rss_mb(pid) for name, pid in stack.pids().items()}
        for start in range(few, count, PORTION):
            await bulk(stack, corpus, start, min(PORTION, count - start))
            print(f"load: {min(start + PORTION, count):,} of {count:,} documents", file=sys.stderr)
        last = {name: rss_mb(pid) for name, pid in stack.pids().items()}
        await stack.stop()
        landing, restart = await asyncio.gather(stack.lands(), stack.start())
        worked = stack.cpu()
        recovery, lost = await kill_and_recover(stack, corpus, count)
    temporal = 1000 * used["temporal"].total / DRAINED
    everything = ", ".join(f"{n} {1000 * u.total / DRAINED:.2f}" for n, u in used.items())
    return [
        at_most(
            "Temporal CPU an event, under load",
            temporal,
            "ms",
            1,
            f"CPU of the server's process over {DRAINED} events drained in {seconds:.1f} s by the stack, its idle work included; all, in ms an event: {everything}",
        ),
        *(
            at_most(
                f"memory of the {name} after N documents / after N/10",
                last[name] / first[name],
                "×",
                1.25,
                f"N = {count:,}; private memory {last[name]:.0f} MB, {first[name]:.0f} MB after {few:,}; 5 chunks a document, embedder `hashing`",
            )
            for name in ("gateway", "worker")
        ),
        at_most(
            "restart with N documents",
            restart,
            "s",
            20,
            f"N = {count:,}; stopped in order, until gateway and worker are ready again; {worked:.1f} CPU s of all processes",
        ),
        stated(
            "restart with N documents, until the gateway lands events",
            landing,
            "s",
            f"N = {count:,}; the same start: it does not wait for the graph and the vectors",
        ),
        at_most(
            "recovery after kill -9 of everything in mid-load, to the next commit",
            recovery,
            "s",
            15,
            f"from the kill, with `apex up` called again at once, {IN_FLIGHT} events under way, {count:,} documents stored; {lost} of them did not end as done",
        ),
    ]


async def bulk(stack: Standing, corpus: Corpus, first: int, count: int) -> None:
    """Land directly into the inbox, post one document to wake the drain, and wait until all are done."""
    async with stack.inbox() as (inbox, db):
        for page in corpus.events(first, count, name="s"):
            await inbox.land(page)
        await stack.remember(f"wake-{first}", "wake", wait=False)

        async def over() -> bool:
            row = await db.fetch_one(
                "SELECT count(*) AS n FROM inbox WHERE open OR state = 'parked'"
            )
            return row is not None and row["n"] == 0

        await until(over, seconds=CATCH_UP_SECONDS, every=0.1, what=stack.log_tail)


async def kill_and_recover(stack: Standing, corpus: Corpus, first: int) -> tuple[float, int]:
    """Return the seconds from the kill to the next commit, and the number of events that did not become done."""
    events = [event for page in corpus.events(first, IN_FLIGHT, name="s") for event in page]
    ids = [event.id for event in events]
    async with stack.inbox() as (inbox, db):
        await inbox.land(events)
        await stack.remember("wake-kill", "wake", wait=False)

        async def under_way() -> bool:
            return await _done(db, ids) >= IN_FLIGHT // 5

        await until(under_way, seconds=60, every=0.02, what=stack.log_tail)
        before = await _done(db, ids)
    assert before < IN_FLIGHT, "all events were done before the kill"
    killed = time.perf_counter()
    await stack.kill_all()
    await stack.start()
    async with stack.inbox() as (_, db):

        async def committed() -> bool:
            row = await db.fetch_one(
                "SELECT count(*) AS n FROM stages WHERE state = 'committed' AND committed_at > pg_postmaster_start_time()"
            )
            return row is not None and row["n"] > 0 and await _done(db, ids) > before

        await until(committed, seconds=120, every=0.02, what=stack.log_tail)
        seconds = time.perf_counter() - killed

        async def over() -> bool:
            return await _done(db, ids) == IN_FLIGHT

        with suppress(AssertionError):  # the row states how many are missing
            await until(over, seconds=180, every=0.2)
        return seconds, IN_FLIGHT - await _done(db, ids)


async def _done(db: Postgres, ids: Sequence[UUID]) -> int:
    row = await db.fetch_one(
        "SELECT count(*) AS n FROM inbox WHERE id = ANY(%s) AND state = 'done'", (list(ids),)
    )
    return row["n"] if row else 0
