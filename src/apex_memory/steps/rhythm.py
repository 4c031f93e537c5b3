"""What Temporal's schedules start otherwise: pulls, streams, files, sweep and collect, each by its own rhythm.

The fallback runs it, in one process at a time. Every step is safe beside one of Temporal's that still runs: a pull
that finds the cursor moved ends, and a pull is due only when the last one, whoever made it, is long enough ago.
Backfills and replays wait for Temporal.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping

from apex_memory.config import Settings
from apex_memory.errors import ApexError
from apex_memory.fetching.fetcher import Fetcher
from apex_memory.fetching.pulls import PullResult
from apex_memory.inbox.hints import DUE
from apex_memory.sources.base import FileSource, PulledSource, Source, StreamSource
from apex_memory.steps.upkeep import Upkeep
from apex_memory.stores.postgres import Postgres
from apex_memory.tasks import run_together
from apex_memory.telemetry import logger
from apex_memory.telemetry.logs import unforeseen

CHECK_SECONDS = 1.0  # between two looks whether a source is due
HINT_SECONDS = 2.0  # between two pulls that change hints request
FAILED_SECONDS = 30.0  # longest wait after a failed pull
LATE = 1.2  # a pull is due after so many times its interval: one of Temporal's that still runs comes first


class Rhythm:
    """Runs the duties. `wake` requests a drain of a source that has new events."""

    def __init__(
        self,
        db: Postgres,
        fetcher: Fetcher,
        upkeep: Upkeep,
        sources: Mapping[str, Source],
        settings: Settings,
        *,
        wake: Callable[[str], None],
    ) -> None:
        self._db = db
        self._fetcher = fetcher
        self._upkeep = upkeep
        self._sources = [item for item in sources.values() if isinstance(item, PulledSource)]
        self._settings = settings
        self._wake = wake
        self._log = logger(component="fallback")

    async def run(self) -> None:
        """Work until cancelled. What a duty has committed stays."""
        await run_together(
            self._repeat("sweep", self._upkeep.sweep, self._settings.sweep_seconds),
            self._repeat("collect", self._upkeep.collect, self._settings.collect_seconds),
            *(self._keep_pulling(source) for source in self._sources),
        )

    async def _repeat(
        self, duty: str, work: Callable[[], Awaitable[object]], seconds: float
    ) -> None:
        while True:
            await self._attempt(duty, work)
            await asyncio.sleep(max(1.0, seconds))

    async def _keep_pulling(self, source: PulledSource) -> None:
        while True:
            await asyncio.sleep(CHECK_SECONDS)
            due = False

            async def check() -> None:
                nonlocal due
                due = await self._is_due(source)

            if not await self._attempt("look for pulls", check) or not due:
                continue
            if not await self._attempt(f"pull of {source.name}", lambda: self._fetch(source)):
                await asyncio.sleep(min(source.poll_every, FAILED_SECONDS))
            elif not isinstance(source, StreamSource):
                await asyncio.sleep(HINT_SECONDS)

    async def _is_due(self, source: PulledSource) -> bool:
        """Return whether the last pull is long enough ago, the vendor has named changes since, or files are open."""
        if source.missing_settings or not await self._fetcher.states.may_pull(source.name):
            return False
        row = await self._db.fetch_one(
            f"""SELECT NOT EXISTS (SELECT FROM sources WHERE name = %(name)s
                                  AND pulled_at > clock_timestamp() - make_interval(secs => %(seconds)s)
                                  AND pulled_at <= clock_timestamp())
                      OR EXISTS (SELECT FROM change_hints WHERE source = %(name)s AND {DUE})
                      OR EXISTS (SELECT FROM files WHERE source = %(name)s AND ended_at IS NULL) AS due""",
            {"name": source.name, "seconds": LATE * source.poll_every},
        )
        return bool(row and row["due"])

    async def _fetch(self, source: PulledSource) -> None:
        """Pull a source, land and answer its files, aggregate its windows."""

        async def on_page(result: PullResult) -> None:
            if result.fresh:
                self._wake(source.name)

        await self._fetcher.pull(source.name, on_page=on_page)
        if isinstance(source, FileSource):
            await self._fetcher.process_files(source.name)
        elif isinstance(source, StreamSource):
            await self._fetcher.aggregate_windows(source.name)
        self._wake(source.name)

    async def _attempt(self, duty: str, work: Callable[[], Awaitable[object]]) -> bool:
        """Run a duty; return whether it succeeded. The next round is the retry."""
        try:
            await work()
            return True
        except ApexError as error:
            self._log.warning(f"{duty} failed", reason=str(error)[:300], remedy=error.remedy)
        except Exception as error:  # noqa: BLE001 (the outermost frame of a duty, whose message may quote data)
            self._log.error(
                f"{duty} failed unexpectedly",
                **unforeseen(error),
            )
        return False
