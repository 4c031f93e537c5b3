"""The circuit breaker, with a clock of its own."""

import asyncio

import pytest

from apex_memory.config import Settings
from apex_memory.errors import Rejected, RetryLater, Unavailable
from apex_memory.saga.breaker import Breaker, CircuitOpen
from apex_memory.saga.retries import BreakerProbes, ResilientStore
from tests.waiting import until


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


async def fail(breaker: Breaker, error: BaseException) -> None:
    with pytest.raises(type(error)):
        async with breaker.call():
            raise error


async def test_opens_after_failures_lets_one_probe_through_and_closes() -> None:
    clock = Clock()
    breaker = Breaker("graph", failures=3, open_seconds=60, clock=clock)
    for _ in range(3):
        assert breaker.state == "closed"
        await fail(breaker, Unavailable("graph", "gone"))
    assert breaker.state == "open"
    with pytest.raises(CircuitOpen):
        async with breaker.call():
            pytest.fail("an open breaker must not let a call through")
    clock.now = 61
    assert breaker.state == "half-open"
    async with breaker.call():
        with pytest.raises(CircuitOpen):  # a second call while the probe is out
            async with breaker.call():
                pytest.fail("only one probe")
    assert breaker.state == "closed"


async def test_a_failed_probe_opens_again() -> None:
    clock = Clock()
    breaker = Breaker("graph", failures=1, open_seconds=60, clock=clock)
    await fail(breaker, Unavailable("graph", "gone"))
    clock.now = 61
    await fail(breaker, Unavailable("graph", "gone"))
    assert breaker.state == "open"
    clock.now = 120
    assert breaker.state == "open", "the wait starts again with the failed probe"


async def test_cancelled_and_rejected_calls_are_not_failures() -> None:
    breaker = Breaker("graph", failures=1, open_seconds=60)
    await fail(breaker, asyncio.CancelledError())
    await fail(breaker, Rejected("bad data"))
    assert breaker.state == "closed"


async def test_trips_on_failure_rate_without_a_run_of_failures() -> None:
    breaker = Breaker("graph", failures=100, open_seconds=60)
    for _ in range(10):
        async with breaker.call():
            pass
        await fail(breaker, RetryLater("busy"))
    assert breaker.state == "open"


async def test_guard_retries_what_passes_and_nothing_else() -> None:
    guard = ResilientStore("graph", Settings(retry_attempts=3, retry_seconds=0.001))
    calls = 0

    async def twice_busy() -> str:
        nonlocal calls
        calls += 1
        if calls < 3:
            raise RetryLater("busy")
        return "done"

    assert await guard.call(twice_busy) == "done"
    assert calls == 3

    async def refused() -> None:
        nonlocal calls
        calls += 1
        raise Rejected("no")

    with pytest.raises(Rejected):
        await guard.call(refused)
    assert calls == 4


async def test_guard_bounds_a_hanging_store() -> None:
    guard = ResilientStore(
        "vectors", Settings(retry_attempts=1, retry_seconds=0.001, call_timeout_seconds=0.05)
    )
    with pytest.raises(Unavailable, match=r"no response within 0\.05 s"):
        await asyncio.wait_for(guard.call(asyncio.Event().wait), 2)


async def test_a_breaker_closes_without_work_when_its_store_is_well_again() -> None:
    """A worker to which no work came after a failure showed its breaker as open for ever."""
    settings = Settings(
        retry_attempts=1, breaker_failures=1, breaker_open_seconds=0.01, call_timeout_seconds=1
    )
    graph, well = ResilientStore("graph", settings), False
    pings = 0

    async def ping() -> None:
        nonlocal pings
        pings += 1
        if not well:
            raise Unavailable("graph", "down")

    probes = BreakerProbes({graph: ping})
    await probes.probe()
    assert pings == 0, "a closed breaker needs no probe"
    with pytest.raises(Unavailable):
        await graph.call(ping)
    assert graph.breaker.state == "open"
    await until(lambda: graph.breaker.state == "half-open", seconds=2)
    await probes.probe()
    assert graph.breaker.state == "open" and pings == 2
    well = True
    await until(lambda: graph.breaker.state == "half-open", seconds=2)
    await probes.probe()
    assert graph.breaker.state == "closed"
