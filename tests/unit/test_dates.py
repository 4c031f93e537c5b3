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
        "version 2026.03.05",
        "certifi==2026.10.19",
        "1.2026.3.5",
        "2026.3.5",
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


@pytest.mark.parametrize(
    "text",
    [
        "3. März 2026", "3. Mär. 2026", "03. Marz 2026", "Dienstag, 3. MÄRZ 2026", "3-Mär-2026", "3 März 2026",
        "3 mars 2026", "le mardi 3 mars 2026", "3 de marzo de 2026", "3 de marzo del 2026", "3 mar. 2026", "3º de marzo, 2026",
        "3 marzo 2026", "3° marzo 2026", "3 de março de 2026", "3 de mar. de 2026", "3 maart 2026", "3 mrt 2026", "3 mrt. 2026",
        "3 marca 2026", "3 marca 2026 r.", "dnia 3 mar 2026 r.",
    ],
)  # fmt: skip
def test_a_month_may_have_its_name_in_another_language(text: str) -> None:
    assert days(text) == ["2026-03-03"]


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("5 févr. 2026", "2026-02-05"),
        ("5 fevrier 2026", "2026-02-05"),
        ("1er août 2026", "2026-08-01"),
        ("15 maja 2026", "2026-05-15"),
        ("1 września 2026", "2026-09-01"),
        ("1 paź 2026", "2026-10-01"),
        ("5. April 2026", "2026-04-05"),
        ("5. Dez. 2026", "2026-12-05"),
        ("6 gennaio 2026", "2026-01-06"),
        ("6 ago 2026", "2026-08-06"),
        ("6 set. 2026", "2026-09-06"),
        ("6 out. 2026", "2026-10-06"),
        ("6 mei 2026", "2026-05-06"),
        ("6 augustus 2026", "2026-08-06"),
    ],
)
def test_short_and_long_names_of_months_elsewhere(text: str, wanted: str) -> None:
    assert days(text) == [wanted]


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("am 3. Mai", "2024-05-03"),
        ("3. Mai", "2024-05-03"),
        ("seit 23. Okt.", "2023-10-23"),
        ("vom 5. April", "2024-04-05"),
        ("le 5 mars", "2024-03-05"),
        ("depuis le 5 févr.", "2024-02-05"),
        ("5 février", "2024-02-05"),
        ("12 de marzo", "2024-03-12"),
        ("el 12 de mayo", "2024-05-12"),
        ("dal 3 giugno", "2023-06-03"),
        ("em 3 out", "2023-10-03"),
        ("op 3 mrt", "2024-03-03"),
        ("dnia 15 maja", "2024-05-15"),
        ("15 stycznia", "2024-01-15"),
    ],
)
def test_a_day_elsewhere_may_have_no_year(text: str, wanted: str) -> None:
    assert days(text) == [wanted]


@pytest.mark.parametrize(
    "text",
    [
        "5 out of 6", "I am 5 out of 6", "3 set", "3 sets", "5. Set the brake", "2 mars bars", "12 mayo packets", "12 ago", "4 mag wheels",
        "6 gen", "5 lug nuts", "Dock 5 Maja Kowalska", "5. August Miller", "step 2. Mar the surface", "3 lip gloss", "ship 7 sie", "2 marca Bosch",
        "31 novembre 2026", "30 lutego 2026", "$5 mars 2026", "1.5 mars 2026", "5 marzos 2026", "x5 mars 2026", "12 pallets 2026", "März 2026",
    ],
)  # fmt: skip
def test_words_that_may_be_a_month_elsewhere_are_no_day(text: str) -> None:
    assert days(text) == []


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("Nov 3rd '26", ["2026-11-03"]),
        ("November 3 – 5, 2026", ["2026-11-03", "2026-11-05"]),
        ("Nov. 3-5, 2026", ["2026-11-03", "2026-11-05"]),
        ("Nov 3rd and 5th '26", ["2026-11-03", "2026-11-05"]),
        ("3-5 November 2026", ["2026-11-03", "2026-11-05"]),
        ("between 3 and 5 November 2026", ["2026-11-03", "2026-11-05"]),
        ("the 3rd to the 5th of November, 2026", ["2026-11-03", "2026-11-05"]),
        ("3.-5. November 2026", ["2026-11-03", "2026-11-05"]),
        ("vom 3. bis 5. März 2026", ["2026-03-03", "2026-03-05"]),
        ("del 3 al 5 de mayo de 2026", ["2026-05-03", "2026-05-05"]),
        ("Oct 30 – Nov 2, 2026", ["2026-10-30", "2026-11-02"]),
        ("Mon, Oct 30 to Thu, Nov 2, 2026", ["2026-10-30", "2026-11-02"]),
        ("28 December - 3 January 2027", ["2026-12-28", "2027-01-03"]),
        ("30. Oktober bis 2. November 2026", ["2026-10-30", "2026-11-02"]),
        ("Oct 30. Nov 2, 2026", ["2023-10-30", "2026-11-02"]),
        ("Nov 3-5 pallets", []),
        ("3-5 pallets 2026, Nov 3-45, 2026", ["2026-11-03"]),
    ],
)
def test_days_of_a_range_share_what_stands_behind_the_last_one(
    text: str, wanted: list[str]
) -> None:
    assert days(text) == wanted


@pytest.mark.parametrize(
    "text",
    [
        "2026年3月5日に配達",
        "2026 年 3 月 5 日",
        "2026년 3월 5일",
        "2026.03.05",
        "配達2026年03月05日",
        "2026-Mar-05",
        "2026/Mar/5 14:00",
        "closed 2026 March 5.",
        "2026. március 5.",
        "2026 m. kovo 5 d.",
    ],
)
def test_the_year_may_stand_first(text: str) -> None:
    assert days(text) == ["2026-03-05"]


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("March 3, 2026 March 5, 2026", ["2026-03-03", "2026-03-05"]),
        ("3 March 2025 April 5, 2026", ["2025-03-03", "2026-04-05"]),
        ("3 de marzo de 2025 abril 5", ["2025-03-03"]),
        ("March 2025 April 5, 2026", ["2026-04-05"]),
        ("03.03.2025 April 5, 2026", ["2025-03-03", "2026-04-05"]),
        ("in 2025 pallets 5", []),
        ("2026 April 31", []),
        ("invoice-2026-Mar-05", []),
    ],
)
def test_a_year_belongs_to_one_day(text: str, wanted: list[str]) -> None:
    assert days(text) == wanted


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("с 5 марта", "2024-03-05"),
        ("5 октября", "2023-10-05"),
        ("5 МАЯ 2026 г.", "2026-05-05"),
        ("до 5 окт.", "2023-10-05"),
        ("5 березня 2026 р.", "2026-03-05"),
        ("5. března 2026", "2026-03-05"),
        ("5. ŘÍJNA 2026", "2026-10-05"),
        ("5. októbra 2026", "2026-10-05"),
        ("5 EKİM 2026", "2026-10-05"),
        ("5 Kasim 2026", "2026-11-05"),
        ("5 Ağu 2026", "2026-08-05"),
        ("5 noiembrie 2026", "2026-11-05"),
        ("den 5 mars 2026", "2026-03-05"),
        ("5. desember 2026", "2026-12-05"),
        ("5. maaliskuuta 2026", "2026-03-05"),
    ],
)
def test_months_of_more_languages(text: str, wanted: str) -> None:
    assert days(text) == [wanted]


ELSEWHERE = [
    "{day}. {januar,februar,märz,april,mai,juni,juli,august,september,oktober,november,dezember} {year}",
    "{day} {janvier,février,mars,avril,mai,juin,juillet,août,septembre,octobre,novembre,décembre} {year}",
    "{day} de {enero,febrero,marzo,abril,mayo,junio,julio,agosto,septiembre,octubre,noviembre,diciembre} de {year}",
    "{day} {gennaio,febbraio,marzo,aprile,maggio,giugno,luglio,agosto,settembre,ottobre,novembre,dicembre} {year}",
    "{day} de {janeiro,fevereiro,março,abril,maio,junho,julho,agosto,setembro,outubro,novembro,dezembro} de {year}",
    "{day} {januari,februari,maart,april,mei,juni,juli,augustus,september,oktober,november,december} {year}",
    "{day} {stycznia,lutego,marca,kwietnia,maja,czerwca,lipca,sierpnia,września,października,listopada,grudnia} {year}",
    "{day}. {Jan.,Feb.,März,Apr.,Mai,Juni,Juli,Aug.,Sept.,Okt.,Nov.,Dez.} {year}",
    "{day} {janv.,févr.,mars,avr.,mai,juin,juil.,août,sept.,oct.,nov.,déc.} {year}",
    "{day} {ene,feb,mar,abr,may,jun,jul,ago,sept,oct,nov,dic} {year}",
    "{day} {gen,feb,mar,apr,mag,giu,lug,ago,set,ott,nov,dic} {year}",
    "{day} de {jan.,fev.,mar.,abr.,mai.,jun.,jul.,ago.,set.,out.,nov.,dez.} de {year}",
    "{day} {jan,feb,mrt,apr,mei,jun,jul,aug,sep,okt,nov,dec} {year}",
    "{day} {sty,lut,mar,kwi,maj,cze,lip,sie,wrz,paź,lis,gru} {year}",
    "{day} {января,февраля,марта,апреля,мая,июня,июля,августа,сентября,октября,ноября,декабря} {year}",
    "{day} {січня,лютого,березня,квітня,травня,червня,липня,серпня,вересня,жовтня,листопада,грудня} {year}",
    "{day}. {ledna,února,března,dubna,května,června,července,srpna,září,října,listopadu,prosince} {year}",
    "{day}. {januára,februára,marca,apríla,mája,júna,júla,augusta,septembra,októbra,novembra,decembra} {year}",
    "{day} {ianuarie,februarie,martie,aprilie,mai,iunie,iulie,august,septembrie,octombrie,noiembrie,decembrie} {year}",
    "{day} {Ocak,Şubat,Mart,Nisan,Mayıs,Haziran,Temmuz,Ağustos,Eylül,Ekim,Kasım,Aralık} {year}",
    "{day} {januari,februari,mars,april,maj,juni,juli,augusti,september,oktober,november,december} {year}",
    "{day}. {januar,februar,marts,april,maj,juni,juli,august,september,oktober,november,december} {year}",
    "{day}. {tammikuuta,helmikuuta,maaliskuuta,huhtikuuta,toukokuuta,kesäkuuta,heinäkuuta,elokuuta,syyskuuta,lokakuuta,marraskuuta,joulukuuta} {year}",
    "{year}. {január,február,március,április,május,június,július,augusztus,szeptember,október,november,december} {day}.",
    "{year} m. {sausio,vasario,kovo,balandžio,gegužės,birželio,liepos,rugpjūčio,rugsėjo,spalio,lapkričio,gruodžio} {day} d.",
]


@pytest.mark.parametrize("form", ELSEWHERE)
@given(day=st.dates(date(1970, 1, 1), date(2068, 12, 31)), is_capital=st.booleans())
def test_every_month_of_every_language_is_read_once(form: str, day: date, is_capital: bool) -> None:
    names = form.split("{")[2].partition("}")[0]
    text = form.replace("{" + names + "}", names.split(",")[day.month - 1])
    text = text.format(day=day.day, year=day.year)
    assert days(text.upper() if is_capital else text) == [day.isoformat()]
