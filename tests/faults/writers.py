"""Writers that go on through faults, and the ledger of what they were promised."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any
from uuid import UUID

import httpx2

from tests.e2e.stack import Stack
from tests.faults.story import Send, Story

AGAIN_SECONDS = 0.2
LIMIT_SECONDS = 10  # a request that takes longer is given up, and sent again
# Open events above which the writers pause. Without a limit a slow machine falls behind more and more, and what is
# written after a fault waits for all that was written before it: that measures the machine, and not the recovery.
MOST_OPEN = 200
CHECK_SECONDS = 1.0


@dataclass(slots=True)
class Ledger:
    """What was acknowledged: the event's id and what was sent, in the order of the responses."""

    acknowledged: dict[UUID, Send] = field(default_factory=dict)
    duplicates: int = 0
    sent_again: int = 0
    unexpected: list[str] = field(default_factory=list)
    """Answers that no client should get."""

    def keep(self, send: Send, answer: Any) -> None:
        for event in answer["events"]:
            id = UUID(event["id"])
            self.duplicates += id in self.acknowledged
            self.acknowledged[id] = send
            if UUID(event["document_id"]) != send.doc_id:
                self.unexpected.append(f"{send.kind} {send.key} became {event['document_id']}")


class Writers:
    """Several hands that share a story. Each repeats a request until it gets a 202."""

    def __init__(self, stack: Stack, story: Story, *, hands: int = 3, pause: float = 0.04) -> None:
        self.ledger = Ledger()
        self._stack = stack
        self._sends: Iterator[Send] = iter(story)
        self._pause = pause
        self._hands = hands
        self._closing = asyncio.Event()
        self._open = 0

    def close(self) -> None:
        """Let each hand finish what it is sending, which it must: nothing may stay unanswered."""
        self._closing.set()

    async def run(self) -> None:
        watching = asyncio.create_task(self._watch_backlog())
        try:
            async with asyncio.TaskGroup() as group:
                for _ in range(self._hands):
                    group.create_task(self._work())
        finally:
            watching.cancel()

    async def _work(self) -> None:
        while not self._closing.is_set():
            if self._open <= MOST_OPEN:
                await self._send(next(self._sends))
            await asyncio.sleep(self._pause)  # the load: its pause between two sends

    async def _watch_backlog(self) -> None:
        """Keep the number of open events, as far as the stack shows it."""
        while True:
            try:
                status = await self._stack.get("/v1/status")
                self._open = status["open"] or 0
            except (httpx2.TransportError, RuntimeError, AssertionError):
                self._open = 0  # a fault hides it: the writers go on, as clients do
            await asyncio.sleep(CHECK_SECONDS)  # the pause between two looks

    async def _send(self, send: Send) -> None:
        first = True
        while True:
            if not first:
                self.ledger.sent_again += 1
                await asyncio.sleep(AGAIN_SECONDS)  # a client's pause before it repeats
            first = False
            try:
                async with asyncio.timeout(LIMIT_SECONDS):
                    answer = await self._request(send)
            except (httpx2.TransportError, RuntimeError, TimeoutError) as error:
                if isinstance(error, RuntimeError) and not self._stack.http.is_closed:
                    raise  # a closed client is one of a stack that was started again since
                continue
            # A gateway whose clock is wrong refuses signatures that are old by it: the vendor sends them again.
            if answer.status_code in (429, 503) or "away from this machine's time" in answer.text:
                continue
            if answer.status_code == 202:
                self.ledger.keep(send, answer.json())
            elif not (send.kind == "delete" and answer.status_code == 404):
                self.ledger.unexpected.append(f"{send.kind} {send.key}: {answer.text[:200]}")
            return

    async def _request(self, send: Send) -> httpx2.Response:
        if send.kind in ("message", "conversation"):
            return await self._stack.hook(send.body)
        if send.kind == "delete":
            return await self._stack.http.delete(f"/v1/documents/{send.doc_id}")
        headers = {"content-type": "application/json"}
        return await self._stack.http.post("/v1/documents", content=send.body, headers=headers)
