from __future__ import annotations

import pytest

from apex_memory.search.excerpt import EXCERPT_CHARS, excerpter
from apex_memory.stores.bm25 import Words

FILLER = "Nothing of note happened on the road that day, and nobody wrote anything down. "
WORDS = Words(average_words=1)


def matters(word: str) -> bool:
    return bool(WORDS.question(word).ids.size)


def test_it_shows_where_the_words_stand() -> None:
    passage = FILLER * 5 + "The receiver refused six tables at the dock. " + FILLER * 5
    shown = excerpter("Which tables did the receivers refuse?", matters)(passage)
    assert shown.startswith("…The receiver refused six tables at the dock.")
    assert shown.endswith("…") and len(shown) <= EXCERPT_CHARS


def test_most_different_words_win_over_many_of_one() -> None:
    passage = "invoice " * 40 + FILLER * 3 + "The invoice for towing came to 640. " + FILLER
    assert "towing came to 640" in excerpter("invoice for towing 640", matters)(passage)


def test_f28_a_word_without_blanks_around_it_is_shown() -> None:
    shown = excerpter("倉庫", matters)("茶" * 400 + "。倉庫は閉まっています。" + "茶" * 400)
    assert "倉庫" in shown and len(shown) <= EXCERPT_CHARS


@pytest.mark.parametrize("question", ["", "the of", "xylophone", "(", "🚚", "SHP-1 \\"])
def test_without_a_word_in_common_it_shows_the_start(question: str) -> None:
    shown = excerpter(question, matters)(FILLER * 9)
    assert shown.startswith("Nothing of note") and shown.endswith("…")
    assert EXCERPT_CHARS - 45 <= len(shown) <= EXCERPT_CHARS


def test_a_short_passage_is_shown_whole() -> None:
    assert excerpter("gate", matters)("The gate\n code  is nine") == "The gate code is nine"


def test_the_end_of_a_passage_and_one_long_word() -> None:
    assert excerpter("nine", matters)(FILLER * 9 + "The code is nine").endswith("The code is nine")
    shown = excerpter("y", matters)("x" * 5_000)
    assert shown == "x" * (EXCERPT_CHARS - 1) + "…"
