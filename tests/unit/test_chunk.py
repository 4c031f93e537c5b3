"""Chunks: exact offsets, nothing lost, no border crossed."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from apex_memory.errors import Rejected
from apex_memory.pipeline.chunk import _SLAB, chunk

TEXTS = st.text(
    st.one_of(
        st.sampled_from(" \n\n#|-*`.aé漢😀\u0301\u3000"), st.characters(exclude_categories=["Cs"])
    ),
    max_size=400,
)


@st.composite
def texts_with_passages(draw: st.DrawFn) -> tuple[str, list[tuple[int, int]]]:
    text = draw(TEXTS)
    marks = sorted(draw(st.lists(st.integers(0, len(text)), max_size=8)))
    return text, list(zip(marks[::2], marks[1::2], strict=False))


@given(texts_with_passages(), st.integers(1, 60))
def test_chunks_cover_the_text_in_order_and_never_cross_a_passage(
    case: tuple[str, list[tuple[int, int]]], size: int
) -> None:
    text, passages = case
    chunks = chunk(text, passages, chunk_chars=size)
    assert [piece.n for piece in chunks] == list(range(len(chunks)))
    assert bool(chunks) == bool(text.strip())
    last = 0
    for piece in chunks:
        assert last <= piece.start < piece.end <= len(text)
        assert piece.end - piece.start <= size
        assert not text[last : piece.start].strip(), "only blanks lie between chunks"
        last = piece.end
        for start, end in passages:
            apart = piece.end <= start or piece.start >= end
            assert apart or (start <= piece.start and piece.end <= end) or start == end
    assert not text[last:].strip()


def test_turns_of_a_conversation_stay_apart_however_short() -> None:
    text = "Hi\n\nHello, where is it?\n\n \n\nIn Columbus"
    passages = [(0, 2), (4, 23), (25, 26), (28, 39)]
    chunks = chunk(text, passages, chunk_chars=900)
    assert [text[c.start : c.end] for c in chunks] == ["Hi", "Hello, where is it?", "In Columbus"]


def test_markdown_is_cut_at_its_headings() -> None:
    text = "# One\n\n" + "word " * 30 + "\n\n# Two\n\n" + "word " * 30
    pieces = [text[c.start : c.end] for c in chunk(text, [], chunk_chars=200)]
    assert [piece.partition("\n")[0] for piece in pieces] == ["# One", "# Two"]


def test_a_text_without_blanks_is_cut_too() -> None:
    text = "x" * (2 * _SLAB + 10)
    chunks = chunk(text, [], chunk_chars=900)
    assert "".join(text[c.start : c.end] for c in chunks) == text
    assert max(c.end - c.start for c in chunks) <= 900


@pytest.mark.parametrize("passages", [[(0, 3), (2, 5)], [(4, 2)], [(0, 99)], [(-1, 2)]])
def test_passages_that_cannot_be_are_refused(passages: list[tuple[int, int]]) -> None:
    with pytest.raises(Rejected, match="passage"):
        chunk("hello", passages, chunk_chars=100)
