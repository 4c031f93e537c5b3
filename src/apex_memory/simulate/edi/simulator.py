"""Carriers' EDI: X12 files in a folder and on an SFTP server, with the deviations from the standard that real ones have.

We are the broker: copies of the tenders that we send (204) lie in the folder; carriers respond (990), acknowledge (997),
report where the truck is (214) and bill (210). The replies that come back into `outbound` can be compared with
`expected_outcomes`.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import AsyncIterator, Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, ClassVar

import asyncssh

from apex_memory.simulate.edi.messages import US, Message, messages_of
from apex_memory.simulate.edi.x12 import QUIRKS, Group, GroupId, encode, parse_reply
from apex_memory.simulate.vendor import Chaos, Push, Simulator, Truth
from apex_memory.simulate.world import Clock, World

USER, PASSWORD = "apex", "example-password"
MAILBOXES = ("folder", "sftp")
_FOLDERS = ("inbound", "archive", "outbound")


@dataclass(frozen=True, slots=True)
class ScheduledFile:
    """A file that appears at its time in the `inbound` folder of a mailbox."""

    at: datetime
    mailbox: str
    name: str
    data: bytes
    groups: Sequence[Group]


class EdiSimulator(Simulator):
    """Two mailboxes: carriers with even numbers put files on the SFTP server, all others into the folder."""

    name: ClassVar[str] = "edi"

    def __init__(self, world: World, clock: Clock, chaos: Chaos) -> None:
        super().__init__(world, clock, chaos)
        self._scheduled = sorted(self._files(), key=lambda file: (file.at, file.name))
        self._waiting = list(self._scheduled)
        self._half_written: list[tuple[Path, bytes]] = []
        self._root: Path | None = None
        self._listener: asyncssh.SSHAcceptor | None = None
        self._host_key = asyncssh.generate_private_key("ssh-ed25519")
        self._user_key = asyncssh.generate_private_key("ssh-ed25519")
        self._has_failed = False

    def settings(self, base: str) -> dict[str, Any]:
        assert self._listener is not None
        port = self._listener.get_port()
        folders = {f"{name}_folder": str(self.folder("folder", name)) for name in _FOLDERS}
        return {
            **folders,
            "sftp_host": "127.0.0.1",
            "sftp_port": port,
            "sftp_user": USER,
            "sftp_key": self._user_key.export_private_key().decode(),
            "sftp_known_hosts": f"[127.0.0.1]:{port} {self._host_key.export_public_key().decode()}",
            "settle_seconds": 0,
            "own_ids": [US],
        }

    def pushes(self, since: datetime, until: datetime) -> Iterable[Push]:
        """Nothing is sent. Files appear in the mailboxes instead."""
        self.put_files(until)
        return ()

    def truth(self, until: datetime) -> Sequence[Truth]:
        newest: dict[str, Truth] = {}
        seen = [message for message in self._messages() if message.at + message.late <= until]
        for message in sorted(seen, key=lambda message: message.at):
            newest[message.doc_key] = Truth(message.doc_key, message.text)
            if message.deletes:
                newest[message.deletes] = Truth(message.deletes, deleted=True)
        return list(newest.values())

    def expected_outcomes(self, until: datetime) -> dict[GroupId, str]:
        """Return the AK9-01 that each group of carriers must have got by then."""
        outcomes: dict[GroupId, str] = {}
        for file in self._scheduled:
            if file.at > until:
                continue
            for group in file.groups:
                if group.function != "FA" and group.sender != US:
                    outcomes[group.sender, group.function, group.number] = group.outcome
        return outcomes

    def outcomes(self) -> dict[GroupId, str]:
        """Return the AK9-01 of each group that came back. Fails on two of one group that differ."""
        outcomes: dict[GroupId, str] = {}
        for path in self._replies():
            for group, outcome in parse_reply(path.read_text()):
                assert outcomes.setdefault(group, outcome) == outcome, f"{path.name}: {group}"
        return outcomes

    def _replies(self) -> Iterator[Path]:
        for mailbox in MAILBOXES:
            yield from sorted(self.folder(mailbox, "outbound").iterdir())

    def folder(self, mailbox: str, name: str) -> Path:
        """Return the path of `inbound`, `archive` or `outbound` of a mailbox."""
        assert self._root is not None
        return self._root / mailbox / name

    async def open(self) -> None:
        self._root = Path(tempfile.mkdtemp(prefix="apex-edi-"))
        for mailbox in MAILBOXES:
            for name in _FOLDERS:
                self.folder(mailbox, name).mkdir(parents=True)
        self._listener = await asyncssh.listen(
            "127.0.0.1",
            0,
            server_factory=lambda: _Login(self._user_key.export_public_key()),
            server_host_keys=[self._host_key],
            sftp_factory=lambda channel: _SftpFiles(channel, self, self._root or Path()),
            # asyncssh's first choice, ChaCha20, takes twice the processor time.
            encryption_algs=["aes128-gcm@openssh.com"],
            config=None,
        )

    async def close(self) -> None:
        if self._listener:
            self._listener.close()
            await self._listener.wait_closed()
        if self._root:
            shutil.rmtree(self._root)

    def put_files(self, until: datetime) -> None:
        """Put the files that are due into `inbound`. Uploads by SFTP may come late, in halves, or twice."""
        for path, data in self._half_written:
            path.write_bytes(data)
            if path.suffix == ".tmp":
                path.rename(path.with_suffix(""))
        self._half_written = []
        waiting = []
        for file in self._waiting:
            is_remote = file.mailbox == "sftp"
            if file.at > until or (is_remote and self.chaos.strikes(self.chaos.disorder)):
                waiting.append(file)
                continue
            path = self.folder(file.mailbox, "inbound") / file.name
            if is_remote and self.chaos.strikes(self.chaos.mutations):
                self._put_half(path, file.data)
            else:
                _put(path, file.data)
            if self.chaos.strikes(self.chaos.duplicates):
                _put(path.with_name(f"again-{file.name}"), file.data)
        self._waiting = waiting

    def fails(self) -> bool:
        """Return whether this SFTP call fails; never two in a row."""
        strikes = self.chaos.strikes(self.chaos.errors + self.chaos.limits)
        self._has_failed = strikes and not self._has_failed
        return self._has_failed

    def _put_half(self, path: Path, data: bytes) -> None:
        """Write the first half of an upload, under the final name or an unfinished one."""
        if len(self._half_written) % 2:
            path = path.with_name(f"{path.name}.tmp")
        path.write_bytes(data[: len(data) // 2])
        self._half_written.append((path, data))

    def _files(self) -> Iterator[ScheduledFile]:
        """Yield the messages in envelopes: all that a sender sends at one time are a file."""
        batches: dict[tuple[datetime, str], list[Message]] = {}
        for message in self._messages():
            batches.setdefault((message.at + message.late, message.sender), []).append(message)
        numbers = dict.fromkeys((US, *(carrier.scac for carrier in self.world.carriers)), 4700)
        for n, ((at, sender), batch) in enumerate(
            sorted(batches.items(), key=lambda item: item[0])
        ):
            data, groups, quirk = b"", [], QUIRKS[n % len(QUIRKS)]
            for message in sorted(batch, key=lambda message: message.at):
                numbers[sender] += 1
                group = Group(sender, message.function, str(numbers[sender]), quirk)
                data += encode(
                    group, message.receiver, message.at, message.segments, first=not data
                )
                groups.append(group)
            mailbox = "sftp" if self._is_remote(sender) else "folder"
            name = f"{sender}_{numbers[sender]}.{('edi', 'txt', 'x12')[n % 3]}"
            yield ScheduledFile(at, mailbox, name, data, groups)

    def _is_remote(self, sender: str) -> bool:
        scacs = [carrier.scac for carrier in self.world.carriers]
        return sender in scacs and scacs.index(sender) % 2 == 0

    def _messages(self) -> Iterator[Message]:
        for shipment in self.world.shipments:
            yield from messages_of(shipment)


def _put(path: Path, data: bytes) -> None:
    unfinished = path.with_name(f"{path.name}.tmp")
    unfinished.write_bytes(data)
    unfinished.rename(path)


class _Login(asyncssh.SSHServer):
    """One user, with a key or a password."""

    def __init__(self, public_key: bytes) -> None:
        self._public_key = public_key

    def begin_auth(self, username: str) -> bool:
        return True

    def public_key_auth_supported(self) -> bool:
        return True

    def validate_public_key(self, username: str, key: asyncssh.SSHKey) -> bool:
        return username == USER and key.export_public_key() == self._public_key

    def password_auth_supported(self) -> bool:
        return True

    def validate_password(self, username: str, password: str) -> bool:
        return (username, password) == (USER, PASSWORD)


class _SftpFiles(asyncssh.SFTPServer):
    """The mailbox on the server: files that are due appear at a listing, and now and then a call fails."""

    def __init__(
        self, channel: asyncssh.SSHServerChannel[bytes], simulator: EdiSimulator, root: Path
    ) -> None:
        super().__init__(channel, chroot=str(root / "sftp").encode())
        self._simulator = simulator

    async def scandir(self, path: bytes) -> AsyncIterator[asyncssh.SFTPName]:
        if path.endswith(b"inbound"):
            self._simulator.put_files(self._simulator.clock.now)
        self._fail()
        async for item in super().scandir(path):
            yield item

    def open(self, path: bytes, pflags: int, attrs: asyncssh.SFTPAttrs) -> object:
        self._fail()
        return super().open(path, pflags, attrs)

    def _fail(self) -> None:
        if self._simulator.fails():
            raise asyncssh.SFTPFailure("server is busy")
