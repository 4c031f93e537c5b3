"""Texts as BM25 terms."""

from __future__ import annotations

import numpy as np
import pytest

from apex_memory.stores.words import Words

words = Words(10)


def ids(text: str) -> set[int]:
    return set(words.question(text).ids.tolist())


def test_words_meet_in_their_stem_whatever_their_case() -> None:
    assert ids("Trucks DELAYED") == ids("truck delay")
    assert ids("truck") != ids("trailer")


def test_an_identifier_is_its_parts() -> None:
    assert ids("SHP-100045") == ids("shp 100045") == ids("shp") | ids("100045")
    assert len(ids("SHP-100045")) == 2


def test_stop_words_and_nothing_give_no_terms() -> None:
    assert ids("the of and") == ids("") == set()


def test_ids_leave_the_highest_bit_free() -> None:
    text = " ".join(f"word{n}" for n in range(1000))
    assert int(words.passage(text).ids.max()) < 1 << 31


def test_weights_follow_bm25() -> None:
    """k = 1.2, b = 0.75; lengths are counted without stop words."""
    text = "the truck " + "lumper " * 4
    weights = dict(zip(*(array.tolist() for array in astuple(text)), strict=True))
    norm = 1.2 * (0.25 + 0.75 * 5 / 10)
    (truck,), (lumper,) = ids("truck"), ids("lumper")
    assert weights[truck] == pytest.approx(1 * 2.2 / (1 + norm), rel=1e-4)
    assert weights[lumper] == pytest.approx(4 * 2.2 / (4 + norm), rel=1e-4)


def astuple(text: str) -> tuple[np.ndarray, np.ndarray]:
    terms = words.passage(text)
    return terms.ids, terms.weights


def test_a_text_with_its_neighbours_is_held_against_a_longer_average() -> None:
    text = "truck " * 30
    assert words.nearby(text).weights[0] > words.passage(text).weights[0]


def test_questions_weigh_each_term_once() -> None:
    assert words.question("truck truck trailer").weights.tolist() == [1, 1]
