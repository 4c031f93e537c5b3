"""What a pull brings, held as arrivals and the saga would: each event once, the newest version of a thing, the last cursor."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

from apex_memory.model import MALFORMED, Document, Event
from apex_memory.sources.base import PulledSource
from apex_memory.sources.http import VendorClient
from apex_memory.sources.pages import BackfillRange, ChangeHint, PullContext, Unfetched

SourceT = TypeVar("SourceT", bound=PulledSource)


@dataclass
class Held(Generic[SourceT]):
    source: SourceT
    client: VendorClient
    cursor: dict[str, Any] = field(default_factory=dict)
    events: dict[str, Event] = field(default_factory=dict)
    acknowledged: list[str] = field(default_factory=list)
    unfetched: list[Unfetched] = field(default_factory=list)

    async def pull(
        self,
        *,
        change_hints: Sequence[ChangeHint] = (),
        window: BackfillRange | None = None,
        die_before: int | None = None,
        between: Callable[[int], None] = lambda n: None,
    ) -> int:
        """Pull to the end and return the number of pages. `die_before`: the worker dies before it commits that page."""
        context = PullContext(
            client=self.client, cursor=self.cursor, change_hints=change_hints, window=window
        )
        n = 0
        async for page in self.source.pull(context):
            if n == die_before:
                break
            for event in page.events:
                self.events.setdefault(event.event_id, event)
            self.acknowledged += [hint.key for hint in page.acknowledged]
            self.unfetched += page.unfetched
            if page.cursor is not None:
                self.cursor = json.loads(json.dumps(page.cursor))
            between(n)
            n += 1
        return n

    def newest(self) -> dict[str, Event]:
        newest: dict[str, Event] = {}
        for event in self.events.values():
            known = newest.get(event.doc_key)
            if known is None or (known.version, known.event_id) < (event.version, event.event_id):
                newest[event.doc_key] = event
        return {key: event for key, event in newest.items() if event.content_type != MALFORMED}

    def live(self) -> dict[str, Document]:
        documents = {key: self.source.document(event) for key, event in self.newest().items()}
        return {key: document for key, document in documents.items() if not document.deleted}

    def broken(self) -> list[dict[str, Any]]:
        return [
            json.loads(event.payload)
            for event in self.events.values()
            if event.content_type == MALFORMED
        ]
