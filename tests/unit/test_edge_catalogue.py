"""The catalogue: which stages a shard may hold, and in how many passages each term occurs."""

from __future__ import annotations

import math
import uuid
from collections import Counter
from pathlib import Path

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from apex_memory.stores.embedded.edge_catalogue import (
    Catalogue,
    PackedCatalogue,
    inverse_frequencies,
)

stages = st.uuids()
terms = st.integers(0, 2**32 - 1)
passages = st.lists(st.tuples(stages, st.sets(terms, max_size=5)), max_size=20)


def catalogue_of(rows: list[tuple[uuid.UUID, set[int]]]) -> Catalogue:
    catalogue = Catalogue()
    for stage, words in rows:
        catalogue.add(stage, words)
    return catalogue


@given(passages, st.lists(stages, max_size=5), st.lists(terms, max_size=5))
def test_growing_and_packed_say_the_same(
    rows: list[tuple[uuid.UUID, set[int]]], strangers: list[uuid.UUID], unknown: list[int]
) -> None:
    growing = catalogue_of(rows)
    packed = growing.packed()
    asked = [*(stage for stage, _ in rows), *strangers]
    known = {stage for stage, _ in rows}
    assert growing.held(asked) == packed.held(asked) == [s for s in asked if s in known]
    expected = Counter(term for _, words in rows for term in words)
    ids = np.array([*expected, *unknown], dtype=np.uint32)
    wanted = [expected[term] for term in ids.tolist()]
    assert growing.counts(ids).tolist() == packed.counts(ids).tolist() == wanted
    assert growing.passages == packed.passages == len(rows)


@given(st.sets(stages, max_size=30), st.integers(1, 7))
def test_paging_meets_every_stage_in_order(held: set[uuid.UUID], size: int) -> None:
    growing = catalogue_of([(stage, set()) for stage in held])
    for catalogue in (growing, growing.packed()):
        seen: list[uuid.UUID] = []
        cursor = -1
        while page := catalogue.after(cursor, size):
            seen += page
            cursor = page[-1].int >> 64
        assert seen == sorted(held)


def test_a_saved_catalogue_reads_back(tmp_path: Path) -> None:
    rows = [(uuid.uuid4(), {1, 2, 2**31 + 5}), (uuid.uuid4(), {2})]
    catalogue_of(rows).packed().save(tmp_path / "c.npz")
    loaded = PackedCatalogue.load(tmp_path / "c.npz")
    assert loaded.held([rows[0][0], uuid.uuid4()]) == [rows[0][0]]
    assert loaded.counts(np.array([1, 2, 3, 2**31 + 5], dtype=np.uint32)).tolist() == [1, 2, 0, 1]
    assert loaded.after(-1, 10) == sorted(stage for stage, _ in rows)
    assert loaded.passages == 2


def test_frequencies_are_counted_over_all_shards() -> None:
    one = catalogue_of([(uuid.uuid4(), {7}) for _ in range(4)])
    two = catalogue_of([(uuid.uuid4(), {7, 8}), (uuid.uuid4(), {9})])
    ids = np.array([7, 8, 6], dtype=np.uint32)
    weights = inverse_frequencies(ids, [one, two.packed()])
    expected = [math.log((6 - n + 0.5) / (n + 0.5) + 1) for n in (5, 1, 0)]
    assert weights == expected
