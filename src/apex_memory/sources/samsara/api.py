"""Calls to Samsara: pages of the stats feed and of the stats history."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from apex_memory.errors import Rejected, RetryLater
from apex_memory.sources.auth import bearer
from apex_memory.sources.http import VendorClient
from apex_memory.sources.pages import BackfillRange
from apex_memory.sources.payloads import as_mapping, as_string, parse_object
from apex_memory.sources.samsara.documents import iso
from apex_memory.sources.samsara.settings import SamsaraSettings
from apex_memory.sources.samsara.stats import KINDS

EXPIRED = (400, 404, 410)  # statuses for a cursor that does not hold any more
RETRY_SECONDS = 30  # before an invalid page is requested again


@dataclass(frozen=True, slots=True)
class StatsPage:
    """One page of vehicles with their points. `after` is the cursor behind it, `more` whether another page follows at once."""

    vehicles: Sequence[Any]
    after: str
    more: bool


class SamsaraApi:
    """Samsara's statistics of vehicles."""

    def __init__(self, client: VendorClient, settings: SamsaraSettings) -> None:
        self._client = client
        self._base = settings.base_url.rstrip("/")
        self._auth = bearer(settings.api_token.get_secret_value())

    async def feed(self, after: str) -> StatsPage | None:
        """Return the points that arrived since the cursor; None for a cursor that Samsara does not accept any more.

        An empty cursor starts the feed: the page holds each vehicle's latest points.
        """
        return await self._page("feed", {}, after, may_expire=bool(after))

    async def history(self, window: BackfillRange, after: str) -> StatsPage:
        """Return a page of the points with times in a window."""
        times = {"startTime": iso(window.since), "endTime": iso(window.until)}
        page = await self._page("history", times, after)
        assert page is not None  # only a cursor of the feed may expire
        return page

    async def _page(
        self, path: str, params: Mapping[str, str], after: str, *, may_expire: bool = False
    ) -> StatsPage | None:
        response = await self._client.call(
            "GET",
            f"{self._base}/fleet/vehicles/stats/{path}",
            auth=self._auth,
            params={"types": ",".join(KINDS), **params, **({"after": after} if after else {})},
            accept=EXPIRED if may_expire else (),
        )
        if response.status_code in EXPIRED:
            return None
        try:
            body = parse_object(response.content)
            if not isinstance(body.get("data"), list):
                raise Rejected("data: expected a list")
        except Rejected as error:
            raise RetryLater(
                f"samsara: not a page of the {path}: {error}",
                after=RETRY_SECONDS,
                remedy="Apex retries it; check sources.samsara.base_url if it lasts",
            ) from None
        return _with_position(path, body, after)


def _with_position(path: str, body: Mapping[str, Any], before: str) -> StatsPage:
    """Return a page with its cursor. A page without one leaves the cursor where it was."""
    paging = as_mapping(body.get("pagination"))
    after = as_string(paging.get("endCursor")) or before
    more = paging.get("hasNextPage") is True
    if more and after == before:
        raise RetryLater(
            f"samsara: the {path} announces more pages without a cursor",
            after=RETRY_SECONDS,
            remedy="Apex retries it; see Samsara's status page if it lasts",
        )
    return StatsPage(body["data"], after, more)
