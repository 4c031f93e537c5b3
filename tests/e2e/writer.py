"""A client that writes through faults: it repeats each request until it gets a 202, and keeps what was acknowledged."""

from __future__ import annotations

import asyncio
import itertools
import json
import time
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import httpx2

from tests.e2e import front
from tests.e2e.stack import Stack


@dataclass(frozen=True, slots=True)
class Item:
    """One thing to send. Only documents have more than one version; a webhook's key is its message."""

    path: str
    key: str
    shipment: str
    body: bytes
    version: int = 0


@dataclass(slots=True)
class Writer:
    """Sends documents, some in two versions, webhooks and conversations.

    `landed` has the event that each item was acknowledged with. An item that is refused by a
    broken connection or by 503 is sent again, as every client of ours must; anything else fails
    the test.
    """

    stack: Stack
    landed: dict[Item, Any] = field(default_factory=dict)
    sent_again: int = 0
    slowest: float = 0
    """Seconds that the slowest acknowledged request took."""
    enough: asyncio.Event = field(default_factory=asyncio.Event)
    """Set it to stop after what is in hand."""

    async def send(self, item: Item) -> None:
        while True:
            try:
                began = time.monotonic()
                answer = await self._post(item)
            except (httpx2.TransportError, RuntimeError) as error:
                # RuntimeError: the client was closed, because the stack has another address now.
                assert isinstance(error, httpx2.TransportError) or self.stack.http.is_closed
                await self._again(0.1)
                continue
            if answer.status_code == 503:
                await self._again(min(1.0, float(answer.headers["retry-after"])))
                continue
            assert answer.status_code == 202, (answer.status_code, answer.text)
            [self.landed[item]] = answer.json()["events"]
            self.slowest = max(self.slowest, time.monotonic() - began)
            return

    async def _again(self, seconds: float) -> None:
        self.sent_again += 1
        await asyncio.sleep(seconds)  # a client's pause before it repeats

    async def _post(self, item: Item) -> httpx2.Response:
        if item.path.startswith("/hooks/"):
            return await self.stack.hook(item.body)
        headers = {
            "content-type": "application/json",
            "idempotency-key": f"{item.key}.{item.version}",
        }
        return await self.stack.http.post(item.path, content=item.body, headers=headers)

    def newest(self) -> dict[str, Item]:
        """Return the item that readers must see in the end, by document id."""
        newest: dict[str, Item] = {}
        for item, event in self.landed.items():
            known = newest.setdefault(event["document_id"], item)
            if item.version > known.version:
                newest[event["document_id"]] = item
        return newest

    def ids(self) -> list[str]:
        return [event["id"] for event in self.landed.values()]


def items(count: int) -> list[Item]:
    """`count` things to send, or a few more, none of which any other test has."""
    numbers = itertools.count(uuid.uuid4().int % 10**6 * 10**5)
    made: list[Item] = []
    while len(made) < count:
        made += _items_of_note(len(made), f"SHP-{next(numbers)}", f"SHP-{next(numbers)}")
    return made


def _items_of_note(n: int, shipment: str, newer: str) -> list[Item]:
    text = f"Note {n}: {shipment} is at door {n % 40}."
    if n % 6 == 4:
        body = front.message(f"msg_{shipment}", f"cnv_{shipment}", at=n / 10, text=text)
        return [Item("/hooks/frontapp", shipment, shipment, body)]
    if n % 6 == 5:
        turns = [{"role": "user", "content": text}, {"role": "assistant", "content": "Noted."}]
        about = {"conversation_id": shipment, "messages": turns}
        return [Item("/v1/conversations", shipment, shipment, json.dumps(about).encode())]
    first = _document(shipment, shipment, text, 1)
    if n % 3:
        return [first]
    return [first, _document(shipment, newer, f"Corrected: {newer} is at door {n % 40}.", 2)]


def _document(key: str, shipment: str, text: str, version: int) -> Item:
    body = json.dumps({"key": key, "text": text, "version": version}).encode()
    return Item("/v1/documents", key, shipment, body, version)


@asynccontextmanager
async def writing(
    stack: Stack, things: list[Item], *, hands: int = 4, pause: float = 0
) -> AsyncIterator[Writer]:
    """Send things, several at a time, with a pause after each; the block ends when all are sent, or it was enough.

    A hand that fails ends the block.
    """
    writer, left = Writer(stack), iter(things)

    async def work() -> None:
        for item in left:
            await writer.send(item)
            if writer.enough.is_set():
                return
            await asyncio.sleep(pause)  # the pace of the load

    async with asyncio.TaskGroup() as group:
        for _ in range(hands):
            group.create_task(work())
        yield writer
