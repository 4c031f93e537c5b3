"""The disk of each engine is full for a while: it is said, nothing acknowledged is lost, and all heals with the space."""

from __future__ import annotations

import asyncio
import secrets
import sys
import time
from collections.abc import Iterator

import httpx2
import pytest

from tests.e2e.stack import Stack, data_folder
from tests.waiting import until
from tests.faults.volumes import filled, small_volumes

pytestmark = [
    pytest.mark.alone,
    pytest.mark.skipif(sys.platform != "linux", reason="mounts file systems in memory"),
    pytest.mark.timeout(400),
]

MEGABYTES = {"postgres": 260, "falkordb": 120, "vectors": 200, "valkey": 20}
SENT = 25  # documents while a disk is full; more than fit into what is left
TEXT_BYTES = 150_000
HEAL_SECONDS = 120


def documents(volume: str) -> Iterator[dict[str, object]]:
    for n in range(SENT):
        words = secrets.token_hex(TEXT_BYTES // 2)
        yield {"key": f"{volume}{n}", "version": 1, "text": f"SHP-100045 {volume} {n}. {words}"}


async def test_a_full_disk_of_any_engine_loses_nothing_and_heals() -> None:
    async with data_folder() as folder:
        with small_volumes(folder, MEGABYTES):
            stack = Stack(folder)
            try:
                await stack.start()
                await stack.whole(seconds=HEAL_SECONDS)
                await stack.remember("before", "SHP-100045 waits at door 4.")
                for volume in MEGABYTES:
                    await _fill(stack, volume)
            finally:
                await stack.stop()


async def _fill(stack: Stack, volume: str) -> None:
    landed: list[str] = []
    refused = 0
    began = time.monotonic()
    with filled(stack.data_dir / volume):
        for document in documents(volume):
            response = await stack.http.post("/v1/documents", json=document)
            if response.status_code == 202:
                landed += [event["id"] for event in response.json()["events"]]
            else:
                assert response.status_code in (429, 503), response.text
                assert response.headers["retry-after"], "a refusal says when to come back"
                refused += 1
        said = await stack.command("doctor", "--json")
        findings = {finding["what"]: finding for finding in said.json}
        assert findings[f"disk of {volume}"]["state"] == "bad", said.out
        assert "free space" in findings[f"disk of {volume}"]["remedy"]
        assert said.code == 1
        if volume != "postgres":  # the texts of the answers are in PostgreSQL
            await until(lambda: _is_found(stack), seconds=30, what=stack.told)
    await until(lambda: _lands(stack, volume), seconds=HEAL_SECONDS, every=0.5, what=stack.told)
    await stack.ended(landed, seconds=HEAL_SECONDS)
    states = await stack.states(landed)
    assert set(states.values()) <= {"done"}, states
    await stack.whole(seconds=HEAL_SECONDS)
    print(
        f"{volume}: {len(landed)} landed, {refused} refused, {time.monotonic() - began:.0f} s in all"
    )


async def _is_found(stack: Stack) -> bool:
    """Whether a search answers; what it lacks stands in `degraded`."""
    try:
        body = {"query": "SHP-100045 door", "limit": 5}
        response = await stack.http.post("/v1/search", json=body)
    except httpx2.TransportError:
        await asyncio.sleep(0.1)
        return False
    return bool(response.is_success and (response.json()["hits"] or response.json()["degraded"]))


async def _lands(stack: Stack, volume: str) -> bool:
    try:
        body = {"key": f"after {volume}", "version": 1, "text": "SHP-100045 left."}
        response = await stack.http.post("/v1/documents?wait=searchable&timeout=20", json=body)
    except httpx2.TransportError:
        return False
    return bool(response.is_success and response.json()["searchable"])
