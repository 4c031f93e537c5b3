"""Tasks that run until they are ended: how they end for certain, and what happens when one fails.

No `asyncio.TaskGroup`: it cancels its tasks once, and while it waits for them it ignores every cancellation of its own. One task that
lost that one cancellation would hold it for ever. Up to Python 3.11 `asyncio.wait_for` loses a cancellation that arrives
at the moment of success, and libraries wait by it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Iterable
from types import TracebackType
from typing import Any, Self

from apex_memory.errors import ApexError
from apex_memory.telemetry import logger
from apex_memory.telemetry.logs import unforeseen

AGAIN_SECONDS = 3.0  # after that a task is cancelled again: longer than tasks take to tidy up
PAUSE_SECONDS = 1.0  # before a loop that failed begins again; it doubles each time
LONGEST_PAUSE_SECONDS = 60.0
STEADY_SECONDS = (
    300.0  # a loop that ran for so long is sound: its failures are counted from 0 again
)
FAILURES = 8  # in a row, over two minutes: then the process ends


async def end_tasks(tasks: Iterable[asyncio.Task[Any]]) -> None:
    """Cancel tasks until all have ended, and return then. Their results are dropped.

    Also when the caller is cancelled meanwhile, which is raised at the end: no task stays behind.
    """
    cancelled, ending = False, list(tasks)
    pending = {task for task in ending if not task.done()}
    while pending:
        for task in pending:
            task.cancel()
        try:
            await asyncio.wait(pending, timeout=AGAIN_SECONDS)
        except asyncio.CancelledError:
            cancelled = True
        pending = {task for task in pending if not task.done()}
    await asyncio.gather(*ending, return_exceptions=True)  # so that asyncio logs none of them
    if cancelled:
        raise asyncio.CancelledError


async def run_together(*loops: Coroutine[Any, Any, None]) -> None:
    """Run loops beside each other until one ends or this is cancelled; end the others, and raise the failure of the one."""
    tasks = [asyncio.create_task(loop) for loop in loops]
    try:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            task.result()
    finally:
        await end_tasks(tasks)


class BackgroundFailed(ApexError):
    """A loop of the process fails whenever it begins again."""


class Background:
    """The loops of a process beside what it serves. They end with the block.

    A loop that fails is logged and begins again after a pause, so that it must be safe to begin again. One that fails
    `FAILURES` times in a row ends the process: a new process may be free of what it fails on. `stop` is called then,
    and leaving the block raises `BackgroundFailed`.
    """

    def __init__(self, stop: Callable[[], None] | None = None) -> None:
        self.failed = ""
        """The name of the loop for which the process has to end."""
        self._stop = stop
        self._tasks: list[asyncio.Task[None]] = []
        self._ending = False
        self._log = logger(component="background")

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None
    ) -> None:
        await self.end()
        if self.failed and error is None:
            raise BackgroundFailed(
                f"{self.failed} failed {FAILURES} times in a row; the process ends",
                remedy="its supervisor starts it again; the log says where it failed: report it",
            )

    def run(self, loop: Callable[[], Awaitable[None]], *, name: str) -> None:
        """Run a loop until the block ends. One that returns is not begun again."""
        self._tasks.append(asyncio.create_task(self._keep(loop, name), name=name))

    async def end(self) -> None:
        """End the loops before the block ends."""
        self._ending = True
        await end_tasks(self._tasks)

    async def _keep(self, loop: Callable[[], Awaitable[None]], name: str) -> None:
        clock = asyncio.get_running_loop().time
        failures, pause = 0, PAUSE_SECONDS
        while not self._ending:
            began = clock()
            try:
                await loop()
                return
            except asyncio.CancelledError:
                if self._ending or _is_cancelled():
                    raise
                fields: dict[str, Any] = {
                    "error": "CancelledError"
                }  # from inside: nobody cancelled it
            except Exception as error:  # noqa: BLE001 (the outermost frame of a loop, whose message may quote data)
                fields = unforeseen(error)
            if clock() - began >= STEADY_SECONDS:
                failures, pause = 0, PAUSE_SECONDS
            failures += 1
            if failures >= FAILURES:
                self._log.error(f"{name} failed; the process ends", failures=failures, **fields)
                self.failed = self.failed or name
                if self._stop:
                    self._stop()
                return
            self._log.error(f"{name} failed; it begins again", after_seconds=pause, **fields)
            await asyncio.sleep(pause)
            pause = min(2 * pause, LONGEST_PAUSE_SECONDS)


def _is_cancelled() -> bool:
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0
