"""The direct path drains several stalled sources at a time."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, cast

from apex_memory.inbox import Inbox, WorkflowRun
from apex_memory.steps.batches import BatchSteps
from apex_memory.steps.direct import SOURCES_AT_ONCE, DirectPath


class StalledInbox:
    """An inbox in which these sources are stalled."""

    def __init__(self, *sources: str) -> None:
        self._sources = sources

    async def stalled(self, *, seconds: float) -> dict[str, float]:
        return dict.fromkeys(self._sources, seconds)


class Recorded(DirectPath):
    """A direct path whose source `long` has events for ever until `let_go` is set."""

    def __init__(self, *sources: str) -> None:
        inbox = cast(Inbox, StalledInbox(*sources))
        super().__init__(cast(BatchSteps, None), inbox, sources)
        self.let_go = asyncio.Event()
        self.drained: list[str] = []
        self.running = self.most = 0

    async def drain(
        self,
        source: str,
        *,
        everything: bool = True,
        run: WorkflowRun | None = None,
        pause: Callable[[], bool] = bool,
    ) -> int:
        self.running += 1
        self.most = max(self.most, self.running)
        if source == "long":
            await self.let_go.wait()
        await asyncio.sleep(0)  # one turn of the loop, in which other sources begin
        self.running -= 1
        self.drained.append(source)
        if source == "last":
            self.let_go.set()
        return 1


async def test_a_source_with_a_long_backlog_does_not_keep_the_others_waiting() -> None:
    direct = Recorded("long", "a", "b", "c", "last")
    result: dict[str, Any] = await asyncio.wait_for(direct.drain_stalled(), 10)
    assert result == dict.fromkeys(("long", "a", "b", "c", "last"), 1)
    assert direct.drained[-1] == "long"
    assert 1 < direct.most <= SOURCES_AT_ONCE
