"""Reads from a standby of PostgreSQL, as long as it is known to lag behind the primary by a bounded time.

How far it lags is measured without clocks and without special rights: the primary gets a new mark again and again, by
an ordinary commit. A standby that shows a mark has everything that was committed before the mark was written. It holds
whatever replicates, also after a failover: a server that follows another history never shows the mark.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from contextlib import suppress
from uuid import UUID, uuid4

from apex_memory.errors import ApexError
from apex_memory.stores.postgres import Postgres
from apex_memory.telemetry import STANDBY_BEHIND, logger
from apex_memory.telemetry.logs import unforeseen

MARK_SECONDS = 1.0  # most between two marks; a quarter of the bound where that is less
KEEP_SECONDS = 3600.0  # until the mark of a process that died is removed
LAGS = "it lags"
LOOK_SECONDS = 0.005  # between two looks for a mark that somebody waits for


class Standby:
    """A standby of `primary`. It is `fresh` while it lags by less than `bound` seconds. `run` measures, in a task of its own.

    `snapshots` reads from it as `Postgres.snapshot` does. Without `run` it is never fresh.
    """

    def __init__(
        self,
        primary: Postgres,
        snapshots: Postgres,
        *,
        bound: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.snapshots = snapshots
        self.bound = bound
        self._primary = primary
        self._clock = clock
        self._name = f"standby:{uuid4()}"
        self._written: dict[UUID, float] = {}
        """Time before the write of each mark that the standby may still show."""
        self._as_of = float("-inf")
        self._least = float("-inf")
        """Time of the newest commit that somebody was promised to find: the standby is not read before it shows that."""
        self._began = clock()
        self._was_fresh: bool | None = None
        self._log = logger(component="standby")

    @property
    def fresh(self) -> bool:
        """Whether it shows everything that was committed until `bound` seconds ago, and what `caught_up` promised."""
        return self._as_of >= self._least and self._clock() - self._as_of < self.bound

    def set_aside(self, reason: str) -> None:
        """Read from the primary until the standby shows a mark again."""
        self._as_of = float("-inf")
        self._report(reason)

    async def run(self) -> None:
        """Mark and look until cancelled."""
        await self._remove_old_marks()
        while True:
            began = self._clock()
            reason = LAGS
            try:
                await self._mark()
                await self._look()
            except Exception as error:  # noqa: BLE001 (outermost loop: another database has no such table)
                # What it showed last still holds until the bound is over: the primary may be what is away.
                if not isinstance(error, ApexError):
                    self._log.error("standby not looked at", **unforeseen(error))
                reason = str(error) or type(error).__name__
            self._report(reason)
            spent = self._clock() - began
            await asyncio.sleep(max(0.0, min(MARK_SECONDS, self.bound / 4) - spent))

    async def caught_up(self, seconds: float) -> bool:
        """Return True when this process reads what is committed now: from the standby, or from the primary.

        A standby that does not show it within `bound` seconds is not read again before it does. Returns False when `seconds` end
        first. Does not wait for a standby that this process does not read from. Another process may still read it,
        and see what it showed `bound` seconds ago.
        """
        called_at = self._clock()
        try:
            await self._mark()
            while self.fresh and self._clock() - called_at < self.bound:
                await self._look()  # the mark, or a later one of this process
                if self._as_of >= called_at:
                    return True
                if self._clock() - called_at >= seconds:
                    return False
                await asyncio.sleep(LOOK_SECONDS)
        except ApexError as error:
            self.set_aside(str(error))
        self._least = max(self._least, called_at)
        return True

    async def close(self) -> None:
        """Remove the mark, and close the connections."""
        with suppress(ApexError):  # another process removes it later
            await self._primary.execute("DELETE FROM leases WHERE name = %s", (self._name,))
        await self.snapshots.close()

    async def _mark(self) -> None:
        """Write a new mark on the primary. It stands in `leases`, where it holds up nobody."""
        mark, began = uuid4(), self._clock()
        await self._primary.execute(
            """INSERT INTO leases (name, owner, until) VALUES (%s, %s, clock_timestamp())
               ON CONFLICT (name) DO UPDATE SET owner = excluded.owner, until = excluded.until""",
            (self._name, mark),
        )
        self._written = {
            earlier: at for earlier, at in self._written.items() if began - at < 2 * self.bound
        }
        self._written[mark] = began

    async def _look(self) -> None:
        """Read which mark the standby shows: it has all that was committed before that was written."""
        row = await self.snapshots.fetch_one(
            "SELECT owner FROM leases WHERE name = %s", (self._name,)
        )
        if row:
            self._as_of = max(self._as_of, self._written.get(row["owner"], float("-inf")))

    async def _remove_old_marks(self) -> None:
        try:
            await self._primary.execute(
                """DELETE FROM leases WHERE name LIKE 'standby:%%'
                   AND until < clock_timestamp() - make_interval(secs => %s)""",
                (KEEP_SECONDS,),
            )
        except ApexError as error:
            self._log.warning("marks of earlier processes not removed", reason=str(error))

    def _report(self, reason: str) -> None:
        STANDBY_BEHIND.set(self._clock() - self._as_of)
        is_starting = self._was_fresh is None and self._clock() - self._began < self.bound
        if self.fresh == self._was_fresh or (is_starting and not self.fresh and reason == LAGS):
            return
        self._was_fresh = self.fresh
        if self.fresh:
            self._log.info("searches read from the standby")
        else:
            self._log.warning("searches read from the primary", reason=reason[:200])
