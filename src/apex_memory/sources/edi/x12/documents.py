"""Sets as documents: text that a person would search for, and what it says of shipments, carriers and money."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from typing import Any

from apex_memory.errors import Rejected
from apex_memory.model import Document
from apex_memory.sources.edi.x12 import codes
from apex_memory.sources.edi.x12.document_builder import DocumentBuilder, word
from apex_memory.sources.edi.x12.fields import first, loops
from apex_memory.sources.edi.x12.invoices import tell_invoice
from apex_memory.sources.edi.x12.reports import tell_status
from apex_memory.sources.edi.x12.segments import Segment, value
from apex_memory.sources.edi.x12.tenders import tell_response, tell_tender
from apex_memory.sources.payloads import as_mapping, as_string, sequence


def set_document(payload: Mapping[str, Any], at: datetime) -> Document:
    """The document of a set as it was landed. `Rejected` if this is none."""
    envelope = as_mapping(payload.get("envelope"))
    segments = [tuple(map(as_string, sequence(one))) for one in sequence(payload.get("segments"))]
    if not segments or not all(segments):
        raise Rejected("payload.segments: expected segments", remedy="is this an X12 set?")
    builder = DocumentBuilder(
        segments, as_string(envelope.get("sender")), as_string(envelope.get("receiver")), at
    )
    builder.metadata = {
        "set": builder.set_id,
        "envelope": dict(envelope),
        "sent_at": as_string(payload.get("sent_at")),
        "test": payload.get("test") is True,
        "acknowledged": as_string(payload.get("answer")),
        "findings": [as_string(one) for one in sequence(payload.get("findings"))],
    }
    tell = {
        "204": tell_tender,
        "990": tell_response,
        "214": tell_status,
        "210": tell_invoice,
        "997": _answer,
    }
    return tell.get(builder.set_id, _other)(builder)


def _answer(builder: DocumentBuilder) -> Document:
    head, end = first(builder.segments, "AK1"), first(builder.segments, "AK9")
    function, control = value(head, 1), value(head, 2)
    answer = word(codes.GROUP_ANSWERS, value(end, 1)) or "no answer"
    builder.lines.append(f"Functional acknowledgement: group {function} {control} {answer}")
    builder.add("From", builder.sender)
    builder.add("Sets", f"{value(end, 4) or '?'} of {value(end, 2) or '?'} accepted")
    rejected = []
    _, sets = loops(builder.segments, "AK2")
    for one in sets:
        result = first(one, "AK5")
        name = f"{value(one[0], 1)} {value(one[0], 2)}"
        state = word(codes.GROUP_ANSWERS, value(result, 1)) or "no answer"
        faults = [word(codes.SET_FAULTS, value(result, n)) for n in range(2, 7)]
        builder.lines.append(f"Set {name}: {'; '.join(filter(None, [state, *faults]))}")
        builder.lines += list(_faults(one))
        if value(result, 1) not in ("A", "E"):
            rejected.append(name)
    builder.metadata |= {"function": function, "group": control, "answer": value(end, 1)}
    builder.metadata["rejected"] = rejected
    return builder.document("acknowledgement", f"997: group {function} {control} {answer}")


def _faults(segments: Sequence[Segment]) -> Iterator[str]:
    """Each AK3 and AK4 of a set."""
    for one in segments:
        if one[0] == "AK3":
            yield f"  segment {value(one, 1)} at {value(one, 2)}: error {value(one, 4)}"
        elif one[0] == "AK4":
            yield f"  element {value(one, 1)}: error {value(one, 3)} {value(one, 4)}".rstrip()


def _other(builder: DocumentBuilder) -> Document:
    builder.lines.append(
        f"X12 {builder.set_id or builder.segments[0][0]} from {builder.sender or 'unknown'}"
    )
    builder.lines += [" ".join(filter(None, map(str.strip, one))) for one in builder.segments]
    return builder.document("edi_other", builder.lines[0])
