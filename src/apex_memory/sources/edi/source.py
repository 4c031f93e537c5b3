"""Carriers' EDI: X12 files from a folder, an SFTP server or the API, answered by 997."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

from pydantic import Field, SecretStr

from apex_memory.errors import ApexError, Rejected, RetryLater
from apex_memory.model import MALFORMED, Document, Event, Priority
from apex_memory.sources.base import (
    Pattern,
    PulledSettings,
    Received,
    Request,
    Sample,
    Source,
    SourceSettings,
)
from apex_memory.sources.edi.x12.documents import set_document
from apex_memory.sources.edi.x12.events import (
    CANCELS,
    PRIORITY,
    SOURCE,
    Opened,
    open_file,
    unreadable,
)
from apex_memory.sources.edi.x12.pickup import fresh, history
from apex_memory.sources.edi.x12.places import Folder, Place, Server
from apex_memory.sources.edi.x12.replies import reply
from apex_memory.sources.http import VendorClient
from apex_memory.sources.pages import InboundFile, Page, PullContext, UnpackedFile
from apex_memory.sources.payloads import parse_json, parse_object, sample

SEND_TRIES, SEND_PAUSE = 4, 0.1  # seconds, doubled each time


class EdiSettings(PulledSettings):
    """`[sources.edi]`"""

    inbound_folder: Path | None = Field(
        None, description="Local folder into which partners' files are put."
    )
    archive_folder: Path | None = Field(
        None, description="Local folder for files that were taken; must not be `inbound_folder`."
    )
    outbound_folder: Path | None = Field(
        None, description="Local folder for the answers (997) to files from `inbound_folder`."
    )
    sftp_host: str = Field("", description="SFTP server to pick files up from.")
    sftp_port: int = Field(22, gt=0, lt=65_536, description="Its port.")
    sftp_user: str = Field("", description="User name there.")
    sftp_password: SecretStr = Field(SecretStr(""), description="Password, where there is no key.")
    sftp_key: SecretStr = Field(
        SecretStr(""), description="Private key (OpenSSH or PEM), the whole text of its file."
    )
    sftp_key_passphrase: SecretStr = Field(
        SecretStr(""), description="Passphrase of `sftp_key`, if it has one."
    )
    sftp_known_hosts: str = Field(
        "",
        description="The server's key as lines of a known_hosts file, confirmed by the partner. Any other key is refused.",
    )
    sftp_inbound: str = Field("inbound", description="Folder there with the files for us.")
    sftp_archive: str = Field("archive", description="Folder there for files that were taken.")
    sftp_outbound: str = Field("outbound", description="Folder there for our answers (997).")
    settle_seconds: float = Field(
        10,
        ge=0,
        description="How long a file's size and time must have stood still, seen at two looks at least.",
    )
    acknowledge: bool = Field(True, description="Answer what is picked up by 997.")
    own_ids: list[str] = Field(
        default=[],
        description="Our own interchange ids (ISA06): copies of what we sent are taken, but not answered.",
    )


class Edi(Source):
    """Carriers' EDI (ANSI X12): tenders (204), responses (990), status (214), invoices (210), acknowledgements (997).

    Files come from a folder, an SFTP server, or as the body of a request. One event a transaction set, two for a
    cancel: what a set's 997 calls accepted is in memory, what it calls rejected is a dead letter with the reason.

    - Event id: interchange, group, set and the hash of the set's content, so that a file sent again is a duplicate, and
      a control number used again for something else is not.
    - Document: the tender of a shipment to a carrier, its answer, a status, an invoice. A change or a correction is a
      newer version. A cancel deletes the tender, until a newer one is sent, and is a document of its own.
    - Version: the time of sending in the envelope, then control number and place.
    - A file that is sent to the API is answered by the API; 997s go to where files are picked up.
    """

    name: ClassVar[str] = SOURCE
    title: ClassVar[str] = "Carrier EDI"
    priority: ClassVar[Priority] = PRIORITY
    pattern: ClassVar[Pattern] = Pattern.BATCH
    path: ClassVar[str] = "/v1/edi"
    max_body_bytes: ClassVar[int] = 20_000_000
    poll_seconds: ClassVar[float] = 60
    Settings: ClassVar[type[SourceSettings]] = EdiSettings

    @property
    def missing_settings(self) -> str:
        """A folder or a server, each with all that it needs."""
        settings = self.settings
        wanted = []
        if settings.inbound_folder:
            wanted = ["archive_folder", *(["outbound_folder"] if settings.acknowledge else [])]
        if settings.sftp_host:
            wanted += ["sftp_user", "sftp_known_hosts"]
            if not settings.sftp_key.get_secret_value():
                wanted.append("sftp_password")
        if not settings.inbound_folder and not settings.sftp_host:
            wanted = ["inbound_folder"]
        lacking = (name for name in wanted if not _filled(getattr(settings, name)))
        return next((f"sources.edi.{name}" for name in lacking), "")

    def receive(self, request: Request) -> Received:
        """The sets of an X12 file."""
        found = open_file(request.body)
        events = list(found.events())
        if not events:
            raise Rejected(
                f"body: {'; '.join(found.findings[:3]) or 'no transaction set in it'}",
                remedy="send an X12 interchange as it is, from ISA to IEA",
            )
        return Received(events)

    async def pull(self, context: PullContext) -> AsyncIterator[Page]:
        """Files that are whole: moved to the archive once the page that brings them is committed."""
        failed: ApexError | None = None
        cursor = dict(context.cursor)
        for name in self._place_names():
            # One partner's server that is down must not keep the other's files waiting.
            try:
                async with self._opened_place(name) as place:
                    async for page in self._pages(place, cursor, context):
                        cursor = dict(page.cursor or cursor)
                        yield page
            except ApexError as error:
                failed = failed or error
        if failed:
            raise failed

    def _pages(
        self, place: Place, cursor: Mapping[str, Any], context: PullContext
    ) -> AsyncIterator[Page]:
        if context.window:
            return history(place, cursor, context.window, largest=self.max_body_bytes)
        settle = self.settings.settle_seconds
        return fresh(place, cursor, settle=settle, largest=self.max_body_bytes)

    def unpack(self, file: InboundFile) -> UnpackedFile:
        """An event for each set, a reply for each interchange, and whatever was wrong, in words."""
        found = open_file(file.data)
        events = list(found.events())
        if not events and not found.acknowledges:
            reason = "; ".join(found.findings[:5]) or "no transaction set in it"
            events = [unreadable(file, Rejected(reason, remedy="ask who put this file there"))]
        return UnpackedFile(
            events=events,
            replies=list(self._replies(file.name, found)),
            findings=list(found.findings),
        )

    async def send(self, replies: Sequence[InboundFile], link: VendorClient) -> None:
        """Into the outbound folder of where the file came from."""
        by_place: dict[str, list[InboundFile]] = {}
        for one in replies:
            place, _, name = one.name.rpartition("/")
            place = place or next(iter(self._place_names()), "")
            by_place.setdefault(place, []).append(replace(one, name=name))
        for place, files in by_place.items():
            tried = 0
            while files:
                try:
                    await self._write(place, files)
                except RetryLater:
                    tried += 1
                    if tried == SEND_TRIES:
                        raise
                    await asyncio.sleep(SEND_PAUSE * 2**tried)

    async def _write(self, place: str, files: list[InboundFile]) -> None:
        """Write files until none is left; what is written is taken from the list."""
        async with self._opened_place(place) as outbound:
            while files:
                await outbound.write(files[0].name, files[0].data)
                del files[0]

    def document(self, event: Event) -> Document:
        """A `tender`, `tender_cancellation`, `tender_response`, `shipment_status`, `invoice`, `acknowledgement`, or `edi_other`."""
        if event.content_type == MALFORMED:
            raise Rejected("this set was refused", remedy="ask the partner to send it again")
        return set_document(parse_object(event.payload), event.occurred_at)

    def samples(self) -> Sequence[Sample]:
        real = [
            Sample(name, sample("edi", f"{name}.edi"), "application/edi-x12", events=count)
            for name, count in (("responses", 3), ("tender", 1), ("status", 1))
        ]
        own = [
            Sample(
                item["name"], item["body"].encode(), "application/edi-x12", events=item["events"]
            )
            for item in parse_json(sample("edi", "own.json"))
        ]
        return [*own, *real]

    @staticmethod
    def control(event_id: str) -> str:
        """What the sender numbered: events with the same one and another content contradict each other.

        Empty where there is no envelope: a set's number alone is no identity. Empty for the end of a cancelled tender:
        the cancel itself is told of.
        """
        own = event_id.rpartition("#")[0]
        return "" if own.startswith(("none/", CANCELS)) else own

    def _replies(self, name: str, found: Opened) -> Iterator[InboundFile]:
        place, slash, _ = name.partition("/")
        prefix = place + slash if slash and place in self._place_names() else ""
        if not self.settings.acknowledge:
            return
        for interchange, verdicts in found.interchanges:
            if interchange.sender not in self.settings.own_ids and (
                answer := reply(interchange, verdicts, prefix)
            ):
                yield answer

    def _place_names(self) -> list[str]:
        settings = self.settings
        places = (("folder", settings.inbound_folder), ("sftp", settings.sftp_host))
        return [name for name, given in places if given]

    @asynccontextmanager
    async def _opened_place(self, name: str) -> AsyncIterator[Place]:
        settings = self.settings
        if name == "folder":
            yield Folder(settings.inbound_folder, settings.archive_folder, settings.outbound_folder)
            return
        server = Server(
            settings.sftp_host,
            settings.sftp_port,
            settings.sftp_user,
            settings.sftp_password,
            settings.sftp_key,
            settings.sftp_key_passphrase,
            settings.sftp_known_hosts,
            settings.sftp_inbound,
            settings.sftp_archive,
            settings.sftp_outbound,
        )
        async with server.opened() as place:
            yield place


def _filled(setting: object) -> bool:
    return bool(setting.get_secret_value() if isinstance(setting, SecretStr) else setting)
