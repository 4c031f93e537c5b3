"""What becomes of an event that could not go on: tried again, parked for a store, or a dead letter."""

from __future__ import annotations

import asyncio
import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal
from uuid import UUID

from apex_memory.errors import ApexError, Misconfigured, Rejected, Unavailable
from apex_memory.stores.postgres import Connection, Postgres
from apex_memory.telemetry import ENDED, logger

Disposition = Literal["retry", "parked", "dead"]
RETRY_SECONDS = (2, 10, 60, 300)  # waits between attempts of whole steps
SHOWN = 5  # ids in a line of the log
REST_SECONDS, REST_EACH_SECONDS = 1.0, 0.04  # at most, and for each event that became a dead letter
PARK_DEADLINE_SECONDS = 60  # parked rows are looked at again at the latest then


@dataclass(frozen=True, slots=True)
class Failure:
    """An event, and why it could not go on."""

    inbox_id: UUID
    error: ApexError


class FailureHandler:
    def __init__(self, db: Postgres, *, max_attempts: int, pipeline: str) -> None:
        self._db = db
        self._max_attempts = max_attempts
        self._pipeline = pipeline
        self._log = logger(component="saga")

    async def settle(
        self, batch: UUID, step: str, failures: Sequence[Failure]
    ) -> dict[UUID, Disposition]:
        """Decide and write the fate of each failed event that the batch still owns.

        A storm of broken events must not slow its neighbours: a few statements, however many failed,
        and a rest after a batch that came to nothing.
        """
        if not failures:
            return {}
        errors = {failure.inbox_id: _ours(failure.error) for failure in failures}
        async with self._db.transaction() as connection:
            cursor = await connection.execute(
                "SELECT id, source, attempts FROM inbox WHERE id = ANY(%s) AND open AND batch = %s ORDER BY id FOR NO KEY UPDATE",
                (list(errors), batch),
            )
            # Rows that are not here: another worker owns them now.
            settled = [
                self._settled(row["id"], row["source"], row["attempts"] + 1, errors[row["id"]])
                for row in await cursor.fetchall()
            ]
            await _park(connection, [one for one in settled if one.fate == "parked"])
            await _postpone(connection, [one for one in settled if one.fate == "retry"])
            dead = [one for one in settled if one.fate == "dead"]
            await self._dead_letter(connection, step, dead)
            over = bool(dead) and await _is_over(connection, batch)
        self._tell(step, settled)
        if over:
            # Nothing but broken events: those that come meanwhile share the next batch, and other
            # sources get the time that many small ones would cost.
            await asyncio.sleep(min(REST_SECONDS, REST_EACH_SECONDS * len(dead)))
        return {one.inbox_id: one.fate for one in settled}

    def _settled(self, inbox_id: UUID, source: str, attempts: int, error: ApexError) -> _Settled:
        fate: Disposition = "retry"
        if isinstance(error, Unavailable):
            fate = "parked"
        elif isinstance(error, Rejected) or attempts >= self._max_attempts:
            fate = "dead"
        return _Settled(inbox_id, source, attempts, error, fate)

    async def _dead_letter(
        self, connection: Connection, step: str, dead: Sequence[_Settled]
    ) -> None:
        if not dead:
            return
        await connection.execute(
            """UPDATE inbox SET state = 'dead', ended_at = clock_timestamp(), batch = NULL, attempts = t.attempts, last_error = t.message
               FROM unnest(%s::uuid[], %s::integer[], %s::text[]) AS t (id, attempts, message) WHERE inbox.id = t.id""",
            (
                [one.inbox_id for one in dead],
                [one.attempts for one in dead],
                [one.message for one in dead],
            ),
        )
        await connection.execute(
            """INSERT INTO dead_letters AS l (inbox_id, source, doc_id, version, event_id, step, error_class, fingerprint, message,
                                              remedy, attempts, first_at, pipeline)
               SELECT i.id, i.source, i.doc_id, i.version, i.event_id, %s, t.class, t.fingerprint, t.message, t.remedy,
                      i.attempts, i.received_at, %s
               FROM unnest(%s::uuid[], %s::text[], %s::text[], %s::text[], %s::text[]) AS t (id, class, fingerprint, message, remedy)
               JOIN inbox i ON i.id = t.id
               ORDER BY i.id
               ON CONFLICT (inbox_id) DO UPDATE SET step = excluded.step, error_class = excluded.error_class,
                 fingerprint = excluded.fingerprint, message = excluded.message, remedy = excluded.remedy,
                 attempts = excluded.attempts, pipeline = excluded.pipeline, last_at = clock_timestamp(), status = 'open',
                 resolution = NULL""",
            (
                step,
                self._pipeline,
                [one.inbox_id for one in dead],
                [type(one.error).__name__ for one in dead],
                [fingerprint(step, one.error) for one in dead],
                [one.message for one in dead],
                [one.error.remedy for one in dead],
            ),
        )

    def _tell(self, step: str, settled: Sequence[_Settled]) -> None:
        """One line for all that failed alike."""
        alike: dict[tuple[str, Disposition, str], list[_Settled]] = {}
        for one in settled:
            alike.setdefault((one.source, one.fate, fingerprint(step, one.error)), []).append(one)
        for (source, fate, _), some in alike.items():
            if fate != "retry":
                ENDED.labels(source, fate).inc(len(some))
            self._log.warning(
                "events did not go on",
                events=[str(one.inbox_id) for one in some[:SHOWN]],
                count=len(some),
                source=source,
                step=step,
                fate=fate,
                error=type(some[0].error).__name__,
                reason=some[0].message[:300],
            )


@dataclass(frozen=True, slots=True)
class _Settled:
    """A failed event of ours, and its fate."""

    inbox_id: UUID
    source: str
    attempts: int
    error: ApexError
    fate: Disposition

    @property
    def message(self) -> str:
        return str(self.error)[:500].replace("\x00", "�")


def _ours(error: ApexError) -> ApexError:
    """A wrong setting is our fault, not the event's: it waits until that is mended."""
    if isinstance(error, Misconfigured):
        return Unavailable("settings", str(error), remedy=error.remedy)
    return error


async def _is_over(connection: Connection, batch: UUID) -> bool:
    cursor = await connection.execute(
        "SELECT FROM inbox WHERE open AND batch = %s LIMIT 1", (batch,)
    )
    return await cursor.fetchone() is None


async def _park(connection: Connection, parked: Sequence[_Settled]) -> None:
    """An outage consumes no attempt: the event waits for the store, and says which."""
    if parked:
        await connection.execute(
            """UPDATE inbox SET state = 'parked', batch = NULL, park_store = t.store, last_error = t.message,
                      next_at = clock_timestamp() + make_interval(secs => %s)
               FROM unnest(%s::uuid[], %s::text[], %s::text[]) AS t (id, store, message) WHERE inbox.id = t.id""",
            (
                PARK_DEADLINE_SECONDS,
                [one.inbox_id for one in parked],
                [getattr(one.error, "store", "") for one in parked],
                [one.message for one in parked],
            ),
        )


async def _postpone(connection: Connection, failed: Sequence[_Settled]) -> None:
    """Each is tried again, the later the more often it has failed."""
    if failed:
        waits = [RETRY_SECONDS[min(one.attempts, len(RETRY_SECONDS)) - 1] for one in failed]
        await connection.execute(
            """UPDATE inbox SET attempts = t.attempts, batch = NULL, last_error = t.message,
                      next_at = clock_timestamp() + make_interval(secs => t.wait)
               FROM unnest(%s::uuid[], %s::integer[], %s::text[], %s::float[]) AS t (id, attempts, message, wait)
               WHERE inbox.id = t.id""",
            (
                [one.inbox_id for one in failed],
                [one.attempts for one in failed],
                [one.message for one in failed],
                [
                    max(wait, getattr(one.error, "after", 0))
                    for wait, one in zip(waits, failed, strict=True)
                ],
            ),
        )


def fingerprint(step: str, error: ApexError) -> str:
    """The same for failures of the same kind: the message with its numbers and ids taken out."""
    shape = re.sub(r"[0-9a-f]{8}-[0-9a-f-]{27}|\d+", "#", str(error))
    return hashlib.sha256(f"{step}\x00{type(error).__name__}\x00{shape}".encode()).hexdigest()[:12]
