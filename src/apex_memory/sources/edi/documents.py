"""Sets as documents: text that a person would search for, and facts about shipments, carriers and money. Pure."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import datetime
from typing import Any

from apex_memory.errors import Rejected
from apex_memory.model import Document
from apex_memory.sources.edi.acknowledgements import acknowledgement_document
from apex_memory.sources.edi.document_builder import DocumentBuilder
from apex_memory.sources.edi.invoices import invoice_document
from apex_memory.sources.edi.status_reports import status_document
from apex_memory.sources.edi.tenders import response_document, tender_document
from apex_memory.sources.edi.x12 import codes
from apex_memory.sources.payloads import as_mapping, as_string, sequence


def set_document(payload: Mapping[str, Any], at: datetime, *, keep_tests_apart: bool) -> Document:
    """Return the document of a set's event payload. Raises `Rejected` if it is no such payload.

    With `keep_tests_apart` the document of a test interchange's set holds nothing of the set.
    """
    envelope = as_mapping(payload.get("envelope"))
    rows = sequence(payload.get("segments"))
    segments = [tuple(map(as_string, sequence(row))) for row in rows]
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
        "findings": list(map(as_string, sequence(payload.get("findings")))),
    }
    if builder.metadata["test"] and keep_tests_apart:
        return _test_document(builder)
    for name in ("interchange", "group", "set"):
        # As people find it: senders differ in how many zeros they put before.
        builder.add_fact("", "control", object=f"id:{as_string(envelope.get(name)).lstrip('0')}")
    build = _BUILDERS.get(builder.set_id, _other_document)
    return build(builder)


def _test_document(builder: DocumentBuilder) -> Document:
    """Return an `edi_test`: that a test came, for whom and when. Its numbers and amounts are nobody's, so they are left out."""
    title = f"Test {builder.set_id} from {builder.sender or 'unknown'}, kept apart"
    outcome = codes.describe(codes.OUTCOMES, builder.metadata["acknowledged"])
    builder.lines.append(title)
    builder.add_line("Checked", outcome)
    return builder.document("edi_test", title)


def _other_document(builder: DocumentBuilder) -> Document:
    """Return an `edi_other`: the elements of a set of any other kind, a line for each segment."""
    name = builder.set_id or builder.segments[0][0]
    title = f"X12 {name} from {builder.sender or 'unknown'}"
    builder.lines.append(title)
    for segment in builder.segments:
        builder.lines.append(" ".join(filter(None, map(str.strip, segment))))
    return builder.document("edi_other", title)


_BUILDERS: Mapping[str, Callable[[DocumentBuilder], Document]] = {
    "204": tender_document,
    "990": response_document,
    "214": status_document,
    "210": invoice_document,
    "997": acknowledgement_document,
}
