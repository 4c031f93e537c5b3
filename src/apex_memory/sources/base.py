"""What a source is: the class that every vendor's package defines, and the requests, samples and settings it uses.

`receive` runs in the gateway before anything is stored: verify first, on the raw bytes, then split into events.
`pull` runs in the worker: it fetches what a vendor does not send, page by page. `document` runs in the worker and is
pure: same event, same document.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from typing import Any, ClassVar, get_origin

from pydantic import BaseModel, ConfigDict, Field, model_validator
from pydantic_core import from_json

from apex_memory.model import Document, Event, Priority
from apex_memory.sources.http import RateLimit, VendorClient
from apex_memory.sources.pages import (
    ChangeHint,
    InboundFile,
    Page,
    PullContext,
    Reading,
    UnpackedFile,
)


class Pattern(StrEnum):
    """How most of a source's events come in."""

    WEBHOOK = "webhook"
    API = "api"
    POLL = "poll"
    STREAM = "stream"
    BATCH = "batch"


@dataclass(frozen=True, slots=True)
class Request:
    """An HTTP request as a source sees it: header names in lower case, the body as it came."""

    body: bytes
    headers: Mapping[str, str]
    query: Mapping[str, str]
    received_at: datetime

    @property
    def content_type(self) -> str:
        """Media type without parameters, lower case; empty if not given."""
        return self.headers.get("content-type", "").partition(";")[0].strip().lower()

    @property
    def idempotency_key(self) -> str | None:
        return self.headers.get("idempotency-key")


@dataclass(frozen=True, slots=True)
class Reply:
    """An answer that replaces the usual 202, for handshakes."""

    body: bytes
    content_type: str = "text/plain"
    status: int = 200


@dataclass(frozen=True, slots=True)
class Received:
    """What one request holds: events to land, things to fetch, and an own answer if the vendor wants one."""

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

    @model_validator(mode="before")
    @classmethod
    def _lists_from_environment(cls, values: dict[str, Any]) -> dict[str, Any]:
        """The environment knows no lists: `["a", "b"]` and `a` are taken for one where one is due."""
        found = dict(values)
        for name, spec in cls.model_fields.items():
            value = found.get(name)
            if get_origin(spec.annotation) is list and isinstance(value, str):
                found[name] = from_json(value) if value.startswith("[") else [value]
        return found


class PulledSettings(SourceSettings):
    """Settings of a source that is fetched."""

    poll_seconds: float | None = Field(
        None,
        gt=0,
        description="Seconds between two looks at the vendor. Empty: what suits the vendor.",
    )


class Source(ABC):
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
    poll_seconds: ClassVar[float] = 0
    """Pause between two pulls of a poll or batch source, and between two looks of a stream; 0: never pulled."""
    rate_limit: ClassVar[RateLimit] = (10, 1)
    """The vendor's rate limit: calls in so many seconds. Leave room for others who use the same account."""
    window_seconds: ClassVar[int] = 0
    """Length of the windows into which a stream's readings are folded; 0: it has none."""

    def __init__(self, settings: SourceSettings) -> None:
        self.settings: Any = settings

    @property
    def route(self) -> str:
        return self.path or f"/hooks/{self.name}"

    @property
    def authenticated_by_key(self) -> bool:
        """API sources ask for an API key with scope `ingest`; webhooks carry their vendor's signature."""
        return bool(self.path)

    @property
    def pulled(self) -> bool:
        """Whether anything is fetched for this source."""
        return self.poll_seconds > 0

    @property
    def poll_every(self) -> float:
        """Seconds between two pulls: the setting `poll_seconds` where the source has one, else the class's."""
        return float(getattr(self.settings, "poll_seconds", None) or self.poll_seconds)

    @property
    def rate_limits(self) -> Sequence[RateLimit]:
        """The rate limits that hold together, with the settings of this moment."""
        return (self.rate_limit,)

    @property
    def missing_settings(self) -> str:
        """The first setting that a pull cannot do without; empty when it can run, or never pulls."""
        return ""

    async def fetch_verification_data(self, request: Request, link: VendorClient) -> None:  # noqa: B027 -- most need nothing
        """Fetch what verifying this request needs, such as a key that its header names."""

    @abstractmethod
    def receive(self, request: Request) -> Received:
        """Verify, then split into events. Raises `Unauthorized` (signature) or `Rejected` (malformed)."""

    def pull(self, asked: PullContext) -> AsyncIterator[Page]:
        """Pages from the vendor, from the cursor on, until there is no more at the moment.

        An asynchronous generator. Each page is committed, its cursor with it, before the next is asked for:
        what stands after a `yield` runs when the page is safe. A pull that is broken off starts again from
        the last committed cursor. One record that cannot be read becomes an event all the same (`broken`),
        and ends as a dead letter.
        """
        raise NotImplementedError(f"{self.name} is not pulled")

    def aggregate_window(
        self, series: str, start: datetime, readings: Sequence[Reading], version: int
    ) -> Event:
        """The event that tells what happened in a window of a series: all its readings, by time. Pure."""
        raise NotImplementedError(f"{self.name} has no windows")

    def unpack(self, file: InboundFile) -> UnpackedFile:
        """The events in a file of a batch source. Pure: the same file, the same events. Never raises for bad content."""
        raise NotImplementedError(f"{self.name} has no files")

    def control(self, event_id: str) -> str:
        """The part of an event's id that a partner promises never to use for other content; empty where there is none.

        What follows it in the id, after a `#`, names the content. Two contents under one control are a finding.
        """
        return ""

    async def send(self, replies: Sequence[InboundFile], link: VendorClient) -> None:
        """Write a file's replies back to where the partner looks for them. Safe to repeat."""
        raise NotImplementedError(f"{self.name} writes nothing back")

    @abstractmethod
    def document(self, event: Event) -> Document:
        """The document this event makes. Pure. Raises `Rejected` if the payload cannot be understood."""

    @abstractmethod
    def samples(self) -> Sequence[Sample]:
        """Requests for tests and the demo."""

    def sign(self, body: bytes, at: datetime) -> Mapping[str, str]:
        """Headers with which the vendor would send this body. Empty for API sources."""
        return {}
