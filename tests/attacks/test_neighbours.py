"""W2, W5, W6: while one client attacks, webhooks of others are answered as before, and no process grows without bound.

The measure is the time of a signed webhook until it has landed, ten each second on one connection, on a whole stack. Beside
slow bodies and bombs its p99 is at most twice that at rest. Clients with a key that flood the gateway with megabytes take
processor time of the same two cores: there it is at most half a second, where such requests once held it up for 3 to 8 s.
"""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import uuid
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from time import monotonic

import psutil
import pytest
import pytest_asyncio

from tests.attacks.attacker import ATTACKS
from tests.documents import PDF
from tests.e2e import front
from tests.e2e.stack import Stack, belonging, running_stack
from tests.soaking import only_in_soak
from tests.unit.test_reader_limits import looping_pdf, nested_mime, zip_of

pytestmark = [
    pytest.mark.skipif(sys.platform != "linux", reason="reads /proc"),
    pytest.mark.soak,
    pytest.mark.long,
    pytest.mark.alone(reason="measures time"),
    pytest.mark.timeout(900),
]

WEBHOOKS, EVERY_SECONDS = 100, 0.1
TIMES = 2.0
AS_AT_REST = 0.05
"""A p99 up to this (seconds) is as good as at rest: less than a vendor sees of the network's own changes."""
FLOODED_SECONDS = 0.5
SLOW = ("slow bodies",)
"""The attacks that cost the gateway no processor time."""
DEAD_SECONDS = 120.0
MOST_BYTES = 1_000_000_000  # resident, of any process; the kernel gives a reader no more than `reader_memory_bytes`


@dataclass(frozen=True)
class Measured:
    """How long webhooks took (seconds), and the highest memory of a process meanwhile (bytes)."""

    p50: float
    p99: float
    most_bytes: int

    def __str__(self) -> str:
        return (
            f"p50 {self.p50 * 1e3:6.1f} ms   p99 {self.p99 * 1e3:6.1f} ms   "
            f"largest process {self.most_bytes / 1e6:5.0f} MB"
        )


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def stack() -> AsyncIterator[Stack]:
    async with running_stack() as stack:
        yield stack


async def measure(stack: Stack, webhooks: int = WEBHOOKS) -> Measured:
    """Send webhooks at a steady pace; return how long they took."""
    seconds: list[float] = []
    most = 0
    for n in range(webhooks):
        name = uuid.uuid4().hex[:12]
        body = front.message(f"msg_{name}", f"cnv_{name}", at=0, text="The truck waits.")
        began = monotonic()
        answer = await stack.hook(body)
        seconds.append(monotonic() - began)
        assert answer.status_code == 202, answer.text
        if n % 10 == 0:
            most = max(most, largest_process(stack.data_dir))
        await asyncio.sleep(max(0.0, EVERY_SECONDS - seconds[-1]))  # the pace
    seconds.sort()
    return Measured(seconds[len(seconds) // 2], seconds[int(len(seconds) * 0.99)], most)


def largest_process(data_dir: Path) -> int:
    """Return the resident bytes of the largest process of the stack, its readers included; PostgreSQL's share memory."""
    sizes = [0]
    for pid in belonging(data_dir):
        try:
            memory = psutil.Process(pid).memory_info()
        except psutil.NoSuchProcess:
            continue
        sizes.append(memory.rss - memory.shared)
    return max(sizes)


@contextmanager
def attacking(stack: Stack, name: str) -> Iterator[None]:
    """Run an attack by a process of its own inside the block, which begins with it; it must still run at the end."""
    with subprocess.Popen(
        [sys.executable, "-m", "tests.attacks.attacker", name, str(stack.http.base_url)],
        env=os.environ | {"ATTACK_KEY": stack.key},
        stdout=subprocess.PIPE,
    ) as attacker:
        assert attacker.stdout
        try:
            assert attacker.stdout.readline(), "the attack did not begin"
            yield
            assert attacker.poll() is None, "the attack itself failed"
        finally:
            attacker.kill()


def as_at_rest(measured: Measured, rest: Measured) -> bool:
    return measured.p99 <= max(TIMES * rest.p99, AS_AT_REST)


async def test_webhooks_are_answered_during_each_attack(
    stack: Stack, request: pytest.FixtureRequest
) -> None:
    only_in_soak(request)
    await measure(stack)  # what is done for the first time takes longer
    rest = await measure(stack)
    results = {"at rest": rest}
    for name in ATTACKS:
        with attacking(stack, name):
            results[name] = await measure(stack)
    for name, result in results.items():
        print(f"{name:16s} {result}")
    assert [name for name in SLOW if not as_at_rest(results[name], rest)] == []
    assert [name for name, result in results.items() if result.p99 > FLOODED_SECONDS] == []
    assert [name for name, result in results.items() if result.most_bytes > MOST_BYTES] == []


BOMBS: dict[str, tuple[str, str, bytes]] = {
    "endless PDF": ("a.pdf", PDF, looping_pdf()),
    "ZIP of zeros": ("a.zip", "application/zip", zip_of(1, body=bytes(30_000_000))),
    "ZIP of 2,100 files": ("b.zip", "application/zip", zip_of(2_100)),
    "mail 900 deep": ("a.eml", "message/rfc822", nested_mime(900, 50_000)),
}


async def land_bomb(stack: Stack, name: str) -> str:
    """Return the id of the event that a bomb became."""
    file, kind, data = BOMBS[name]
    path = f"/v1/documents?key={uuid.uuid4()}&name={file}"
    landed = await stack.post(path, content=data, headers={"content-type": kind})
    return str(landed["events"][0]["id"])


async def test_webhooks_are_answered_while_bombs_are_read(
    stack: Stack, request: pytest.FixtureRequest
) -> None:
    only_in_soak(request)
    await measure(stack)
    rest = await measure(stack)
    began = monotonic()
    ids = [await land_bomb(stack, name) for name in BOMBS]
    beside = await measure(stack, 200)
    await stack.ended(ids, seconds=DEAD_SECONDS - (monotonic() - began))
    took = monotonic() - began
    print(
        f"{'at rest':16s} {rest}\n{'beside bombs':16s} {beside}   dead after {took:.0f} s at most"
    )
    for id in ids:
        event = await stack.get(f"/v1/events/{id}")
        letter = await stack.get(f"/v1/dead-letters/{event['dead_letter']}")
        assert event["state"] == "dead" and "limit `reader_" in letter["message"], letter
    assert as_at_rest(beside, rest)
    assert beside.most_bytes < MOST_BYTES
