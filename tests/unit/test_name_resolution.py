"""A resolver that does not respond for one name: other names resolve, threads stay free, callers give up in time."""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import Iterator
from typing import Any

import httpx2
import pytest

from apex_memory.errors import RetryLater
from apex_memory.name_resolution import NameResolvingLoop
from apex_memory.sources.http import VendorClient
from tests.unit.vendors import NoTokens

HANGING, FAILING, PRESENT = "hanging.test", "failing.test", "present.test"
CALLS = 40  # more than any default pool has threads
SECONDS = 0.2


class Resolver:
    """Stands for `socket.getaddrinfo`. A lookup of `HANGING` returns when `released` is set."""

    def __init__(self) -> None:
        self.released = threading.Event()
        self.lookups: list[str] = []
        self._real = socket.getaddrinfo

    def __call__(self, host: Any, *arguments: Any, **more: Any) -> Any:
        name = host.decode() if isinstance(host, bytes) else host
        self.lookups.append(name)
        if name == HANGING:
            self.released.wait(60)
        if name == FAILING:
            raise socket.gaierror(socket.EAI_AGAIN, "Temporary failure in name resolution")
        return self._real("127.0.0.1", *arguments, **more)


@pytest.fixture
def resolver(monkeypatch: pytest.MonkeyPatch) -> Iterator[Resolver]:
    resolver = Resolver()
    monkeypatch.setattr(socket, "getaddrinfo", resolver)
    yield resolver
    resolver.released.set()


def run_in(loop: type[asyncio.AbstractEventLoop], coroutine: Any) -> Any:
    """Run to the end in this kind of loop. Hanging threads must not keep it from closing."""
    with asyncio.Runner(loop_factory=loop) as runner:
        return runner.run(coroutine)


async def call_vendor(host: str) -> None:
    """Call a vendor many times at once; each call ends as `RetryLater` within its limit."""
    async with httpx2.AsyncClient(timeout=SECONDS) as http:
        vendor = VendorClient("toy", http, NoTokens(), rate_limits=lambda: [(1000, 1)], patience=0)
        calls = [vendor.call("GET", f"http://{host}/") for _ in range(CALLS)]
        ends = await asyncio.gather(*calls, return_exceptions=True)
    assert all(isinstance(end, RetryLater) for end in ends), ends


async def work_beside_hanging_calls(resolver: Resolver) -> bool:
    """Return whether a thread is free for other work while the calls' lookups hang; then release them."""
    await call_vendor(HANGING)
    try:
        async with asyncio.timeout(1):
            return await asyncio.to_thread(lambda: True)
    except TimeoutError:
        return False
    finally:
        resolver.released.set()


def test_a_name_that_hangs_takes_no_thread_from_other_work(resolver: Resolver) -> None:
    assert run_in(NameResolvingLoop, work_beside_hanging_calls(resolver)) is True


def test_the_usual_loop_has_no_thread_left(resolver: Resolver) -> None:
    """What the loop is for: without it this file proves nothing."""
    assert run_in(asyncio.SelectorEventLoop, work_beside_hanging_calls(resolver)) is False


def test_a_name_that_hangs_has_one_lookup_and_others_resolve(resolver: Resolver) -> None:
    async def look_up() -> None:
        loop = asyncio.get_running_loop()
        await call_vendor(HANGING)
        assert resolver.lookups.count(HANGING) == 1
        async with asyncio.timeout(5):
            [first, *_] = await loop.getaddrinfo(PRESENT, 443, type=socket.SOCK_STREAM)
        assert first[4] == ("127.0.0.1", 443)
        resolver.released.set()
        async with asyncio.timeout(5):  # it has an outcome now, and is looked up again
            await loop.getaddrinfo(HANGING, 443)

    run_in(NameResolvingLoop, look_up())


def test_a_name_that_fails_is_looked_up_again_each_time(resolver: Resolver) -> None:
    async def look_up() -> None:
        loop = asyncio.get_running_loop()
        for _ in range(2):
            with pytest.raises(socket.gaierror):
                await loop.getaddrinfo(FAILING, 443)
        await call_vendor(FAILING)

    run_in(NameResolvingLoop, look_up())
    assert resolver.lookups.count(FAILING) >= 3


def test_a_loop_closes_while_a_lookup_hangs(resolver: Resolver) -> None:
    run_in(NameResolvingLoop, call_vendor(HANGING))
    resolver.released.set()  # the lookup ends after its loop
