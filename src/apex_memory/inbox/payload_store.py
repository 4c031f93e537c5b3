"""Large raw payloads as objects outside PostgreSQL: written before their events land, read where they are carried.

An object is sealed, and equal payloads share one. Its name holds a keyed hash, which tells nobody what it holds, and a
random part, so that no name is used twice: a delete that arrives late removes nothing that was written since.

The order is row, object, event. The row in `payload_objects` comes first, the object next, and the event last, with a
reference that PostgreSQL checks. Whatever breaks off in between leaves an object without a reference, which `sweep`
removes. `sweep` holds the row's lock while it removes the object, so no event can come to refer to it meanwhile.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from uuid import UUID

from apex_memory.errors import ApexError, Misconfigured, NotFound, RetryLater
from apex_memory.inbox.data_keys import THREAD_BYTES, DataKeys, ResealedKeys
from apex_memory.model import Event
from apex_memory.sealing import Keyring
from apex_memory.stores.objects import ObjectStore
from apex_memory.stores.postgres import Connection, Postgres
from apex_memory.telemetry import logger

SEALED = "payload objects"
NAMED = "names of payload objects"
# Much longer than writing an object and landing its event may take. What takes longer fails, and is repeated.
CLAIM_SECONDS = 900
SWEEP_MAX = 100  # objects removed with one request, and in one transaction


@dataclass(frozen=True, slots=True)
class _Digests:
    keyed: bytes
    sha256: bytes


class PayloadStore:
    """Moves payloads of at least `threshold` bytes to objects. Without `objects` every payload stays in PostgreSQL.

    With `seals` those that stay there are sealed. Sealed ones are opened, whatever `seals` is. Raises `Misconfigured`
    without keys where payloads are to be sealed.
    """

    def __init__(
        self,
        db: Postgres,
        objects: ObjectStore | None = None,
        keys: Keyring | None = None,
        *,
        threshold: int = 0,
        seals: bool = False,
    ) -> None:
        self._db = db
        self._objects = objects
        keys = keys or Keyring(())
        self._seals = keys.for_purpose(SEALED)
        self._names = keys.for_purpose(NAMED)
        self._threshold = threshold
        self._log = logger(component="payloads")
        self._data_keys = DataKeys(keys)
        self._seals_rows = seals
        if objects is not None or seals:
            keys.require_key()

    async def reseal(self, *, actor: str) -> ResealedKeys:
        """Seal every data key under the first key, in one transaction. Safe to repeat.

        Payloads and payload objects stay as they are; the result counts the objects that need an older key.
        """
        async with self._db.transaction() as connection:
            result = await self._data_keys.reseal(connection)
            cursor = await connection.execute(
                "SELECT count(*) AS count FROM payload_objects WHERE key_id <> %s",
                (self._seals.first,),
            )
            counted = await cursor.fetchone()
            result.objects = counted["count"] if counted else 0
            if result.resealed:
                await connection.execute(
                    "INSERT INTO audit (actor, action, subject) VALUES (%s, 'data keys reseal', %s)",
                    (actor, str(result.resealed)),
                )
        return result

    async def get_ready(self) -> None:
        """Choose the data key for `seal`, if payloads are to be sealed. Raises `Misconfigured` where they cannot be.

        Call it outside a transaction.
        """
        if self._seals_rows and not self._data_keys.is_current():
            async with self._db.connection() as connection:
                await self._data_keys.refresh(connection)

    async def offload(self, events: Sequence[Event]) -> list[Event]:
        """Write large payloads to objects, and return the events with the names of these. Seal the others, if that is set.

        Call it before landing, outside a transaction. Raises `Unavailable` when an object cannot be written, and
        `Misconfigured` when payloads cannot be sealed; small events need no request.
        """
        if self._objects is not None:
            events = list(await asyncio.gather(*map(self._offload, events)))
        await self.get_ready()
        return await self.seal(events)

    async def seal(self, events: Sequence[Event]) -> list[Event]:
        """Return events with sealed payloads, if that is set. Call `get_ready` before."""
        if not self._seals_rows:
            return list(events)
        # An empty payload, as tombstones have, stays: that it is sealed could not be told from its content.
        closing = [
            event
            for event in events
            if event.payload and event.payload_object is None and event.sealed is None
        ]
        sealed = iter(await self._data_keys.seal_all(closing))
        chosen = {id(event) for event in closing}
        return [
            replace(event, sealed=next(sealed)) if id(event) in chosen else event
            for event in events
        ]

    async def opened(
        self, connection: Connection, events: Sequence[Event]
    ) -> list[Event | ApexError]:
        """Return the events with the payloads that PostgreSQL holds sealed; in place of an event why it cannot be opened."""
        unknown = self._unknown_keys(events)
        if unknown:
            await self._data_keys.read(connection, unknown)
        return await self._opened(events)

    def _unknown_keys(self, events: Sequence[Event]) -> set[UUID]:
        return self._data_keys.unknown([event.sealed for event in events if event.sealed])

    async def _opened(self, events: Sequence[Event]) -> list[Event | ApexError]:
        if sum(len(event.sealed.body) for event in events if event.sealed) > THREAD_BYTES:
            return await asyncio.to_thread(lambda: list(map(self._open, events)))
        return list(map(self._open, events))

    def _open(self, event: Event) -> Event | ApexError:
        if event.sealed is None or event.payload:
            return event
        try:
            return replace(event, payload=self._data_keys.open(event, event.sealed))
        except ApexError as error:
            return error

    async def _offload(self, event: Event) -> Event:
        if event.payload_object is not None or len(event.payload) < self._threshold:
            return event
        assert self._objects is not None
        digests = await asyncio.to_thread(self._digests, event.payload)
        name = await self._register(digests, len(event.payload))
        sealed = await asyncio.to_thread(self._seals.seal, event.payload, bound=name.encode())
        # Also where an event refers to it already: that heals an object that the bucket has lost.
        await self._objects.put(name, sealed)
        return replace(event, payload_object=name)

    def _digests(self, payload: bytes) -> _Digests:
        return _Digests(self._names.digest(payload), hashlib.sha256(payload).digest())

    async def _register(self, digests: _Digests, size: int) -> str:
        """Return the name for a payload's object, which nobody removes for `CLAIM_SECONDS`."""
        hex = digests.keyed.hex()
        row = await self._db.fetch_one(
            """INSERT INTO payload_objects (name, digest, key_id, bytes, sha256, check_at)
               VALUES (%(name)s, %(digest)s, %(key)s, %(bytes)s, %(sha256)s, clock_timestamp() + make_interval(secs => %(claim)s))
               ON CONFLICT (digest) DO UPDATE SET check_at = excluded.check_at
               RETURNING name""",
            {
                "name": f"{hex[:2]}/{hex}-{os.urandom(4).hex()}",
                "digest": digests.keyed,
                "key": self._seals.first,
                "bytes": size,
                "sha256": digests.sha256,
                "claim": CLAIM_SECONDS,
            },
        )
        assert row is not None
        name: str = row["name"]
        return name

    async def load(self, events: Sequence[Event]) -> list[Event | ApexError]:
        """Return the events with their payloads, in order; in place of an event the error that its object or its data key gave.

        An error is `Unavailable` while the object store is, `Misconfigured` without the store or the key in the
        settings, and `RetryLater` for an object that is missing.
        """
        unknown = self._unknown_keys(events)
        if unknown:
            async with self._db.connection() as connection:
                await self._data_keys.read(connection, unknown)
        opened = await self._opened(events)
        names = {event.payload_object for event in events if event.payload_object is not None}
        if not names:
            return opened
        rows = await self._db.fetch(
            "SELECT name, key_id FROM payload_objects WHERE name = ANY(%s)", (list(names),)
        )
        keys = {row["name"]: row["key_id"] for row in rows}
        return list(await asyncio.gather(*(self._loaded(event, keys) for event in opened)))

    async def load_one(self, event: Event) -> Event:
        """Return an event with its payload. Raises the errors of `load`."""
        [loaded] = await self.load([event])
        if isinstance(loaded, ApexError):
            raise loaded
        return loaded

    async def _loaded(self, event: Event | ApexError, keys: Mapping[str, str]) -> Event | ApexError:
        name = event.payload_object if isinstance(event, Event) else None
        if name is None or isinstance(event, ApexError):
            return event
        if self._objects is None:
            return Misconfigured(
                "payload_store: not set, and the payload of this event is an object there",
                remedy="set payload_store again, as it was when the event landed, in every process",
            )
        subject = f"the payload of event {event.id}"
        try:
            sealed = await self._objects.get(name)
            payload = await asyncio.to_thread(
                self._seals.open, keys.get(name, ""), sealed, bound=name.encode(), subject=subject
            )
        except NotFound as error:
            return RetryLater(
                f"{subject} is missing in the object store", after=60, remedy=error.remedy
            )
        except ApexError as error:
            return error
        return replace(event, payload=payload)

    async def sweep(self) -> int:
        """Remove objects that no event refers to; return their number. Zero while the object store is away."""
        if self._objects is None:
            return 0
        total = 0
        try:
            more = True
            while more:
                removed, more = await self._sweep_some()
                total += removed
        except ApexError as error:
            self._log.warning("objects not removed yet", reason=str(error)[:200])
        if total:
            self._log.info("payload objects removed", objects=total)
        return total

    async def _sweep_some(self) -> tuple[int, bool]:
        """Look at the next objects that are due. Return how many were removed, and whether more may be due."""
        assert self._objects is not None
        async with self._db.transaction() as connection:
            cursor = await connection.execute(
                """SELECT name FROM payload_objects WHERE check_at < clock_timestamp()
                   ORDER BY check_at LIMIT %s FOR UPDATE SKIP LOCKED""",
                (SWEEP_MAX,),
            )
            due = [row["name"] for row in await cursor.fetchall()]
            # A statement of its own: it sees the references that were committed before the locks were taken.
            cursor = await connection.execute(
                """UPDATE payload_objects o SET check_at = NULL WHERE name = ANY(%s)
                     AND EXISTS (SELECT FROM payload_references r WHERE r.object = o.name) RETURNING name""",
                (due,),
            )
            kept = {row["name"] for row in await cursor.fetchall()}
            unused = [name for name in due if name not in kept]
            await self._objects.delete(unused)
            await connection.execute("DELETE FROM payload_objects WHERE name = ANY(%s)", (unused,))
        return len(unused), len(due) == SWEEP_MAX
