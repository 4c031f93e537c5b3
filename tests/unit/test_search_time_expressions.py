"""Time expressions in queries made on Wednesday 12 November 2025, 15:30 UTC."""

from datetime import UTC, date, datetime, timedelta, timezone

import pytest
from hypothesis import given
from hypothesis import strategies as st

from apex_memory.search.time_expressions import TimeRange, read_time

AT = datetime(2025, 11, 12, 15, 30, tzinfo=UTC)


def day(year: int, month: int, number: int, *, days: int = 1) -> TimeRange:
    start = datetime(year, month, number, tzinfo=UTC)
    return TimeRange(start, start + timedelta(days=days))


@pytest.mark.parametrize(
    ("query", "time_range"),
    [
        ("what came in today?", day(2025, 11, 12)),
        ("todays tenders", day(2025, 11, 12)),
        ("today's tenders", day(2025, 11, 12)),
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
        ("paid 31.10.2025", day(2025, 10, 31)),
        ("paid 31.10.25?", day(2025, 10, 31)),
        ("paid 31-10-2025", day(2025, 10, 31)),
        ("paid 13/02/2024", day(2024, 2, 13)),
        ("paid 2025/10/31", day(2025, 10, 31)),
        ("what came in on 1/23", day(2025, 1, 23)),
        ("what came in on 12/24", day(2024, 12, 24)),
        ("mails since 3.11.2025", TimeRange(day(2025, 11, 3).since, AT)),
        ("since Nov 3, 2025", TimeRange(day(2025, 11, 3).since, AT)),
        ("on Monday, 13 January 2025", day(2025, 1, 13)),
        ("version 1.2.24 on 3.11.2025", day(2025, 11, 3)),
        ("in January 2024", day(2024, 1, 1, days=31)),
        ("calls on Monday", day(2025, 11, 10)),
        ("calls on Wednesday", day(2025, 11, 12)),
        ("calls last Wednesday", day(2025, 11, 5)),
        ("three days ago", day(2025, 11, 9)),
        ("the last 2 weeks", TimeRange(AT - timedelta(days=14), AT)),
        ("past 24 hours", TimeRange(AT - timedelta(hours=24), AT)),
        ("rates in Q1 2025", day(2025, 1, 1, days=90)),
        ("rates in Q4", day(2025, 10, 1, days=92)),
        ("carriers we used in 2024", day(2024, 1, 1, days=366)),
        ("since Monday", TimeRange(day(2025, 11, 10).since, AT)),
        ("Rechnungen vom 3. November 2025", day(2025, 11, 3)),
        ("qué llegó el 12 de marzo de 2025", day(2025, 3, 12)),
        ("factures du 5 févr. 2025", day(2025, 2, 5)),
        ("faktury z 15 maja 2025", day(2025, 5, 15)),
        ("Rechnungen März 2025", day(2025, 3, 1, days=31)),
        ("Rechnungen im MÄRZ", day(2025, 3, 1, days=31)),
        ("Rechnungen im Dezember 2024", day(2024, 12, 1, days=31)),
        ("factures en février 2024", day(2024, 2, 1, days=29)),
        ("factures en décembre", TimeRange(day(2024, 12, 1).since, day(2024, 12, 31).until)),
        ("facturas de mayo de 2025", day(2025, 5, 1, days=31)),
        ("fatture di maggio 2025", day(2025, 5, 1, days=31)),
        ("faktury maj 2025", day(2025, 5, 1, days=31)),
        ("Mails seit dem 3. Nov. 2025", TimeRange(day(2025, 11, 3).since, AT)),
        ("mails depuis le 3 nov. 2025", TimeRange(day(2025, 11, 3).since, AT)),
        (
            "zwischen 3. November und 5. November 2025",
            TimeRange(day(2025, 11, 3).since, day(2025, 11, 5).until),
        ),
        (
            "entre el 3 de noviembre y el 5 de noviembre",
            TimeRange(day(2025, 11, 3).since, day(2025, 11, 5).until),
        ),
        (
            "between 3 November and 5 November",
            TimeRange(day(2025, 11, 3).since, day(2025, 11, 5).until),
        ),
        (
            "from Nov 3 to Nov 5",
            TimeRange(day(2025, 11, 3).since, day(2025, 11, 5).until),
        ),
    ],
)
def test_a_query_names_a_time_range(query: str, time_range: TimeRange) -> None:
    assert read_time(query, AT).time_range == time_range


@pytest.mark.parametrize(
    "query",
    [
        "where is SHP-100045?",
        "invoice INV-2025-10-31",
        "may I have the rate sheet",
        "drivers march to the dock",
        "the 31 November file",
        "30 pallets for Dallas",
        "software version 1.2.24",
        "host 10.0.0.12 is down",
        "rates went from 12.10 to 14.50",
        "call (901) 555-0143",
        "invoice 10-12-24",
        "the set 2025 of rates",
        "in mars orbit",
        "in mayo",
        "5 out of 6 loads",
        "",
    ],
)
def test_other_words_are_no_time_expression(query: str) -> None:
    assert read_time(query, AT).time_range is None


def test_the_time_of_the_query_may_have_any_zone() -> None:
    chicago = AT.astimezone(timezone(timedelta(hours=-6)))
    assert read_time("yesterday", chicago).time_range == day(2025, 11, 11)


def test_the_setting_decides_which_number_is_the_day() -> None:
    assert read_time("paid 03.04.2025", AT).time_range == day(2025, 4, 3)
    assert read_time("paid 03/04/2025", AT).time_range == day(2025, 3, 4)
    assert read_time("paid 03/04/2025", AT, "day").time_range == day(2025, 4, 3)
    assert read_time("paid 03.04.2025", AT, "month").time_range == day(2025, 3, 4)


def test_a_query_without_its_days_keeps_its_other_numbers() -> None:
    query = "invoice 1042 of 23.01.2024, and 2024/01/24"
    assert read_time(query, AT).undated == "invoice 1042 of ,, and ,"


def test_a_range_has_its_days_unless_they_are_too_many() -> None:
    assert day(2025, 11, 3, days=2).days(31) == [date(2025, 11, 3), date(2025, 11, 4)]
    evening = TimeRange(AT, AT + timedelta(hours=9))
    assert evening.days(31) == [date(2025, 11, 12), date(2025, 11, 13)]
    assert len(day(2025, 10, 1, days=31).days(31)) == 31
    assert day(2025, 10, 1, days=32).days(31) == []


def test_closeness_is_one_inside_and_falls_outside() -> None:
    time_range = day(2025, 11, 3, days=7)
    assert time_range.closeness(time_range.since) == 1
    assert time_range.closeness(time_range.until) == pytest.approx(1)
    before, long_before = (
        time_range.closeness(time_range.since - timedelta(days=days)) for days in (7, 70)
    )
    assert before == pytest.approx(0.3679, abs=1e-3)
    assert 0 < long_before < 0.001


@pytest.mark.parametrize(
    "query", ["the latest position", "Dallas rejections, most recent", "what do we owe right now"]
)
def test_the_newest_is_preferred_to_what_is_only_recent(query: str) -> None:
    newest = read_time(query, AT).time_range
    recent = read_time("what happened lately", AT).time_range
    assert newest and recent
    hour, day_ago, week_ago = (AT - timedelta(hours=n) for n in (1, 24, 160))
    assert newest.closeness(hour) > newest.closeness(day_ago) > newest.closeness(week_ago) > 0
    assert newest.closeness(hour) == pytest.approx(1, abs=0.01)
    assert recent.closeness(day_ago) == recent.closeness(week_ago) == 1
    assert recent.days(31) and not newest.days(31), "the days of a week would all be alike"


@given(st.text(max_size=80) | st.from_regex(r"(last|in|on) \w{1,9} \d{1,9}( ago)?", fullmatch=True))
def test_any_query_is_accepted(query: str) -> None:
    time_range = read_time(query, AT).time_range
    assert time_range is None or time_range.since < time_range.until


@pytest.mark.parametrize(
    ("query", "rest"),
    [
        ("on 12 May 9 SHP-100045 moved", "on , 9 SHP-100045 moved"),
        ("5 December 4 SHP-100045", ", 4 SHP-100045"),
        ("2 Jan 3 invoices INV-1042", ", 3 invoices INV-1042"),
    ],
)
def test_of_two_days_that_overlap_the_first_one_counts(query: str, rest: str) -> None:
    assert read_time(query, AT).undated == rest


@pytest.mark.parametrize(
    "query", ["truck 12 may be late", "between 10-12 pallets", "lost on 2.10 a mile"]
)
def test_counts_and_amounts_are_no_days(query: str) -> None:
    assert read_time(query, AT).undated == query and read_time(query, AT).time_range is None


@pytest.mark.parametrize("query", ["since the 3rd of November", "since the 3/11", "since 3.11."])
def test_a_range_may_begin_with_an_article(query: str) -> None:
    assert read_time(query, AT, "day").time_range == TimeRange(
        datetime(2025, 11, 3, tzinfo=UTC), AT
    )
