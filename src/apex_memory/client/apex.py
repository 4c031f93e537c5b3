"""`Apex` and `AsyncApex`: a connection to a gateway, for threads and for asyncio."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from datetime import datetime
from time import monotonic, sleep
from types import TracebackType
from typing import Any, Self, TypeVar

import httpx2

from apex_memory.client import calls
from apex_memory.client.calls import Call
from apex_memory.client.errors import Busy, Refused, refusal
from apex_memory.client.location import api_key, gateway_url
from apex_memory.client.results import (
    Document,
    DocumentPage,
    Entity,
    Event,
    EventPage,
    Freshness,
    OwnKey,
    Receipt,
    SearchAnswer,
    SourceState,
    Status,
)
from apex_memory.config import load_settings
from apex_memory.errors import Unavailable
from apex_memory.tls import ClientTls, tls_reason

TIMEOUT = 30.0  # seconds for a response
PATIENCE = 30.0  # seconds for which a request is repeated while the gateway returns 503
LONGEST_PAUSE = 10.0  # seconds; of what `Retry-After` asks for
CONNECT_SECONDS = 10.0

ENDED = (httpx2.RemoteProtocolError, httpx2.ReadError, httpx2.WriteError)
NO_TLS = (
    "set ca_file (APEX_CA_FILE) to the certificate authority of the gateway, url (APEX_URL) to a name in its certificate,"
    " and with tls_client_ca_file client_certificate_file and client_key_file"
)

T = TypeVar("T")


class _Connection:
    """What both clients have in common: address, key, limits of time, and the errors of a response."""

    def __init__(
        self,
        url: str | None,
        key: str | None,
        timeout: float,
        patience: float,
        tls: ClientTls | None,
    ) -> None:
        if url is None or key is None:
            settings = load_settings()
            url = gateway_url(settings) if url is None else url
            key = api_key(settings) if key is None else key
            tls = settings.connections_tls if tls is None else tls
        self._tls = tls or ClientTls()
        self.url = url.rstrip("/")
        self._key = key.strip()  # a line break at its end, as in a file, would be no header
        self._seconds = timeout
        self._patience = patience

    def _arguments(self, call: Call[Any]) -> dict[str, Any]:
        """Return the arguments of the HTTP client's `request`."""
        request = call.request()
        if self._key:
            request["headers"]["Authorization"] = f"Bearer {self._key}"
        seconds = self._time_limit(call)
        request["timeout"] = httpx2.Timeout(seconds, connect=min(seconds, CONNECT_SECONDS))
        return request

    def _time_limit(self, call: Call[Any]) -> float:
        return self._seconds if call.timeout is None else call.timeout

    def _unreachable(self, error: httpx2.TransportError, call: Call[Any]) -> Unavailable:
        if isinstance(error, httpx2.ReadTimeout | httpx2.WriteTimeout):
            return Unavailable(
                "gateway",
                f"{self.url} runs, and did not respond within {self._time_limit(call):g} s",
                remedy="it is busy or slow, and may have done what was requested: `apex doctor` says what is slow",
            )
        reason = tls_reason(error)
        if self.url.startswith("https:") and isinstance(error, ENDED):
            reason = reason or "the gateway ended it, as it does where a certificate is missing"
        if reason:
            return Unavailable(
                "gateway", f"{self.url}: no connection with TLS ({reason})", remedy=NO_TLS
            )
        return Unavailable(
            "gateway",
            f"{self.url} does not respond ({type(error).__name__})",
            remedy="start it with `apex up`",
        )

    def _body(self, response: httpx2.Response) -> bytes:
        if response.is_success:
            return response.content
        raise self._explained(
            refusal(response.status_code, response.content, response.headers.get("retry-after"))
        )

    def _explained(self, error: Refused) -> Refused:
        """Return the error as callers of this client read it."""
        return error

    def _pause(self, error: Busy, call: Call[Any], deadline: float) -> float:
        """Return the seconds to wait before the call is repeated. Raises the error when it may not be, or time is up."""
        pause = min(error.after, LONGEST_PAUSE)
        if not call.repeatable or monotonic() + pause > deadline:
            raise error
        return pause


class Apex(_Connection):
    """A connection to a gateway. Use it as a context manager, or `close` it; threads may share it.

    Without `url` it is the setting `url` (APEX_URL), or the stack that runs from the data folder (APEX_DATA_DIR);
    without `key` the setting `api_key` (APEX_API_KEY), or that stack's admin key. `timeout` is the longest wait for a
    response in seconds, `patience` how long a request is repeated while the gateway returns 503, as its `Retry-After`
    says; 0 repeats nothing. `tls` names the certificate authority of an `https://` gateway, and a certificate to show; without
    `tls`, and where the settings are read, it is that of the settings.

    Every call raises a `Refused`, by the status of the response (`Unauthorized`, `Forbidden`, `NotFound`, `Rejected`,
    `TooLarge`, `Conflict`, `Busy`), or `Unavailable` when the gateway does not respond. Each has a `remedy`.
    """

    def __init__(
        self,
        url: str | None = None,
        key: str | None = None,
        *,
        timeout: float = TIMEOUT,
        patience: float = PATIENCE,
        tls: ClientTls | None = None,
        transport: httpx2.BaseTransport | None = None,
    ) -> None:
        super().__init__(url, key, timeout, patience, tls)
        self._http = httpx2.Client(
            base_url=self.url, transport=transport, verify=self._tls.verify()
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def search(
        self,
        query: str = "",
        *,
        limit: int = 10,
        passages_per_document: int | None = None,
        sources: Sequence[str] = (),
        kinds: Sequence[str] = (),
        entities: Sequence[str] = (),
        documents: Sequence[str] = (),
        conversations: Sequence[str] = (),
        people: Sequence[str] = (),
        since: datetime | str | None = None,
        until: datetime | str | None = None,
        max_tokens: int | None = None,
        explain: bool = False,
        fresh: bool = False,
    ) -> SearchAnswer:
        """Return the best passages; for an empty query the newest documents that pass the filters.

        `entities` are refs such as `shipment:SHP-100045`; `documents` and `conversations` are ids, of a conversation also
        those of its messages; `people` are names or e-mail addresses. `since` is inclusive, `until` exclusive. At most
        100 hits; without `passages_per_document` 3 of one document, or any number with `documents` or `conversations`.
        With `max_tokens` (100 to 32,000) the answer has a `context`: the best passages in one text of so many tokens at most,
        whatever `limit` is. With `explain` each hit has its `points`: what each search method adds to its score. `fresh` reads from the primary
        of PostgreSQL even where searches go to a standby. Raises `NotFound` for an unknown document, conversation or person.
        """
        return self.send(
            calls.search(
                query,
                limit=limit,
                passages_per_document=passages_per_document,
                sources=sources,
                kinds=kinds,
                entities=entities,
                documents=documents,
                conversations=conversations,
                people=people,
                since=since,
                until=until,
                max_tokens=max_tokens,
                explain=explain,
                fresh=fresh,
            )
        )

    def get_document(self, id: str, *, version: int | None = None) -> Document:
        """Return the current version of a document in full, or an earlier one."""
        return self.send(calls.document(id, version))

    def documents(
        self,
        *,
        sources: Sequence[str] = (),
        kinds: Sequence[str] = (),
        deleted: bool = False,
        cursor: str | None = None,
        limit: int = 50,
    ) -> DocumentPage:
        """Return a page of documents, the newest change first. `deleted` includes deleted ones."""
        return self.send(
            calls.documents(
                sources=sources, kinds=kinds, deleted=deleted, cursor=cursor, limit=limit
            )
        )

    def get_entity(self, ref: str) -> Entity:
        """Return names, attributes, relations and newest documents of an entity, by `type:key`."""
        return self.send(calls.entity(ref))

    def timeline(self, ref: str, *, cursor: str | None = None, limit: int = 50) -> DocumentPage:
        """Return a page of the documents of all sources that name an entity, the latest occurrence first."""
        return self.send(calls.timeline(ref, cursor=cursor, limit=limit))

    def event(self, id: str) -> Event:
        """Return an event and its state."""
        return self.send(calls.event(id))

    def events(
        self,
        *,
        source: str | None = None,
        state: str | None = None,
        since: datetime | str | None = None,
        cursor: str | None = None,
        limit: int = 50,
    ) -> EventPage:
        """Return a page of events, newest first. `since` compares the time of receipt."""
        return self.send(
            calls.events(source=source, state=state, since=since, cursor=cursor, limit=limit)
        )

    def status(self) -> Status:
        """Return the health of the installation."""
        return self.send(calls.status())

    def sources(self) -> tuple[SourceState, ...]:
        """Return every source with its state and the time of its last event."""
        return self.send(calls.sources())

    def freshness(self, *, now: bool = False) -> tuple[Freshness, ...]:
        """Return how current each source is, read some seconds ago at most; with `now` read now."""
        return self.send(calls.freshness(now))

    def own_key(self) -> OwnKey:
        """Return the key of this client, with its scopes."""
        return self.send(calls.own_key())

    def resolve(self, id: str) -> dict[str, str]:
        """Return the `event` and the `document` that any id names, the first 8 characters of one too."""
        return self.send(calls.resolve(id))

    def remember(
        self,
        text: str,
        *,
        key: str | None = None,
        title: str | None = None,
        kind: str | None = None,
        occurred_at: datetime | str | None = None,
        version: int | None = None,
        metadata: Mapping[str, Any] | None = None,
        entities: Sequence[str] = (),
        wait: float = 0.0,
        idempotency_key: str | None = None,
    ) -> Receipt:
        """Store a text durably. Texts with the same `key` are versions of one document.

        `wait` is how many seconds (60 at most) the response waits until the text is searchable; `searchable` of the
        receipt says whether it is. The request is safe to repeat: this call does so itself after a 503, and a caller
        does with an `idempotency_key` of its own.
        """
        return self.send(
            calls.remember(
                text,
                key=key,
                title=title,
                kind=kind,
                occurred_at=occurred_at,
                version=version,
                metadata=metadata,
                entities=entities,
                wait=wait,
                idempotency_key=idempotency_key,
            )
        )

    def call(self, method: str, path: str, **request: Any) -> Any:
        """Return the JSON of any route of the API. `request` has the fields of `Call`; it is sent once."""
        return self.send(
            Call(method=method, path=path, read=calls.any_json, **request), patience=0.0
        )

    def send(self, call: Call[T], *, patience: float | None = None) -> T:
        """Send a call, and repeat it while the gateway returns 503, for `patience` seconds at most."""
        deadline = monotonic() + (self._patience if patience is None else patience)
        while True:
            try:
                return call.read(self._exchange(call))
            except Busy as error:
                sleep(self._pause(error, call, deadline))

    def _exchange(self, call: Call[Any]) -> bytes:
        """Send a call once, and return the body of its response."""
        try:
            response = self._http.request(call.method, call.path, **self._arguments(call))
        except httpx2.TransportError as error:
            raise self._unreachable(error, call) from None
        return self._body(response)


class AsyncApex(_Connection):
    """The same for asyncio: see `Apex`. Its calls are coroutines."""

    def __init__(
        self,
        url: str | None = None,
        key: str | None = None,
        *,
        timeout: float = TIMEOUT,
        patience: float = PATIENCE,
        tls: ClientTls | None = None,
        transport: httpx2.AsyncBaseTransport | None = None,
    ) -> None:
        super().__init__(url, key, timeout, patience, tls)
        self._http = httpx2.AsyncClient(
            base_url=self.url, transport=transport, verify=self._tls.verify()
        )

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Close the connections."""
        await self._http.aclose()

    def with_key(self, key: str) -> AsyncApex:
        """Return a client with another key that shares the connections of this one; closing either closes both."""
        other = object.__new__(AsyncApex)
        other.__dict__ = {**self.__dict__, "_key": key}
        return other

    async def search(
        self,
        query: str = "",
        *,
        limit: int = 10,
        passages_per_document: int | None = None,
        sources: Sequence[str] = (),
        kinds: Sequence[str] = (),
        entities: Sequence[str] = (),
        documents: Sequence[str] = (),
        conversations: Sequence[str] = (),
        people: Sequence[str] = (),
        since: datetime | str | None = None,
        until: datetime | str | None = None,
        max_tokens: int | None = None,
        explain: bool = False,
        fresh: bool = False,
    ) -> SearchAnswer:
        """See `Apex.search`."""
        return await self.send(
            calls.search(
                query,
                limit=limit,
                passages_per_document=passages_per_document,
                sources=sources,
                kinds=kinds,
                entities=entities,
                documents=documents,
                conversations=conversations,
                people=people,
                since=since,
                until=until,
                max_tokens=max_tokens,
                explain=explain,
                fresh=fresh,
            )
        )

    async def get_document(self, id: str, *, version: int | None = None) -> Document:
        """See `Apex.get_document`."""
        return await self.send(calls.document(id, version))

    async def documents(
        self,
        *,
        sources: Sequence[str] = (),
        kinds: Sequence[str] = (),
        deleted: bool = False,
        cursor: str | None = None,
        limit: int = 50,
    ) -> DocumentPage:
        """See `Apex.documents`."""
        return await self.send(
            calls.documents(
                sources=sources, kinds=kinds, deleted=deleted, cursor=cursor, limit=limit
            )
        )

    async def get_entity(self, ref: str) -> Entity:
        """See `Apex.get_entity`."""
        return await self.send(calls.entity(ref))

    async def timeline(
        self, ref: str, *, cursor: str | None = None, limit: int = 50
    ) -> DocumentPage:
        """See `Apex.timeline`."""
        return await self.send(calls.timeline(ref, cursor=cursor, limit=limit))

    async def event(self, id: str) -> Event:
        """See `Apex.event`."""
        return await self.send(calls.event(id))

    async def events(
        self,
        *,
        source: str | None = None,
        state: str | None = None,
        since: datetime | str | None = None,
        cursor: str | None = None,
        limit: int = 50,
    ) -> EventPage:
        """See `Apex.events`."""
        return await self.send(
            calls.events(source=source, state=state, since=since, cursor=cursor, limit=limit)
        )

    async def status(self) -> Status:
        """See `Apex.status`."""
        return await self.send(calls.status())

    async def sources(self) -> tuple[SourceState, ...]:
        """See `Apex.sources`."""
        return await self.send(calls.sources())

    async def freshness(self, *, now: bool = False) -> tuple[Freshness, ...]:
        """See `Apex.freshness`."""
        return await self.send(calls.freshness(now))

    async def own_key(self) -> OwnKey:
        """See `Apex.own_key`."""
        return await self.send(calls.own_key())

    async def resolve(self, id: str) -> dict[str, str]:
        """See `Apex.resolve`."""
        return await self.send(calls.resolve(id))

    async def remember(
        self,
        text: str,
        *,
        key: str | None = None,
        title: str | None = None,
        kind: str | None = None,
        occurred_at: datetime | str | None = None,
        version: int | None = None,
        metadata: Mapping[str, Any] | None = None,
        entities: Sequence[str] = (),
        wait: float = 0.0,
        idempotency_key: str | None = None,
    ) -> Receipt:
        """See `Apex.remember`."""
        return await self.send(
            calls.remember(
                text,
                key=key,
                title=title,
                kind=kind,
                occurred_at=occurred_at,
                version=version,
                metadata=metadata,
                entities=entities,
                wait=wait,
                idempotency_key=idempotency_key,
            )
        )

    async def call(self, method: str, path: str, **request: Any) -> Any:
        """See `Apex.call`."""
        return await self.send(
            Call(method=method, path=path, read=calls.any_json, **request), patience=0.0
        )

    async def send(self, call: Call[T], *, patience: float | None = None) -> T:
        """See `Apex.send`."""
        deadline = monotonic() + (self._patience if patience is None else patience)
        while True:
            try:
                return call.read(await self._exchange(call))
            except Busy as error:
                await asyncio.sleep(self._pause(error, call, deadline))

    async def _exchange(self, call: Call[Any]) -> bytes:
        """Send a call once, and return the body of its response."""
        try:
            response = await self._http.request(call.method, call.path, **self._arguments(call))
        except httpx2.TransportError as error:
            raise self._unreachable(error, call) from None
        return self._body(response)
