"""Health of this installation: stores, backlog, Temporal. Every query is bounded in time."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from contextlib import suppress
from datetime import datetime
from time import perf_counter
from typing import Any, TypeVar

from temporalio.client import Client
from temporalio.service import RPCError

from apex_memory.app import App
from apex_memory.errors import ApexError, Unavailable
from apex_memory.rollout import builds
from apex_memory.stores.base import Store

T = TypeVar("T")

SECONDS = 2.0  # longest one part of the status may take, on a machine with processors to spare
LONGEST_SECONDS = 15.0
DELAYS = 20  # a response takes about so many turns of processes that run late
FAILING_ATTEMPTS = 3  # attempts of a task or activity from which its workflow is reported


def longest_wait(delay: float) -> float:
    """Return how long (s) a check may take when processes run `delay` seconds late: a slow store is not unavailable."""
    return min(SECONDS + DELAYS * delay, LONGEST_SECONDS)


async def store_rows(app: App, seconds: float = SECONDS) -> list[dict[str, Any]]:
    """Return state, version and round trip of each store, which has so many seconds to respond.

    `recovering`: it responds, and is being checked after a restart.
    """
    states, *rows = await asyncio.gather(
        _states(app, 2 * seconds), *(_store(store, seconds) for store in app.stores)
    )
    for row in rows:
        if row["state"] == "ready":
            row["state"] = states.get(row["name"], "ready")
    return rows


async def _states(app: App, seconds: float) -> dict[str, str]:
    try:
        async with asyncio.timeout(seconds):
            return await app.recovery.states()
    except (ApexError, TimeoutError):
        return {}  # the row of PostgreSQL shows that it is unavailable


async def _store(store: Store, seconds: float) -> dict[str, Any]:
    row: dict[str, Any] = {
        "name": store.name,
        "state": "ready",
        "version": None,
        "milliseconds": None,
        "reason": None,
    }
    began = perf_counter()
    try:
        async with asyncio.timeout(seconds):
            # First, because some clients remember the version from when they connected.
            await store.ping()
            row["milliseconds"] = round((perf_counter() - began) * 1000, 1)
            row["version"] = await store.version()
    except ApexError as error:
        row |= {"state": "unavailable", "reason": str(error)[:300]}
    except TimeoutError:
        row |= {"state": "unavailable", "reason": f"no response within {seconds:.0f} s"}
    return row


def reranker_row(app: App) -> dict[str, Any] | None:
    """Return the reranker and whether its last call succeeded, without calling it; None without one."""
    if app.reranker is None:
        return None
    reason = app.reranker.last_failure
    breaker = app.reranker_server.breaker.state
    return {
        "address": app.settings.reranker.partition("?")[0],
        "state": "failing" if reason or breaker != "closed" else "ready",
        "breaker": breaker,
        "reason": reason[:300] or None,
    }


async def promptly(result: Awaitable[T], seconds: float = SECONDS) -> T:
    """Return the result within so many seconds, or raise `Unavailable`: a probe must not wait for a free connection."""
    try:
        async with asyncio.timeout(seconds):
            return await result
    except TimeoutError:
        raise Unavailable("documents", f"no response within {seconds:.0f} s") from None


async def temporal_reachable(client: Client, seconds: float = SECONDS) -> bool:
    """Return whether the Temporal server responds within so many seconds. Without it events land and wait."""
    try:
        async with asyncio.timeout(seconds):
            return await client.service_client.check_health()
    except (RPCError, RuntimeError, TimeoutError):  # RuntimeError: a lazy client could not connect
        return False


async def failing_workflows(client: Client, seconds: float = SECONDS) -> list[dict[str, Any]]:
    """Return running workflows whose current task or activity failed `FAILING_ATTEMPTS` times; empty without Temporal.

    Temporal itself shows such a workflow as running.
    """
    failing: list[dict[str, Any]] = []
    with suppress(RPCError, RuntimeError, TimeoutError):
        async with asyncio.timeout(seconds):
            async for execution in client.list_workflows("ExecutionStatus = 'Running'", limit=100):
                handle = client.get_workflow_handle(execution.id, run_id=execution.run_id)
                described = (await handle.describe()).raw_description
                attempts = {"workflow task": described.pending_workflow_task.attempt}
                for pending in described.pending_activities:
                    attempts["activity"] = max(attempts.get("activity", 0), pending.attempt)
                for what, attempt in attempts.items():
                    if attempt >= FAILING_ATTEMPTS:
                        failing.append({"id": execution.id, "what": what, "attempt": attempt})
    return failing


async def fallback_since(app: App, seconds: float = SECONDS) -> datetime | None:
    """Return since when the fallback is in force; None if it is not, or without PostgreSQL."""
    try:
        return await promptly(app.inbox.fallback_since(), seconds)
    except ApexError:  # the row of PostgreSQL shows that it is unavailable
        return None


async def absent_build(app: App, seconds: float = SECONDS) -> dict[str, Any] | None:
    """Return that the current build has no worker, with the remedy; None if it has, or without PostgreSQL."""
    try:
        absence = await promptly(builds.absence(app.db), seconds)
    except ApexError:  # the row of PostgreSQL shows that it is unavailable
        return None
    if absence is None:
        return None
    return {
        "build": absence.build,
        "seen_seconds": absence.seen_seconds,
        "living": absence.living,
        "detail": absence.detail,
        "remedy": absence.remedy,
    }


async def dead_letters(app: App) -> int:
    row = await app.db.fetch_one("SELECT count(*) AS n FROM dead_letters WHERE status = 'open'")
    return row["n"] if row else 0
