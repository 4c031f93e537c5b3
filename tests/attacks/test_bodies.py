"""W5: bodies without authentication cannot keep out requests with an API key."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack

import pytest

from apex_memory.config import Settings
from apex_memory.gateway import body_limit
from tests.attacks.server import KEY, Connection, Server, connection, serving
from tests.waiting import until


def head(path: str, length: int, *headers: str) -> bytes:
    """Return the head of a POST with a body of so many bytes."""
    lines = [f"POST {path} HTTP/1.1", "Host: 127.0.0.1", f"Content-Length: {length}", *headers]
    return "\r\n".join([*lines, "", ""]).encode()


async def test_w5_a_request_without_a_key_is_refused_before_its_body() -> None:
    async with serving(Settings()) as server:
        for path in ("/v1/keyed", "/v1/json", "/hooks/signed", "/nothing"):
            async with connection(server) as attack:
                await attack.send(head(path, 900_000))
                assert await attack.status() == 401, path
        for key in ("", "apex_wrong"):
            async with connection(server) as attack:
                await attack.send(head("/v1/keyed", 900_000, f"X-API-Key: {key}"))
                assert await attack.status() == 401
        assert server.bodies == []


async def test_w5_slow_webhooks_do_not_keep_out_requests_with_a_key() -> None:
    settings = Settings(webhook_body_memory=4_000_000, webhook_body_seconds=60)
    async with serving(settings) as server:
        async with AsyncExitStack() as stack:
            attackers: list[Connection] = []
            for _ in range(52):
                attack = await stack.enter_async_context(connection(server))
                attackers.append(attack)
                await attack.send(head("/hooks/signed", 1_900_000, "X-Signature: forged"))
                await attack.send(b"x" * 100_000)
            statuses = [asyncio.create_task(attack.status(60)) for attack in attackers]
            await until(lambda: sum(status.done() for status in statuses) > 30, "most are refused")
            async with connection(server) as honest:
                await honest.send(
                    head("/v1/keyed", 1_000_000, f"X-API-Key: {KEY}") + b"y" * 1_000_000
                )
                assert await honest.status() == 200
            assert server.limits._webhooks.used <= 1_200_000, "a quarter of the share for one peer"
            assert {status.result() for status in statuses if status.done()} == {503}
            for status in statuses:
                status.cancel()
        await _released(server)
        async with connection(server) as vendor:
            await vendor.send(head("/hooks/signed", 5, "X-Signature: s") + b"hello")
            assert await vendor.status() == 200


async def test_w5_a_webhook_whose_body_does_not_come_is_refused() -> None:
    settings = Settings(webhook_body_seconds=0.3, min_body_rate=0)
    async with serving(settings) as server, connection(server) as slow:
        await slow.send(head("/hooks/signed", 1_900_000, "X-Signature: forged"))
        await slow.send(b"x" * 100_000)
        assert await slow.status() == 408
        await _released(server)


async def test_w5_a_body_below_the_least_rate_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(body_limit, "RATE_SECONDS", 0.5)
    settings = Settings(min_body_rate=1_000)
    async with serving(settings) as server, connection(server) as slow:
        await slow.send(head("/v1/keyed", 1_000_000, f"X-API-Key: {KEY}"))
        status = asyncio.create_task(slow.status(20))
        while not status.done() and await slow.send(b"x"):
            await asyncio.sleep(0.05)  # the attack: a byte from time to time
        assert await status == 408
        await _released(server)


async def _released(server: Server) -> None:
    limits = server.limits
    await until(
        lambda: not limits._webhooks.used and not limits._keyed.used,
        "the memory of all bodies is given back",
        seconds=10,
    )
