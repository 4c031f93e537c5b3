"""Rate limits towards vendors: those of the class, and those of settings that change at run time."""

from __future__ import annotations

import asyncio

import httpx2
import pytest

from apex_memory.sources.frontapp.settings import FrontAppSettings
from apex_memory.sources.frontapp.source import FrontApp
from apex_memory.sources.http import VendorClient
from tests.unit.vendors import NoTokens


async def test_a_rate_limit_that_is_set_at_run_time_holds_from_the_next_call() -> None:
    source = FrontApp(FrontAppSettings.model_validate({"requests_per_minute": 200}))
    transport = httpx2.MockTransport(lambda request: httpx2.Response(200))
    async with httpx2.AsyncClient(transport=transport) as http:
        client = VendorClient("frontapp", http, NoTokens(), rate_limits=lambda: source.rate_limits)
        for _ in range(5):
            await client.call("GET", "http://front.test/")
        # As `Credentials.apply` does when a setting is stored in the vault.
        source.settings = FrontAppSettings.model_validate({"requests_per_minute": 1})
        await client.call("GET", "http://front.test/")
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(client.call("GET", "http://front.test/"), 0.3)
        source.settings = FrontAppSettings.model_validate({"requests_per_minute": 200})
        await asyncio.wait_for(client.call("GET", "http://front.test/"), 5)


async def test_the_limits_of_a_class_hold_over_many_calls_at_once() -> None:
    transport = httpx2.MockTransport(lambda request: httpx2.Response(200))
    async with httpx2.AsyncClient(transport=transport) as http:
        client = VendorClient("toy", http, NoTokens(), rate_limits=lambda: [(5, 60), (100, 1)])
        calls = [asyncio.create_task(client.call("GET", "http://toy.test/")) for _ in range(8)]
        done, waiting = await asyncio.wait(calls, timeout=0.3)
        assert (len(done), len(waiting)) == (5, 3)
        for call in waiting:
            call.cancel()
