"""Front's API: the list of events, and the messages, comments and conversations that they name."""

from __future__ import annotations

import hashlib
import re
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from enum import Enum
from typing import Any
from urllib.parse import urlencode, urljoin, urlsplit

from pydantic import SecretStr

from apex_memory.errors import Rejected
from apex_memory.model import micros, now
from apex_memory.sources.auth import bearer
from apex_memory.sources.http import VendorClient
from apex_memory.sources.payloads import as_mapping, as_string, parse_datetime, parse_json, sequence
from apex_memory.telemetry import logger

PAGE = 15  # Front's most for /events
OVERLAP = timedelta(minutes=5)  # events may show up in the list after later ones
REDIRECTS = 3
_MOVED = (301, 302, 307, 308)
_GONE = (404, 410)
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


class Seen(Enum):
    """Whether a record of the list was listed before."""

    NEW = "new"
    SAME = "same"
    OTHER_CONTENT = "other content"


class ListProgress:
    """The progress of a listing: the newest time, and the ids and contents seen within the overlap before it.

    The cursor follows each page as long as Front keeps the requested order; once it does not, only the end of the list
    moves it. It is never in the future, whatever time an event claims, because later events would be missed.
    """

    def __init__(
        self, newest: datetime, seen: Mapping[str, int], contents: Mapping[str, str]
    ) -> None:
        self.newest = newest
        self.since = newest - OVERLAP
        self.moved = False
        self._seen = dict(seen)
        self._contents = dict(contents)
        self._last: datetime | None = None
        self._ordered = True

    @classmethod
    def start(cls, cursor: Mapping[str, Any], otherwise: datetime | None) -> ListProgress:
        """Return the progress at a cursor; without one, at the time `otherwise`."""
        after = cursor.get("after")
        newest = _EPOCH + timedelta(microseconds=after) if isinstance(after, int) else otherwise
        return cls(
            newest or _EPOCH, as_mapping(cursor.get("seen")), as_mapping(cursor.get("contents"))
        )

    def add(self, id: str, at: datetime, record: bytes) -> Seen:
        """Note a record of the list; return whether its id or its content was listed before.

        The record of an event changes with its conversation.
        """
        if self._last and at < self._last:
            self._ordered = False
        self._last = at
        content = hashlib.sha256(record).hexdigest()[:16]
        before = self._contents.get(id)
        self._contents[id] = content
        if id in self._seen:
            # A cursor of an earlier release names no contents.
            if before is None or before == content:
                return Seen.SAME
            self.moved = True
            return Seen.OTHER_CONTENT
        self._seen[id] = micros(at)
        self.newest = max(self.newest, at)
        self.moved = True
        return Seen.NEW

    def cursor(self, *, ended: bool) -> dict[str, Any] | None:
        """Return the cursor to store with a page; None while the order is not reliable."""
        if not (self._ordered or ended):
            return None
        self.moved = False
        until = min(self.newest, now())
        kept = micros(until - OVERLAP)
        seen = {id: at for id, at in self._seen.items() if at >= kept}
        contents = {id: self._contents[id] for id in seen if id in self._contents}
        return {"after": micros(until), "seen": seen, "contents": contents}


class Front:
    """Front's core API for one pull."""

    def __init__(self, client: VendorClient, base_url: str, token: SecretStr) -> None:
        self._client = client
        self._base = base_url.rstrip("/")
        self._auth = bearer(token.get_secret_value())

    async def listing(
        self, since: datetime, until: datetime | None
    ) -> AsyncIterator[tuple[Sequence[Any], bool]]:
        """Yield pages of events, oldest first, each with whether more follow. `next` is followed as it is."""
        query = {"q[after]": f"{max(0, micros(since)) // 1_000_000}"}
        if until:
            query["q[before]"] = f"{-(-micros(until) // 1_000_000)}"
        query |= {"sort_by": "created_at", "sort_order": "asc", "limit": str(PAGE)}
        url: str | None = f"{self._base}/events?{urlencode(query)}"
        visited: set[str] = set()
        while url:
            visited.add(url)
            page = await self._get(url) or {}
            following = as_mapping(page.get("_pagination")).get("next")
            if following is not None and (not isinstance(following, str) or following in visited):
                raise Rejected(
                    "frontapp: `_pagination.next` is not a link to another page",
                    remedy="check that sources.frontapp.base_url is Front's API",
                )
            yield sequence(page.get("_results")), bool(following)
            url = following or None

    async def newest(self) -> datetime | None:
        """Return the time of the newest event, None if there is none; the present where its time cannot be read."""
        query = {"sort_by": "created_at", "sort_order": "desc", "limit": "1"}
        page = await self._get(f"{self._base}/events?{urlencode(query)}") or {}
        records = sequence(page.get("_results"))
        times = []
        for record in records:
            with suppress(Rejected):  # the list itself makes a dead letter of it
                times.append(parse_datetime(as_mapping(record).get("emitted_at"), "emitted_at"))
        # A first poll that waited for a better event would wait for as long as this one is the newest.
        return max(times, default=now() if records else None)

    async def event(self, id: str) -> Mapping[str, Any] | None:
        """Return one event, None if Front no longer has it."""
        if not re.fullmatch(r"[\w-]{1,100}", id, re.ASCII):
            return None
        return await self._get(f"{self._base}/events/{id}")

    async def thing(self, kind: str, id: str) -> Mapping[str, Any] | None:
        """Return a message or comment: None if it does not exist, empty if the token may not read it."""
        return await self._get(f"{self._base}/{kind}/{id}")

    async def completed(
        self, record: Mapping[str, Any], kind: str, data: Mapping[str, Any]
    ) -> dict[str, Any]:
        """Return an event with the body of its message or comment.

        A conversation that it names by id alone is fetched too: after a merge Front redirects to the surviving one.
        """
        whole = {**record, "target": {"_meta": {"type": kind.removesuffix("s")}, "data": data}}
        held = as_mapping(record.get("conversation"))
        id = as_string(held.get("id"))
        if "status" not in held and re.fullmatch(r"cnv_[a-z0-9]{1,60}", id):
            conversation = await self._get(f"{self._base}/conversations/{id}")
            whole["conversation"] = conversation or held
        return whole

    async def _get(self, url: str) -> Mapping[str, Any] | None:
        """Return an object of the API: None for 404 and 410, empty for 403, which means that the token may not read this one."""
        for _ in range(REDIRECTS):
            self._check(url)
            response = await self._client.call(
                "GET", url, auth=self._auth, accept=(*_MOVED, *self._absent(url))
            )
            if response.status_code in _MOVED:
                url = urljoin(url, response.headers.get("location", ""))
                continue
            if not response.is_success:
                logger(component="frontapp").warning(
                    "Front does not return this object",
                    path=urlsplit(url).path,
                    status=response.status_code,
                )
                return None if response.status_code in _GONE else {}
            value = parse_json(response.content, "response")
            if not isinstance(value, dict):
                raise Rejected(
                    "frontapp: expected an object",
                    remedy="check that sources.frontapp.base_url is Front's API",
                )
            return value
        raise Rejected(
            "frontapp: redirected too often",
            remedy="check that sources.frontapp.base_url is Front's API",
        )

    def _absent(self, url: str) -> tuple[int, ...]:
        """Return the statuses that concern one object alone. For the list of events they mean that the token is wrong."""
        path = urlsplit(url).path.removeprefix(urlsplit(self._base).path)
        return () if path == "/events" else (403, *_GONE)

    def _check(self, url: str) -> None:
        """Raise `Rejected` for a URL that is neither at `base_url` nor on Front's own hosts: they alone get the token."""
        try:
            given, base = urlsplit(url), urlsplit(self._base)
            host, port = given.hostname or "", given.port
        except ValueError:
            host, port, given, base = "", None, urlsplit(""), urlsplit("x://")
        same = (given.scheme, given.netloc) == (base.scheme, base.netloc)
        own = re.fullmatch(r"([a-z0-9-]+\.)*frontapp\.com", host) and "@" not in given.netloc
        if not same and not (own and given.scheme == "https" and port in (None, 443)):
            raise Rejected(
                "frontapp: a response points to a host that is not Front's",
                remedy="check that sources.frontapp.base_url is Front's API",
            )
