"""`apex backup` of a stack under load, `apex restore` into a new data folder, and the start of it."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from pathlib import Path

import httpx2
import pytest

from apex_memory.engines.state import read_stack
from tests.e2e.stack import Stack, data_folder
from tests.waiting import until

pytestmark = pytest.mark.timeout(300)

DOCUMENTS = 40


@pytest.mark.long
async def test_a_stack_is_backed_up_under_load_and_comes_back_elsewhere(tmp_path: Path) -> None:
    backup = tmp_path / "backup"
    async with data_folder() as folder, data_folder() as elsewhere:
        stack = Stack(folder)
        try:
            await stack.start()
            await stack.whole(seconds=120)
            before = await _documents(stack)
            acknowledged: list[str] = []
            load = asyncio.create_task(_post_for_ever(stack, acknowledged))
            await until(lambda: len(acknowledged) >= 5, seconds=60, what=stack.log_tail)
            known = list(acknowledged)
            written = await stack.command("backup", str(backup), "--json")
            assert written.code == 0, written.error
            assert written.json["tables"]["documents"] >= DOCUMENTS
            load.cancel()
            with suppress(asyncio.CancelledError):
                await load
            checked = await stack.command("upgrade", "--check", "--json")
            assert checked.code == 0 and checked.json["missing"] == [], checked.error
            # Into a stack that runs, or one that is not empty, nothing is restored.
            refused = await stack.command("restore", str(backup))
            assert refused.code == 1 and "apex stop" in refused.error
        finally:
            await stack.stop()
        refused = await stack.command("restore", str(backup))
        assert refused.code == 1 and "is not empty" in refused.error, refused.error
        assert "APEX_DATA_DIR" in refused.error
        assert not read_stack(folder), "the command's own PostgreSQL has ended"

        restored = Stack(elsewhere)
        try:
            result = await restored.command("restore", str(backup), "--json")
            assert result.code == 0, result.error
            assert result.json["tables"] == written.json["tables"]
            await restored.start()
            await restored.whole(seconds=120)
            after = await _documents(restored)
            assert {key: after.get(key) for key in before} == before
            await restored.ended(known)  # fails where one of them is unknown
            answer = await restored.search("SHP-100007")
            assert answer["degraded"] == []
            assert answer["hits"][0]["title"] == "SHP-100007"
            for store in ("graph", "vectors"):
                report = await restored.post(f"/v1/stores/{store}/reconcile", json={})
                assert (report["repaired"], report["left"], report["errors"]) == (0, 0, [])
        finally:
            await restored.stop()


async def _documents(stack: Stack) -> dict[str, str]:
    """Post documents unless they are there; return the title of each by its key."""
    body = {"query": "SHP-100000", "limit": 1}
    if not (await stack.post("/v1/search", json=body))["hits"]:
        events = [
            await stack.remember(
                f"d{n}",
                f"SHP-{100_000 + n} waits at door {n}.",
                wait=False,
                title=f"SHP-{100_000 + n}",
            )
            for n in range(DOCUMENTS)
        ]
        await stack.ended([event["id"] for event in events], seconds=120)
    titles: dict[str, str] = {}
    page = await stack.get("/v1/documents", limit=200)
    while True:
        titles |= {row["key"]: row["title"] for row in page["documents"]}
        if page["next"] is None:
            return {key: title for key, title in titles.items() if key.startswith("d")}
        page = await stack.get("/v1/documents", limit=200, cursor=page["next"])


async def _post_for_ever(stack: Stack, acknowledged: list[str]) -> None:
    n = 0
    while True:
        with suppress(httpx2.TransportError):
            event = await stack.remember(f"load{n}", f"Load {n} of SHP-300000.", wait=False)
            acknowledged.append(event["id"])
        n += 1


def test_commands_without_a_backup_or_data_change_nothing(tmp_path: Path) -> None:
    stack = Stack(tmp_path / "data")
    for command, message in (
        (("restore", str(tmp_path / "absent")), "is not a backup"),
        (("restore", str(tmp_path / "absent"), "--check"), "is not a backup"),
        (("backup", str(tmp_path / "new")), "holds no data of Apex"),
        (("upgrade", "--check"), "holds no data of Apex"),
    ):
        result = stack.run_here(*command)
        assert result.code == 1 and message in result.error, (command, result.error)
        assert "→" in result.error, "a remedy"
    assert list(tmp_path.iterdir()) == []
