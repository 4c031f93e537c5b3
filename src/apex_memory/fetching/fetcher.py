"""Fetching by a source's name: pulls, files and windows, where the source's state allows them."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import timedelta

import httpx2

from apex_memory.fetching.files import Files
from apex_memory.fetching.pulls import Backfill, OnPage, PullResult, Pulls
from apex_memory.fetching.source_states import SourceStates
from apex_memory.fetching.windows import Readings
from apex_memory.inbox.payload_store import PayloadStore
from apex_memory.sources.auth import Tokens
from apex_memory.sources.base import PulledSource, Source, as_file_source, as_stream_source
from apex_memory.sources.http import VendorClient
from apex_memory.stores.postgres import Postgres


class Fetcher:
    """All fetching of this process."""

    def __init__(
        self,
        db: Postgres,
        sources: Mapping[str, Source],
        http: httpx2.AsyncClient,
        tokens: Tokens,
        *,
        keep_readings: timedelta,
        payloads: PayloadStore,
        max_attempts: int,
    ) -> None:
        self.clients = {
            name: _vendor_client(source, http, tokens)
            for name, source in sources.items()
            if isinstance(source, PulledSource)
        }
        """Source → the HTTP client for its vendor."""
        self.states = SourceStates(db, sources)
        self.files = Files(db, payloads, max_attempts=max_attempts)
        self.readings = Readings(db, keep=keep_readings, payloads=payloads)
        self.pulls = Pulls(db, self.files, self.readings, payloads, max_attempts=max_attempts)
        self._sources = sources

    async def pull(
        self, name: str, *, on_page: OnPage | None = None, backfill: Backfill | None = None
    ) -> PullResult:
        """Fetch what a vendor has for a source, page by page, and return what it brought; see `Pulls.run`.

        Fetches nothing for a source that is paused, disabled or lacks a setting.
        """
        source = self._sources[name]
        if not isinstance(source, PulledSource) or source.missing_settings:
            return PullResult()
        if not await self.states.may_pull(name):
            return PullResult()
        return await self.pulls.run(source, self.clients[name], on_page=on_page, backfill=backfill)

    async def process_files(self, name: str) -> int:
        """Land and answer a source's open files; return their number. The direct path."""
        source = as_file_source(self._sources[name])
        return await self.files.process(source, self.clients[name])

    async def aggregate_windows(self, name: str, *, everything: bool = False) -> int:
        """Land the windows of a stream that are due, or all that changed; return their number."""
        source = as_stream_source(self._sources[name])
        return await self.readings.aggregate(source, everything=everything)


def _vendor_client(source: PulledSource, http: httpx2.AsyncClient, tokens: Tokens) -> VendorClient:
    """Return the client for a source's vendor. It follows rate limits that are set at run time."""
    return VendorClient(source.name, http, tokens, rate_limits=lambda: source.rate_limits)
