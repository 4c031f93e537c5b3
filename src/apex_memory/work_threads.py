"""Threads for work that takes processor time and is under a time limit."""

from __future__ import annotations

import asyncio
import contextvars
import os
import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import TypeVar

from apex_memory.telemetry import logger

PLACES = min(32, (os.cpu_count() or 1) + 4)  # as many as asyncio's own pool has
MOST_ABANDONED = 4

Result = TypeVar("Result")


class WorkThreads:
    """Runs functions in threads of their own, `places` at a time.

    Nothing ends a thread of Python. The thread of a call that is cancelled, such as by its time limit, goes on, but it
    gives its place back, so that the next call does not wait for it. It still takes processor time: with
    `most_abandoned` such threads the process is `stuck`, and should be replaced. They do not hold up its end.
    """

    def __init__(self, *, places: int = PLACES, most_abandoned: int = MOST_ABANDONED) -> None:
        self._places = asyncio.Semaphore(places)
        self._most_abandoned = most_abandoned
        self._abandoned: list[Future[object]] = []

    @property
    def stuck(self) -> bool:
        """Whether `most_abandoned` threads go on although nobody waits for them. Threads that end count no more."""
        return sum(not work.done() for work in self._abandoned) >= self._most_abandoned

    async def run(self, work: Callable[[], Result]) -> Result:
        """Return what `work` returns, or raise what it raises."""
        async with self._places:
            done: Future[Result] = Future()
            done.set_running_or_notify_cancel()  # from here on `cancel` has no effect on it
            context = contextvars.copy_context()
            threading.Thread(
                target=_carry_out, args=(context, work, done), name="work", daemon=True
            ).start()
            try:
                return await asyncio.wrap_future(done)
            except asyncio.CancelledError:
                self._abandon(done)
                raise

    def _abandon(self, work: Future[Result]) -> None:
        self._abandoned = [other for other in self._abandoned if not other.done()]
        if not work.done():
            self._abandoned.append(work)  # type: ignore[arg-type]
            logger(component="threads").warning(
                "a thread goes on after its time limit", threads=len(self._abandoned)
            )


def _carry_out(
    context: contextvars.Context, work: Callable[[], Result], done: Future[Result]
) -> None:
    try:
        result = context.run(work)
    except BaseException as error:  # noqa: BLE001 -- whoever waits for it raises it
        done.set_exception(error)
    else:
        done.set_result(result)
