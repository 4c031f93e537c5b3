"""What happens to an event that could not go on: another attempt, parking until a store is back, or a dead letter."""

from __future__ import annotations

import asyncio
import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal
from uuid import UUID

from apex_memory.errors import (
    ApexError,
    Misconfigured,
    NotAllowed,
    NotCalled,
    NoWrites,
    Rejected,
    RetryLater,
    Unavailable,
)
from apex_memory.inbox import queries, transitions
from apex_memory.inbox.transitions import FailedEvent, OwnedEvent
from apex_memory.stores.postgres import Connection, Postgres
from apex_memory.telemetry import ENDED, logger

Disposition = Literal["retry", "parked", "dead"]
RETRY_SECONDS = (2, 10, 60, 300)  # waits between attempts of whole steps
LOGGED_IDS = 5  # ids in a line of the log
# An event that is parked more often, while its store serves others, is itself to blame.
MOST_PARKS = 10
# Errors of a store that would be the same for any event. Parking for one of them does not count.
NO_FAULT_OF_THE_EVENT = (NotCalled, NotAllowed, NoWrites)
MESSAGE_CHARS = 500
# Rest after a batch that held nothing but broken events: at most, and for each of them.
REST_SECONDS, REST_EACH_SECONDS = 1.0, 0.04


@dataclass(frozen=True, slots=True)
class Failure:
    """An event, and the error that stopped it."""

    inbox_id: UUID
    error: ApexError


class FailureHandler:
    """Decides and records what happens to failed events. `pipeline` names the version that made them."""

    def __init__(self, db: Postgres, *, max_attempts: int, pipeline: str) -> None:
        self._db = db
        self._max_attempts = max_attempts
        self._pipeline = pipeline
        self._log = logger(component="saga")

    async def handle(
        self, batch: UUID, step: str, failures: Sequence[Failure]
    ) -> dict[UUID, Disposition]:
        """Record the disposition of each failed event that the batch still owns; return it by inbox id.

        A storm of broken events must not slow its neighbours: this takes a few statements however many
        events failed, and rests after a batch in which nothing else is left.
        """
        if not failures:
            return {}
        errors = {failure.inbox_id: _attributed(failure.error) for failure in failures}
        async with self._db.transaction() as connection:
            owned = await transitions.lock_owned(connection, batch, list(errors))
            handled = []
            for event in owned.values():
                error = await _blamed(connection, event, errors[event.id])
                handled.append(self._decide(event, error))
            parked = [item for item in handled if item.disposition == "parked"]
            postponed = [item for item in handled if item.disposition == "retry"]
            dead = [item for item in handled if item.disposition == "dead"]
            await transitions.park(connection, [item.failed_event for item in parked])
            await transitions.postpone(connection, [item.failed_event for item in postponed])
            await self._dead_letter(connection, step, dead)
            nothing_left = bool(dead) and not await queries.owns_any(connection, batch)
        self._log_and_count(step, handled)
        if nothing_left:
            # Events that arrive meanwhile share the next batch, and other sources get the time that many
            # small batches would cost.
            await asyncio.sleep(min(REST_SECONDS, REST_EACH_SECONDS * len(dead)))
        return {item.inbox_id: item.disposition for item in handled}

    def _decide(self, event: OwnedEvent, error: ApexError) -> _Handled:
        attempts = event.attempts + 1
        disposition: Disposition = "retry"
        if isinstance(error, Unavailable):
            disposition = "parked"
        elif isinstance(error, Rejected) or attempts >= self._max_attempts:
            disposition = "dead"
        return _Handled(event.id, event.source, attempts, error, disposition)

    async def _dead_letter(
        self, connection: Connection, step: str, dead: Sequence[_Handled]
    ) -> None:
        """Mark events dead and file their dead letters. An event that died before reopens the letter it has."""
        if not dead:
            return
        await transitions.mark_dead(connection, [item.failed_event for item in dead])
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
                [item.inbox_id for item in dead],
                [type(item.error).__name__ for item in dead],
                [fingerprint(step, item.error) for item in dead],
                [item.message for item in dead],
                [item.error.remedy for item in dead],
            ),
        )

    def _log_and_count(self, step: str, handled: Sequence[_Handled]) -> None:
        """Write one line of the log for all events that failed alike."""
        alike: dict[tuple[str, Disposition, str], list[_Handled]] = {}
        for item in handled:
            key = (item.source, item.disposition, fingerprint(step, item.error))
            alike.setdefault(key, []).append(item)
        for (source, disposition, _), items in alike.items():
            if disposition != "retry":
                ENDED.labels(source, disposition).inc(len(items))
            self._log.warning(
                "events failed",
                events=[str(item.inbox_id) for item in items[:LOGGED_IDS]],
                count=len(items),
                source=source,
                step=step,
                disposition=disposition,
                error=type(items[0].error).__name__,
                reason=items[0].message[:300],
            )


@dataclass(frozen=True, slots=True)
class _Handled:
    """A failed event, and what was decided about it."""

    inbox_id: UUID
    source: str
    attempts: int
    error: ApexError
    disposition: Disposition

    @property
    def message(self) -> str:
        return str(self.error)[:MESSAGE_CHARS].replace("\x00", "�")

    @property
    def failed_event(self) -> FailedEvent:
        """What the event's row records."""
        wait: float = RETRY_SECONDS[min(self.attempts, len(RETRY_SECONDS)) - 1]
        if isinstance(self.error, RetryLater):
            wait = max(wait, self.error.after)
        store = self.error.store if isinstance(self.error, Unavailable) else ""
        return FailedEvent(
            id=self.inbox_id,
            attempts=self.attempts,
            message=self.message,
            store=store,
            tried=not isinstance(self.error, NO_FAULT_OF_THE_EVENT),
            wait_seconds=wait,
        )


def unfinished(step: str, starts: int) -> Rejected:
    """Return the error of an event whose attempts never reported an outcome."""
    return Rejected(
        f"{step} it timed out or ended the worker {starts} times in a row",
        remedy="the payload is too much for the limits of this installation: discard it, or redrive it after an upgrade",
    )


def _attributed(error: ApexError) -> ApexError:
    """Return the error that counts. A wrong setting is not the event's fault: the event waits until it is corrected."""
    if isinstance(error, Misconfigured):
        return Unavailable("settings", str(error), remedy=error.remedy)
    return error


async def _blamed(connection: Connection, event: OwnedEvent, error: ApexError) -> ApexError:
    """Return the error of an event that was parked `MOST_PARKS` times while its store served others: `Rejected`.

    Any other error stays as it is: a store that serves nobody is unavailable, however long that takes, and so is
    one whose settings are wrong, that refuses the credentials, or that accepts writes from nobody. By then the event
    was tried alone (`groups.py`), so it is not another's fault.
    """
    if not isinstance(error, Unavailable) or error.store == "settings":
        return error
    if event.parks < MOST_PARKS or isinstance(error, NO_FAULT_OF_THE_EVENT):
        return error
    cursor = await connection.execute(
        # A document with passages that was committed since; for other stores than these two, also prepared since. For
        # the object store, one of an event that it served.
        """SELECT FROM documents d JOIN manifests m ON m.id = d.manifest_id
           WHERE d.committed_at > %(since)s AND octet_length(m.vectors) > 0
             AND (m.created_at > %(since)s OR %(store)s IN ('graph', 'vectors'))
             AND (%(store)s <> 'payloads' OR EXISTS (SELECT FROM payload_references r WHERE r.inbox_id = m.inbox_id))
           LIMIT 1""",
        {"since": event.parked_at, "store": error.store},
    )
    if await cursor.fetchone() is None:
        return error
    return Rejected(
        f"{error} (parked {event.parks} times, while the store served others)",
        remedy="the store does not take what this event brings: discard it, or redrive it after an upgrade",
    )


def fingerprint(step: str, error: ApexError) -> str:
    """Return twelve hex digits, the same for failures of the same kind: a digest of the message without its numbers and ids."""
    shape = re.sub(r"[0-9a-f]{8}-[0-9a-f-]{27}|\d+", "#", str(error))
    return hashlib.sha256(f"{step}\x00{type(error).__name__}\x00{shape}".encode()).hexdigest()[:12]
