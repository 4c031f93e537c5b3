"""The landing of a page: events that were fetched together, and the trace that they share."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from opentelemetry.context import Context
from opentelemetry.trace import SpanKind, get_current_span

from apex_memory.inbox import landing
from apex_memory.inbox.payload_store import PayloadStore
from apex_memory.inbox.reused_ids import MakeDocument, land_every_content
from apex_memory.model import Event, LandResult
from apex_memory.stores.postgres import Connection
from apex_memory.telemetry import traces


async def land_page(
    connection: Connection,
    source: str,
    events: Sequence[Event],
    *,
    document: MakeDocument | None = None,
    payloads: PayloadStore | None = None,
) -> list[LandResult]:
    """Land the events of one page, and return what `landing.land` does.

    With the source's `document`, and `payloads` to read what is compared, other content under the ids of earlier events
    lands as well (`inbox.reused_ids`).

    A page is a trace of its own, with a link to the fetch that brought it: a stream or a backfill fetches for hours,
    and one trace of all its events would have no end. Events that are replayed leave their old traces.
    """
    if not events:
        return []
    fetch = get_current_span().get_span_context()
    links = [fetch] if fetch.is_valid and fetch.trace_flags.sampled else []
    with traces.span(
        f"land {source}",
        parent=Context(),
        links=links,
        kind=SpanKind.PRODUCER,
        source=source,
        events=len(events),
    ):
        carrier = traces.trace_carrier()
        traced = [
            event if event.trace_parent == carrier else replace(event, trace_parent=carrier)
            for event in events
        ]
        if document is None or payloads is None:
            return await landing.land(connection, traced)
        return await land_every_content(connection, source, traced, document, payloads)
