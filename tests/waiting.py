"""The one way in which tests and benchmarks wait: for a condition, and for a bounded time."""

from __future__ import annotations

import asyncio
import inspect
import time
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar, overload

T = TypeVar("T")
Description = str | Callable[[], str]


@overload
async def until(
    condition: Callable[[], Coroutine[Any, Any, T]],
    what: Description = ...,
    *,
    seconds: float = ...,
    every: float = ...,
) -> T: ...
@overload
async def until(
    condition: Callable[[], T],
    what: Description = ...,
    *,
    seconds: float = ...,
    every: float = ...,
) -> T: ...
async def until(
    condition: Callable[[], Any],
    what: Description = "the condition holds",
    *,
    seconds: float = 15,
    every: float = 0.02,
) -> Any:
    """Return the first true value of `condition`, a function or a coroutine function.

    It is called every `every` seconds. `AssertionError` after `seconds`, with `what` was waited for:
    a text, or a function that describes the state at that time.
    """
    deadline = time.monotonic() + seconds
    while True:
        value = condition()
        if inspect.isawaitable(value):
            value = await value
        if value:
            return value
        if time.monotonic() > deadline:
            detail = what if isinstance(what, str) else what()
            raise AssertionError(f"not within {seconds:g} s: {detail}")
        await asyncio.sleep(every)


async def seconds_until(
    condition: Callable[[], object],
    what: Description = "the condition holds",
    *,
    seconds: float = 15,
    every: float = 0.02,
) -> float:
    """Wait as `until` does; return how many seconds it took."""
    began = time.monotonic()
    await until(condition, what, seconds=seconds, every=every)
    return time.monotonic() - began
