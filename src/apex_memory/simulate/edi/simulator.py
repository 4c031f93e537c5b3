"""Carriers' EDI: X12 files in a folder and on an SFTP server, written by software that knows the standard by hearsay.

We are the broker: copies of the tenders that we send (204) lie in the folder, carriers answer (990), acknowledge (997),
tell where the truck is (214) and bill (210). Every file has a quirk of those that real ones have. What comes back into
`outbound` can be compared with `expected_answers`.
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

from apex_memory.simulate.edi.messages import US, Message, messages
from apex_memory.simulate.edi.x12 import QUIRKS, Group, encoded, group_answers
from apex_memory.simulate.vendor import Chaos, Push, Simulator, Truth
from apex_memory.simulate.world import Clock, World

USER, PASSWORD = "apex", "example-password"
PLACES = ("folder", "sftp")


@dataclass(frozen=True, slots=True)
class Posted:
    """A file that appears at its time in `inbound` of a place."""

    at: datetime
    place: str
    name: str
    data: bytes
    groups: Sequence[Group]


class EdiSimulator(Simulator):
    """Two mailboxes: carriers with even numbers put files on the SFTP server, all others into the folder."""

    name: ClassVar[str] = "edi"

    def __init__(self, world: World, clock: Clock, chaos: Chaos) -> None:
        super().__init__(world, clock, chaos)
        self._posted = sorted(self._files(), key=lambda file: (file.at, file.name))
        self._waiting = list(self._posted)
        self._half: list[tuple[Path, bytes]] = []
        self._root: Path | None = None
        self._listener: asyncssh.SSHAcceptor | None = None
        self._host_key = asyncssh.generate_private_key("ssh-ed25519")
        self._user_key = asyncssh.generate_private_key("ssh-ed25519")
        self._troubled = False

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
        """Nothing is sent; files appear."""
        self.post(until)
        return ()

    def truth(self, until: datetime) -> Sequence[Truth]:
        newest: dict[str, Truth] = {}
        for one in self._said(until):
            newest[one.doc_key] = Truth(one.doc_key, one.text)
            if one.deletes:
                newest[one.deletes] = Truth(one.deletes, deleted=True)
        return list(newest.values())

    def _said(self, until: datetime) -> list[Message]:
        said = [one for one in self._messages() if one.at + one.late <= until]
        return sorted(said, key=lambda one: one.at)

    def expected_answers(self, until: datetime) -> dict[tuple[str, str, str], str]:
        """By receiver, function and number of a group: the answer that its sender waits for."""
        return {
            (group.sender, group.function, group.number): group.answer
            for file in self._posted
            if file.at <= until
            for group in file.groups
            if group.function != "FA" and group.sender != US
        }

    def answers(self) -> dict[tuple[str, str, str], str]:
        """What came back, in the same form. Fails on two answers to one group that differ."""
        found: dict[tuple[str, str, str], str] = {}
        for place in PLACES:
            for path in sorted(self.folder(place, "outbound").iterdir()):
                for key, answer in group_answers(path.read_text()):
                    assert found.setdefault(key, answer) == answer, f"{path.name}: {key}"
        return found

    def folder(self, place: str, name: str) -> Path:
        """`inbound`, `archive` or `outbound` of a place, on this machine."""
        assert self._root is not None
        return self._root / place / name

    async def open(self) -> None:
        self._root = Path(tempfile.mkdtemp(prefix="apex-edi-"))
        for place in PLACES:
            for name in _FOLDERS:
                self.folder(place, name).mkdir(parents=True)
        self._listener = await asyncssh.listen(
            "127.0.0.1",
            0,
            server_factory=lambda: _Login(self._user_key.export_public_key()),
            server_host_keys=[self._host_key],
            sftp_factory=lambda channel: _Files(channel, self, self._root or Path()),
            config=None,
        )

    async def close(self) -> None:
        if self._listener:
            self._listener.close()
            await self._listener.wait_closed()
        if self._root:
            shutil.rmtree(self._root)

    def post(self, until: datetime) -> None:
        """Let the files appear that are due. Uploads by SFTP may come late, in halves, or twice."""
        for path, data in self._half:
            path.write_bytes(data)
            if path.suffix == ".tmp":
                path.rename(path.with_suffix(""))
        self._half = []
        waiting = []
        for file in self._waiting:
            remote = file.place == "sftp"
            if file.at > until or (remote and self.chaos.strikes(self.chaos.disorder)):
                waiting.append(file)
                continue
            path = self.folder(file.place, "inbound") / file.name
            if remote and self.chaos.strikes(self.chaos.mutations):
                self._begin(path, file.data)
            else:
                _put(path, file.data)
            if self.chaos.strikes(self.chaos.duplicates):
                _put(path.with_name(f"again-{file.name}"), file.data)
        self._waiting = waiting

    def trouble(self) -> bool:
        """Whether this call goes wrong; never two in a row."""
        strikes = self.chaos.strikes(self.chaos.errors + self.chaos.limits)
        self._troubled = strikes and not self._troubled
        return self._troubled

    def _begin(self, path: Path, data: bytes) -> None:
        """The first half of an upload, under the final name or one that says that it is not finished."""
        if len(self._half) % 2:
            path = path.with_name(f"{path.name}.tmp")
        path.write_bytes(data[: len(data) // 2])
        self._half.append((path, data))

    def _files(self) -> Iterator[Posted]:
        """Messages in envelopes: one a file, or all that a carrier sends at one time."""
        batches: dict[tuple[str, datetime], list[Message]] = {}
        for one in self._messages():
            batches.setdefault((one.sender, one.at + one.late), []).append(one)
        numbers = dict.fromkeys((US, *(carrier.scac for carrier in self.world.carriers)), 4700)
        for n, ((sender, at), batch) in enumerate(
            sorted(batches.items(), key=lambda item: item[0][::-1])
        ):
            data, groups, quirk = b"", [], QUIRKS[n % len(QUIRKS)]
            for one in sorted(batch, key=lambda one: one.at):
                numbers[sender] += 1
                group = Group(sender, one.function, str(numbers[sender]), quirk)
                data += encoded(group, one.receiver, one.at, one.segments, first=not data)
                groups.append(group)
            place = "sftp" if self._is_remote(sender) else "folder"
            name = f"{sender}_{numbers[sender]}.{('edi', 'txt', 'x12')[n % 3]}"
            yield Posted(at, place, name, data, groups)

    def _is_remote(self, sender: str) -> bool:
        scacs = [carrier.scac for carrier in self.world.carriers]
        return sender in scacs and scacs.index(sender) % 2 == 0

    def _messages(self) -> Iterator[Message]:
        for shipment in self.world.shipments:
            yield from messages(shipment)


_FOLDERS = ("inbound", "archive", "outbound")


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


class _Files(asyncssh.SFTPServer):
    """The mailbox on the server: what is due appears when somebody looks, and now and then a call fails."""

    def __init__(
        self, channel: asyncssh.SSHServerChannel[bytes], simulator: EdiSimulator, root: Path
    ) -> None:
        super().__init__(channel, chroot=str(root / "sftp").encode())
        self._simulator = simulator

    async def scandir(self, path: bytes) -> AsyncIterator[asyncssh.SFTPName]:
        if path.endswith(b"inbound"):
            self._simulator.post(self._simulator.clock.now)
        self._fail()
        async for item in super().scandir(path):
            yield item

    def open(self, path: bytes, pflags: int, attrs: asyncssh.SFTPAttrs) -> object:
        self._fail()
        return super().open(path, pflags, attrs)

    def _fail(self) -> None:
        if self._simulator.trouble():
            raise asyncssh.SFTPFailure("server is busy")
