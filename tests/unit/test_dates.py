"""Days as people write them, and numbers that are none."""

from __future__ import annotations

from collections.abc import Callable
from datetime import date

import pytest
from hypothesis import given
from hypothesis import strategies as st

from apex_memory.dates import MONTHS, DateOrder, days_without_year, written_days

TODAY = date(2024, 6, 1)


def days(text: str, order: DateOrder = "auto") -> list[str]:
    return sorted(day.latest(TODAY).isoformat() for day in written_days(text, order))


@pytest.mark.parametrize(
    "text",
    [
        "23.01.2024",
        "23.1.2024",
        "23.1.24",
        "23-01-2024",
        "23-1-24",
        "23/01/2024",
        "01/23/2024",
        "1/23/24",
        "01.23.2024",
        "2024-01-23",
        "2024-01-23T10:00:00Z",
        "2024/01/23",
        "2024/1/23",
        "Jan 23, 2024",
        "Jan. 23rd 2024",
        "January 23",
        "JANUARY 23, 2024",
        "23 January 2024",
        "23rd of January, 2024",
        "23 jan",
        "23-Jan-2024",
        "23/Jan/2024",
        "23-Jan-24",
        "23 Jan 24",
        "sent 23 Jan 24 10:15 EST",
        "Unit 5 Jan 23, 2024",
        "2024-1-23",
        "SHP-1,1/23/2024,2450.00",
        "SHP-1,1/23/24,5",
        "23 Jan 2024 10.15.00",
        "on 1/23/2024 at 10.15.30",
        "what came in (23.01.2024)?",
        "the invoice 23.01.2024.",
        "from 23.01.2024, please",
    ],
)
def test_a_day_is_read_in_any_form(text: str) -> None:
    assert days(text) == ["2024-01-23"]


@pytest.mark.parametrize(
    ("text", "auto", "day", "month"),
    [
        ("03.04.2024", "2024-04-03", "2024-04-03", "2024-03-04"),
        ("03-04-24", "2024-04-03", "2024-04-03", "2024-03-04"),
        ("03/04/2024", "2024-03-04", "2024-04-03", "2024-03-04"),
        ("13/02/2024", "2024-02-13", "2024-02-13", "2024-02-13"),
        ("02.13.2024", "2024-02-13", "2024-02-13", "2024-02-13"),
        ("2024-03-04", "2024-03-04", "2024-03-04", "2024-03-04"),
        ("2024/03/04", "2024-03-04", "2024-03-04", "2024-03-04"),
    ],
)
def test_the_order_decides_what_may_be_two_days(text: str, auto: str, day: str, month: str) -> None:
    assert [days(text, order) for order in ("auto", "day", "month")] == [[auto], [day], [month]]


@pytest.mark.parametrize(
    "text",
    [
        "version 1.2.24",
        "sort code 20-10-19",
        "account 12-05-21",
        "size 12/10/20",
        "12.10.24 USD",
        "10.11.12 kg",
        "truck 12 may be late",
        "load 7 may be late",
        "v1.2.2024",
        "v 10.11.12",
        "release 3.4.25",
        "1.2.3",
        "10.0.0.1",
        "192.168.1.24",
        "10.11.12.13",
        "$1.10.24",
        "$12.10",
        "1,234.56",
        "12.50.",
        "(901) 555-0143",
        "901-555-0143",
        "06.12.34.56.78",
        "+49 30 12.11.10-0",
        "tel. 12-11-10",
        "SHP-100045",
        "INV-2025-10-31",
        "invoice 10-12-24",
        "PO #10-12-24",
        "load no. 10-12-24",
        "AB-12-10-2024",
        "12-10-2024-7",
        "24/7",
        "1/2 truck, 3/4 inch",
        "https://example.com/2024/01/23/news",
        "10/12/2024/5",
        "31.11.2024",
        "30/02/2024",
        "2024-13-01",
        "2024-02-30",
        "99.99.2024",
        "00.01.2024",
        "May 2024",
        "may 10:30",
        "March 3%",
        "31 November",
        "",
    ],
)
def test_other_numbers_are_no_days(text: str) -> None:
    assert days(text) == []


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("what came in on 1/23?", "2024-01-23"),
        ("since 23.01.", "2024-01-23"),
        ("on the 23/1", "2024-01-23"),
        ("on 23-01", "2024-01-23"),
        ("before 12/24", "2023-12-24"),
        ("on 29.02.", "2024-02-29"),
    ],
)
def test_two_numbers_are_a_day_after_a_word_that_asks_for_one(text: str, wanted: str) -> None:
    assert [day.latest(TODAY).isoformat() for day in days_without_year(text)] == [wanted]


@pytest.mark.parametrize(
    "text", ["1/23", "3/4 of the load", "from 12.10 to 14.50", "on 3/4 inch pipe", "on 24/7", "on 31.11."]
)  # fmt: skip
def test_two_numbers_are_no_day_elsewhere(text: str) -> None:
    assert list(days_without_year(text)) == []


def test_a_day_without_a_year_is_the_nearest_or_the_latest() -> None:
    [day] = written_days("due December 28")
    assert day.latest(date(2024, 1, 3)) == day.nearest(date(2024, 1, 3)) == date(2023, 12, 28)
    assert day.nearest(date(2023, 11, 3)) == date(2023, 12, 28)
    assert day.latest(date(2023, 11, 3)) == date(2022, 12, 28)


FORMS: dict[str, Callable[[date], str]] = {
    "dotted": lambda d: f"{d:%d.%m.%Y}",
    "dotted, short": lambda d: f"{d.day}.{d.month}.{d:%y}",
    "dashed": lambda d: f"{d:%d-%m-%Y}",
    "slashed": lambda d: f"{d:%m/%d/%Y}",
    "slashed, short": lambda d: f"{d.month}/{d.day}/{d:%y}",
    "iso": lambda d: d.isoformat(),
    "year first": lambda d: f"{d:%Y/%m/%d}",
    "month named": lambda d: f"{MONTHS[d.month - 1].title()} {d.day}, {d.year}",
    "day named": lambda d: f"{d.day} {d:%B} {d.year}",
    "log": lambda d: f"{d:%d-%b-%Y}",
}


@pytest.mark.parametrize("form", FORMS)
@given(
    day=st.dates(date(1970, 1, 1), date(2068, 12, 31)),
    before=st.sampled_from(["", "on ", "the mail of ", "(", "paid: ", "Monday, "]),
    after=st.sampled_from(["", "?", ".", ", please", ")", " and later"]),
)
def test_a_rendered_day_is_read_back(form: str, day: date, before: str, after: str) -> None:
    text = FORMS[form](day)
    assert days(f"{before}{text}{after}") == [day.isoformat()]
    [written] = set(written_days(f"{before}{text}{after}"))
    assert f"{before}{text}{after}"[written.start : written.end] == text


@given(
    day=st.dates(date(1970, 1, 1), date(2068, 12, 31)),
    sign=st.sampled_from("./-"),
    order=st.sampled_from(["day", "month"]),
)
def test_the_other_order_is_taken_where_the_given_one_is_no_day(
    day: date, sign: str, order: DateOrder
) -> None:
    first, second = f"{day:%d}", f"{day:%m}"
    text = sign.join([first, second] if order == "month" else [second, first]) + f"{sign}{day.year}"
    swapped = day.day > 12
    assert days(text, order) == [
        day.isoformat() if swapped else day.replace(month=day.day, day=day.month).isoformat()
    ]


@given(st.text(max_size=60) | st.from_regex(r"[\d./ -]{1,24}", fullmatch=True))
def test_any_text_is_accepted(text: str) -> None:
    for day in [*written_days(text), *days_without_year(text)]:
        assert 0 <= day.start < day.end <= len(text)
