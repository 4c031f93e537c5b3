"""Tasks end when they are ended, whatever library loses a cancellation; a loop that fails is seen, and begins again."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any, cast

import pytest
import uvicorn
from fastapi import FastAPI
from structlog.testing import capture_logs

from apex_memory import tasks
from apex_memory.config import Settings
from apex_memory.errors import ApexError
from apex_memory.fetching.fetcher import Fetcher
from apex_memory.flows import __main__ as worker
from apex_memory.flows.fallback import Fallback
from apex_memory.flows.worker import serve
from apex_memory.gateway import __main__ as gateway_process
from apex_memory.gateway.__main__ import _Server
from apex_memory.sealing import Keyring
from apex_memory.steps.rhythm import Rhythm
from apex_memory.tasks import FAILURES, Background, BackgroundFailed, end_tasks, run_together
from tests.unit.test_front_poll import front
from tests.waiting import until


@pytest.fixture(autouse=True)
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tasks, "AGAIN_SECONDS", 0.05)
    monkeypatch.setattr(tasks, "PAUSE_SECONDS", 0.001)
    monkeypatch.setattr(tasks, "LONGEST_PAUSE_SECONDS", 0.002)


class LossyLibrary:
    """Loses the first `lost` cancellations, as `asyncio.wait_for` does up to Python 3.11 at the moment of success."""

    def __init__(self, lost: int = 1) -> None:
        self.calls = 0
        self._lost = lost

    async def call(self) -> None:
        self.calls += 1
        try:
            await asyncio.sleep(0.01)
        except asyncio.CancelledError:
            self._lost -= 1
            if self._lost < 0:
                raise

    async def for_ever(self) -> None:
        while True:
            await self.call()


async def ended(task: asyncio.Task[None], *, seconds: float = 5) -> bool:
    return bool((await asyncio.wait([task], timeout=seconds))[0])


@pytest.mark.parametrize("lost", [0, 1, 3])
async def test_a_task_that_loses_cancellations_ends(lost: int) -> None:
    library = LossyLibrary(lost)
    task = asyncio.create_task(library.for_ever())
    await until(lambda: library.calls)
    async with asyncio.timeout(5):
        await end_tasks([task])
    assert task.cancelled()


async def test_whoever_ends_tasks_and_is_cancelled_meanwhile_leaves_none_behind() -> None:
    library = LossyLibrary(4)
    task = asyncio.create_task(library.for_ever())
    await until(lambda: library.calls)
    ending = asyncio.create_task(end_tasks([task]))
    await asyncio.sleep(0)
    ending.cancel()
    assert await ended(ending) and ending.cancelled() and task.cancelled()


async def test_loops_that_run_together_end_together() -> None:
    library = LossyLibrary(2)
    together = asyncio.create_task(run_together(library.for_ever(), asyncio.sleep(3600)))
    await until(lambda: library.calls)
    async with asyncio.timeout(5):
        await end_tasks([together])
    calls = library.calls
    await asyncio.sleep(0.05)  # what must not happen has no other sign
    assert library.calls == calls


async def test_the_failure_of_one_loop_ends_the_others_and_is_raised() -> None:
    library = LossyLibrary()

    async def fail() -> None:
        await until(lambda: library.calls)
        raise LookupError("x")

    with pytest.raises(LookupError):
        await run_together(library.for_ever(), fail())
    assert not [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]


async def test_the_rhythm_of_the_fallback_ends_though_its_pull_loses_the_cancellation() -> None:
    library = LossyLibrary()

    async def true(*_: object) -> bool:
        return True

    async def due(*_: object) -> dict[str, bool]:
        return {"due": True}

    async def pull(source: str, **_: object) -> None:
        await library.call()

    async def idle() -> None:
        await asyncio.sleep(3600)

    async def execute(*_: object) -> int:
        return 1

    states = SimpleNamespace(may_pull=true)
    source = front()
    rhythm = Rhythm(
        cast(Any, SimpleNamespace(fetch_one=due)),
        cast(Fetcher, SimpleNamespace(states=states, pull=pull)),
        cast(Any, SimpleNamespace(sweep=idle, collect=idle)),
        {source.name: source},
        Settings(),
        wake=lambda _: None,
    )
    app = SimpleNamespace(db=SimpleNamespace(execute=execute), settings=Settings())
    fallback = Fallback(
        cast(Any, app), *cast(Any, (None, None, None)), process="worker", fetches=True
    )
    fallback._rhythm = asyncio.create_task(rhythm.run())
    await until(lambda: library.calls)
    stopping = asyncio.create_task(fallback._stop_fetching())
    assert await ended(stopping)
    assert fallback._rhythm is None


async def test_a_loop_that_fails_is_logged_and_begins_again() -> None:
    runs: list[int] = []

    async def loop() -> None:
        runs.append(len(runs))
        if len(runs) == 2:
            raise asyncio.CancelledError  # a library's; nobody cancelled the loop
        if len(runs) < FAILURES:
            raise LookupError("the text of a document")
        await asyncio.sleep(3600)

    with capture_logs() as lines:
        async with Background() as background:
            background.run(loop, name="shares")
            await until(lambda: len(runs) == FAILURES)
    assert not background.failed
    assert [line["event"] for line in lines] == ["shares failed; it begins again"] * (FAILURES - 1)
    assert [line["error"] for line in lines[:2]] == ["LookupError", "CancelledError"]
    assert "the text" not in str(lines)


async def test_a_loop_that_fails_for_good_ends_the_process() -> None:
    stop, runs = asyncio.Event(), 0

    async def loop() -> None:
        nonlocal runs
        runs += 1
        raise LookupError("the text of a document")

    with capture_logs() as lines, pytest.raises(BackgroundFailed, match="mirror failed"):
        async with Background(stop.set) as background:
            background.run(loop, name="mirror")
            await stop.wait()
    assert runs == FAILURES and background.failed == "mirror"
    assert lines[-1]["event"] == "mirror failed; the process ends"


async def test_failures_in_a_row_are_counted_from_0_after_a_long_run(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(tasks, "STEADY_SECONDS", 0.0)  # each run is long
    runs = 0

    async def loop() -> None:
        nonlocal runs
        runs += 1
        raise LookupError

    async with Background() as background:
        background.run(loop, name="facts")
        await until(lambda: runs > 2 * FAILURES)
    assert not background.failed


async def test_a_loop_that_returns_is_not_begun_again() -> None:
    runs = 0

    async def once() -> None:
        nonlocal runs
        runs += 1

    async with Background() as background:
        background.run(once, name="check stores")
        await asyncio.sleep(0.05)  # what must not happen has no other sign
    assert runs == 1 and not background.failed


async def test_a_worker_ends_when_the_record_that_it_runs_fails_for_good() -> None:
    async def work(*, decides: bool) -> None:
        raise LookupError

    builds = SimpleNamespace(work=work)
    settings = Settings(temporal="127.0.0.1:1/default", temporal_payloads="plain")
    app = SimpleNamespace(builds=builds, build="a", settings=settings, keyring=Keyring([]))
    with pytest.raises(BackgroundFailed, match="record of the build"):
        await serve(cast(Any, app), stop=asyncio.Event())


@pytest.mark.parametrize("error", [LookupError("the text"), BackgroundFailed("mirror failed")])
def test_a_worker_that_fails_exits_with_1_and_quotes_nothing(
    monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    async def run(*_: object) -> None:
        raise error

    monkeypatch.setattr(worker, "run", run)
    monkeypatch.setattr("sys.argv", ["flows"])
    monkeypatch.setattr(worker, "configure_logging", lambda *_: None)
    with capture_logs() as lines:
        assert worker.main() == 1
    assert lines[-1]["log_level"] == "error"
    assert isinstance(error, ApexError) or "the text" not in str(lines)


async def test_the_gateway_ends_when_a_loop_failed_for_good() -> None:
    api, background = FastAPI(), Background()
    api.state.gateway = SimpleNamespace(background=background, reading=SimpleNamespace(stuck=False))
    config = uvicorn.Config(api, port=0, log_config=None, lifespan="off")
    server = _Server(config, api, None, handshake_seconds=1)
    serving = asyncio.create_task(server.serve())
    await until(lambda: server.started)
    background.failed = "completion"
    assert await ended(serving)
    assert server.failed == "completion"


async def test_the_gateway_ends_when_the_threads_that_read_requests_stay_stuck(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(gateway_process, "STUCK_TICKS", 3)
    api, reading = FastAPI(), SimpleNamespace(stuck=False)
    api.state.gateway = SimpleNamespace(background=Background(), reading=reading)
    config = uvicorn.Config(api, port=0, log_config=None, lifespan="off")
    server = _Server(config, api, None, handshake_seconds=1)
    serving = asyncio.create_task(server.serve())
    await until(lambda: server.started)
    for stuck in (
        True,
        True,
        False,
        True,
        True,
        False,
    ):  # each of a tick, which is no reason to end
        reading.stuck = stuck
        await server.on_tick(1)
    assert not server.should_exit
    reading.stuck = True
    assert await ended(serving)
    assert server.failed == "the reading of requests"
