"""Comparison of a copy with its event: the exact field that differs, and nothing that follows from it."""

from __future__ import annotations

import uuid
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from apex_memory.model import Assertion, Chunk, Manifest, Tally, now
from apex_memory.rollout.comparison import (
    MOST_DIFFERENCES,
    Difference,
    ProcessedEvent,
    compare,
)
from apex_memory.saga.stage import chunks_tally, edges_tally

TEXT = "Shipment SHP-100045 left Columbus, OH. It arrives on Monday at the dock of Northwind."
OCCURRED = now()
DOCUMENT = uuid.uuid4()


def manifest(**changed: Any) -> Manifest:
    rows = np.eye(2, 4, dtype=np.float32)
    given = {
        "id": uuid.uuid4(),
        "inbox_id": uuid.uuid4(),
        "doc_id": DOCUMENT,
        "source": "toy",
        "doc_key": "d",
        "pipeline": "2/toy",
        "kind": "note",
        "title": "A note",
        "text": TEXT,
        "occurred_at": OCCURRED,
        "metadata": {"channel": "mail", "at": OCCURRED, "tags": ("a", "b")},
        "parent_id": None,
        "deleted": False,
        "chunks": (Chunk(0, 0, 38), Chunk(1, 39, len(TEXT))),
        "vectors": rows,
        "assertions": (
            Assertion(
                predicate="mentions",
                subject=f"document:{DOCUMENT}",
                object="shipment:shp-100045",
                start=9,
            ),
            Assertion(predicate="name", subject="company:northwind", value="Northwind", start=76),
        ),
        "entities": ("company:northwind", "shipment:shp-100045"),
    }
    return Manifest(**{**given, **changed})


def processed(made: Manifest | None = None, **changed: Any) -> ProcessedEvent:
    whole = made or manifest()
    given = {
        "outcome": "done",
        "manifest": whole,
        "graph": edges_tally(whole),
        "vectors": chunks_tally(whole),
    }
    return ProcessedEvent(**{**given, **changed})


def fields(differences: list[Difference]) -> dict[str, str]:
    return {difference.field: difference.reason for difference in differences}


def test_equal_manifests_of_two_runs_are_equal() -> None:
    noise = np.full((2, 4), 1e-5, np.float32)
    other = manifest(
        metadata={"channel": "mail", "at": str(OCCURRED), "tags": ["a", "b"]},
        vectors=manifest().vectors + noise,
        pipeline="3/toy",
    )
    assert compare(processed(), processed(other)) == []


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"kind": "mail"}, {"kind": "changed"}),
        ({"title": "Another"}, {"title": "changed"}),
        ({"title": ""}, {"title": "missing"}),
        ({"about": "shipment:shp-100045"}, {"about": "added"}),
        ({"parent_id": uuid.uuid4()}, {"parent": "added"}),
        ({"metadata": {"channel": "mail", "at": OCCURRED}}, {"metadata.tags": "missing"}),
        (
            {"metadata": {"channel": "sms", "at": OCCURRED, "tags": ["a", "b"], "new": 1}},
            {"metadata.channel": "changed", "metadata.new": "added"},
        ),
        (
            {"entities": ("shipment:shp-100045",)},
            {"entities.company": "missing"},
        ),
        (
            {"entities": ("company:northwind", "shipment:shp-100045", "city:columbus")},
            {"entities.city": "added"},
        ),
        (
            {"assertions": manifest().assertions[:1]},
            {"assertions.name": "missing"},
        ),
        ({"chunks": (Chunk(0, 0, len(TEXT)),), "vectors": np.eye(1, 4, dtype=np.float32)}, {"chunks": "changed"}),
        ({"vectors": np.eye(2, 4, k=1, dtype=np.float32)}, {"vectors": "changed"}),
        ({"vectors": np.eye(2, 8, dtype=np.float32)}, {"vectors": "another dimension"}),
    ],
)  # fmt: skip
def test_a_change_shows_as_its_field_alone(
    changes: dict[str, Any], expected: dict[str, str]
) -> None:
    assert fields(compare(processed(), processed(manifest(**changes)))) == expected


def test_a_longer_text_shows_as_text_and_not_as_what_follows_from_it() -> None:
    shifted = "Note. " + TEXT
    moved = tuple(
        replace(item, start=None if item.start is None else item.start + 6)
        for item in manifest().assertions
    )
    other = manifest(
        text=shifted,
        chunks=(Chunk(0, 0, 44), Chunk(1, 45, len(shifted))),
        assertions=moved,
    )
    [difference] = compare(processed(), processed(other))
    assert (difference.field, difference.reason) == ("text", "changed")
    assert difference.live.startswith("Shipment") and difference.shadow.startswith("Note. ")


def test_an_offset_that_moves_in_an_equal_text_is_a_difference() -> None:
    first, second = manifest().assertions
    moved = manifest(assertions=(replace(first, start=12), second))
    assert fields(compare(processed(), processed(moved))) == {"assertions.mentions": "changed"}


def test_outcomes_and_error_classes_are_compared() -> None:
    live = ProcessedEvent(outcome="dead", error="Rejected")
    assert compare(live, ProcessedEvent(outcome="dead", error="Rejected")) == []
    assert fields(compare(live, ProcessedEvent(outcome="dead", error="NotFound"))) == {
        "error": "changed"
    }
    assert fields(compare(live, processed())) == {"outcome": "dead → done"}
    assert fields(compare(processed(), live)) == {"outcome": "done → dead"}
    assert fields(compare(processed(), processed(outcome="superseded"))) == {
        "outcome": "done → superseded"
    }


def test_a_stage_that_is_not_its_manifest_names_the_store_and_the_side() -> None:
    lost = processed(graph=Tally(1, 5))
    [difference] = compare(lost, processed())
    assert difference.field == "tallies.graph" and "live" in difference.reason
    [difference] = compare(processed(), processed(vectors=Tally()))
    assert difference.field == "tallies.vectors" and "shadow" in difference.reason


def test_hostile_values_stay_small() -> None:
    metadata = {f"key\n{n} " + "x" * 500: "y" * 10_000 for n in range(500)}
    differences = compare(processed(), processed(manifest(metadata=metadata)))
    assert len(differences) == MOST_DIFFERENCES
    for difference in differences:
        assert len(difference.field) < 100 and "\n" not in difference.field
        assert len(difference.live) < 300 and len(difference.shadow) < 300


CHANGES: dict[str, Callable[[str], dict[str, Any]]] = {
    "kind": lambda text: {"kind": "note" + text},
    "title": lambda text: {"title": "A note" + text},
    "text": lambda text: {"text": TEXT + text},
    "about": lambda text: {"about": "x:" + text},
    "metadata.channel": lambda text: {"metadata": {**manifest().metadata, "channel": "mail" + text}},
}  # fmt: skip


@given(
    chosen=st.sets(st.sampled_from(sorted(CHANGES))),
    text=st.text(st.characters(exclude_categories=["Cs"]), min_size=1),
)
def test_any_set_of_changes_shows_as_exactly_these_fields(chosen: set[str], text: str) -> None:
    changes: dict[str, Any] = {}
    for name in chosen:
        changes |= CHANGES[name](text)
    assert set(fields(compare(processed(), processed(manifest(**changes))))) == chosen
