"""The classes that a vendor's package derives from, and the requests, samples and settings that they use.

`Source` receives webhooks or API calls. `PulledSource` also fetches from the vendor, page by page; `StreamSource` pulls
readings and turns windows of them into events; `FileSource` pulls files, unpacks them and sends replies. A class derives
from the one that fits, so a caller asks `isinstance(source, FileSource)` and gets just the methods that exist.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from typing import Any, ClassVar, Generic, Literal, Self, get_origin
from urllib.parse import urlsplit

from pydantic import BaseModel, ConfigDict, Field, IPvAnyNetwork, model_validator
from pydantic_core import from_json
from typing_extensions import TypeVar

from apex_memory.config import METADATA_MAX_BYTES
from apex_memory.errors import Rejected
from apex_memory.host_names import is_loopback, is_private
from apex_memory.model import Document, Event, Priority
from apex_memory.sources.fields import RecordFields
from apex_memory.sources.http import RateLimit, VendorClient
from apex_memory.sources.pages import (
    ChangeHint,
    InboundFile,
    Page,
    PullContext,
    Reading,
    UnpackedFile,
)
from apex_memory.sources.payloads import parse_identifier


class Pattern(StrEnum):
    """How most events of a source arrive."""

    WEBHOOK = "webhook"
    API = "api"
    POLL = "poll"
    STREAM = "stream"
    BATCH = "batch"


NAMED = "key/"
"""Stands before the event ids that API keys and their `Idempotency-Key` make, and before no other id."""


def content_id(id: str) -> str:
    """Return an event id that is made of a document's key and content, so that it is none that a caller can name."""
    return f":{id}" if id.startswith(NAMED) else id


@dataclass(frozen=True, slots=True)
class InboundRequest:
    """An HTTP request as a source sees it: header names in lower case, the body as it came."""

    body: bytes
    headers: Mapping[str, str]
    query: Mapping[str, str]
    received_at: datetime
    caller: str = ""
    """Name of the API key; empty for webhooks."""
    metadata_max_bytes: int = METADATA_MAX_BYTES
    """Most bytes of the metadata of one item, as JSON."""

    @property
    def content_type(self) -> str:
        """Media type without parameters, lower case; empty if not given."""
        return self.headers.get("content-type", "").partition(";")[0].strip().lower()

    def named_ids(self, count: int) -> list[str | None]:
        """Return the ids that the header `Idempotency-Key` gives the `count` events of this request; None for each without it.

        The id of the first event is the caller and the key; `#1`, `#2` … follow for further ones. So the same key with more
        events than before names the first event again, and its other content is noticed. Callers share no keys, and a
        new API key under the same name continues those of the old one. The length of the caller's name says where it
        ends: both may have a `/`. Raises `Rejected` for a malformed key.
        """
        key = self.headers.get("idempotency-key")
        if not key:
            return [None] * count
        parse_identifier(key, "Idempotency-Key")
        name = f"{NAMED}{len(self.caller)}:{self.caller}/{key}" if self.caller else key
        return [name, *(f"{name}#{n}" for n in range(1, count))]


@dataclass(frozen=True, slots=True)
class Reply:
    """A response that replaces the usual 202, for handshakes."""

    body: bytes
    content_type: str = "text/plain"
    status: int = 200


@dataclass(frozen=True, slots=True)
class Received:
    """The content of one request: events to land, hints of things to fetch, and a response of its own if the vendor expects one."""

    events: Sequence[Event] = ()
    reply: Reply | None = None
    change_hints: Sequence[ChangeHint] = ()


@dataclass(frozen=True, slots=True)
class Sample:
    """A realistic request for this source, unsigned: `Source.sign` adds what authenticates it."""

    name: str
    body: bytes
    content_type: str = "application/json"
    query: Mapping[str, str] = field(default_factory=dict)
    events: int = 1


class SourceSettings(BaseModel):
    """Settings of one source, from `[sources.NAME]`. Unknown names are refused."""

    model_config = ConfigDict(extra="forbid")

    mirror_url: str = Field(
        "",
        description="URL that every accepted webhook is also forwarded to: your former system. Empty: no mirror.",
    )
    mirror: Literal["all", "rest"] = Field(
        "all",
        description="`all` webhooks, or the `rest`: only those about documents that are not rolled over yet.",
    )
    mirror_networks: list[IPvAnyNetwork] = Field(
        default=[],
        description="Private networks that the URL may be in, such as `10.1.0.0/16`. Without TLS it has to be in one of them.",
    )
    mirror_hold_seconds: float = Field(
        3600,
        gt=0,
        description="How long a target that fails may hold the order (seconds), before what waits as long becomes a dead letter.",
    )

    allow_http: bool = Field(
        False,
        description="Allow `http://` to a private network, such as the container of a simulator: credentials travel unencrypted.",
    )

    @model_validator(mode="before")
    @classmethod
    def _lists_from_environment(cls, values: dict[str, Any]) -> dict[str, Any]:
        """Read lists from environment variables: both `["a", "b"]` and `a` are accepted where a list is expected."""
        parsed = dict(values)
        for name, spec in cls.model_fields.items():
            value = parsed.get(name)
            if get_origin(spec.annotation) is list and isinstance(value, str):
                parsed[name] = from_json(value) if value.startswith("[") else [value]
        return parsed

    @model_validator(mode="after")
    def _addresses_are_safe(self) -> Self:
        """Refuse addresses that would send credentials unencrypted, unless `allow_http` allows it."""
        for name in type(self).model_fields:
            value = getattr(self, name)
            if name == "mirror_url":
                continue  # `_mirror_is_safe` has other rules
            if name.endswith("_url") and isinstance(value, str) and value:
                _check_address(name, value, is_private if self.allow_http else is_loopback)
        return self

    @model_validator(mode="after")
    def _mirror_is_safe(self) -> Self:
        """Refuse a mirror that would leave this network unencrypted. Its addresses are checked when it connects."""
        if not self.mirror_url:
            return self
        url = urlsplit(self.mirror_url)
        if url.scheme not in ("https", "http") or not url.hostname:
            raise ValueError(
                "mirror_url: must be https://HOST/…, or http://HOST/… in mirror_networks"
            )
        if url.username or url.password or url.fragment:
            raise ValueError("mirror_url: must name no user, password or fragment")
        if url.scheme == "http" and not self.mirror_networks:
            raise ValueError("mirror_networks: name the network of a mirror_url without TLS")
        return self


def _check_address(name: str, value: str, is_near: Callable[[str], bool]) -> None:
    """Raise `ValueError` for a URL that is neither https nor http to a host that is near, or that contains a password."""
    url = urlsplit(value)
    host = url.hostname or ""
    if url.scheme != "https" and not (url.scheme == "http" and is_near(host)):
        raise ValueError(
            f"{name}: must start with https://, or with http:// on this machine"
            " (with allow_http: in a private network)"
        )
    if not host or url.username or url.password:
        raise ValueError(f"{name}: must name a host, without user and password")


class PulledSettings(SourceSettings):
    """Settings of a source that is pulled."""

    poll_seconds: float | None = Field(
        None,
        gt=0,
        description="Seconds between two pulls. Empty: the interval that suits the vendor.",
    )


SettingsT_co = TypeVar("SettingsT_co", bound=SourceSettings, default=SourceSettings, covariant=True)
PulledSettingsT_co = TypeVar(
    "PulledSettingsT_co", bound=PulledSettings, default=PulledSettings, covariant=True
)


class Source(ABC, Generic[SettingsT_co]):
    """One vendor or kind of input. The class docstring is its line in the docs."""

    name: ClassVar[str]
    """Lower case, stable: part of ids, routes and workflow ids."""
    title: ClassVar[str]
    priority: ClassVar[Priority]
    pattern: ClassVar[Pattern] = Pattern.WEBHOOK
    path: ClassVar[str] = ""
    """Route of an API source (`/v1/conversations`). Empty for a webhook, whose route is `/hooks/NAME`."""
    max_body_bytes: ClassVar[int] = 5_000_000
    Settings: ClassVar[type[SourceSettings]] = SourceSettings
    records: ClassVar[Sequence[RecordFields]] = ()
    """What becomes of the fields of each kind of record, for docs/reference/sources.md."""
    key_prefixes: ClassVar[Sequence[str]] = ()
    """What may stand before a vendor's own id in the keys of documents, so that people find them by that id."""
    id_refs: ClassVar[Sequence[str]] = ()
    """What stands before a vendor's own id in the refs by which documents name it, such as `conversation:`."""
    called: ClassVar[Mapping[str, str]] = {}
    """The words by which people call each kind of document, besides its name; under the empty key those for the source itself.
    A query with such a word prefers these documents."""
    numbered: ClassVar[Mapping[str, str]] = {}
    """The words before a number by which people name one of a kind, besides the kind's name: `load 104277` is a shipment."""

    def __init__(self, settings: SettingsT_co) -> None:
        self.settings: SettingsT_co = settings

    def own_key_prefixes(self) -> Sequence[str]:
        """Return `key_prefixes`, and those that depend on the settings."""
        return self.key_prefixes

    @property
    def route(self) -> str:
        return self.path or f"/hooks/{self.name}"

    @property
    def signature_headers(self) -> Sequence[str]:
        """The headers, in lower case, of which a genuine webhook has at least one. Empty: not known.

        The gateway refuses a webhook without any of them before it reads the body.
        """
        return ()

    @property
    def authenticated_by_key(self) -> bool:
        """Whether requests need an API key with scope `ingest` (API sources) rather than a vendor's signature (webhooks)."""
        return bool(self.path)

    @abstractmethod
    def receive(self, request: InboundRequest) -> Received:
        """Verify a request on its raw bytes, then split it into events. Runs in the gateway before anything is stored.

        Raises `Unauthorized` for a wrong signature, `Rejected` for a malformed body.
        """

    @abstractmethod
    def document(self, event: Event) -> Document:
        """Return the document of an event. Runs in the worker and is pure: same event, same document.

        Raises `Rejected` if the payload cannot be understood; the event ends as a dead letter then.
        """

    @abstractmethod
    def samples(self) -> Sequence[Sample]:
        """Return requests for tests and the demo."""

    def sign(self, body: bytes, at: datetime) -> Mapping[str, str]:
        """Return the headers with which the vendor would send this body. Empty for API sources."""
        return {}


class PulledSource(Source[PulledSettingsT_co]):
    """A source that also fetches from its vendor, on a schedule and after change hints."""

    Settings: ClassVar[type[SourceSettings]] = PulledSettings
    poll_seconds: ClassVar[float]
    """Seconds between two pulls, where the settings give no other interval."""
    rate_limit: ClassVar[RateLimit] = (10, 1)
    """The vendor's rate limit: calls, in so many seconds. Leave room for others who use the same account."""

    @property
    def poll_every(self) -> float:
        """Seconds between two pulls."""
        return float(self.settings.poll_seconds or self.poll_seconds)

    @property
    def rate_limits(self) -> Sequence[RateLimit]:
        """The rate limits that hold together, with the settings of this moment."""
        return (self.rate_limit,)

    @property
    def expects_webhooks(self) -> bool:
        """Whether the vendor sends webhooks of what its list shows, too: then a change that only the list shows had a webhook that was lost."""
        return False

    @property
    def missing_settings(self) -> str:
        """The first setting that a pull needs and that is not set; empty when it can run."""
        return ""

    async def fetch_verification_data(self, request: InboundRequest, client: VendorClient) -> None:
        """Fetch what `receive` needs to verify this request, such as a key that its header names."""

    @abstractmethod
    def pull(self, context: PullContext) -> AsyncIterator[Page]:
        """Yield pages from the vendor, from the cursor on, until it has no more at the moment. Runs in the worker.

        Each page is committed together with its cursor before the next one is requested, so code after a `yield`
        runs when the page is safe. An interrupted pull starts again from the last committed cursor. A record that
        cannot be read becomes an event too (`malformed_event`) and ends as a dead letter. One that is fetched alone and
        not returned goes into `Page.unfetched` (`fetch_back.FetchBack`), and the pull goes on.
        """


class StreamSource(PulledSource[PulledSettingsT_co]):
    """A pulled source of readings. Apex keeps them raw, and memory holds an event per window of a series."""

    window_seconds: ClassVar[int]
    """Length of a window."""

    @abstractmethod
    def aggregate_window(
        self, series: str, start: datetime, readings: Sequence[Reading], version: int
    ) -> Event:
        """Return the event of one window of a series, from all its readings in order of time. Pure."""


class FileSource(PulledSource[PulledSettingsT_co]):
    """A pulled source of files, each with events and perhaps with replies to the sender."""

    @abstractmethod
    def unpack(self, file: InboundFile) -> UnpackedFile:
        """Return the events in a file. Pure: same file, same events. Never raises for bad content."""

    def control(self, event_id: str) -> str:
        """Return the part of an event's id that a partner must never reuse for other content; empty where there is none.

        The rest of the id, after a `#`, names the content. Two contents under one control are a finding.
        """
        return ""

    async def send(self, replies: Sequence[InboundFile], client: VendorClient) -> None:
        """Write the replies to a file where the partner expects them. Idempotent."""


def as_stream_source(source: Source) -> StreamSource:
    """Return the source as a `StreamSource`. Raises `Rejected` when it is another kind."""
    if isinstance(source, StreamSource):
        return source
    raise _wrong_kind(source, "streams no readings")


def as_file_source(source: Source) -> FileSource:
    """Return the source as a `FileSource`. Raises `Rejected` when it is another kind."""
    if isinstance(source, FileSource):
        return source
    raise _wrong_kind(source, "has no files")


def _wrong_kind(source: Source, reason: str) -> Rejected:
    return Rejected(
        f"{source.name}: the source {reason}",
        remedy="`apex sources` shows how each source gets its events",
    )
