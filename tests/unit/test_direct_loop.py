"""The direct loop: the most urgent first, within bounds, woken by notices, and following the fallback."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import cast

import pytest

from apex_memory.errors import Unavailable
from apex_memory.inbox import Inbox, WorkflowRun
from apex_memory.inbox.notices import listen
from apex_memory.steps import direct_loop
from apex_memory.steps.batches import BatchSteps
from apex_memory.steps.direct import DirectPath
from apex_memory.steps.direct_loop import DRAINS, DirectLoop
from apex_memory.steps.stalled import StalledDrains
from apex_memory.stores.postgres import Postgres
from tests.waiting import until

NOWHERE = "postgresql://apex:pw@127.0.0.1:1/apex"  # no server: notices are not received
P0, P1, P2 = ("calls", "mail"), ("bank",), ("books", "market", "tenders")
SOURCES = dict.fromkeys(P0, 0) | dict.fromkeys(P1, 1) | dict.fromkeys(P2, 2)


class NoInbox:
    """An inbox in which nothing is ready unless it is listed."""

    def __init__(self) -> None:
        self.ready: list[str] = []
        self.stalls: dict[str, float] = {}
        self.asked_for_everything: list[bool] = []

    async def ready_for_direct(self, sources: Sequence[str], *, everything: bool) -> list[str]:
        self.asked_for_everything.append(everything)
        return self.ready

    async def stalled(self, *, seconds: float) -> dict[str, float]:
        return {source: wait for source, wait in self.stalls.items() if wait > seconds}


class Endless(DirectPath):
    """Each source has batches for ever, until its drain is paused. Batches are counted."""

    def __init__(self) -> None:
        super().__init__(cast(BatchSteps, None))
        self.batches: Counter[str] = Counter()
        self.running: set[str] = set()
        self.most = 0
        self.everything: list[bool] = []
        self.fails: set[str] = set()
        self.short: set[str] = set()
        """Sources with a single batch."""

    async def drain(
        self,
        source: str,
        *,
        everything: bool = True,
        run: WorkflowRun | None = None,
        pause: Callable[[], bool] = bool,
    ) -> int:
        self.running.add(source)
        self.most = max(self.most, len(self.running))
        self.everything.append(everything)
        try:
            if source in self.fails:
                self.batches[source] += 1
                raise Unavailable("documents", "away")
            while not pause():
                self.batches[source] += 1
                await asyncio.sleep(0.002)
                if source in self.short:
                    break
        finally:
            self.running.discard(source)
        return 1


@asynccontextmanager
async def running(
    path: DirectPath, inbox: NoInbox | Inbox, url: str = NOWHERE, *, watches_stalls: bool = True
) -> AsyncIterator[DirectLoop]:
    inbox = cast(Inbox, inbox)
    loop = DirectLoop(
        path,
        inbox,
        SOURCES,
        documents=url,
        stalled=StalledDrains(path, inbox, SOURCES),
        watches_stalls=watches_stalls,
    )
    stop = asyncio.Event()
    task = asyncio.create_task(loop.run(stop))
    try:
        yield loop
    finally:
        stop.set()
        await asyncio.wait_for(task, 10)


async def test_p0_begins_at_once_while_every_other_drain_goes_on_for_ever() -> None:
    path = Endless()
    path.short = set(P0)
    async with running(path, NoInbox()) as loop:
        for number, sources in ((2, P2), (1, P1)):
            for source in sources:
                loop.wake(source)
            room = DRAINS[number]
            await until(lambda room=room: len(path.running) == room, "as many as there is room for")  # type: ignore[misc]
        loop.wake("calls")
        await until(lambda: path.batches["calls"], "P0 is drained", seconds=1)
    assert path.most <= DRAINS[0]
    assert not path.running, "a stop ends every drain after its batch"


async def test_less_urgent_drains_pause_when_more_urgent_ones_have_no_room(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(direct_loop, "DRAINS", (1, 1, 1))
    path = Endless()
    path.short = {*P0, *P1}
    async with running(path, NoInbox()) as loop:
        loop.wake("books")
        await until(lambda: path.batches["books"] > 3, "the drain of a long backlog")
        for source in (*P0, *P1):
            loop.wake(source)
        await until(
            lambda: all(path.batches[source] for source in (*P0, *P1)), "the others had their turn"
        )
        before = path.batches["books"]
        await until(lambda: path.batches["books"] > before, "and the long backlog goes on")
    assert path.most == 1


async def test_equals_do_not_interrupt_one_another(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(direct_loop, "DRAINS", (2, 2, 2))
    path = Endless()
    async with running(path, NoInbox()) as loop:
        for source in P2:
            loop.wake(source)
        await until(lambda: len(path.running) == 2, "two are drained")
        first = set(path.running)
        await until(lambda: all(path.batches[source] > 10 for source in first), "they go on")
        assert path.running == first


async def test_the_fallback_begins_and_ends_with_the_next_batch() -> None:
    path, inbox = Endless(), NoInbox()
    async with running(path, inbox) as loop:
        loop.wake("books")
        await until(lambda: path.everything == [False], "its share")
        loop.everything = True
        await until(lambda: path.everything == [False, True], "everything", seconds=1)
        loop.everything = False
        await until(lambda: path.everything == [False, True, False], "its share again", seconds=1)


async def test_a_drain_that_fails_is_tried_again_and_holds_nobody_up(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(direct_loop, "RETRY_SECONDS", 0.05)
    path = Endless()
    path.fails, path.short = {"mail"}, {"calls"}
    async with running(path, NoInbox()) as loop:
        loop.wake("mail")
        await until(lambda: path.batches["mail"] >= 3, "tried again")
        loop.wake("calls")
        await until(lambda: path.batches["calls"], "another source is drained")


@pytest.mark.parametrize("watches_stalls", [True, False])
async def test_a_process_that_starts_takes_stalled_sources_after_seconds(
    watches_stalls: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It may follow one that was killed; later it waits a minute, and only one process looks."""
    monkeypatch.setattr(direct_loop, "CLOSE_CHECK_SECONDS", 0.01)
    monkeypatch.setattr(direct_loop, "CHECK_SECONDS", 0.01)
    inbox = NoInbox()
    inbox.stalls = {"mail": direct_loop.CLOSE_STALLED_SECONDS + 1}
    path = Endless()
    path.short = set(SOURCES)
    async with running(path, inbox, watches_stalls=watches_stalls) as loop:
        loop.watch_closely()
        await until(lambda: path.batches["mail"], "the stalled source is drained")
        monkeypatch.setattr(loop, "_close_until", float("-inf"))
        await asyncio.sleep(0.1)  # the check under way, which is still a close one, ends
        inbox.stalls = {"calls": direct_loop.CLOSE_STALLED_SECONDS + 1}
        await asyncio.sleep(0.2)  # twenty checks
        assert not path.batches["calls"], "it is not closely watched any more"


async def test_what_is_ready_is_found_without_any_notice() -> None:
    path, inbox = Endless(), NoInbox()
    path.short = set(SOURCES)
    inbox.ready = ["bank"]
    async with running(path, inbox):
        await until(lambda: path.batches["bank"] >= 2, "polled, again and again", seconds=3)
    assert set(path.batches) == {"bank"}


async def test_a_source_of_another_process_is_not_drained() -> None:
    path, inbox = Endless(), NoInbox()
    inbox.ready = ["elsewhere"]
    async with running(path, inbox) as loop:
        loop.wake("elsewhere")
        await until(lambda: len(inbox.asked_for_everything) >= 2, "polled twice")
    assert not path.batches


async def test_a_notice_wakes_the_loop_sooner_than_its_poll(
    database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(direct_loop, "POLL_SECONDS", 3_600)
    db = Postgres(database_url)
    await db.open()
    path = Endless()
    path.short = set(SOURCES)
    try:
        inbox = Inbox(db)
        async with running(path, NoInbox(), database_url):

            async def noticed() -> bool:
                await inbox.notify(["mail", "elsewhere"])
                return path.batches["mail"] > 0

            await until(noticed, "the loop listens")
            loop_time = asyncio.get_running_loop().time
            before, began = path.batches["mail"], loop_time()
            await inbox.notify(["mail"])
            await until(lambda: path.batches["mail"] > before, "woken", every=0.001)
            assert loop_time() - began < 1
        assert set(path.batches) == {"mail"}
    finally:
        await db.close()


async def test_listening_without_a_server_is_an_outage_of_postgresql() -> None:
    with pytest.raises(Unavailable):
        await anext(listen(NOWHERE))
