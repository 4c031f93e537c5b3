"""What the elements of a set become: which ones a document shows in words, and which ones as they came.

`SHOWN` names the elements that the builders of documents put into text, metadata or assertions. `LEFT_OUT` names those
that carry no fact of their own. Every other element ends in a line of its own (`remaining_lines`), so that no value which
a partner sends is in no document. Element places are those of version 004010.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from apex_memory.sources.edi.x12.fields import unattached_segments
from apex_memory.sources.edi.x12.segments import Segment
from apex_memory.sources.fields import RecordFields

_COMMON: Mapping[str, Sequence[int]] = {
    "L11": (1, 2, 3),
    "N9": (1, 2, 3),
    "N1": (1, 2, 4),
    "N2": (1, 2),
    "N3": (1, 2),
    "N4": (1, 2, 3, 4),
    "G61": (2, 3, 4),
    "G62": (1, 2, 4, 5),
    "NTE": (2,),
    "K1": (1, 2),
    "N7": (1, 2, 3, 11, 15, 18),
    "L3": (1, 5, 11),
}
SHOWN: Mapping[str, Mapping[str, Sequence[int]]] = {
    "204": {
        **_COMMON,
        "B2": (2, 4, 6),
        "B2A": (1,),
        "S5": (1, 2, 3, 4, 5),
        "L5": (2,),
        "AT8": (2, 3, 4),
        "LH1": (2, 3, 10),
        "LH2": (1, 3),
        "LH3": (1,),
        "LFH": (2, 3),
    },
    "990": {**_COMMON, "B1": (1, 2, 3, 4), "V9": (1, 8)},
    "214": {
        **_COMMON,
        "B10": (1, 2, 3),
        "LX": (1,),
        "AT7": (1, 2, 3, 4, 5, 6, 7),
        "MS1": (1, 2, 3, 4, 5, 6, 7),
        "MS2": (1, 2),
        "AT8": (2, 3, 4),
        "Q7": (1, 2, 3),
    },
    "210": {
        **_COMMON,
        "B3": (2, 3, 4, 6, 7, 8, 9, 10, 11),
        "C3": (1,),
        "LX": (1,),
        "L5": (2,),
        "L0": (4, 8, 11),
        "L1": (2, 3, 4, 8, 12),
    },
    "997": {
        "AK1": (1, 2),
        "AK2": (1, 2),
        "AK3": (1, 2, 4),
        "AK4": (1, 3, 4),
        "AK5": (1, 2, 3, 4, 5, 6),
        "AK9": (1, 2, 4),
    },
}
"""By set and segment: the places of the elements that its document shows in words."""

LEFT_OUT: Mapping[str, Sequence[int]] = {
    "ST": (1, 2, 3),
    "SE": (1, 2),
    "N1": (3,),
    "G61": (1,),
    "G62": (3,),
    "NTE": (1,),
    "L5": (1,),
    "L0": (1, 5, 9),
    "L1": (1,),
    "L3": (2, 12),
    "AT8": (1,),
    "S5": (6,),
    "N7": (4,),
    "LH1": (1,),
    "AK3": (3,),
    "AK4": (2,),
}
"""By segment: the places that hold a counter or a code which only tells how to read a neighbour."""


def set_fields(set_id: str) -> RecordFields:
    """Return the elements of a set for the reference page: a row for each segment, such as `B2 02 04 06`."""
    shown = SHOWN[set_id]
    return RecordFields(
        f"set {set_id}",
        shown={_elements(segment, places): "text" for segment, places in shown.items()},
        left_out={
            _elements(segment, places): "counters, and codes that tell how to read a neighbour"
            for segment, places in LEFT_OUT.items()
            if segment in shown or segment in ("ST", "SE")
        },
        note="Segments with the places of their elements. Numbers, parties, dates, amounts and states are asserted too.",
    )


def _elements(segment: str, places: Sequence[int]) -> str:
    return " ".join([segment, *(f"{place:02}" for place in places)])


def remaining_lines(set_id: str, segments: Sequence[Segment]) -> Iterator[str]:
    """Yield a line for each segment with elements that are neither shown nor left out: its id and these elements.

    Of a segment that belongs to a party or a status, but follows none, all elements remain.
    """
    shown = SHOWN.get(set_id, {})
    unattached = set(map(id, unattached_segments(segments)))
    for segment in segments:
        known = {*shown.get(segment[0], ()), *LEFT_OUT.get(segment[0], ())}
        if id(segment) in unattached:
            known = set()
        values = [
            value.strip()
            for place, value in enumerate(segment[1:], 1)
            if place not in known and value.strip()
        ]
        if values:
            yield f"{segment[0]} {' '.join(values)}"
