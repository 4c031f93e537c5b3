"""Heartbeats of long steps."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator

from temporalio import activity


@contextlib.asynccontextmanager
async def heartbeating() -> AsyncIterator[None]:
    """Send heartbeats inside the block, three within each heartbeat time-out."""
    limit = activity.info().heartbeat_timeout
    beat = asyncio.create_task(_beat(limit.total_seconds() / 3)) if limit else None
    try:
        yield
    finally:
        if beat:
            beat.cancel()


async def _beat(seconds: float) -> None:
    while True:
        activity.heartbeat()
        await asyncio.sleep(seconds)
