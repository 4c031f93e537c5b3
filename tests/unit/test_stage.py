"""A stage's items: what each passage can be filtered by, however many entities a document names."""

from __future__ import annotations

import uuid
from dataclasses import replace

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from apex_memory.model import Assertion, Chunk, Manifest, now
from apex_memory.saga.stage import ENTITIES_EACH, Stage, entities_by_chunk

STEP = 100  # characters of a chunk; each overlaps the next by a tenth


def manifest(chunks: int, named: list[tuple[int, int | None]]) -> Manifest:
    """A document of so many chunks; `named` holds entities by number, with where the text names them."""
    return Manifest(
        id=uuid.uuid4(),
        inbox_id=uuid.uuid4(),
        doc_id=uuid.uuid4(),
        source="toy",
        doc_key="d",
        pipeline="p",
        kind="k",
        title="t",
        text="x" * STEP * max(1, chunks),
        occurred_at=now(),
        metadata={},
        parent_id=None,
        deleted=False,
        chunks=tuple(Chunk(n, n * STEP, n * STEP + STEP * 11 // 10) for n in range(chunks)),
        vectors=np.zeros((chunks, 2), np.float32),
        assertions=tuple(
            Assertion(predicate="mentions", object=f"shipment:{entity}", start=start)
            for entity, start in named
        ),
        entities=tuple(sorted({f"shipment:{entity}" for entity, _ in named})),
    )


NAMED = st.lists(
    st.tuples(st.integers(0, 500), st.none() | st.integers(0, 20 * STEP - 1)), max_size=400
)


@given(chunks=st.integers(1, 20), named=NAMED)
def test_o1_each_entity_is_on_the_passages_that_name_it_and_none_is_missing(
    chunks: int, named: list[tuple[int, int | None]]
) -> None:
    made = manifest(chunks, named)
    by_chunk = entities_by_chunk(made)
    assert len(by_chunk) == chunks
    assert set().union(*by_chunk) == set(made.entities)
    if len(made.entities) <= ENTITIES_EACH:
        assert all(tuple(refs) == made.entities for refs in by_chunk)
        return
    for entity, start in named:
        if start is not None and start < chunks * STEP:
            assert f"shipment:{entity}" in by_chunk[start // STEP]
    # Each mention is on its passage and on the one that overlaps it; what no text names is on the first.
    assert sum(map(len, by_chunk)) <= 2 * len(named) + len(made.entities)


def test_a_document_without_passages_has_no_points() -> None:
    assert entities_by_chunk(manifest(0, [(n, None) for n in range(100)])) == []


def test_points_carry_the_entities_of_their_passage() -> None:
    made = manifest(10, [(n, n * 10) for n in range(100)])
    points = list(Stage(uuid.uuid4(), made, 1, "e").points())
    assert all(len(point.entities) <= 12 for point in points)


def test_points_carry_the_days_that_their_passage_names() -> None:
    days = [
        Assertion(predicate="date", subject="document:d", value=value, start=start)
        for value, start in (
            ("2024-01-23", 5),
            ("2024-01-24", STEP + 5),
            ("soon", 6),
            ("2024-01-25", None),
        )
    ]
    made = replace(manifest(3, []), assertions=tuple(days))
    points = list(Stage(uuid.uuid4(), made, 1, "e").points())
    assert [list(point.entities) for point in points] == [
        ["day:2024-01-23"],
        ["day:2024-01-24"],
        [],
    ]
