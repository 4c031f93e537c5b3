"""A pull from QuickBooks Online: hinted records, and the changes since the cursor, or all records if it is too old."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from datetime import datetime, timedelta
from itertools import product
from typing import Any

from apex_memory.errors import ApexError, Rejected, RetryLater
from apex_memory.model import Event, micros, now
from apex_memory.sources.fetch_back import FetchBack
from apex_memory.sources.pages import ChangeHint, Page, PullContext
from apex_memory.sources.payloads import malformed_event, parse_datetime
from apex_memory.sources.quickbooks.api import (
    MAX_CHANGES,
    FetchedRecord,
    QueryPosition,
    QuickBooksApi,
)
from apex_memory.sources.quickbooks.records import (
    PRIORITY,
    SOURCE,
    RecordKey,
    deleted_event,
    record_event,
)
from apex_memory.sources.quickbooks.settings import QuickBooksSettings

LOOK_BACK = timedelta(days=29)  # changes are kept for 30 days


class QuickBooksPull:
    """One pull. `position` is the growing cursor, with a part for each company, which holds:

    `time`: QuickBooks' time up to which everything is here, and `at`: this machine's time of that response;
    `entity`, `place`, `from`, `began`, `began_at`: the position of a listing of all records, until it is complete.
    """

    def __init__(self, context: PullContext, settings: QuickBooksSettings) -> None:
        self._settings = settings
        self._change_hints = context.change_hints
        self._window = context.window
        self._position = {realm: dict(state) for realm, state in context.cursor.items()}
        self._apis = {
            realm: QuickBooksApi(context.client, settings, realm, initial)
            for realm, initial in settings.companies().items()
        }

    async def pages(self) -> AsyncIterator[Page]:
        """Yield the hinted records, then each company's changes; for a backfill the records of its window.

        A company that fails, such as one whose connection has ended, does not stop the others; the pull fails at the end.
        """
        foreign = [hint for hint in self._change_hints if self._realm_of(hint) not in self._apis]
        if foreign and not self._window:
            yield Page(acknowledged=foreign)
        failed: dict[str, ApexError] = {}
        steps = (self._history,) if self._window else (self._hinted, self._company)
        for step, realm in product(steps, self._apis):
            if realm not in failed:
                try:
                    async for page in step(realm):
                        yield page
                except ApexError as error:
                    failed[realm] = error
        if failed:
            # A transient failure is tried again soon; the others wait for a person.
            raise min(failed.values(), key=lambda error: not isinstance(error, RetryLater))

    @staticmethod
    def _realm_of(hint: ChangeHint) -> str:
        return hint.key.partition(":")[0]

    def _hinted(self, realm: str) -> AsyncIterator[Page]:
        """Yield the records of a company that webhooks named."""
        hints = [[hint] for hint in self._change_hints if self._realm_of(hint) == realm]
        return FetchBack().pages(hints, self._named)

    async def _named(self, hints: Sequence[ChangeHint]) -> Sequence[Event]:
        """Return the events of the records that these hints name.

        A record that does not exist is deleted here only after a webhook of its deletion: otherwise it may have just
        been created, and the list of changes reports its deletion.
        """
        events: list[Event] = []
        for hint in hints:
            text = hint.key.removesuffix(":deleted")
            key = RecordKey.parse(text)
            if key is None or key.realm not in self._apis or key.entity not in self._entities:
                continue
            at = hint.at or now()
            try:
                record = await self._apis[key.realm].record(key)
            except Rejected:
                if text == hint.key:
                    raise
                record = None  # its deletion was announced, and QuickBooks does not return it
            if record is not None:
                events += self._events(key.realm, [(key.entity, record)], at)
            elif text != hint.key:
                events.append(deleted_event(key, at))
        return events

    async def _company(self, realm: str) -> AsyncIterator[Page]:
        """Yield a company's changes since the cursor, after a listing of all its records if there is none, or an old one."""
        state = self._position.setdefault(realm, {})
        known = parse_datetime(state["time"], "cursor.time") if "time" in state else None
        if "entity" not in state and (
            known is None or now() - parse_datetime(state["at"], "cursor.at") > LOOK_BACK
        ):
            begin = _seconds(known - self._overlap) if known else None
            state |= {"entity": self._entities[0], "place": [begin, 1, False], "from": begin}
            if known:
                yield Page(events=[_gap(realm, "all", known, now(), "no poll ran for 30 days")])
        if "entity" in state:
            async for page in self._listing(realm, state):
                yield page
        async for page in self._changes(realm, state):
            yield page

    async def _listing(self, realm: str, state: dict[str, Any]) -> AsyncIterator[Page]:
        """Yield all records, entity by entity. The changes made meanwhile come afterwards."""
        first = state["entity"] if state["entity"] in self._entities else self._entities[0]
        entities = self._entities[self._entities.index(first) :]
        position: QueryPosition | None = QueryPosition(*state["place"])
        for n, entity in enumerate(entities):
            while position:
                began = now()
                records, time = await self._apis[realm].query(entity, position, None)
                position = position.after(entity, records)
                if "began" not in state:
                    state |= {"began": time.isoformat(), "began_at": began.isoformat()}
                if position:
                    state["place"] = [position.at, position.row, position.within]
                elif n + 1 < len(entities):
                    state |= {"entity": entities[n + 1], "place": [state["from"], 1, False]}
                else:
                    done = {"time": state["began"], "at": state["began_at"]}
                    state.clear()
                    state |= done
                events = self._events(realm, [(entity, record) for record in records], time)
                yield Page(events=events, cursor=self._cursor())
            position = QueryPosition(*state["place"]) if "place" in state else None

    async def _changes(self, realm: str, state: dict[str, Any]) -> AsyncIterator[Page]:
        """Yield the changes since the cursor."""
        api, began = self._apis[realm], now()
        since = parse_datetime(state["time"], "cursor.time") - self._overlap
        changes = await api.changes(self._entities, since)
        done = {"time": changes.time.isoformat(), "at": began.isoformat()}
        if not changes.complete:
            for entity in self._entities:
                async for page in self._alone(realm, entity, since):
                    yield page
        state |= done
        yield Page(events=self._events(realm, changes.records, changes.time), cursor=self._cursor())

    async def _alone(self, realm: str, entity: str, since: datetime) -> AsyncIterator[Page]:
        """Yield the changes of one entity.

        If even these are incomplete: the changes from the earliest time from which they are complete, and a query for what
        changed before, which does not return deletes.
        """
        api = self._apis[realm]
        changes = await api.changes([entity], since)
        yield Page(events=self._events(realm, changes.records, changes.time))
        if changes.complete:
            return
        low, high = since, changes.time + timedelta(seconds=1)
        while high - low > timedelta(seconds=1):
            middle = low + (high - low) / 2
            later = await api.changes([entity], middle)
            low, high = (low, middle) if later.complete else (middle, high)
            yield Page(events=self._events(realm, later.records, later.time))
        position: QueryPosition | None = QueryPosition(_seconds(since))
        while position:
            records, time = await api.query(entity, position, _seconds(high) + 2)
            position = position.after(entity, records)
            yield Page(events=self._events(realm, [(entity, record) for record in records], time))
        why = f"more than {MAX_CHANGES:,} changed at once"
        yield Page(events=[_gap(realm, entity, since, high, why)])

    async def _history(self, realm: str) -> AsyncIterator[Page]:
        """Yield a company's records that changed last within the window."""
        window = self._window
        assert window is not None  # only a backfill has a history
        state = self._position.setdefault(realm, {})
        begin, until = _seconds(window.since), _seconds(window.until)
        for entity in self._entities:
            position: QueryPosition | None = QueryPosition(begin)
            if entity in state:
                position = QueryPosition(*state[entity]) if state[entity] else None
            while position:
                records, time = await self._apis[realm].query(entity, position, until)
                position = position.after(entity, records)
                state[entity] = [position.at, position.row, position.within] if position else []
                events = self._events(realm, [(entity, record) for record in records], time)
                yield Page(events=events, cursor=self._cursor())

    @property
    def _entities(self) -> list[str]:
        return list(dict.fromkeys(self._settings.entities))

    @property
    def _overlap(self) -> timedelta:
        return timedelta(seconds=self._settings.overlap_seconds)

    def _cursor(self) -> dict[str, Any]:
        return {realm: dict(state) for realm, state in self._position.items()}

    def _events(self, realm: str, records: Sequence[FetchedRecord], at: datetime) -> list[Event]:
        events = []
        for entity, record in records:
            try:
                events.append(record_event(realm, entity, record, at))
            except Rejected as error:
                events.append(malformed_event(SOURCE, record, error, at, PRIORITY))
        return events


def _gap(realm: str, entity: str, since: datetime, until: datetime, why: str) -> Event:
    """Return the dead letter of a gap in which deletes may be missing: QuickBooks has no other list of them."""
    # The minute: polls whose times overlap report one gap once.
    until = until.replace(second=0, microsecond=0) + timedelta(minutes=1)
    record = {"realm": realm, "entity": entity, "until": until.isoformat()}
    reason = Rejected(
        f"deletes in QuickBooks between {since:%Y-%m-%d %H:%M} and {until:%Y-%m-%d %H:%M} UTC may be missing here ({why})",
        remedy="find them in the company's audit log, delete them here (`DELETE /v1/documents/ID`), then discard this dead letter",
    )
    return malformed_event(SOURCE, record, reason, until, PRIORITY)


def _seconds(at: datetime) -> int:
    return micros(at) // 1_000_000
