"""Large raw payloads as objects outside PostgreSQL: written before their events land, read where they are processed.

An object is sealed, and equal payloads share one. Its name holds a keyed hash, which tells nobody without the key what it
holds, and a random part, so that no name is used twice: a delete that arrives late removes nothing that was written since.

The order is row, object, event. The row in `payload_objects` comes first, the object next, and the event last, with a
reference that PostgreSQL checks. Whatever breaks off in between leaves an object without a reference, which `sweep`
removes: it moves the name from `payload_objects` to `payload_removals`, so that nothing can come to refer to it, and
removes the object when that is committed.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar
from uuid import UUID

from apex_memory.errors import ApexError, Misconfigured, NotFound, Rejected, RetryLater
from apex_memory.inbox.data_keys import THREAD_BYTES, DataKeys, ResealedKeys
from apex_memory.model import Event
from apex_memory.sealing import SEAL_BYTES, BrokenSeal, Keyring
from apex_memory.stores.objects import ObjectStore
from apex_memory.stores.postgres import Connection, Postgres
from apex_memory.telemetry import logger

T = TypeVar("T")

SEALED = "payload objects"
NAMED = "names of payload objects"
# Much longer than writing an object and landing its event may take. What takes longer fails, and is repeated.
CLAIM_SECONDS = 900
SWEEP_MAX = 100  # objects removed with one request, and in one transaction
POSTPONE_SECONDS = 600  # until the next try to remove an object that could not be removed
AT_ONCE = 4  # objects of one call that wait for their turn, so that those of other calls get theirs


@dataclass(frozen=True, slots=True)
class _PayloadObject:
    name: str
    key_id: str
    bytes: int
    """Of the payload, before it was sealed."""


class PayloadStore:
    """Moves payloads of at least `threshold` bytes to objects. Without `objects` every payload stays in PostgreSQL.

    With `seals` those that stay there are sealed. Sealed ones are opened, whatever `seals` is. Raises `Misconfigured`
    without keys where payloads are to be sealed.

    Everything that lands calls `offload` or `get_ready` first, but parts of an event that is stored already
    (`saga/families.py`), whose payloads are its own. Both call `require_space`, which raises `NoWrites` while
    PostgreSQL has no room for events: so nothing is written for an event that is refused.
    """

    def __init__(
        self,
        db: Postgres,
        objects: ObjectStore | None = None,
        keys: Keyring | None = None,
        *,
        threshold: int = 0,
        seals: bool = False,
        require_space: Callable[[], None] = lambda: None,
    ) -> None:
        self._db = db
        self._require_space = require_space
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
        """Prepare for `seal` and landing: require room for events, and choose the data key as `choose_key` does.

        Call it outside a transaction. Raises `NoWrites` while there is no room.
        """
        self._require_space()
        await self.choose_key()

    async def choose_key(self) -> None:
        """Choose the data key for `seal`, if payloads are to be sealed. Raises `Misconfigured` where they cannot be."""
        if self._seals_rows and not self._data_keys.is_current():
            async with self._db.connection() as connection:
                await self._data_keys.refresh(connection)

    async def offload(self, events: Sequence[Event]) -> list[Event]:
        """Write large payloads to objects, and return the events with the names of these. Seal the others, if that is set.

        Call it before landing, outside a transaction. Raises `NoWrites` while events have no room, `Unavailable` when an
        object cannot be written, and `Misconfigured` when payloads cannot be sealed; small events need no request.
        """
        self._require_space()
        events = await self._offload(events)
        await self.choose_key()
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
        except BrokenSeal as error:
            return _unreadable(error)
        except ApexError as error:
            return error

    async def _offload(self, events: Sequence[Event]) -> list[Event]:
        objects = self._objects
        if objects is None:
            return list(events)
        large = [
            event
            for event in events
            if event.payload_object is None and len(event.payload) >= self._threshold
        ]
        if not large:
            return list(events)
        digests = await asyncio.to_thread(lambda: [self._digest(item.payload) for item in large])
        payloads = {digest: event.payload for digest, event in zip(digests, large, strict=True)}
        names = await self._register(payloads)

        async def put(digest: bytes) -> None:
            name = names[digest]
            # Also where an event refers to it already: that heals an object that the bucket has lost.
            await objects.put(name, lambda: self._seals.seal(payloads[digest], bound=name.encode()))

        await _for_each(payloads, put)
        by_event = {id(event): names[digest] for digest, event in zip(digests, large, strict=True)}
        return [
            replace(event, payload_object=by_event[id(event)]) if id(event) in by_event else event
            for event in events
        ]

    def _digest(self, payload: bytes) -> bytes:
        return self._names.digest(hashlib.sha256(payload).digest())

    def holds(self, name: str, sha256: bytes) -> bool:
        """Return whether the object `name` holds the payload with this SHA-256, without reading it.

        False, too, where the key is gone under which the object was named.
        """
        named = name.partition("/")[2].partition("-")[0]
        return any(digest.hex() == named for digest in self._names.digests(sha256))

    async def _register(self, payloads: Mapping[bytes, bytes]) -> dict[bytes, str]:
        """Return, by digest, the name for each payload's object, which nobody removes for `CLAIM_SECONDS`. One statement."""
        rows = await self._db.fetch(
            """INSERT INTO payload_objects (name, digest, key_id, bytes, check_at)
               SELECT name, digest, %(key)s, bytes, clock_timestamp() + make_interval(secs => %(claim)s)
               FROM unnest(%(names)b::text[], %(digests)b::bytea[], %(bytes)b::bigint[]) AS t (name, digest, bytes)
               ORDER BY digest
               ON CONFLICT (digest) DO UPDATE SET check_at = excluded.check_at
               RETURNING digest, name""",
            {
                "names": [_new_name(digest.hex()) for digest in payloads],
                "digests": list(payloads),
                "bytes": [len(payload) for payload in payloads.values()],
                "key": self._seals.first,
                "claim": CLAIM_SECONDS,
            },
        )
        return {row["digest"]: row["name"] for row in rows}

    async def load(self, events: Sequence[Event]) -> list[Event | ApexError]:
        """Return the events with their payloads, in order; in place of an event the error that its object or its data key gave.

        An error is `Unavailable` while the object store is, `Misconfigured` without the store or the key in the
        settings, `RetryLater` for an object that is missing, and `Rejected` for a payload that is not what was sealed.
        """
        unknown = self._unknown_keys(events)
        if unknown:
            async with self._db.connection() as connection:
                await self._data_keys.read(connection, unknown)
        opened = await self._opened(events)
        names = {event.payload_object for event in events if event.payload_object is not None}
        if not names:
            return opened
        rows = await self._db.fetch_rows(
            _PayloadObject,
            "SELECT name, key_id, bytes FROM payload_objects WHERE name = ANY(%s)",
            (list(names),),
        )
        known = {row.name: row for row in rows}
        loaded = dict(enumerate(opened))

        async def load(n: int) -> None:
            loaded[n] = await self._loaded(opened[n], known)

        await _for_each(range(len(opened)), load)
        return list(loaded.values())

    async def load_one(self, event: Event) -> Event:
        """Return an event with its payload. Raises the errors of `load`."""
        [loaded] = await self.load([event])
        if isinstance(loaded, ApexError):
            try:
                raise loaded
            finally:
                # Or the error and this frame would refer to each other, and keep the event.
                del loaded
        return loaded

    async def _loaded(
        self, event: Event | ApexError, known: Mapping[str, _PayloadObject]
    ) -> Event | ApexError:
        if isinstance(event, ApexError) or event.payload_object is None:
            return event
        try:
            return replace(event, payload=await self._read(event, event.payload_object, known))
        except BrokenSeal as error:
            return _unreadable(error)
        except ApexError as error:
            return error

    async def _read(self, event: Event, name: str, known: Mapping[str, _PayloadObject]) -> bytes:
        """Return the payload that an object holds. `known` has the rows of objects by their names."""
        if self._objects is None:
            raise Misconfigured(
                "payload_store: not set, and the payload of this event is an object there",
                remedy="set payload_store again, as it was when the event landed, in every process",
            )
        subject = f"the payload of event {event.id}"
        row = known.get(name)
        if row is None:
            raise RetryLater(f"{subject} was removed meanwhile")
        self._seals.require_known(row.key_id, subject=subject)
        try:
            sealed = await self._objects.get(name, most=row.bytes + SEAL_BYTES)
        except NotFound as error:
            raise RetryLater(
                f"{subject} is missing in the object store", after=60, remedy=error.remedy
            ) from error
        return await asyncio.to_thread(
            self._seals.open, row.key_id, sealed, bound=name.encode(), subject=subject
        )

    async def sweep(self) -> int:
        """Remove objects that no event refers to; return their number. Zero while the object store is away."""
        if self._objects is None:
            return 0
        total = 0
        try:
            more = True
            while more:
                more = await self._release_some()
            more = True
            while more:
                removed, more = await self._remove_some()
                total += removed
        except ApexError as error:
            self._log.warning("objects not removed yet", reason=str(error)[:200])
        if total:
            self._log.info("payload objects removed", objects=total)
        return total

    async def _release_some(self) -> bool:
        """Note the next objects to which nothing refers for their removal. Return whether more may be due."""
        async with self._db.transaction() as connection:
            cursor = await connection.execute(
                """SELECT name FROM payload_objects WHERE check_at < clock_timestamp()
                   ORDER BY check_at LIMIT %s FOR UPDATE SKIP LOCKED""",
                (SWEEP_MAX,),
            )
            due = [row["name"] for row in await cursor.fetchall()]
            # A statement of its own: it sees the references that were committed before the locks were taken.
            await connection.execute(
                """UPDATE payload_objects o SET check_at = NULL WHERE name = ANY(%s)
                     AND EXISTS (SELECT FROM payload_references r WHERE r.object = o.name)""",
                (due,),
            )
            # From the commit on no event can refer to them, and equal payloads get other names.
            await connection.execute(
                """WITH released AS (
                     DELETE FROM payload_objects WHERE name = ANY(%s) AND check_at IS NOT NULL RETURNING name
                   )
                   INSERT INTO payload_removals (name) SELECT name FROM released""",
                (due,),
            )
        return len(due) == SWEEP_MAX

    async def _remove_some(self) -> tuple[int, bool]:
        """Remove the next noted objects. Return their number, and whether more may be due.

        Safe to repeat, and to do twice at once.
        """
        assert self._objects is not None
        rows = await self._db.fetch(
            "SELECT name FROM payload_removals WHERE due_at <= clock_timestamp() ORDER BY due_at LIMIT %s",
            (SWEEP_MAX,),
        )
        due: list[str] = [row["name"] for row in rows]
        failed: dict[str, ApexError] = {}
        try:
            await self._objects.delete(due)
        except ApexError:
            failed = await self._remove_singly(due)
        removed = await self._db.execute(
            "DELETE FROM payload_removals WHERE name = ANY(%s)",
            ([name for name in due if name not in failed],),
        )
        if failed:
            await self._db.execute(
                "UPDATE payload_removals SET due_at = clock_timestamp() + make_interval(secs => %s) WHERE name = ANY(%s)",
                (POSTPONE_SECONDS, list(failed)),
            )
            reason = next(iter(failed.values()))
            self._log.warning(
                "objects not removed yet", objects=len(failed), reason=str(reason)[:200]
            )
        return removed, len(due) == SWEEP_MAX and removed > 0

    async def _remove_singly(self, names: Sequence[str]) -> dict[str, ApexError]:
        """Remove objects with a request each, so that one that cannot be removed holds no other. Return those that failed."""
        assert self._objects is not None
        failed: dict[str, ApexError] = {}
        for name in names:
            try:
                await self._objects.delete([name])
            except ApexError as error:
                failed[name] = error
        return failed


def _new_name(digest: str) -> str:
    return f"{digest[:2]}/{digest}-{os.urandom(4).hex()}"


def _unreadable(error: BrokenSeal) -> Rejected:
    """Return the error of a payload that cannot be read as it is.

    Its event becomes a dead letter, which can be redriven when the payload is restored.
    """
    return Rejected(
        str(error), remedy="restore the payload from a backup, and redrive the event then"
    )


async def _for_each(items: Iterable[T], work: Callable[[T], Awaitable[None]]) -> None:
    """Do `work` for each item, for `AT_ONCE` at a time. The first error ends all and is raised."""
    todo = iter(items)
    # Not the results of the tasks, and no `TaskGroup`: an error and what it came from would refer to each other, and keep
    # the payloads of its frames in memory until the garbage collector runs.
    errors: list[Exception] = []

    async def take_next() -> None:
        for item in todo:
            try:
                await work(item)
            except Exception as error:  # noqa: BLE001 -- raised below
                errors.append(error)
                return

    running = {asyncio.create_task(take_next()) for _ in range(AT_ONCE)}
    try:
        while running and not errors:
            _, running = await asyncio.wait(running, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in running:
            task.cancel()
        if running:
            await asyncio.wait(running)
    if errors:
        first = errors[0]
        errors.clear()
        try:
            raise first
        finally:
            del first
