"""The time limit of a connection: it counts what a server may take, not the time in which this process was stopped."""

from __future__ import annotations

import asyncio
import time
from typing import Any, cast

import psycopg
import pytest

from apex_memory.stores import postgres
from apex_memory.stores.postgres import cut_after
from tests.waiting import until

CONNECTION = cast(psycopg.AsyncConnection[Any], object())


@pytest.fixture
def cuts(monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """The connections that were cut."""
    cuts: list[object] = []
    monkeypatch.setattr(postgres, "TICK_SECONDS", 0.02)
    monkeypatch.setattr(postgres, "shut", cuts.append)
    return cuts


async def test_a_connection_is_cut_after_its_time(cuts: list[object]) -> None:
    began = time.monotonic()
    with cut_after(CONNECTION, 0.1):
        await until(lambda: cuts == [CONNECTION])
    assert time.monotonic() - began >= 0.1


async def test_nothing_is_cut_in_time_or_after_the_end(cuts: list[object]) -> None:
    with cut_after(CONNECTION, 0.05):
        await asyncio.sleep(0)
    await asyncio.sleep(0.15)  # what must not happen has no other sign
    assert not cuts


async def test_time_in_which_the_process_was_stopped_counts_like_one_tick(
    cuts: list[object],
) -> None:
    with cut_after(CONNECTION, 0.1):
        for _ in range(3):
            time.sleep(0.2)  # as if the system had stopped it
            await asyncio.sleep(0.001)
        assert not cuts
