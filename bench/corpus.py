"""Documents to load with: like what the trade writes, in any number, the same every time.

Words follow a Zipf curve over 20,000 invented ones beside the trade's own, so that the word leg meets common and
rare terms; every passage names a shipment, some a load, a carrier or an amount, so that the graph has hubs and leaves.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator, Mapping, Sequence

import msgpack
import numpy as np

from apex_memory.model import Event, Priority, Vectors, now
from apex_memory.pipeline.embedders.base import unit_rows
from apex_memory.sources.documents.source import CONTENT_TYPE

DIMENSION = 384
CHUNKS = 5
OF_A_MONTH = {1: 0.938, 5: 0.03, 7: 0.03, 37: 0.002}
"""Shares of documents by passages, as in the busy month of all sources (`bench/memory/month`): 1.4 on average."""
CHUNK_WORDS = 60  # what `bm25_average_words` is set to
CHUNK_CHARS = 520
VOCABULARY = 20_000
POOL = 20_000  # vectors given, round and round
CENTRES = 200
PLACES = ("Dallas", "Columbus", "Memphis", "Laredo", "Fresno", "Atlanta", "Reno", "Tulsa")
CARRIERS = (
    "Northwind Freight LLC",
    "Blue Mesa Trucking Inc",
    "Redwood Logistics LLC",
    "Kestrel Lines Inc",
)
TRADE = [
    "the",
    "driver",
    "is",
    "late",
    "at",
    "dock",
    "and",
    "the",
    "customer",
    "asks",
    "about",
    "delivery",
    "of",
    "pallets",
    "with",
    "detention",
    "rate",
    "for",
    "reefer",
    "load",
    "on",
    "time",
    "to",
    "be",
    "paid",
    "after",
    "receipt",
    "appointment",
    "was",
    "moved",
    "we",
    "need",
    "proof",
    "from",
    "carrier",
]


class Corpus:
    """`event(n)` is the n-th document: passages of about sixty words, five or as many as the shares of `passages` say."""

    def __init__(self, seed: int = 1, passages: Mapping[int, float] | None = None) -> None:
        dice = random.Random(seed)
        letters = ("ba", "ko", "ri", "te", "mun", "sal", "dor", "ve", "lin", "gar", "pe", "zu")
        invented = [
            "".join(dice.choices(letters, k=3)) + str(n % 7 or "") for n in range(VOCABULARY)
        ]
        self._seed = seed
        self._passages = passages or {CHUNKS: 1.0}
        self._words = [*TRADE, *invented]
        weights = (1 / (rank + 3) for rank in range(len(self._words)))
        self._cumulative = list(itertools.accumulate(weights))

    @property
    def common_words(self) -> Sequence[str]:
        """The ten most frequent words of more than five letters: none is a stop word."""
        return [word for word in self._words if len(word) > 5][:10]

    def passage(self, dice: random.Random, n: int) -> str:
        words = dice.choices(self._words, cum_weights=self._cumulative, k=CHUNK_WORDS - 10)
        place, carrier = dice.choice(PLACES), dice.choice(CARRIERS)
        words[5:5] = [f"SHP-{100_000 + n}"]
        words[20:20] = ["near", f"{place},", "TX"]
        if dice.random() < 0.3:
            words[30:30] = [carrier]
        if dice.random() < 0.3:
            words[40:40] = [f"${dice.randrange(200, 9000)}.00"]
        text = " ".join(words)
        return f"{text[0].upper()}{text[1:]}."

    def text(self, n: int) -> str:
        dice = random.Random(f"{self._seed}/{n}")
        count = dice.choices(list(self._passages), [*self._passages.values()])[0]
        return "\n\n".join(self.passage(dice, n) for _ in range(count))

    def event(self, n: int, *, name: str = "b") -> Event:
        """What the API lands for the text; built here, so that loading costs no parsing of JSON."""
        key = f"{name}-{n}"
        fields = f'{{"key":"{key}","title":"Note {n}","version":1}}'.encode()
        return Event(
            source="documents",
            event_id=f"{key}@1",
            doc_key=key,
            version=1,
            occurred_at=now(),
            payload=msgpack.packb([fields, "", self.text(n).encode()]),
            content_type=CONTENT_TYPE,
            priority=Priority.P1,
        )

    def events(self, first: int, count: int, *, name: str = "b") -> Iterator[list[Event]]:
        """Pages of at most 1,000."""
        for start in range(first, first + count, 1_000):
            end = min(start + 1_000, first + count)
            yield [self.event(n, name=name) for n in range(start, end)]


class GivenEmbedder:
    """Vectors made beforehand, handed out one after the other: embedding costs nothing here."""

    def __init__(self, pool: Vectors) -> None:
        self.id = f"given-{pool.shape[1]}"
        self.dimension = pool.shape[1]
        self._pool = pool
        self._next = 0

    async def passages(self, texts: Sequence[str], *, urgent: bool = False) -> Vectors:
        places = np.arange(self._next, self._next + len(texts)) % len(self._pool)
        self._next += len(texts)
        rows: Vectors = self._pool[places]
        return rows

    async def query(self, text: str) -> Vectors:
        row: Vectors = (await self.passages([text]))[0]
        return row

    async def close(self) -> None:
        return None


class DrawnEmbedder(GivenEmbedder):
    """Vectors drawn when they are asked for, no two of them equal: a pool's would repeat fifty times in a million passages."""

    def __init__(self, dimension: int = DIMENSION, seed: int = 1) -> None:
        super().__init__(np.empty((0, dimension), np.float32))
        self._dice = np.random.default_rng(seed)
        self._centres = self._dice.standard_normal((CENTRES, dimension), np.float32)

    async def passages(self, texts: Sequence[str], *, urgent: bool = False) -> Vectors:
        return _drawn(self._dice, self._centres, len(texts))


def random_pool(count: int = POOL, dimension: int = DIMENSION, seed: int = 1) -> Vectors:
    """Unit vectors around 200 centres: text is not spread evenly either."""
    dice = np.random.default_rng(seed)
    return _drawn(dice, dice.standard_normal((CENTRES, dimension), np.float32), count)


def _drawn(dice: np.random.Generator, centres: Vectors, count: int) -> Vectors:
    noise = dice.standard_normal((count, centres.shape[1]), np.float32)
    return unit_rows(centres[dice.integers(0, len(centres), count)] + 0.7 * noise)
