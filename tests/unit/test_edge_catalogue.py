"""The catalogue: which stages a shard may hold, and in how many passages each term occurs."""

from __future__ import annotations

import math
import uuid
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from apex_memory.edge.catalogue import (
    Catalogue,
    PackedCatalogue,
    inverse_frequencies,
    to_place,
)
from apex_memory.edge.protocol import PLACE

stages = st.uuids()
terms = st.integers(0, 2**32 - 1)
passages = st.lists(st.tuples(stages, st.sets(terms, max_size=5)), max_size=20)


def catalogue_of(rows: list[tuple[uuid.UUID, set[int]]]) -> Catalogue:
    catalogue = Catalogue()
    for n, (stage, words) in enumerate(rows):
        catalogue.add(point_of(n), stage, place_of(stage, n), words)
    return catalogue


def point_of(n: int) -> uuid.UUID:
    """Ids that end and begin with zero bytes, and are not in order, too."""
    return uuid.UUID(int=(n * 0x9E3779B97F4A7C15 % 251) << (8 * (n % 16)) | n << 120)


def place_of(stage: uuid.UUID, n: int) -> bytes:
    return to_place(stage, f"{uuid.UUID(int=n)} {n} {7 * n} {2**32 - 1 - n} -5")


@given(passages, st.lists(stages, max_size=5), st.lists(terms, max_size=5))
def test_growing_and_packed_return_the_same(
    rows: list[tuple[uuid.UUID, set[int]]], strangers: list[uuid.UUID], unknown: list[int]
) -> None:
    growing = catalogue_of(rows)
    packed = growing.packed()
    all_stages = [*(stage for stage, _ in rows), *strangers]
    known = {stage for stage, _ in rows}
    assert (
        growing.held(all_stages) == packed.held(all_stages) == [s for s in all_stages if s in known]
    )
    expected = Counter(term for _, words in rows for term in words)
    ids = np.array([*expected, *unknown], dtype=np.uint32)
    wanted = [expected[term] for term in ids.tolist()]
    assert growing.counts(ids).tolist() == packed.counts(ids).tolist() == wanted
    assert growing.passages == packed.passages == len(rows)
    points = [point_of(n).bytes for n in reversed(range(len(rows)))]
    places = [place_of(rows[n][0], n) for n in reversed(range(len(rows)))]
    assert growing.places(points) == packed.places(points) == places


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
    assert PackedCatalogue.load(tmp_path) is None
    catalogue_of(rows).packed().save(tmp_path)
    loaded = PackedCatalogue.load(tmp_path)
    assert loaded
    assert loaded.held([rows[0][0], uuid.uuid4()]) == [rows[0][0]]
    assert loaded.counts(np.array([1, 2, 3, 2**31 + 5], dtype=np.uint32)).tolist() == [1, 2, 0, 1]
    assert loaded.after(-1, 10) == sorted(stage for stage, _ in rows)
    assert loaded.passages == 2
    stage, number = rows[1][0], uuid.UUID(int=1)
    assert PLACE.unpack(loaded.places([point_of(1).bytes])[0]) == (
        *(stage.bytes, number.bytes, 1, 7),
        2**32 - 2,
    )
    for catalogue in (loaded, catalogue_of(rows), catalogue_of([]).packed()):
        with pytest.raises(KeyError):
            catalogue.places([point_of(2).bytes])


def test_a_catalogue_without_places_is_made_anew(tmp_path: Path) -> None:
    """One from before catalogues knew them."""
    catalogue_of([(uuid.uuid4(), {1})]).packed().save(tmp_path)
    (tmp_path / "places.npy").unlink()
    assert PackedCatalogue.load(tmp_path) is None


def test_frequencies_are_counted_over_all_shards() -> None:
    catalogue = catalogue_of([(uuid.uuid4(), {7}) for _ in range(4)])
    two = catalogue_of([(uuid.uuid4(), {7, 8}), (uuid.uuid4(), {9})])
    ids = np.array([7, 8, 6], dtype=np.uint32)
    weights = inverse_frequencies(ids, [catalogue, two.packed()])
    expected = [math.log((6 - n + 0.5) / (n + 0.5) + 1) for n in (5, 1, 0)]
    assert weights == expected
