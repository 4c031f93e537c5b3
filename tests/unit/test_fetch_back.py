"""Fetches of single records: who is to blame for a group that fails, and how long failures may delay a pull."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from apex_memory.errors import Forbidden, Rejected, RetryLater, Unauthorized
from apex_memory.model import Event
from apex_memory.sources import fetch_back
from apex_memory.sources.fetch_back import FetchBack
from apex_memory.sources.http import VendorFault
from apex_memory.sources.pages import ChangeHint, Page

HINTS = [ChangeHint(key) for key in "abcdef"]


class Vendor:
    def __init__(self, error: Exception, *bad: str) -> None:
        self.error, self.bad = error, bad
        self.fetched: list[str] = []

    async def fetch(self, hints: Sequence[ChangeHint]) -> Sequence[Event]:
        self.fetched.append("".join(hint.key for hint in hints))
        if any(hint.key in self.bad for hint in hints):
            raise self.error
        return []


async def pages(vendor: Vendor, *groups: Sequence[ChangeHint]) -> list[Page]:
    return [page async for page in FetchBack().pages(groups, vendor.fetch)]


def outcome(pages: Sequence[Page]) -> tuple[str, str]:
    """Return the keys of the hints that were acknowledged, and of those that failed."""
    acknowledged = [hint.key for page in pages for hint in page.acknowledged]
    return "".join(acknowledged), "".join(item.hint.key for page in pages for item in page.unfetched)  # fmt: skip


@pytest.mark.parametrize("error", [Rejected("400"), Forbidden("403"), VendorFault("503")])
async def test_a_group_that_fails_is_fetched_one_by_one(error: Exception) -> None:
    vendor = Vendor(error, "b")
    assert outcome(await pages(vendor, HINTS[:3], HINTS[3:])) == ("acdef", "b")
    assert vendor.fetched == ["abc", "a", "b", "c", "def"]


@pytest.mark.parametrize("error", [Unauthorized("401"), RetryLater("429")])
async def test_what_concerns_every_call_ends_the_pull(error: Exception) -> None:
    vendor = Vendor(error, "a")
    with pytest.raises(type(error)):
        await pages(vendor, HINTS)
    assert len(vendor.fetched) == 1


async def test_failures_delay_a_pull_for_a_limited_time_but_each_pull_finds_one_to_blame(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(fetch_back, "FAULT_SECONDS", 0)
    vendor = Vendor(VendorFault("503"), *"bcdef")
    assert outcome(await pages(vendor, HINTS)) == ("", ""), "its time is over before it begins"
    monkeypatch.setattr(fetch_back, "FAULT_SECONDS", 1e-9)
    assert outcome(await pages(vendor, HINTS[:3], HINTS[3:])) == ("a", "b")
    assert vendor.fetched == ["abc", "a", "b"]
