"""Time words, asked on Wednesday 12 November 2025, 15:30 UTC."""

from datetime import UTC, datetime, timedelta, timezone

import pytest
from hypothesis import given
from hypothesis import strategies as st

from apex_memory.search.time_words import Span, time_words

AT = datetime(2025, 11, 12, 15, 30, tzinfo=UTC)


def day(year: int, month: int, number: int, *, days: int = 1) -> Span:
    start = datetime(year, month, number, tzinfo=UTC)
    return Span(start, start + timedelta(days=days))


@pytest.mark.parametrize(
    ("question", "span"),
    [
        ("what came in today?", day(2025, 11, 12)),
        ("what came in yesterday?", day(2025, 11, 11)),
        ("the day before yesterday", day(2025, 11, 10)),
        ("what is due tomorrow", day(2025, 11, 13)),
        ("detention invoices last week", day(2025, 11, 3, days=7)),
        ("this week's tenders", day(2025, 11, 10, days=7)),
        ("fuel cost last month", day(2025, 10, 1, days=31)),
        ("late loads in October", day(2025, 10, 1, days=31)),
        ("late loads in December", day(2024, 12, 1, days=31)),
        ("in may we had delays", day(2025, 5, 1, days=31)),
        ("February 2024 claims", day(2024, 2, 1, days=29)),
        ("what happened on 3 November", day(2025, 11, 3)),
        ("what happened on the 3rd of November, 2023?", day(2023, 11, 3)),
        ("pickup Nov 14", day(2024, 11, 14)),
        ("pickup Nov. 14, 2025", day(2025, 11, 14)),
        ("accidents on 29 February", day(2024, 2, 29)),
        ("delivered 2025-10-31?", day(2025, 10, 31)),
        ("volume of 2025-09", day(2025, 9, 1, days=30)),
        ("paid 10/31/2025", day(2025, 10, 31)),
        ("paid 1/2/25", day(2025, 1, 2)),
        ("calls on Monday", day(2025, 11, 10)),
        ("calls on Wednesday", day(2025, 11, 12)),
        ("calls last Wednesday", day(2025, 11, 5)),
        ("three days ago", day(2025, 11, 9)),
        ("the last 2 weeks", Span(AT - timedelta(days=14), AT)),
        ("past 24 hours", Span(AT - timedelta(hours=24), AT)),
        ("rates in Q1 2025", day(2025, 1, 1, days=90)),
        ("rates in Q4", day(2025, 10, 1, days=92)),
        ("carriers we used in 2024", day(2024, 1, 1, days=366)),
        ("since Monday", Span(day(2025, 11, 10).since, AT)),
        (
            "between 3 November and 5 November",
            Span(day(2025, 11, 3).since, day(2025, 11, 5).until),
        ),
    ],
)
def test_a_question_names_a_stretch_of_time(question: str, span: Span) -> None:
    assert time_words(question, AT) == span


@pytest.mark.parametrize(
    "question",
    [
        "where is SHP-100045?",
        "invoice INV-2025-10-31",
        "may I have the rate sheet",
        "drivers march to the dock",
        "the 31 November file",
        "30 pallets for Dallas",
        "",
    ],
)
def test_other_words_are_no_time(question: str) -> None:
    assert time_words(question, AT) is None


def test_the_moment_of_asking_may_have_any_zone() -> None:
    chicago = AT.astimezone(timezone(timedelta(hours=-6)))
    assert time_words("yesterday", chicago) == day(2025, 11, 11)


def test_closeness_is_one_inside_and_falls_outside() -> None:
    span = day(2025, 11, 3, days=7)
    assert span.closeness(span.since) == 1
    assert span.closeness(span.until) == pytest.approx(1)
    before, long_before = (span.closeness(span.since - timedelta(days=days)) for days in (7, 70))
    assert before == pytest.approx(0.3679, abs=1e-3)
    assert 0 < long_before < 0.001


@given(st.text(max_size=80) | st.from_regex(r"(last|in|on) \w{1,9} \d{1,9}( ago)?", fullmatch=True))
def test_no_question_breaks_it(question: str) -> None:
    span = time_words(question, AT)
    assert span is None or span.since < span.until
