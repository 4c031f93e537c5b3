"""The error of one item of a batch, kept beside the results of the others."""

from __future__ import annotations

from collections.abc import Awaitable, Iterator
from contextlib import contextmanager
from typing import TypeVar

from apex_memory.errors import ApexError, as_rejected

T = TypeVar("T")


@contextmanager
def collect_error(place: str) -> Iterator[list[ApexError]]:
    """Catch the error of one item, so that it does not disturb its neighbours, and append it to the list yielded."""
    errors: list[ApexError] = []
    try:
        yield errors
    except ApexError as error:
        errors.append(error)
    except Exception as error:  # noqa: BLE001 -- a source's or parser's bug must cost its own event alone
        errors.append(as_rejected(error, place))


async def result_or_error(step: Awaitable[T]) -> T | ApexError:
    with collect_error("pipeline") as errors:
        return await step
    return errors[0]
