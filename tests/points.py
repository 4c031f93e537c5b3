"""Points for the vector stores' tests."""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from apex_memory.model import Tally, VectorPoint, Vectors, chunk_point


def point(stage: uuid.UUID, n: int, text: str = "a truck", **fields: Any) -> VectorPoint:
    usual = VectorPoint(
        id=chunk_point(stage, n),
        stage=stage,
        doc=uuid.uuid5(stage, "doc"),
        n=n,
        start=n * 10,
        end=n * 10 + 10,
        text=text,
        nearby=text,
        source="frontapp",
        kind="email",
        time=1_700_000_000 + n,
        entities=(),
        hash=1000 + n,
    )
    return replace(usual, **fields)


def stage_points(stage: uuid.UUID, texts: Sequence[str], **fields: Any) -> list[VectorPoint]:
    return [point(stage, n, text, **fields) for n, text in enumerate(texts)]


def tally_of(points: Sequence[VectorPoint]) -> Tally:
    return Tally(len(points), sum(p.hash for p in points))


def unit(count: int, dimension: int, seed: int = 0) -> Vectors:
    """Random unit vectors, the same for the same seed."""
    rows = np.random.default_rng(seed).standard_normal((count, dimension)).astype(np.float32)
    return np.asarray(rows / np.linalg.norm(rows, axis=1, keepdims=True), dtype=np.float32)


def axis(number: int, dimension: int) -> Vectors:
    """Return the unit vector along one axis."""
    row = np.zeros(dimension, dtype=np.float32)
    row[number] = 1
    return row
