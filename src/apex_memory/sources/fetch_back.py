"""Fetches of single records, such as those that webhooks name: one that the vendor does not return stops no other."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
from datetime import datetime, timedelta
from time import monotonic

from apex_memory.errors import ApexError, Forbidden, Rejected
from apex_memory.model import Event, now
from apex_memory.sources.http import VendorFault
from apex_memory.sources.pages import ChangeHint, Page, Unfetched

FAULT_SECONDS = 60.0
"""How long failing fetches may delay the rest of a pull. What was not tried by then waits for the next pull."""

VISIBLE_AFTER = timedelta(minutes=1)
"""How long after its change a record may not be returned yet, though the vendor has announced it."""

RECORD_FAULTS = (Rejected, Forbidden, VendorFault)
"""What one record may be to blame for. A refused credential and a rate limit concern every call."""

Fetch = Callable[[Sequence[ChangeHint]], Awaitable[Sequence[Event]]]


def check_missing(source: str, record: str, at: datetime | None) -> None:
    """Raise `VendorFault` for a record that its vendor does not return moments after its change at `at`.

    It may not be visible yet, and a tombstone would hide it until its next change.
    """
    if at is not None and abs(now() - at) < VISIBLE_AFTER:
        raise VendorFault(
            f"{source}: {record} is not there moments after its change",
            after=VISIBLE_AFTER.total_seconds(),
            remedy="Apex fetches it again; if it is still not there, it is deleted here",
        )


class FetchBack:
    """The fetches of single records in one pull."""

    def __init__(self) -> None:
        self._lost = 0.0
        self.failed = False
        """Whether a fetch failed: a pull then shows by another call whether the vendor responds."""

    @property
    def exhausted(self) -> bool:
        """Whether failing fetches have used up their time in this pull."""
        return self._lost >= FAULT_SECONDS

    async def pages(
        self, groups: Iterable[Sequence[ChangeHint]], fetch: Fetch
    ) -> AsyncIterator[Page]:
        """Yield a page for each group of hints, with what `fetch` returns. Where a group fails, one for each of its hints."""
        for group in groups:
            if self.exhausted:
                return
            fetched = await self.attempt(group, fetch)
            if not isinstance(fetched, ApexError):
                yield Page(events=fetched, acknowledged=group)
                continue
            for hint in group:
                # The record to blame has to be found in this pull, whatever the time: the next one would end here, too.
                if len(group) > 1:
                    fetched = await self.attempt([hint], fetch)
                if isinstance(fetched, ApexError):
                    yield Page(unfetched=[Unfetched(hint, fetched)])
                    if self.exhausted:
                        return
                else:
                    yield Page(events=fetched, acknowledged=[hint])

    async def attempt(
        self, hints: Sequence[ChangeHint], fetch: Fetch
    ) -> Sequence[Event] | ApexError:
        """Return the events of the hinted records, or the error for which they may be to blame. Raises any other error."""
        began = monotonic()
        try:
            return await fetch(hints)
        except RECORD_FAULTS as error:
            self._lost += monotonic() - began
            self.failed = True
            return error
