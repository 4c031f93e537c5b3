"""What every embedder is, and what it returns: rows of unit length."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Protocol

import numpy as np

from apex_memory.errors import Rejected
from apex_memory.model import Vectors


class Embedder(Protocol):
    """Turns texts into vectors of one dimension.

    Raises `Unavailable('embedder', …)` or `RetryLater` while a server cannot respond, `Rejected` if it
    refuses a text, and `Misconfigured` if it cannot work with these settings.
    """

    id: str
    """Stable name of model and dimension (`e5-small-v2-int8-384`). Vectors of two ids never mix."""
    dimension: int

    async def passages(self, texts: Sequence[str], *, urgent: bool = False) -> Vectors:
        """Return the vectors of passages, shape (len(texts), dimension), rows of unit length.

        A text's vector does not depend on the other texts. `urgent` texts go before others that wait.
        """

    async def query(self, text: str) -> Vectors:
        """Return the vector of a query, shape (dimension,), of unit length."""

    async def close(self) -> None: ...


def unit_rows(rows: Vectors) -> Vectors:
    """Return the rows scaled to length one; a row of zeros becomes one of equal values. Raises `Rejected` for NaN and infinity."""
    if not np.isfinite(rows).all():
        raise Rejected(
            "the embedder returned a vector with NaN or infinity",
            remedy="find the text that caused it, and redrive it with another embedder",
        )
    norms = np.linalg.norm(rows, axis=1, keepdims=True)
    equal = np.float32(1 / math.sqrt(rows.shape[1])) if rows.shape[1] else np.float32(0)
    return np.where(norms > 0, rows / np.where(norms > 0, norms, 1), equal).astype(np.float32)
