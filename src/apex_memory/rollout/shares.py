"""The shares of the table `rollouts`: what each source sends through Temporal, and what the candidate build processes.

Only the share is here: the claim reads the same rows (`inbox/leases.py`), so a change acts with the next claim.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from apex_memory.rollout.changes import StepShare, audit, end_run, write_share
from apex_memory.stores.postgres import Postgres, fetch_row


@dataclass(frozen=True, slots=True)
class Share:
    """A row of `rollouts`; see `stores/migrations/0006_rollout.sql`."""

    subject: str
    share: int
    """Per cent of the documents, 0 to 100."""
    shadow: bool
    build: str | None
    changed_by: str
    changed_at: datetime
    reason: str


class Shares:
    """Read and write shares. Every method raises `Unavailable` without PostgreSQL."""

    def __init__(self, db: Postgres) -> None:
        self._db = db

    async def listed(self) -> list[Share]:
        """Return every row, by subject. A source without a row goes through Temporal as a whole."""
        return await self._db.fetch_rows(Share, "SELECT * FROM rollouts ORDER BY subject")

    async def find(self, subject: str) -> Share | None:
        """Return the row of a subject, None without one."""
        return await self._db.fetch_row(
            Share, "SELECT * FROM rollouts WHERE subject = %s", (subject,)
        )

    async def set(
        self, subject: str, share: int, *, shadow: bool = False, actor: str, reason: str = ""
    ) -> Share:
        """Set a share, for all processes at once, with an audit row, and return it. It acts with the next claim.

        Ends a rollout of the subject that is in progress: no plan changes what a person or a flag decided.
        """
        async with self._db.transaction() as connection:
            cursor = await connection.execute(
                "SELECT id FROM rollout_runs WHERE subject = %s AND ended_at IS NULL FOR UPDATE",
                (subject,),
            )
            run = await cursor.fetchone()
            if run is not None:
                await end_run(connection, run["id"], "stopped", actor=actor, reason=reason)
            decided = StepShare(share, shadow)
            await write_share(connection, subject, decided, build=None, actor=actor, reason=reason)
            await audit(connection, actor, subject, "set", decided, reason)
            row = await fetch_row(
                connection, Share, "SELECT * FROM rollouts WHERE subject = %s", (subject,)
            )
            assert row is not None
        return row
