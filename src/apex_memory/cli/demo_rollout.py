"""The rollout of the demo: documents move to Temporal step by step, then a bad build is held at 10 % and rolled back.

Documents arrive all the time. The bad build is real: a second worker process with a fault in a mapper
(`demo_bad_build.py`). Its gate sees the failures, and takes the documents back by itself; those that failed are then
processed again by the good build.
"""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from datetime import datetime
from functools import partial
from pathlib import Path
from time import monotonic
from typing import Any
from urllib.parse import quote
from uuid import UUID

from rich.live import Live
from rich.table import Table

from apex_memory.cli.builds import CHECK_SECONDS
from apex_memory.cli.client import Gateway
from apex_memory.cli.output import console, duration, say, styled
from apex_memory.errors import Unavailable
from apex_memory.inbox.routing import bucket_of
from apex_memory.model import document_uuid
from apex_memory.parent_death import die_with_parent

SOURCE = "documents"
SUBJECT = "/v1/rollouts/documents"
BUILD_SUBJECT = "/v1/rollouts/build"
BAD_BUILD = "demo-bad-build"
BAD_SHARE = 10  # per cent of the documents
ROUND_DOCUMENTS = 5  # documents that arrive together
ROUND_SECONDS = 0.5
STALL_SECONDS = 180.0
"""Without any progress for so long, the demo gives up. A slow machine is given as long as it needs."""
PLAN: dict[str, Any] = {
    "min_seconds": 3,
    "min_events": 3,
    # How long things take is the machine's matter here: all engines and the load run on it, too.
    "latency_floor_seconds": 600,
    "backlog_floor": 10_000,
}
STOP_SECONDS = 20.0
WORDS = {
    "start": "start",
    "promote": "go on",
    "finish": "finished",
    "back": "back",
    "stop": "stopped",
}
COLOURS = {"passed": "green", "open": "yellow", "blocked": "yellow", "violated": "red"}


async def show_rollout(api: Gateway, environment: Mapping[str, str], log: Path) -> bool:
    """Roll documents over to Temporal, then a bad build out. Return whether each went as it should.

    `environment` is that of the stack's workers, `log` the file for the output of the bad build's worker.
    """
    keys = _Keys()
    async with _bad_worker(environment, log) as worker:
        good = await _roll_traffic_over(api, keys)
        back = await _roll_bad_build_out(api, keys, worker)
    return good and back and await _repair(api)


class _Keys:
    """Keys of new documents: any, or with an id whose bucket is below a share."""

    def __init__(self) -> None:
        self._n = 0

    def next(self, below: int = 100) -> str:
        while True:
            self._n += 1
            key = f"rollout/{self._n}"
            if bucket_of(_id(key)) < below:
                return key


def _id(key: str) -> UUID:
    return document_uuid(SOURCE, key)


async def _roll_traffic_over(api: Gateway, keys: _Keys) -> bool:
    say(
        "Documents arrive all the time. The direct path processes them; Temporal processes copies, which are compared and "
        "which no reader sees. While its gate holds, Temporal then gets 10, 50 and 100 % of the documents."
    )
    say("")
    began = monotonic()
    await _call(api, "POST", f"{SUBJECT}/start", {"reason": "the demo", "plan": PLAN})
    row = await _until_end(api, keys, SUBJECT, "Temporal")
    done: bool = row["rollout"]["state"] == "done"
    if done:
        say(f"Temporal processes all {SOURCE} after {duration(monotonic() - began)}.")
    return done


async def _roll_bad_build_out(
    api: Gateway, keys: _Keys, worker: asyncio.subprocess.Process
) -> bool:
    say("")
    say(
        "Next, a bad build of Apex: a second worker, whose mapper has a fault that no check sees. It gets "
        f"{BAD_SHARE} % of the documents, and its gate watches what becomes of them."
    )
    say("")
    build = await _checked(api, worker)
    began = monotonic()
    plan = {**PLAN, "steps": [BAD_SHARE, 100]}
    await _call(
        api, "POST", f"{BUILD_SUBJECT}/start", {"reason": "the demo", "build": build, "plan": plan}
    )
    row = await _until_end(api, keys, BUILD_SUBJECT, "the bad build", below=BAD_SHARE)
    letters = await _call(api, "GET", "/v1/dead-letters", params={"source": SOURCE})
    failed = len(letters["dead_letters"])
    good = row["rollout"]["state"] == "rolled back" and failed > 0
    if good:
        say(
            f"Held at {BAD_SHARE} % and rolled back by itself, {_reaction(row, letters['dead_letters'])} after the first "
            f"of {failed} failures. It never had more than {BAD_SHARE} % of the documents."
        )
    else:
        say(("The bad build was not rolled back", "red"), f" in {duration(monotonic() - began)}.")
    return good


def _reaction(row: Mapping[str, Any], letters: Sequence[Mapping[str, Any]]) -> str:
    """Return the time from the first failure to the way back."""
    first = min(datetime.fromisoformat(letter["first_at"]) for letter in letters)
    back = next(change for change in row["history"] if change["event"] == "back")
    return duration((datetime.fromisoformat(back["at"]) - first).total_seconds())


async def _checked(api: Gateway, worker: asyncio.subprocess.Process) -> str:
    """Wait until the bad build has a worker, and check it. Return its id."""
    deadline = monotonic() + STALL_SECONDS
    while True:
        if worker.returncode is not None:
            raise Unavailable("bad build", f"its worker ended with code {worker.returncode}")
        builds = (await _call(api, "GET", "/v1/builds"))["builds"]
        if any(row["build"] == BAD_BUILD and row["alive"] and row["pollers"] for row in builds):
            break
        if monotonic() > deadline:
            raise Unavailable("bad build", f"its worker did not start in {STALL_SECONDS:g} s")
        await asyncio.sleep(ROUND_SECONDS)
    path = f"/v1/builds/{quote(BAD_BUILD)}/check"
    result = await _call(api, "POST", path, {"histories": 1}, timeout=CHECK_SECONDS)
    say(f"Its check before the rollout passed: {result['detail']}.")
    return BAD_BUILD


async def _repair(api: Gateway) -> bool:
    """Process again what failed, now on the good build. Return whether everything is in memory."""
    result = await _call(api, "POST", "/v1/dead-letters/redrive", {"source": SOURCE})
    count = len(result["dead_letters"])
    began = changed = monotonic()
    known = None
    while monotonic() - changed < STALL_SECONDS:
        sources = (await _call(api, "GET", "/v1/sources"))["sources"]
        row = next(row for row in sources if row["name"] == SOURCE)
        left = (row["backlog"], row["dead_letters"])
        if not any(left):
            say(
                f"The good build processed the {count} again in {duration(monotonic() - began)}: nothing is lost."
            )
            return True
        if left != known:
            known, changed = left, monotonic()
        await asyncio.sleep(ROUND_SECONDS)
    say((f"{left[0]} documents still wait, {left[1]} failed", "red"))
    return False


async def _until_end(
    api: Gateway, keys: _Keys, path: str, processor: str, *, below: int = 100
) -> dict[str, Any]:
    """Send documents and show the rollout until it ends; stop it when nothing changes for long. Return it.

    Each round has a document whose bucket is below `below`.
    """
    began = changed = monotonic()
    known: Any = None
    shown = 0
    with Live(console=console(stderr=True), refresh_per_second=4, transient=True) as live:
        while True:
            row = await _call(api, "GET", path)
            run = row["rollout"]
            live.update(_table(processor, row))
            changes = _changes_of(row)
            for change in changes[shown:]:
                _show_change(change, monotonic() - began)
            shown = len(changes)
            if run["ended_at"]:
                return row
            progress = (shown, [check["detail"] for check in run["checks"][1:]])
            if progress != known:
                known, changed = progress, monotonic()
            if monotonic() - changed > STALL_SECONDS:
                reason = f"the demo: nothing changed for {STALL_SECONDS:g} s"
                await _call(api, "POST", f"{path}/stop", {"reason": reason})
                continue
            await _send_round(api, keys, below)
            await asyncio.sleep(ROUND_SECONDS)


async def _send_round(api: Gateway, keys: _Keys, below: int) -> None:
    """Send some documents, and wait for the last one: a slow machine then gets them as fast as it can take them."""
    for n in range(1, ROUND_DOCUMENTS + 1):
        last = n == ROUND_DOCUMENTS
        key = keys.next(below if last else 100)
        text = f"Note {key}: shipment SHP-100045 waits at the dock."
        params = {"wait": "searchable", "timeout": 5} if last else {}
        await _call(api, "POST", "/v1/documents", {"key": key, "text": text}, params=params)


async def _call(
    api: Gateway, method: str, path: str, body: Mapping[str, Any] | None = None, **request: Any
) -> dict[str, Any]:
    """Send a request that may be repeated while the gateway is busy; `api` has the patience."""
    call = partial(api.call, method, path, json=body, **request)
    response: dict[str, Any] = await asyncio.to_thread(call)
    return response


def _table(processor: str, row: Mapping[str, Any]) -> Table:
    """Return the gate of the step, as it is now."""
    run = row["rollout"]
    table = Table(box=None, pad_edge=False, show_header=False, title_justify="left")
    table.title = f"step {run['step']}: {processor} processes {row['share']} % of the documents"
    for check in run["checks"]:
        table.add_row(
            styled((check["result"], COLOURS[check["result"]])),
            check["name"],
            styled(check["detail"]),
        )
    return table


def _changes_of(row: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """Return the changes of the newest rollout, oldest first."""
    changes: list[Mapping[str, Any]] = []
    for change in row["history"]:  # newest first
        changes.insert(0, change)
        if change["event"] == "start":
            break
    return changes


def _show_change(change: Mapping[str, Any], seconds: float) -> None:
    """Print a line of a rollout: when, to which share, and why."""
    share = "shadow" if change["shadow"] and not change["share"] else f"{change['share']} %"
    say(
        (f"{seconds:4.0f} s  ", "dim"),
        (f"{WORDS[change['event']]:<9}", "red" if change["event"] == "back" else "green"),
        f"{share:>6}  ",
        (change["reason"], "dim"),
        hanging=26,
    )


@asynccontextmanager
async def _bad_worker(
    environment: Mapping[str, str], log: Path
) -> AsyncIterator[asyncio.subprocess.Process]:
    """Run the worker of the bad build inside the block."""
    own = {
        "APEX_BUILD_ID": BAD_BUILD,
        "APEX_WORKER_METRICS": "127.0.0.1:0",
        "APEX_BULK_METRICS": "127.0.0.1:0",
    }
    with log.open("ab") as output:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "apex_memory.cli.demo_bad_build"),
            env={**os.environ, **environment, **own},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            preexec_fn=die_with_parent(signal.SIGTERM),
        )
    try:
        yield process
    finally:
        if process.returncode is None:
            process.terminate()
        try:
            async with asyncio.timeout(STOP_SECONDS):
                await process.wait()
        except TimeoutError:
            process.kill()
            await process.wait()
