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
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, ClassVar

import asyncssh

from apex_memory.simulate._x12 import QUIRKS, Group, encoded, group_answers
from apex_memory.simulate.vendor import Chaos, Push, Simulator, Truth
from apex_memory.simulate.world import Clock, Milestone, Place, Shipment, World

US, USER, PASSWORD = "APEXSHIPPER", "apex", "example-password"
PLACES = ("folder", "sftp")
_STATUS = {
    "at_pickup": ("X3", "arrived at pickup location"),
    "picked_up": ("AF", "departed pickup location"),
    "en_route": ("X6", "en route to delivery"),
    "at_delivery": ("X1", "arrived at delivery location"),
    "delivered": ("D1", "unloaded at delivery"),
}
Segments = list[tuple[str, ...]]


@dataclass(frozen=True, slots=True)
class Message:
    """One set on its way, and what memory must hold of it."""

    at: datetime
    sender: str
    receiver: str
    function: str
    segments: Segments
    doc_key: str
    text: str
    late: timedelta = timedelta()


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
        newest = {one.doc_key: Truth(one.doc_key, one.text) for one in self._said(until)}
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
            yield from _tenders(shipment)
            yield from _answers(shipment)
            yield from _statuses(shipment)
            yield from _invoices(shipment)
            yield _acknowledgement(shipment)


_FOLDERS = ("inbound", "archive", "outbound")


def _put(path: Path, data: bytes) -> None:
    unfinished = path.with_name(f"{path.name}.tmp")
    unfinished.write_bytes(data)
    unfinished.rename(path)


def _day(at: datetime) -> str:
    return f"{at:%Y%m%d}"


def _party(role: str, name: str, place: Place | None = None) -> Segments:
    found: Segments = [("N1", role, name.upper())]
    if place:
        found.append(("N4", place.city.upper(), place.state, place.zip, "US"))
    return found


def _tenders(shipment: Shipment) -> Iterator[Message]:
    """The tender, for some a change of it, and the cancel."""
    tendered = shipment.at("tendered")
    assert tendered is not None
    states = [("00", "tendered", tendered)]
    if shipment.number % 4 == 1:
        states.append(("04", "changed", tendered + timedelta(minutes=3)))
    if shipment.cancelled_at:
        states.append(("01", "cancelled", shipment.cancelled_at))
    scac = shipment.carrier.scac
    pickup, delivery = shipment.at("at_pickup"), shipment.at("at_delivery")
    for purpose, state, at in states:
        segments: Segments = [
            ("B2", "", scac, "", shipment.id, "", "PP"),
            ("B2A", purpose, "LT"),
            ("L11", shipment.id, "BM"),
            ("L11", shipment.po, "PO"),
            *_party("BT", "Acme Logistics"),
            ("S5", "1", "CL", str(shipment.pounds), "L", str(shipment.pallets), "PL"),
            *([("G62", "10", _day(pickup), "Y", f"{pickup:%H%M}", "UT")] if pickup else []),
            *_party("SF", shipment.customer.name, shipment.origin),
            ("S5", "2", "CU", str(shipment.pounds), "L", str(shipment.pallets), "PL"),
            *([("G62", "02", _day(delivery), "X", f"{delivery:%H%M}", "UT")] if delivery else []),
            *_party("ST", "Sample Retail", shipment.destination),
            ("L3", str(shipment.pounds), "G", "", "", str(shipment.total_cents)),
        ]
        key = f"tender:{scac}:{shipment.id}"
        yield Message(at, US, scac, "SM", [("ST", "204"), *segments], key, f"Status: {state}")


def _acknowledgement(shipment: Shipment) -> Message:
    """The carrier's 997 to a tender of ours; it answers by the shipment's number, so that each is a thing of its own."""
    at, number = shipment.at("tendered"), str(shipment.number)
    assert at is not None
    segments: Segments = [
        ("ST", "997"),
        ("AK1", "SM", number),
        ("AK2", "204", "0001"),
        ("AK5", "A"),
        ("AK9", "A", "1", "1", "1"),
    ]
    scac = shipment.carrier.scac
    key = f"acknowledgement:{scac}:{US}:SM:{number}"
    text = f"group SM {number} accepted"
    return Message(at + timedelta(minutes=2), scac, US, "FA", segments, key, text)


def _answers(shipment: Shipment) -> Iterator[Message]:
    """Some carriers decline first and think better of it."""
    at, scac = shipment.at("accepted"), shipment.carrier.scac
    assert at is not None
    actions = [("A", at)]
    if shipment.number % 5 == 0:
        actions.insert(0, ("D", at - timedelta(minutes=10)))
    for action, when in actions:
        segments: Segments = [
            ("ST", "990"),
            ("B1", scac, shipment.id, _day(when), action),
            ("N9", "CN", shipment.pro),
        ]
        word = "accepted" if action == "A" else "declined"
        key = f"response:{scac}:{shipment.id}"
        yield Message(when, scac, US, "GF", segments, key, f"Answer: {word}")


def _statuses(shipment: Shipment) -> Iterator[Message]:
    """Where the truck is. Some carriers tell of the pickup only when they are on the road: late, and both at once."""
    en_route = shipment.at("en_route")
    for milestone in shipment.milestones:
        if milestone.code not in _STATUS:
            continue
        late = timedelta()
        if milestone.code == "picked_up" and shipment.number % 2 == 0 and en_route:
            late = en_route - milestone.at
        yield _status(shipment, milestone, late)


def _status(shipment: Shipment, milestone: Milestone, late: timedelta) -> Message:
    code, words = _STATUS[milestone.code]
    reason, at, scac = "NS", milestone.at, shipment.carrier.scac
    if milestone.code == "en_route" and shipment.delayed_minutes:
        code, words, reason = "SD", "delayed", "AO"
    place = milestone.place
    where = ("MS1", place.city.upper(), place.state, "US") if place else _position(shipment, at)
    segments: Segments = [
        ("ST", "214"),
        ("B10", shipment.pro, shipment.id, scac),
        ("L11", shipment.po, "PO"),
        ("LX", "1"),
        ("AT7", code, reason, "", "", _day(at), f"{at:%H%M}", "UT"),
        where,
        ("MS2", scac, shipment.vehicle.unit),
        ("AT8", "G", "L", str(shipment.pounds), str(shipment.pallets)),
    ]
    key = f"status:{scac}:{shipment.id}:1:s{code}:{_day(at)}:{at:%H%M}"
    return Message(at, scac, US, "QM", segments, key, f"{words} ({code})", late)


def _position(shipment: Shipment, at: datetime) -> tuple[str, ...]:
    latitude, longitude = shipment.position(at)
    return ("MS1", "", "", "", _degrees(-longitude), _degrees(latitude), "W", "N")


def _degrees(value: float) -> str:
    seconds = round(value * 3600)
    return f"{seconds // 3600:03d}{seconds // 60 % 60:02d}{seconds % 60:02d}"


def _invoices(shipment: Shipment) -> Iterator[Message]:
    """The invoice, and for some a corrected one with detention."""
    at = shipment.at("invoiced")
    if at is None:
        return
    yield _invoice(shipment, at, 0)
    if shipment.number % 3 == 0:
        yield _invoice(shipment, at + timedelta(minutes=40), 7_500)


def _invoice(shipment: Shipment, at: datetime, detention: int) -> Message:
    scac, total = shipment.carrier.scac, shipment.total_cents + detention
    delivered = shipment.at("delivered") or at
    charges = [
        (shipment.commodity.upper(), shipment.linehaul_cents, ""),
        ("FUEL SURCHARGE", shipment.fuel_cents, "FUE"),
        *([("DETENTION", detention, "DET")] if detention else []),
    ]
    lines: Segments = []
    for n, (words, cents, code) in enumerate(charges, 1):
        rest = ("", "", "", code) if code else ()
        lines += [("LX", str(n)), ("L5", str(n), words)]
        lines.append(("L1", str(n), f"{cents / 100:.2f}", "FR", str(cents), *rest))
    number, correction = shipment.invoice, "CO" if detention else ""
    head = ("B3", "", number, shipment.id, "PP", "", _day(at), str(total), correction)
    segments: Segments = [
        ("ST", "210"),
        (*head, _day(delivered), "035", scac),
        ("C3", "USD"),
        ("N9", "BM", shipment.id),
        *_party("BT", "Acme Logistics"),
        *_party("SH", shipment.customer.name),
        *lines,
        ("L3", str(shipment.pounds), "G", "", "", str(total)),
    ]
    text = f"Net amount: {total / 100:,.2f} USD"
    return Message(at, scac, US, "IM", segments, f"invoice:{scac}:{number}", text)


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
