"""The shortcuts past parts of a text change nothing of what the patterns find."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from apex_memory.pipeline import identifiers, parties, values
from apex_memory.pipeline.text import char_shape, matches

PAIRS = {
    name: (first, vars(module)[name])
    for module in (identifiers, parties, values)
    for key, first in vars(module).items()
    if key.endswith("_FIRST") and (name := key.removesuffix("_FIRST")) in vars(module)
    and isinstance(first, re.Pattern) and not name.endswith(("MONTH", "DAY"))
}  # fmt: skip
ALL = b"@ +0 AAAA 0/0 0000-00-00 000-0000 AAAA000000, A" + b"A" * 13 + b"0000"
"""A shape in which every pattern may occur."""

_PARTS = """
SHP-100045 shp 123456 Load LD-1234 load # 5512-33 Invoice INV-2024-7 inv Bill of lading b/l BOL p.o. PO 7781 purchase order
PRO 123-456789 MC#123456 us dot 1234567 SCAC: ABFS ODFL truck 12 trailer A-7 vehicle MSKU1234565 CSQU 305438 3
1HGCM82633A004352 a@b.co +44 20 7946 0958 (415) 555-2671 415.555.2671 Northwind Trucking LLC, Inc. Corp L.L.C. Co-op Xpress
McDonald, Ohio Columbus, OH 43215 St. Louis,MO NEW YORK, NY New Mexico $100 US$ 5 USD 500 USD C$20 €9.99 £1,000 500 EUR $5k
2026-03-04 3/4/2026 March 3, 2026 3 Sept 2025 Mar. 2026 the dock asks é ſ K İ 中 - . , : ; ' " / ( # 0 7
"""
TEXTS = st.lists(
    st.tuples(
        st.sampled_from(_PARTS.split()), st.sampled_from([" ", " ", " ", "", "\n", "-", ", ", "\t"])
    ),
    max_size=40,
).map(lambda parts: "".join(word + gap for word, gap in parts))


def test_every_first_has_its_pattern() -> None:
    assert set(PAIRS) == {
        *("_LABEL", "_SHIPMENT", "_LOAD", "_INVOICE", "_KNOWN_SCAC"),
        *("_SUFFIX", "_CITY", "_BEFORE"),
    }


@pytest.mark.parametrize("name", PAIRS)
@given(text=TEXTS | TEXTS.map(str.upper) | TEXTS.map(str.lower))
def test_first_finds_every_position_at_which_a_match_begins(name: str, text: str) -> None:
    first, pattern = PAIRS[name]
    spans = [match.span() for match in matches(first, pattern, text)]
    assert spans == [match.span() for match in pattern.finditer(text)]


@given(text=TEXTS | TEXTS.map(str.upper))
def test_the_shape_rules_out_nothing_that_occurs(text: str) -> None:
    for find in (identifiers.find_identifiers, parties.find_cities, values.find_dates):
        assert list(find(text, char_shape(text))) == list(find(text, ALL))


def test_the_shape_keeps_every_offset() -> None:
    assert char_shape("Pay $1,200 é\tby 3/4") == b"Aay $0,000 ? by 0/0"
