"""Attacks on the HTTP API, run in a process of their own: `python -m tests.attacks.attacker NAME URL`, until it is ended.

The API key is read from the environment variable `ATTACK_KEY`, so that no list of processes shows it.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass

import httpx2

NICENESS = 10  # an attacker works on a machine of its own: here it must not take the processor from the attacked
BOUNDARY = "attack"
MULTIPART = f"multipart/form-data; boundary={BOUNDARY}"
PAUSE_SECONDS = 0.05  # between two attacks of one client

Attack = Callable[["Target"], Awaitable[None]]


@dataclass(frozen=True)
class Target:
    url: str
    key: str

    @property
    def port(self) -> int:
        return int(self.url.rstrip("/").rpartition(":")[2])


async def slow_webhooks(target: Target) -> None:
    """Send a body byte by byte."""
    _, writer = await asyncio.open_connection("127.0.0.1", target.port)
    try:
        writer.write(
            b"POST /hooks/frontapp HTTP/1.1\r\nHost: 127.0.0.1\r\nX-Front-Signature: x\r\n"
            b"Content-Length: 100000\r\n\r\n"
        )
        for _ in range(100):
            writer.write(b"x")
            await writer.drain()
            await asyncio.sleep(0.05)  # the attack itself
    finally:
        writer.close()


async def many_headers(target: Target) -> None:
    """Send short headers without end."""
    _, writer = await asyncio.open_connection("127.0.0.1", target.port)
    try:
        writer.write(b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\n")
        for n in range(2_000):
            writer.write(f"x-{n}: {n}\r\n".encode())
            await writer.drain()
    finally:
        writer.close()


def posting(path: str, body: bytes, content_type: str = "application/json") -> Attack:
    """Return an attack that sends this body with a valid key."""

    async def attack(target: Target) -> None:
        headers = {"x-api-key": target.key, "content-type": content_type}
        async with httpx2.AsyncClient(base_url=target.url, timeout=60) as http:
            answer = await http.post(path, content=body, headers=headers)
        if answer.status_code == 500:
            raise AssertionError(f"POST {path} returned 500: {answer.text}")

    return attack


def form_of(parts: int) -> bytes:
    part = f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="f"; filename="a"\r\n\r\n\r\n'
    return part.encode() * parts + f"--{BOUNDARY}--\r\n".encode()


ATTACKS: dict[str, tuple[Attack, int]] = {
    "slow bodies": (slow_webhooks, 50),
    "many headers": (many_headers, 4),
    "deep JSON": (posting("/v1/documents", b"[" * 2_000_000), 2),
    "deep objects": (posting("/v1/conversations", b'{"a":' * 300_000), 2),
    "long number": (posting("/v1/documents", b'{"text":' + b"9" * 1_000_000 + b"}"), 2),
    "many keys": (
        posting("/v1/search", json.dumps({str(n): n for n in range(60_000)}).encode()),
        2,
    ),
    "lone surrogates": (posting("/v1/documents", b'{"text":"' + b"\\ud800" * 300_000 + b'"}'), 2),
    "parts of a form": (posting("/v1/documents", form_of(40_000), MULTIPART), 2),
    "boundary alike": (posting("/v1/documents", b"\r\n--attac" * 300_000, MULTIPART), 2),
    "X12 binary": (posting("/v1/edi", b"BIN*99999*" * 24_000, "application/edi-x12"), 2),
    "X12 segments": (
        posting("/v1/edi", b"ISA*00*" + b"~ISA*00*" * 100_000, "application/edi-x12"),
        2,
    ),
    "long query": (posting("/v1/documents?" + "a=1&" * 5_000, b"x", "text/plain"), 4),
}
"""Each attack, and how many clients run it at once."""


async def run(name: str, target: Target) -> None:
    """Print a line, then repeat the attack by all its clients."""
    attack, clients = ATTACKS[name]

    async def repeat() -> None:
        while True:
            with suppress(httpx2.TransportError, ConnectionError):  # refused: the attack goes on
                await attack(target)
            await asyncio.sleep(PAUSE_SECONDS)  # the pace of a client

    print(f"{clients} clients attack", flush=True)
    await asyncio.gather(*[repeat() for _ in range(clients)])


if __name__ == "__main__":
    os.nice(NICENESS)
    asyncio.run(run(sys.argv[1], Target(sys.argv[2], os.environ["ATTACK_KEY"])))
