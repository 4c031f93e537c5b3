"""What becomes of an event that could not go on: tried again, parked for a store, or a dead letter."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal
from uuid import UUID

from apex_memory.errors import ApexError, Misconfigured, Rejected, Unavailable
from apex_memory.stores.postgres import Connection, Postgres
from apex_memory.telemetry import ENDED, logger

Fate = Literal["retry", "parked", "dead"]
RETRY_SECONDS = (2, 10, 60, 300)  # waits between attempts of whole steps
PARK_DEADLINE_SECONDS = 60  # parked rows are looked at again at the latest then


@dataclass(frozen=True, slots=True)
class Failure:
    """An event, and why it could not go on."""

    inbox_id: UUID
    error: ApexError


class Outcomes:
    def __init__(self, db: Postgres, *, max_attempts: int, pipeline: str) -> None:
        self._db = db
        self._max_attempts = max_attempts
        self._pipeline = pipeline
        self._log = logger(room="saga")

    async def settle(self, batch: UUID, step: str, failures: Sequence[Failure]) -> dict[UUID, Fate]:
        """Decide and write the fate of each failed event that the batch still owns."""
        if not failures:
            return {}
        async with self._db.transaction() as connection:
            fates = {}
            cursor = await connection.execute(
                "SELECT id, source, event_id, attempts FROM inbox WHERE id = ANY(%s) AND open AND batch = %s ORDER BY id FOR UPDATE",
                ([failure.inbox_id for failure in failures], batch),
            )
            rows = {row["id"]: row for row in await cursor.fetchall()}
            for failure in failures:
                row = rows.get(failure.inbox_id)
                if row is None:
                    continue  # another worker owns it now
                fates[failure.inbox_id] = await self._one(
                    connection, step, failure, row["attempts"] + 1
                )
                if fates[failure.inbox_id] != "retry":
                    ENDED.labels(row["source"], fates[failure.inbox_id]).inc()
                self._log.warning(
                    "event did not go on",
                    event_id=str(failure.inbox_id),
                    source=row["source"],
                    step=step,
                    fate=fates[failure.inbox_id],
                    error=type(failure.error).__name__,
                    reason=str(failure.error)[:300],
                )
            return fates

    async def _one(
        self, connection: Connection, step: str, failure: Failure, attempts: int
    ) -> Fate:
        error = failure.error
        if isinstance(error, Misconfigured):  # ours, not the event's: it waits until that is mended
            error = Unavailable("settings", str(error), remedy=error.remedy)
        if isinstance(error, Unavailable):
            await _park(connection, failure.inbox_id, error)
            return "parked"
        if isinstance(error, Rejected) or attempts >= self._max_attempts:
            await self._bury(connection, step, failure, attempts)
            return "dead"
        wait = RETRY_SECONDS[min(attempts, len(RETRY_SECONDS)) - 1]
        await connection.execute(
            """UPDATE inbox SET attempts = %s, batch = NULL, last_error = %s, next_at = clock_timestamp() + make_interval(secs => %s)
               WHERE id = %s""",
            (attempts, _short(error), max(wait, getattr(error, "after", 0)), failure.inbox_id),
        )
        return "retry"

    async def _bury(
        self, connection: Connection, step: str, failure: Failure, attempts: int
    ) -> None:
        error = failure.error
        await connection.execute(
            """UPDATE inbox SET state = 'dead', ended_at = clock_timestamp(), batch = NULL, attempts = %s, last_error = %s WHERE id = %s""",
            (attempts, _short(error), failure.inbox_id),
        )
        await connection.execute(
            """INSERT INTO dead_letters AS l (inbox_id, source, doc_id, version, event_id, step, error_class, fingerprint, message,
                                              remedy, attempts, first_at, pipeline)
               SELECT id, source, doc_id, version, event_id, %(step)s, %(class)s, %(fingerprint)s, %(message)s, %(remedy)s,
                      %(attempts)s, received_at, %(pipeline)s FROM inbox WHERE id = %(id)s
               ON CONFLICT (inbox_id) DO UPDATE SET step = excluded.step, error_class = excluded.error_class,
                 fingerprint = excluded.fingerprint, message = excluded.message, remedy = excluded.remedy,
                 attempts = excluded.attempts, pipeline = excluded.pipeline, last_at = clock_timestamp(), status = 'open',
                 resolution = NULL""",
            {
                "step": step,
                "class": type(error).__name__,
                "fingerprint": fingerprint(step, error),
                "message": _short(error),
                "remedy": error.remedy,
                "attempts": attempts,
                "pipeline": self._pipeline,
                "id": failure.inbox_id,
            },
        )


async def _park(connection: Connection, inbox_id: UUID, error: Unavailable) -> None:
    """An outage consumes no attempt: the event waits for the store, and says which."""
    await connection.execute(
        """UPDATE inbox SET state = 'parked', batch = NULL, park_store = %s, last_error = %s,
                  next_at = clock_timestamp() + make_interval(secs => %s) WHERE id = %s""",
        (error.store, _short(error), PARK_DEADLINE_SECONDS, inbox_id),
    )


def fingerprint(step: str, error: ApexError) -> str:
    """The same for failures of the same kind: the message with its numbers and ids taken out."""
    shape = re.sub(r"[0-9a-f]{8}-[0-9a-f-]{27}|\d+", "#", str(error))
    return hashlib.sha256(f"{step}\x00{type(error).__name__}\x00{shape}".encode()).hexdigest()[:12]


def _short(error: ApexError) -> str:
    return str(error)[:500].replace("\x00", "�")
