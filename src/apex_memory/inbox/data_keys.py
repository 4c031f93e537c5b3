"""Data keys: what raw payloads in PostgreSQL are sealed under. Each lies there sealed under a key of the installation.

A data key seals for a week, and opens for ever. So at 7,000 payloads a second it seals fewer than 2**32, which is safe with
random nonces of 96 bits (NIST SP 800-38D, 8.3).
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from time import monotonic
from uuid import UUID, uuid4

from apex_memory.errors import Misconfigured
from apex_memory.model import Event, SealedPayload
from apex_memory.sealing import KEY_BYTES, Keyring
from apex_memory.stores.postgres import Connection, fetch_row, fetch_rows

PURPOSE = "data keys of payloads"
SEALS = timedelta(days=7)  # for which a data key is used to seal
LOOK_SECONDS = 60.0  # between two looks for a newer data key
THREAD_BYTES = 256_000  # more bytes are sealed or opened in a thread


@dataclass(slots=True)
class ResealedKeys:
    """How many data keys are newly sealed under the first key, and the ids of those whose key is not configured."""

    resealed: int = 0
    unreadable: list[str] = field(default_factory=list)
    objects: int = 0
    """Payload objects that are sealed under another key than the first. They stay so: keep their keys."""


@dataclass(frozen=True, slots=True)
class _DataKey:
    """A row of `data_keys`: a data key, sealed under the key `key_id` of the installation."""

    id: UUID
    key_id: str
    sealed: bytes


class DataKeys:
    """The table `data_keys`, with the keys of the installation that open it. Opened data keys stay in memory."""

    def __init__(self, keys: Keyring) -> None:
        self._keys = keys.for_purpose(PURPOSE)
        self._rings: dict[UUID, Keyring] = {}
        self._refused: dict[UUID, Misconfigured] = {}
        self._current: UUID | None = None
        self._looked_at = float("-inf")

    def is_current(self) -> bool:
        """Return whether `refresh` need not be called before `seal`."""
        return self._current is not None and monotonic() - self._looked_at < LOOK_SECONDS

    async def refresh(self, connection: Connection) -> None:
        """Choose the data key that seals: the newest one of this week, or a new one.

        Call it outside a transaction: a data key that is rolled back must not seal. Raises `Misconfigured` without a key
        of the installation, and where the one that sealed the data key is missing.
        """
        self._keys.require_key()
        stored = await fetch_row(
            connection,
            _DataKey,
            "SELECT id, key_id, sealed FROM data_keys WHERE created_at > clock_timestamp() - %s ORDER BY created_at DESC LIMIT 1",
            (SEALS,),
        )
        newest = stored or await self._create(connection)
        self._remember(newest)
        self._current = newest.id
        self._looked_at = monotonic()

    async def _create(self, connection: Connection) -> _DataKey:
        id = uuid4()
        sealed = self._keys.seal(os.urandom(KEY_BYTES), bound=id.bytes)
        await connection.execute(
            "INSERT INTO data_keys (id, key_id, sealed) VALUES (%s, %s, %s)",
            (id, self._keys.first, sealed),
        )
        return _DataKey(id, self._keys.first, sealed)

    def _remember(self, stored: _DataKey) -> None:
        self._rings[stored.id] = Keyring([self._opened(stored)])

    def _opened(self, stored: _DataKey) -> bytes:
        return self._keys.open(
            stored.key_id, stored.sealed, bound=stored.id.bytes, subject=_subject(stored.id)
        )

    def seal(self, event: Event) -> SealedPayload:
        """Return the event's payload, sealed. Call `refresh` before, unless the key is current."""
        assert self._current is not None
        body = self._rings[self._current].seal(event.payload, bound=_bound(event))
        return SealedPayload(self._current, body)

    def unknown(self, payloads: Collection[SealedPayload]) -> set[UUID]:
        """Return the data keys of these payloads that are not in memory."""
        return {sealed.data_key for sealed in payloads} - self._rings.keys()

    async def read(self, connection: Connection, ids: Collection[UUID]) -> None:
        """Take data keys into memory. `open` tells why one of them cannot be opened."""
        data_keys = await fetch_rows(
            connection,
            _DataKey,
            "SELECT id, key_id, sealed FROM data_keys WHERE id = ANY(%s)",
            (list(ids),),
        )
        for stored in data_keys:
            try:
                self._remember(stored)
            except Misconfigured as error:
                self._refused[stored.id] = error

    def open(self, event: Event, sealed: SealedPayload) -> bytes:
        """Return the payload of an event. Raises `Misconfigured` for one that was changed, and without its data key."""
        ring = self._rings.get(sealed.data_key)
        subject = f"the payload of event {event.id}"
        if ring is None:
            reason = self._refused.get(sealed.data_key) or _missing(sealed.data_key)
            raise Misconfigured(f"{subject}: {reason}", remedy=reason.remedy)
        return ring.open(ring.first, sealed.body, bound=_bound(event), subject=subject)

    async def reseal(self, connection: Connection) -> ResealedKeys:
        """Seal every data key under the first key of the installation. Payloads stay as they are. Safe to repeat."""
        result = ResealedKeys()
        data_keys = await fetch_rows(
            connection,
            _DataKey,
            "SELECT id, key_id, sealed FROM data_keys WHERE key_id <> %s ORDER BY id FOR NO KEY UPDATE",
            (self._keys.first,),
        )
        for stored in data_keys:
            if stored.key_id not in self._keys.ids:
                result.unreadable.append(_subject(stored.id))
                continue
            sealed = self._keys.seal(self._opened(stored), bound=stored.id.bytes)
            await connection.execute(
                "UPDATE data_keys SET key_id = %s, sealed = %s WHERE id = %s",
                (self._keys.first, sealed, stored.id),
            )
            result.resealed += 1
        return result

    async def seal_all(self, events: Sequence[Event]) -> list[SealedPayload]:
        """Seal the payloads of events and return them, in order; many bytes in a thread."""
        if sum(len(event.payload) for event in events) > THREAD_BYTES:
            return await asyncio.to_thread(lambda: [self.seal(event) for event in events])
        return [self.seal(event) for event in events]


def _bound(event: Event) -> bytes:
    """Return what a seal is bound to: the source alone.

    A replay, and the restoration of a child, land a sealed payload under another id as it is.
    """
    return event.source.encode()


def _subject(id: UUID) -> str:
    return f"data key {id}"


def _missing(id: UUID) -> Misconfigured:
    return Misconfigured(
        f"{_subject(id)} is not in the table data_keys",
        remedy="restore that table from a backup",
    )
