"""What the vectors of passages have in common is taken out of a query's vector."""

from __future__ import annotations

import asyncio

import numpy as np
import pytest

from apex_memory.errors import Unavailable
from apex_memory.model import Vectors
from apex_memory.search.centre import (
    KEEP_SECONDS,
    LEAST_PASSAGES,
    SAMPLE_BYTES,
    SAMPLE_PASSAGES,
    SHARE,
    Centre,
)


class Sample:
    """Vectors of documents, each as often as makes a memory large enough, and how often they were read."""

    def __init__(self, *documents: list[list[float]], times: int = LEAST_PASSAGES) -> None:
        self.rows = [np.array(rows * times, dtype="<f4").tobytes() for rows in documents]
        self.reads = 0

    async def read(self, documents: int, passages: int, dimension: int) -> list[bytes]:
        assert documents > 0 and passages > 0 and dimension == 3
        self.reads += 1
        return self.rows


def query() -> Vectors:
    return np.array([0.8, 0.6, 0.0], dtype=np.float32)


async def test_a_share_of_the_common_direction_is_taken_out() -> None:
    sample = Sample([[1, 0.5, 0], [1, -0.5, 0]], [[1, 0, 0.2], [1, 0, -0.2]])
    centred = await Centre().removed_from(query(), sample.read)
    assert centred == pytest.approx([0.8 * (1 - SHARE), 0.6, 0.0])
    assert centred.dtype == np.float32


@pytest.mark.parametrize(
    "sample",
    [
        Sample(),
        Sample([]),
        Sample([[1, 0, 0]], [[-1, 0, 0]]),
        Sample([[1, 0, 0]], times=LEAST_PASSAGES - 1),
    ],
)
async def test_a_small_memory_and_one_without_a_common_direction_change_nothing(
    sample: Sample,
) -> None:
    assert list(await Centre().removed_from(query(), sample.read)) == list(query())


async def test_the_sample_is_read_again_after_a_while() -> None:
    seconds = [0.0]
    centre, sample = Centre(clock=lambda: seconds[0]), Sample([[1, 0, 0]])
    for _ in range(3):
        await centre.removed_from(query(), sample.read)
    assert sample.reads == 1
    sample.rows = Sample([[0, 1, 0]]).rows
    seconds[0] = KEEP_SECONDS
    assert list(await centre.removed_from(query(), sample.read)) == pytest.approx(
        [0.8, 0.6 * (1 - SHARE), 0.0]
    )
    assert sample.reads == 2


async def test_of_long_vectors_fewer_passages_are_read() -> None:
    asked = []

    async def read(documents: int, passages: int, dimension: int) -> list[bytes]:
        asked.append(documents * passages * dimension * 4)
        return []

    for dimension in (384, 1_536, 8_192):
        await Centre().removed_from(np.ones(dimension, dtype=np.float32), read)
    assert max(asked) <= SAMPLE_BYTES and asked[0] == 300 * SAMPLE_PASSAGES * 384 * 4


async def test_searches_at_once_read_the_sample_once() -> None:
    """Each reads megabytes: when the sample is due again, one search reads it and the others go on."""
    centre, sample = Centre(), Sample([[1, 0, 0]])

    async def slowly(documents: int, passages: int, dimension: int) -> list[bytes]:
        rows = await sample.read(documents, passages, dimension)
        await asyncio.sleep(0)  # lets the others run
        return rows

    await asyncio.gather(*(centre.removed_from(query(), slowly) for _ in range(20)))
    assert sample.reads == 1


async def test_a_sample_that_was_not_read_is_read_by_the_next_search() -> None:
    centre, sample = Centre(), Sample([[1, 0, 0]])

    async def fails(documents: int, passages: int, dimension: int) -> list[bytes]:
        raise Unavailable("documents", "the connection was closed")

    with pytest.raises(Unavailable):
        await centre.removed_from(query(), fails)
    assert list(await centre.removed_from(query(), sample.read)) != list(query())
