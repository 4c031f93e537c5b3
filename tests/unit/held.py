"""What a pull brings, held as arrivals and the saga would: each event once, the newest version of a thing, the last cursor."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from apex_memory.model import BROKEN, Document, Event
from apex_memory.sources.base import Source
from apex_memory.sources.http import Link
from apex_memory.sources.pages import Asked, Nudge, Window


@dataclass
class Held:
    source: Source
    link: Link
    cursor: dict[str, Any] = field(default_factory=dict)
    events: dict[str, Event] = field(default_factory=dict)
    answered: list[str] = field(default_factory=list)

    async def pull(
        self,
        *,
        nudges: Sequence[Nudge] = (),
        window: Window | None = None,
        die_before: int | None = None,
        between: Callable[[int], None] = lambda n: None,
    ) -> int:
        """Pull to the end and answer how many pages came. `die_before`: the worker dies before it commits that page."""
        asked = Asked(link=self.link, cursor=self.cursor, nudges=nudges, window=window)
        n = 0
        async for page in self.source.pull(asked):
            if n == die_before:
                break
            for event in page.events:
                self.events.setdefault(event.event_id, event)
            self.answered += [nudge.key for nudge in page.answered]
            if page.cursor is not None:
                self.cursor = json.loads(json.dumps(page.cursor))
            between(n)
            n += 1
        return n

    def newest(self) -> dict[str, Event]:
        found: dict[str, Event] = {}
        for event in self.events.values():
            known = found.get(event.doc_key)
            if known is None or (known.version, known.event_id) < (event.version, event.event_id):
                found[event.doc_key] = event
        return {key: event for key, event in found.items() if event.content_type != BROKEN}

    def live(self) -> dict[str, Document]:
        told = {key: self.source.document(event) for key, event in self.newest().items()}
        return {key: document for key, document in told.items() if not document.deleted}

    def broken(self) -> list[dict[str, Any]]:
        return [
            json.loads(event.payload)
            for event in self.events.values()
            if event.content_type == BROKEN
        ]
