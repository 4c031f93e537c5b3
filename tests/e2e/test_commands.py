"""The command line on a running stack: any id, deletions, files, steering, starting in the background and stopping."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from apex_memory.engines.state import read_stack
from tests.e2e.stack import Stack, belonging, data_folder, running_stack
from tests.waiting import until

pytestmark = [
    pytest.mark.xdist_group("commands"),  # they share a stack
    pytest.mark.skipif(sys.platform != "linux", reason="reads /proc"),
    pytest.mark.timeout(
        500
    ),  # a stack is started three times, on a machine that others work on, too
]


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def stack() -> AsyncIterator[Stack]:
    async with running_stack() as stack:
        yield stack


async def test_o7_any_id_resolves_to_its_document_and_its_event(stack: Stack) -> None:
    event = await stack.remember("o7-note", "Dock 4 is closed until noon. SHP-104711")
    newer = await stack.remember("o7-note", "Dock 4 is open again. SHP-104711")
    document = newer["document_id"]
    for id in (document, document[:8], newer["id"], newer["id"][:12], newer["event_id"], "o7-note"):
        result = stack.run_here("document", id, "--json")
        assert result.code == 0 and result.json["document_id"] == document, (id, result)
        assert stack.run_here("event", id, "--json").json["id"] == newer["id"], id
    assert stack.run_here("event", event["id"][:8], "--json").json["id"] == event["id"]
    assert document in stack.run_here("search", "SHP-104711").out, "the id shown is the id taken"
    missing = stack.run_here("document", "ffffffff")
    assert missing.code == 1 and "apex documents" in missing.error and "/v1/" not in missing.error


async def test_unknown_identifiers_and_sources_are_reported_first(stack: Stack) -> None:
    await stack.remember("u-1", "SHP-104712 was delivered at the dock.")
    known = stack.run_here("search", "SHP-104712").out
    assert "No document" not in known and "score" not in known and "dense" not in known
    for query in ("where is SHP-999917", "ZZQ-55512"):
        first = stack.run_here("search", query).out.splitlines()[0]
        assert first == f"No document holds {query.split()[-1]}.", first
    assert "score" in stack.run_here("search", "SHP-104712", "--explain").out
    for words in (["search", "x", "--source", "nope"], ["events", "--source", "nope"],
                  ["documents", "--source", "nope"], ["dead-letters", "list", "--source", "nope"]):  # fmt: skip
        result = stack.run_here(*words)
        assert (
            result.code == 1 and "no such source" in result.error and "frontapp" in result.error
        ), words


async def test_a_deleted_document_is_gone_and_its_event_is_a_deletion(stack: Stack) -> None:
    event = await stack.remember("d-1", "SHP-104713 [/x] is to be forgotten.")
    refused = stack.run_here("delete", event["document_id"][:8])
    assert refused.code == 1 and "--yes" in refused.error
    deleted = stack.run_here("delete", event["document_id"][:8], "--yes", "--json")
    assert deleted.code == 0 and deleted.json["searchable"]
    shown = stack.run_here("event", deleted.json["events"][0]["id"]).out
    assert "deletion from documents" in shown and "out of graph" in shown
    assert event["document_id"] not in stack.run_here("documents", "--json").out
    assert stack.run_here("document", "d-1").code == 1
    payload = stack.run_here("event", event["id"]).out
    assert "bytes of application/vnd.apex.document+msgpack" in payload


async def test_ingest_knows_files_by_content_whatever_their_time(
    stack: Stack, tmp_path: Path
) -> None:
    folder = tmp_path / "notes"
    (folder / "[").mkdir(parents=True)
    file = folder / "[" / "x] a.md"
    file.write_text("Lane MEM-DAL pays 3 % more.")
    dry = stack.run_here("ingest", str(folder), "--dry-run", "--json")
    assert dry.code == 0 and dry.json["files"][0]["outcome"] == "new"
    assert stack.run_here("events", "--json").out.count("MEM-DAL") == 0

    def sent(path: Path) -> tuple[str, str]:
        result = stack.run_here("ingest", str(path), "--json")
        assert result.code == 0, result
        [row] = result.json["files"]
        return row["outcome"], row["events"][0]

    first = sent(folder)
    assert first[0] == "new"
    os.utime(file, (1_000_000_000, 1_000_000_000))
    assert sent(file) == ("unchanged", first[1])
    file.write_text("Lane MEM-DAL pays 4 % more.")
    os.utime(file, (900_000_000, 900_000_000))  # as a backup would restore it
    changed = sent(file)
    assert changed[0] == "new"
    text = stack.run_here("document", file.resolve().as_posix(), "--json").json["text"]
    assert "4 % more" in text
    file.write_text("Lane MEM-DAL pays 3 % more.")
    again = sent(folder)
    assert again[0] == "new" and again[1] not in (first[1], changed[1])
    view = stack.run_here("document", file.resolve().as_posix(), "--json").json
    assert "3 % more" in view["text"] and len(view["versions"]) == 3
    assert "[/x] a.md" in stack.run_here("ingest", str(folder), "--dry-run").out


async def test_payloads_logs_and_steering_commands_have_machine_readable_output(
    stack: Stack,
) -> None:
    body = json.dumps({"key": "p-1", "text": "Raw."}).encode()
    answer = await stack.http.post(
        "/v1/documents", content=body, headers={"content-type": "application/json"}
    )
    id = answer.json()["events"][0]["id"]
    for options in ([], ["--first", "30"]):
        raw = subprocess.run(
            [sys.executable, "-m", "apex_memory.cli", "payload", id[:8], *options],
            env=os.environ | stack._given,
            cwd=stack.data_dir.parent,
            capture_output=True,
            check=True,
        )
        query = f"?first={options[1]}" if options else ""
        whole = (await stack.http.get(f"/v1/events/{id}/payload{query}")).content
        assert raw.stdout == whole and (len(whole) == 30 or b"Raw." in whole)
    assert "gateway" in stack.run_here("logs", "gateway", "-n", "5").out
    wrong = stack.run_here("logs", "gatway")
    assert wrong.code == 1 and "worker" in wrong.error
    for action in ("pause", "resume"):
        result = stack.run_here("sources", action, "frontapp", "--json")
        assert result.code == 0 and "note" in result.json, result
    key = stack.run_here("keys", "create", "temporary", "--json").json
    assert stack.run_here("keys", "revoke", key["id"], "--json").json == {
        "id": key["id"],
        "revoked": True,
    }
    replay = stack.run_here("sources", "replay", "documents", "--since", "2026-01-01", "--json")
    assert replay.code == 0, replay
    for since in ("2026-11-27", "7d"):
        assert stack.run_here("search", "dock", "--since", since).code == 0
        assert stack.run_here("events", "--since", since).code == 0
    assert "is not a time" in stack.run_here("search", "dock", "--since", "soon").error


async def test_events_follow_prints_each_change_once(stack: Stack) -> None:
    await stack.remember("follow-0", "There is an event to begin with, whatever test runs first.")
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "apex_memory.cli", "events", "--follow", "--json", "-n", "1"),
        env=os.environ | stack._given,
        cwd=stack.data_dir.parent,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.DEVNULL,
        # A shell starts what runs in the background with Ctrl-C ignored, and so would this one be.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    assert process.stdout
    try:
        async with asyncio.timeout(60):
            await process.stdout.readline()  # the newest event so far
            event = await stack.remember("follow-1", "Followed.")
            lines: list[dict[str, Any]] = []
            while not lines or lines[-1]["state"] != "done":
                line = json.loads(await process.stdout.readline())
                if line["id"] == event["id"]:
                    lines.append(line)
    finally:
        process.send_signal(signal.SIGINT)
        await process.wait()
    assert process.returncode in (0, 130)
    states = [line["state"] for line in lines]
    assert len(set(states)) == len(states)


@pytest.mark.long
@pytest.mark.xdist_group("up")
async def test_up_starts_in_the_background_and_o6_a_changed_embedder_has_one_way_out() -> None:
    async with data_folder() as folder:
        stack = Stack(folder)
        try:
            up = await stack.command("up", "--detach", seconds=180)
            assert up.code == 0 and up.out.startswith("Starting Apex Memory"), up
            assert "Ctrl-C" not in up.out and "apex stop" in up.out
            key = (folder / "admin.key").read_text(encoding="utf-8").strip()
            assert f"API key   {key}" in up.out
            for log in (folder / "log").iterdir():
                assert key not in log.read_text(encoding="utf-8", errors="replace"), log
            assert stack.run_here("status").code == 0
            again = await stack.command("up", "--detach", seconds=180)
            assert again.code == 1 and "already runs" in again.error
            stopped = await stack.command("stop", seconds=100)
            assert stopped.code == 0 and "All stopped." in stopped.out
            assert read_stack(folder) is None
            assert (await stack.command("stop", seconds=100)).code == 0, "there is nothing to stop"
            # Another dimension is noticed by the vectors' folder, another model by PostgreSQL.
            for embedder in ("minilm", "wordllama"):
                stack.set(EMBEDDER=embedder)
                changed = await stack.command("up", seconds=120)
                assert changed.code == 1 and "Traceback" not in changed.error, changed
                assert "set the former embedder again" in changed.error
                assert "reconcile" not in changed.error
            stack.set(EMBEDDER="hashing")
            assert (await stack.command("up", "--detach", seconds=180)).code == 0, (
                "the way out is one"
            )
            assert (await stack.command("stop", seconds=100)).code == 0
        finally:
            if state := read_stack(folder):
                os.kill(state.pid, signal.SIGTERM)
            await until(lambda: not belonging(folder), seconds=40, what=lambda: str(folder))


async def test_wrong_settings_of_a_source_are_refused_before_anything_starts(
    tmp_path: Path,
) -> None:
    stack = Stack(tmp_path / "data", SOURCES__PLAID__SECRTE="x")
    refused = await stack.command("up")
    assert refused.code == 1
    assert "sources.plaid.secrte: unknown setting" in refused.error
    assert "perhaps you mean secret" in refused.error
    assert "docs/reference/sources.md#plaid" in refused.error
    assert not (tmp_path / "data").exists()
