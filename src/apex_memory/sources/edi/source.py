"""The source `edi`: X12 files from a folder, an SFTP server or the API, acknowledged by 997."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any, ClassVar

from pydantic import SecretStr

from apex_memory.errors import ApexError, Rejected, RetryLater
from apex_memory.model import MALFORMED, Document, Event, Priority
from apex_memory.sources.base import (
    FileSource,
    InboundRequest,
    Pattern,
    Received,
    Sample,
    SourceSettings,
)
from apex_memory.sources.edi.coverage import SHOWN, set_fields
from apex_memory.sources.edi.documents import set_document
from apex_memory.sources.edi.events import (
    PRIORITY,
    SOURCE,
    TOMBSTONE_PREFIX,
    X12File,
    parse_file,
    unreadable_file_event,
)
from apex_memory.sources.edi.mailboxes import FolderMailbox, Mailbox, SftpServer
from apex_memory.sources.edi.pickup import pull_archive, pull_inbound
from apex_memory.sources.edi.settings import EdiSettings
from apex_memory.sources.edi.x12.envelope import Interchange
from apex_memory.sources.edi.x12.replies import build_reply
from apex_memory.sources.fields import RecordFields
from apex_memory.sources.http import VendorClient
from apex_memory.sources.pages import InboundFile, Page, PullContext, UnpackedFile
from apex_memory.sources.payloads import parse_json, parse_object, sample

SEND_ATTEMPTS = 4
SEND_PAUSE = 0.1  # seconds, doubled with each attempt


class Edi(FileSource[EdiSettings]):
    """Carriers' EDI (ANSI X12): tenders (204), responses (990), status (214), invoices (210), acknowledgements (997).

    Files come from a folder, an SFTP server, or as the body of a request. One event a transaction set, two for a
    cancel: a set that its 997 accepts is in memory, a set that it rejects is a dead letter with the reason.

    - Event id: interchange, group, set and the hash of the set's content, so that a file sent again is a duplicate, and
      a control number used again for something else is not.
    - Document: the tender of a shipment to a carrier, its response, a status, an invoice. A change or a correction is a
      newer version. A cancel deletes the tender, until a newer one is sent, and is a document of its own.
    - Version: the time of sending in the envelope, then control number and place.
    - The response to a file sent to the API is the API's own; 997s go to where files are picked up.
    """

    name: ClassVar[str] = SOURCE
    title: ClassVar[str] = "Carrier EDI"
    priority: ClassVar[Priority] = PRIORITY
    pattern: ClassVar[Pattern] = Pattern.BATCH
    path: ClassVar[str] = "/v1/edi"
    max_body_bytes: ClassVar[int] = 20_000_000
    poll_seconds: ClassVar[float] = 60
    Settings: ClassVar[type[SourceSettings]] = EdiSettings
    records: ClassVar[Sequence[RecordFields]] = tuple(map(set_fields, SHOWN))
    called: ClassVar[Mapping[str, str]] = {
        "": "edi x12",
        "tender": "offer",
        "tender_cancellation": "cancelled canceled",
        "tender_response": "accepted declined rejected",
        "shipment_status": "late delay arrived departed delivered",
        "invoice": "billed freight",
        "acknowledgement": "acknowledged rejected",
    }

    @property
    def missing_settings(self) -> str:
        """A folder or a server, each with all that it needs."""
        settings = self.settings
        needed = []
        if settings.inbound_folder:
            needed.append("archive_folder")
            if settings.acknowledge:
                needed.append("outbound_folder")
        if settings.sftp_host:
            needed += ["sftp_user", "sftp_known_hosts"]
            if not settings.sftp_key.get_secret_value():
                needed.append("sftp_password")
        if not settings.inbound_folder and not settings.sftp_host:
            needed = ["inbound_folder"]
        for name in needed:
            if not _is_set(getattr(settings, name)):
                return f"sources.edi.{name}"
        return ""

    def receive(self, request: InboundRequest) -> Received:
        """Return an event for each set of an X12 file."""
        file = parse_file(request.body)
        events = list(file.events())
        if not events:
            raise Rejected(
                f"body: {'; '.join(file.findings[:3]) or 'no transaction set in it'}",
                remedy="send an X12 interchange as it is, from ISA to IEA",
            )
        return Received(events)

    async def pull(self, context: PullContext) -> AsyncIterator[Page]:
        """Yield the complete files of all mailboxes; each is archived once its page is committed."""
        failure: ApexError | None = None
        cursor = dict(context.cursor)
        for name in self._mailbox_names():
            # A partner's server that is down must not keep another partner's files waiting.
            try:
                async with self._open_mailbox(name) as mailbox:
                    async for page in self._pages(mailbox, cursor, context):
                        cursor = dict(page.cursor or cursor)
                        yield page
            except ApexError as error:
                failure = failure or error
        if failure:
            raise failure

    def _pages(
        self, mailbox: Mailbox, cursor: Mapping[str, Any], context: PullContext
    ) -> AsyncIterator[Page]:
        if context.window:
            return pull_archive(mailbox, cursor, context.window, largest=self.max_body_bytes)
        settle = self.settings.settle_seconds
        return pull_inbound(mailbox, cursor, settle=settle, largest=self.max_body_bytes)

    def unpack(self, file: InboundFile) -> UnpackedFile:
        """Return an event for each set, a reply for each interchange, and all findings in words.

        A file that cannot be read, or has too many sets, is one dead letter, and gets no reply.
        """
        try:
            content = parse_file(file.data)
        except Rejected as error:
            return UnpackedFile(events=[unreadable_file_event(file, error)], findings=[str(error)])
        events = list(content.events(acknowledged=self._acknowledges))
        if not events and not content.has_acknowledgements:
            reason = "; ".join(content.findings[:5]) or "no transaction set in it"
            refusal = Rejected(reason, remedy="ask who put this file there")
            events = [unreadable_file_event(file, refusal)]
        return UnpackedFile(
            events=events,
            replies=list(self._replies(file.name, content)),
            findings=list(content.findings),
        )

    def _replies(self, file_name: str, content: X12File) -> Iterator[InboundFile]:
        mailbox, slash, _ = file_name.partition("/")
        prefix = mailbox + slash if slash and mailbox in self._mailbox_names() else ""
        for interchange, verdicts in content.interchanges:
            if not self._acknowledges(interchange):
                continue
            if reply := build_reply(interchange, verdicts, prefix):
                yield reply

    def _acknowledges(self, interchange: Interchange) -> bool:
        """Return whether a 997 is written for an interchange from a mailbox."""
        settings = self.settings
        return bool(
            settings.acknowledge
            and interchange.header
            and interchange.sender not in settings.own_ids
        )

    async def send(self, replies: Sequence[InboundFile], client: VendorClient) -> None:
        """Write replies into the outbound folder of the mailbox that their file came from."""
        by_mailbox: dict[str, list[InboundFile]] = {}
        for reply in replies:
            mailbox, _, name = reply.name.rpartition("/")
            mailbox = mailbox or next(iter(self._mailbox_names()), "")
            by_mailbox.setdefault(mailbox, []).append(replace(reply, name=name))
        for mailbox, files in by_mailbox.items():
            attempts = 0
            while files:
                try:
                    await self._write(mailbox, files)
                except RetryLater:
                    attempts += 1
                    if attempts == SEND_ATTEMPTS:
                        raise
                    await asyncio.sleep(SEND_PAUSE * 2**attempts)

    async def _write(self, mailbox: str, files: list[InboundFile]) -> None:
        """Write files until none is left, and remove each from the list once it is written."""
        async with self._open_mailbox(mailbox) as outbound:
            while files:
                await outbound.write(files[0].name, files[0].data)
                del files[0]

    def document(self, event: Event) -> Document:
        """A `tender`, `tender_cancellation`, `tender_response`, `shipment_status`, `invoice`, `acknowledgement`, or `edi_other`.

        A set of a test interchange is an `edi_test` without its content, unless the settings say otherwise.
        """
        if event.content_type == MALFORMED:
            raise Rejected("this set was refused", remedy="ask the partner to send it again")
        keep_tests_apart = self.settings.test_interchanges == "apart"
        return set_document(
            parse_object(event.payload), event.occurred_at, keep_tests_apart=keep_tests_apart
        )

    def samples(self) -> Sequence[Sample]:
        published = [
            Sample(name, sample("edi", f"{name}.edi"), "application/edi-x12", events=count)
            for name, count in (("responses", 3), ("tender", 1), ("status", 1))
        ]
        own = [
            Sample(
                item["name"], item["body"].encode(), "application/edi-x12", events=item["events"]
            )
            for item in parse_json(sample("edi", "own.json"))
        ]
        return [*own, *published]

    @staticmethod
    def control(event_id: str) -> str:
        """Return the control numbers in an event id. Two events with the same ones and other content are a conflict.

        Empty where there is no envelope, because a set's number alone is no identity. Empty for the tombstone of a
        cancelled tender, because the conflict is a finding of the cancel itself.
        """
        control = event_id.rpartition("#")[0]
        return "" if control.startswith(("none/", TOMBSTONE_PREFIX)) else control

    def _mailbox_names(self) -> list[str]:
        names = []
        if self.settings.inbound_folder:
            names.append("folder")
        if self.settings.sftp_host:
            names.append("sftp")
        return names

    @asynccontextmanager
    async def _open_mailbox(self, name: str) -> AsyncIterator[Mailbox]:
        settings = self.settings
        if name == "folder":
            assert (
                settings.inbound_folder and settings.archive_folder
            )  # `missing_settings` asks for both
            yield FolderMailbox(
                settings.inbound_folder, settings.archive_folder, settings.outbound_folder
            )
            return
        server = SftpServer(
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
        async with server.open() as mailbox:
            yield mailbox


def _is_set(setting: object) -> bool:
    return bool(setting.get_secret_value() if isinstance(setting, SecretStr) else setting)
