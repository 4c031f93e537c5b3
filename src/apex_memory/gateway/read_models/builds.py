"""The builds of Apex: their roles in PostgreSQL, and what Temporal shows of the same builds."""

from __future__ import annotations

import asyncio
from dataclasses import asdict, dataclass, field
from typing import Any

from temporalio.service import RPCError

from apex_memory.flows.temporal.deployment import Deployment, DeploymentState
from apex_memory.flows.temporal.queues import QUEUES
from apex_memory.gateway.read_models.status import SECONDS
from apex_memory.rollout import builds
from apex_memory.rollout.builds import Build, Routing
from apex_memory.stores.postgres import Postgres


@dataclass(slots=True)
class _InTemporal:
    """What Temporal shows, as far as it responded."""

    reachable: bool = False
    state: DeploymentState = field(default_factory=DeploymentState)
    pollers: dict[str, int] = field(default_factory=dict)
    runs: dict[str, int] = field(default_factory=dict)


async def builds_report(db: Postgres, deployment: Deployment, *, routing: str) -> dict[str, Any]:
    """Return the routing and every build. Without Temporal its columns are None."""
    now = await builds.routing(db)
    rows = await builds.listed(db)
    temporal = await _in_temporal(deployment)
    return {
        "deployment": deployment.name,
        "routing": routing,
        "current": now.current or None,
        "previous": now.previous or None,
        "candidate": now.candidate or None,
        "share": now.share,
        "temporal": temporal.reachable,
        "in_line": _in_line(now, temporal),
        "manager": temporal.state.manager or None,
        "builds": [_row(row, now, temporal) for row in rows],
    }


def _row(row: Build, now: Routing, temporal: _InTemporal) -> dict[str, Any]:
    statuses = {version.build: version.status for version in temporal.state.versions}
    share = _share(row.build, now)
    shown = asdict(row)
    del shown["absent"]
    return {
        **shown,
        "seen_at": None if row.seen_at.year < 1970 else row.seen_at,
        "role": "candidate" if row.build == now.candidate else row.role,
        "share": share,
        "alive": not row.absent,
        "status": statuses.get(row.build),
        "pollers": temporal.pollers.get(row.build, 0) if temporal.reachable else None,
        "runs": temporal.runs.get(row.build),
    }


def _share(build: str, now: Routing) -> int:
    """Return the per cent of the documents that a build processes."""
    if build == now.candidate:
        return now.share
    return 100 - now.share if build == now.current else 0


def _in_line(now: Routing, temporal: _InTemporal) -> bool | None:
    """Return whether Temporal has the same routing; None while it does not respond."""
    if not temporal.reachable:
        return None
    state = temporal.state
    ramping = now.candidate if now.share else ""
    return (state.current, state.ramping, round(state.percentage)) == (
        now.current,
        ramping,
        now.share if ramping else 0,
    )


async def _in_temporal(deployment: Deployment) -> _InTemporal:
    shown = _InTemporal()
    try:
        async with asyncio.timeout(2 * SECONDS):
            shown.state = await deployment.state()
            shown.pollers = await deployment.pollers(QUEUES)
            for version in shown.state.versions:
                if version.status in ("current", "ramping", "draining") or shown.pollers.get(
                    version.build
                ):
                    shown.runs[version.build] = await deployment.running(version.build)
            shown.reachable = True
    except (RPCError, RuntimeError, TimeoutError):  # RuntimeError: a lazy client could not connect
        return _InTemporal()
    return shown
