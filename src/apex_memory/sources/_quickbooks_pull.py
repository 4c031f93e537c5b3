"""A pull from QuickBooks Online: what changed since the cursor, the whole of it where that is too old, and nudges."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import httpx2

from apex_memory.errors import Rejected, RetryLater, Unauthorized
from apex_memory.model import Event, micros, now
from apex_memory.sources._link import Auth, Link, OAuth, Token, basic, retry_after
from apex_memory.sources._pulling import Asked, Page, Window
from apex_memory.sources._quickbooks import (
    PRIORITY,
    SOURCE,
    Key,
    deleted_event,
    record_event,
    updated,
)
from apex_memory.sources._wire import broken, mapping, moment, parse_object, sequence, string

if TYPE_CHECKING:
    from apex_memory.sources.financial import FinancialSettings

MINOR_VERSION = 75
CAP = 1000  # objects in an answer of changes; what is beyond is missing without a word
ROWS, SHARED = 1000, 100  # rows of a query; those that the next page of one second shows again
LOOK_BACK = timedelta(days=29)  # changes are kept for 30 days
NUDGES = 20  # fetched between two commits
THROTTLED = ("3001", "003001")
NOT_FOUND = "610"
MAY_BE_INACTIVE = ("Customer", "Vendor", "Item", "Account", "Employee", "Class", "Department")

Found = tuple[str, Any]  # entity, record


@dataclass(frozen=True, slots=True)
class Changes:
    """An answer of the change operation: what changed, and QuickBooks' time."""

    found: Sequence[Found]
    time: datetime

    @property
    def whole(self) -> bool:
        return len(self.found) < CAP


@dataclass(frozen=True, slots=True)
class Place:
    """Where a query stands: at a second since 1970, or at a row among what changed in just that second.

    Not at a row among all: a record that changes meanwhile moves to the end, and a row further on is skipped.
    """

    at: int | None = None
    row: int = 1
    within: bool = False

    def after(self, entity: str, records: Sequence[Any]) -> Place | None:
        """Where it goes on behind these records; None at the end."""
        if self.within and self.at is not None:
            if len(records) < ROWS:
                return Place(self.at + 1)
            return Place(self.at, self.row + ROWS - SHARED, within=True)
        if len(records) < ROWS:
            return None
        times = [at for record in records if (at := updated(record)) is not None]
        if not times:
            raise Rejected(
                f"{len(records)} {entity} of QuickBooks without a readable LastUpdatedTime",
                remedy="is sources.financial.base_url QuickBooks' API?",
            )
        last = max(times)
        return Place(last) if self.at is None or last > self.at else Place(self.at, within=True)

    def query(self, entity: str, until: int | None) -> str:
        """The query of up to 1,000 records from here on, in order of change."""
        field = "MetaData.LastUpdatedTime"
        conditions = ["Active in (true, false)"] if entity in MAY_BE_INACTIVE else []
        if self.at is not None:
            conditions.append(f"{field} >= '{_stamp(self.at)}'")
        end = self.at + 1 if self.within and self.at is not None else until
        if end is not None:
            conditions.append(f"{field} < '{_stamp(end)}'")
        where = f" where {' and '.join(conditions)}" if conditions else ""
        return f"select * from {entity}{where} orderby {field} STARTPOSITION {self.row} MAXRESULTS {ROWS}"


def _stamp(seconds: int) -> str:
    at = datetime(1970, 1, 1, tzinfo=UTC) + timedelta(seconds=seconds)
    return at.isoformat(timespec="seconds")


def _seconds(at: datetime) -> int:
    return micros(at) // 1_000_000


class Walk:
    """One pull. `position` is the cursor as it grows; a company's part of it holds:

    `time`: QuickBooks' time up to which everything is here, and `at`: ours when it said so;
    `entity`, `place`, `from`, `began`, `began_at`: where listing everything stands, while it goes on.
    """

    def __init__(self, asked: Asked, settings: FinancialSettings) -> None:
        self._settings = settings
        self._nudges = asked.nudges
        self._window = asked.window
        self._position = {realm: dict(state) for realm, state in asked.cursor.items()}
        self._calls = {
            realm: Calls(asked.link, settings, realm, initial)
            for realm, initial in settings.companies().items()
        }

    async def pages(self) -> AsyncIterator[Page]:
        if self._window is None:
            async for page in self._answers():
                yield page
        for realm in self._calls:
            if self._window:
                async for page in self._history(realm, self._window):
                    yield page
            else:
                async for page in self._company(realm):
                    yield page

    async def _answers(self) -> AsyncIterator[Page]:
        """Fetch what webhooks named. Of what is not there, only a webhook of its delete makes a delete here:
        otherwise it may just have been made, and the changes tell when it was deleted."""
        for start in range(0, len(self._nudges), NUDGES):
            some, events = self._nudges[start : start + NUDGES], []
            for nudge in some:
                text = nudge.key.removesuffix(":deleted")
                key = Key.parse(text)
                if key is None or key.realm not in self._calls or key.entity not in self._entities:
                    continue
                record = await self._calls[key.realm].one(key)
                if record is not None:
                    events += self._events(key.realm, [(key.entity, record)], nudge.at or now())
                elif text != nudge.key:
                    events.append(deleted_event(key, nudge.at or now()))
            yield Page(events=events, answered=some)

    async def _company(self, realm: str) -> AsyncIterator[Page]:
        state = self._position.setdefault(realm, {})
        known = moment(state["time"], "cursor.time") if "time" in state else None
        if "entity" not in state and (
            known is None or now() - moment(state["at"], "cursor.at") > LOOK_BACK
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
        """Everything, kind by kind; the changes meanwhile come afterwards."""
        first = state["entity"] if state["entity"] in self._entities else self._entities[0]
        entities = self._entities[self._entities.index(first) :]
        place: Place | None = Place(*state["place"])
        for n, entity in enumerate(entities):
            while place:
                began = now()
                records, time = await self._calls[realm].query(entity, place, None)
                place = place.after(entity, records)
                if "began" not in state:
                    state |= {"began": time.isoformat(), "began_at": began.isoformat()}
                if place:
                    state["place"] = [place.at, place.row, place.within]
                elif n + 1 < len(entities):
                    state |= {"entity": entities[n + 1], "place": [state["from"], 1, False]}
                else:
                    done = {"time": state["began"], "at": state["began_at"]}
                    state.clear()
                    state |= done
                events = self._events(realm, [(entity, one) for one in records], time)
                yield Page(events=events, cursor=self._cursor())
            place = Place(*state["place"]) if "place" in state else None

    async def _changes(self, realm: str, state: dict[str, Any]) -> AsyncIterator[Page]:
        calls, began = self._calls[realm], now()
        since = moment(state["time"], "cursor.time") - self._overlap
        changes = await calls.changes(self._entities, since)
        done = {"time": changes.time.isoformat(), "at": began.isoformat()}
        if not changes.whole:
            for entity in self._entities:
                async for page in self._alone(realm, entity, since):
                    yield page
        state |= done
        yield Page(events=self._events(realm, changes.found, changes.time), cursor=self._cursor())

    async def _alone(self, realm: str, entity: str, since: datetime) -> AsyncIterator[Page]:
        """The changes of one kind. Where even they are cut: whole from as early as they come whole, and
        a query for what was before, which knows no deletes."""
        calls = self._calls[realm]
        changes = await calls.changes([entity], since)
        yield Page(events=self._events(realm, changes.found, changes.time))
        if changes.whole:
            return
        low, high = since, changes.time + timedelta(seconds=1)
        while high - low > timedelta(seconds=1):
            middle = low + (high - low) / 2
            later = await calls.changes([entity], middle)
            low, high = (low, middle) if later.whole else (middle, high)
            yield Page(events=self._events(realm, later.found, later.time))
        place: Place | None = Place(_seconds(since))
        while place:
            records, time = await calls.query(entity, place, _seconds(high) + 2)
            place = place.after(entity, records)
            yield Page(events=self._events(realm, [(entity, one) for one in records], time))
        why = f"more than {CAP:,} changed at once"
        yield Page(events=[_gap(realm, entity, since, high, why)])

    async def _history(self, realm: str, window: Window) -> AsyncIterator[Page]:
        state = self._position.setdefault(realm, {})
        begin, until = _seconds(window.since), _seconds(window.until)
        for entity in self._entities:
            place = Place(*state[entity]) if state.get(entity) else Place(begin)
            more: Place | None = None if entity in state and not state[entity] else place
            while more:
                records, time = await self._calls[realm].query(entity, more, until)
                more = more.after(entity, records)
                state[entity] = [more.at, more.row, more.within] if more else []
                events = self._events(realm, [(entity, one) for one in records], time)
                yield Page(events=events, cursor=self._cursor())

    @property
    def _entities(self) -> list[str]:
        return list(dict.fromkeys(self._settings.entities))

    @property
    def _overlap(self) -> timedelta:
        return timedelta(seconds=self._settings.overlap_seconds)

    def _cursor(self) -> dict[str, Any]:
        return {realm: dict(state) for realm, state in self._position.items()}

    def _events(self, realm: str, found: Sequence[Found], at: datetime) -> list[Event]:
        events = []
        for entity, record in found:
            try:
                events.append(record_event(realm, entity, record, at))
            except Rejected as error:
                events.append(broken(SOURCE, record, error, at, PRIORITY))
        return events


def _gap(realm: str, entity: str, since: datetime, until: datetime, why: str) -> Event:
    """Says, as a dead letter, that deletes may have been missed: QuickBooks has no other list of them."""
    # The minute, so that polls whose time overlaps tell of one gap once.
    until = until.replace(second=0, microsecond=0) + timedelta(minutes=1)
    record = {"realm": realm, "entity": entity, "until": until.isoformat()}
    reason = Rejected(
        f"deletes in QuickBooks between {since:%Y-%m-%d %H:%M} and {until:%Y-%m-%d %H:%M} UTC may be missing here ({why})",
        remedy="look for them in the company's audit log, delete them here (`DELETE /v1/documents/ID`), then discard this",
    )
    return broken(SOURCE, record, reason, until, PRIORITY)


class Calls:
    """The calls of a pull to one company's books."""

    def __init__(self, link: Link, settings: FinancialSettings, realm: str, initial: str) -> None:
        self._link = link
        self._settings = settings
        self._realm = realm
        self._initial = initial
        self._auth: Auth = OAuth(link.tokens, f"{SOURCE}/{realm}", self._renewed)

    async def changes(self, entities: Sequence[str], since: datetime) -> Changes:
        """What changed after `since`, at most 1,000 objects and without any order."""
        stamp = since.astimezone(UTC).isoformat(timespec="seconds")
        body = await self._get("cdc", {"entities": ",".join(entities), "changedSince": stamp})
        answers = [one for part in _list(body, "CDCResponse") for one in _list(part, "QueryResponse")]  # fmt: skip
        found = [
            (entity, record)
            for answer in answers
            for entity in entities
            for record in sequence(mapping(answer).get(entity))
        ]
        return Changes(found, moment(body.get("time"), "time"))

    async def query(
        self, entity: str, place: Place, until: int | None
    ) -> tuple[Sequence[Any], datetime]:
        """Up to 1,000 records from `place` on, changed before `until` (s), and QuickBooks' time."""
        body = await self._get("query", {"query": place.query(entity, until)})
        if not isinstance(body.get("QueryResponse"), dict):
            raise _strange("QueryResponse")
        return sequence(body["QueryResponse"].get(entity)), moment(body.get("time"), "time")

    async def one(self, key: Key) -> Any | None:
        """A record; None where there is none (any more)."""
        body = await self._get(f"{key.entity.lower()}/{key.id}", {}, missing=True)
        return body.get(key.entity) if body else None

    async def _get(
        self, path: str, params: Mapping[str, str], *, missing: bool = False
    ) -> dict[str, Any]:
        """The answer; empty for a thing that is not found, if it may be missing."""
        base = self._settings.base_url.rstrip("/")
        answer = await self._link.call(
            "GET",
            f"{base}/v3/company/{self._realm}/{path}",
            auth=self._auth,
            accept=(400, 403),
            params={**params, "minorversion": str(MINOR_VERSION)},
            headers={"Accept": "application/json"},
        )
        if answer.is_success:
            return parse_object(answer.content)
        code = _fault(answer)
        if code in THROTTLED:
            raise RetryLater(
                "financial: QuickBooks says that we call too often",
                after=retry_after(answer.headers.get("retry-after")) or 60,
                remedy="it is tried again by itself",
            )
        if missing and code == NOT_FOUND:
            return {}
        trace = re.sub(r"[^\w-]", "", answer.headers.get("intuit_tid", ""))[:64]
        told = f"financial: QuickBooks answers {answer.status_code}, code {code or 'none'}, intuit_tid {trace or 'none'}"
        if answer.status_code == 403:
            raise Unauthorized(told, remedy="check what the connected user may do in QuickBooks")
        raise Rejected(told, remedy="see QuickBooks' documentation of that code")

    async def _renewed(self, spent: Token | None) -> Token:
        """Another access token for the newest refresh token; for that of the settings where the newest fails,
        which is how a company is connected anew."""
        kept = spent.refresh if spent else ""
        for refresh in dict.fromkeys(filter(None, (kept, self._initial))):
            answer = await self._link.call(
                "POST",
                self._settings.token_url,
                auth=basic(
                    self._settings.client_id, self._settings.client_secret.get_secret_value()
                ),
                accept=(400, 401),
                data={"grant_type": "refresh_token", "refresh_token": refresh},
                headers={"Accept": "application/json"},
            )
            if answer.is_success:
                return _token(parse_object(answer.content), refresh)
            if _grant_error(answer) != "invalid_grant":
                raise Unauthorized(
                    f"financial: QuickBooks refuses the application ({answer.status_code})",
                    remedy="check sources.financial.client_id and sources.financial.client_secret",
                )
        raise Unauthorized(
            f"financial: the connection to company {self._realm} has ended (invalid_grant)",
            remedy="connect the company anew in QuickBooks and set its new token in sources.financial.refresh_tokens",
        )


def _token(body: Mapping[str, Any], spent: str) -> Token:
    access, lasts = string(body.get("access_token")), body.get("expires_in")
    if not access:
        raise _strange("access_token")
    seconds = lasts if isinstance(lasts, int) and 0 < lasts < 10**7 else 3600
    return Token(
        access, string(body.get("refresh_token")) or spent, now() + timedelta(seconds=seconds)
    )


def _grant_error(answer: httpx2.Response) -> str:
    try:
        return string(parse_object(answer.content).get("error"))
    except Rejected:
        return ""


def _fault(answer: httpx2.Response) -> str:
    try:
        fault = mapping(parse_object(answer.content).get("Fault"))
    except Rejected:
        return ""
    errors = sequence(fault.get("Error"))
    return re.sub(r"\D", "", str(mapping(errors[0]).get("code", "")))[:10] if errors else ""


def _list(body: Any, name: str) -> list[Any]:
    found = mapping(body).get(name)
    if not isinstance(found, list):
        raise _strange(name)
    return found


def _strange(name: str) -> Rejected:
    return Rejected(
        f"financial: an answer of QuickBooks without {name}",
        remedy="is sources.financial.base_url QuickBooks' API?",
    )
