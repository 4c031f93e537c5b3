"""The mirror as the other parts see it: land with copies, forward, list, redrive, discard, forget."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Literal
from uuid import UUID

import httpx2

from apex_memory.inbox import landing
from apex_memory.mirror import copies, queue
from apex_memory.mirror.copies import MirrorCopy
from apex_memory.mirror.forwarder import Forwarder
from apex_memory.mirror.queue import ListedCopy, SourceQueue
from apex_memory.model import Event, LandResult
from apex_memory.sources.base import Source
from apex_memory.stores.postgres import Postgres

VIA = b"apex-"
"""Beginning of the name under which an installation enters itself in the header `Via` (RFC 9110, 7.6.3)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MirroredSource(SourceQueue):
    """The mirror of a source: its settings, what waits, and how the target responds."""

    url: str
    """Without its query. Empty where the settings name no target any more."""
    mirror: Literal["all", "rest"]


class Mirror:
    def __init__(
        self, db: Postgres, sources: Mapping[str, Source], *, installation: UUID, days: float
    ) -> None:
        self._db = db
        self._sources = sources
        self._days = days
        self._name = VIA + installation.hex[:12].encode()
        self.forwarder = Forwarder(db, sources)

    def copy_of(
        self,
        source: Source,
        *,
        query: bytes,
        headers: Sequence[tuple[bytes, bytes]],
        body: bytes,
        events: Sequence[Event],
    ) -> MirrorCopy | None:
        """Return the copy of an accepted webhook, None where its source has no mirror, or it came from our own mirror.

        Every delivery is copied, also a repeated one: the former system got the vendor's repetitions too, and what it
        does with them is what the migration compares. The target recognises them by the vendor's own ids.
        """
        settings = source.settings
        if not settings.mirror_url or self._has_passed(headers):
            return None
        forwarded = [*copies.end_to_end(headers), (b"via", b"1.1 " + self._name)]
        return MirrorCopy(
            source=source.name,
            query=query,
            headers=copies.pack_headers(forwarded),
            body=body,
            bucket=None if settings.mirror == "all" else copies.last_bucket(events),
        )

    def _has_passed(self, headers: Iterable[tuple[bytes, bytes]]) -> bool:
        """Return whether this installation forwarded the request before: its target leads back to it."""
        return any(name.lower() == b"via" and self._name in value for name, value in headers)

    async def land(self, events: Sequence[Event], kept: Sequence[MirrorCopy]) -> list[LandResult]:
        """Commit events and copies in one transaction; return what `inbox.landing.land` does."""
        async with self._db.transaction() as connection:
            landed = await landing.land(connection, events)
            await copies.insert(connection, kept)
            return landed

    async def summary(self) -> list[MirroredSource]:
        """Return the mirrors: sources with a target, or with copies of an earlier one."""
        mirrored = {name for name, source in self._sources.items() if source.settings.mirror_url}
        queues = {name: SourceQueue(source=name) for name in mirrored}
        queues |= {queued.source: queued for queued in await queue.summary(self._db)}
        return [self._with_settings(queues[name]) for name in sorted(queues)]

    def _with_settings(self, queued: SourceQueue) -> MirroredSource:
        source = self._sources.get(queued.source)
        return MirroredSource(
            **asdict(queued),
            url=_without_query(source.settings.mirror_url) if source else "",
            mirror=source.settings.mirror if source else "all",
        )

    async def find(
        self, *, state: str | None, source: str | None, after: int | None, limit: int
    ) -> list[ListedCopy]:
        """Return the copies that match every filter, newest first; see `queue.find`."""
        return await queue.find(self._db, state=state, source=source, after=after, limit=limit)

    async def ids_of(self, source: str, *, states: Sequence[str]) -> list[int]:
        """Return the ids of a source's copies, the oldest first; see `queue.ids_of`."""
        return await queue.ids_of(self._db, source, states=states)

    async def redrive(self, ids: Sequence[int], *, actor: str) -> int:
        """Send dead copies again; return their number; see `queue.redrive`."""
        return await queue.redrive(self._db, ids, actor=actor)

    async def discard(self, ids: Sequence[int], *, actor: str, reason: str) -> int:
        """End copies for good; return their number; see `queue.discard`."""
        return await queue.discard(self._db, ids, actor=actor, reason=reason)

    async def forget(self) -> int:
        """Remove rows past their retention; return their number."""
        return await queue.forget(self._db, days=self._days)


def _without_query(url: str) -> str:
    """Return the URL without its query, which may hold a token."""
    return str(httpx2.URL(url).copy_with(query=None)) if url else ""
