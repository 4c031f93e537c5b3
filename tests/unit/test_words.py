"""Texts as BM25 terms."""

from __future__ import annotations

import uuid
from itertools import accumulate

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from apex_memory.errors import Rejected
from apex_memory.model import VectorPoint
from apex_memory.stores.bm25 import NEARBY, Words

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


def points(texts: list[str], *, gap: str = "\n\n") -> list[VectorPoint]:
    """Return the chunks of one stage, with `gap` between them in the document."""
    stage, whole = uuid.uuid4(), gap.join(texts)
    ends = list(accumulate(len(text) + len(gap) for text in texts))
    spans = [
        (end - len(text) - len(gap), end - len(gap)) for text, end in zip(texts, ends, strict=True)
    ]
    return [
        VectorPoint(
            id=uuid.uuid4(),
            stage=stage,
            doc=uuid.uuid4(),
            n=n,
            start=start,
            end=end,
            text=whole[start:end],
            nearby=whole[spans[max(0, n - 1)][0] : spans[min(n + 1, len(spans) - 1)][1]],
            source="documents",
            kind="note",
            time=0,
            entities=(),
            hash=0,
        )
        for n, (start, end) in enumerate(spans)
    ]


def assert_same(made: list[VectorPoint]) -> None:
    rows = words.rows(made)
    ends = np.cumsum(rows.lengths).tolist()
    assert ends[-1] == len(rows.ids) == len(rows.weights)
    for point, start, end in zip(made, [0, *ends], ends, strict=False):
        passage, nearby = words.passage(point.text), words.nearby(point.nearby)
        ids = np.concatenate((passage.ids, nearby.ids | np.uint32(NEARBY)))
        assert rows.ids[start:end].tolist() == ids.tolist()
        weights = np.concatenate((passage.weights, nearby.weights))
        assert rows.weights[start:end].tolist() == weights.tolist()


word = st.sampled_from(
    ["truck", "trucks", "Lumper", "the", "SHP-100045", "naïve", "中文", "x", "", "\n"]
)


@given(
    documents=st.lists(
        st.lists(st.lists(word, max_size=40).map(" ".join), min_size=1, max_size=6), max_size=4
    ),
    gap=st.sampled_from(["\n\n", " ", "", "-", ", "]),
)
def test_rows_of_many_points_are_those_of_each_to_the_last_bit(
    documents: list[list[str]], gap: str
) -> None:
    made = [point for texts in documents for point in points(texts, gap=gap)]
    if made:
        assert_same(made)
        assert_same(made[1:-1] or made)  # neighbours that are not among them


def test_words_that_a_border_cuts_are_counted_whole_in_what_is_nearby() -> None:
    assert_same(points(["the truck", "er waits", "at the dock"], gap=""))


def test_a_text_that_is_not_unicode_is_refused_with_its_point() -> None:
    (point,) = points(["truck \ud800"])
    with pytest.raises(Rejected, match=str(point.id)):
        words.rows([point])


@pytest.mark.parametrize(
    ("sentence", "query"),
    [
        ("倉庫は週末閉まっています", "倉庫"),
        ("倉庫は週末閉まっています", "週末"),
        ("我们的卡车在上海港口被延误了", "港口"),
        ("茶は倉庫にあります", "茶"),
        ("รถบรรทุกมาถึงท่าเรือแล้ว", "ท่าเรือ"),
        ("ລົດບັນທຸກມາຮອດແລ້ວ", "ບັນທຸກ"),
        ("창고는 주말에 닫힙니다", "창고"),
        ("トラックが遅れています", "トラック"),
    ],
)
def test_f28_a_word_is_found_in_a_sentence_without_blanks(sentence: str, query: str) -> None:
    assert ids(query)
    assert ids(query) <= set(words.passage(sentence).ids.tolist())
    assert not ids(query) & set(words.passage("The truck waits at the dock").ids.tolist())


@pytest.mark.parametrize(
    ("text", "query"),
    [
        ("the o\ufb03ce", "office"),
        ("a certi\ufb01cate", "certificate"),
        ("indi\u00adgo", "indigo"),
        ("tea\u200bl", "teal"),
        ("\uff34\uff25\uff21\uff2c", "teal"),
        ("Straße", "STRASSE"),
        ("of the merchan-\ndise there", "merchandise"),
    ],
)
def test_f21_words_have_one_normal_form(text: str, query: str) -> None:
    assert ids(query) <= set(words.passage(text).ids.tolist())
