"""The statements that change a rollout: share, run and audit trail, each on the caller's transaction."""

from __future__ import annotations

from typing import Any, Literal, NamedTuple

from psycopg.types.json import Jsonb

from apex_memory.rollout.builds import take_back
from apex_memory.rollout_settings import Step
from apex_memory.stores.postgres import Connection

GATE = "gate"
"""The actor of what the gates decide."""

State = Literal["running", "held", "rolled back", "done", "stopped"]
Ended = Literal["done", "stopped", "rolled back"]


class StepShare(NamedTuple):
    """What the new side processes: per cent of the documents, and whether it processes copies of the others."""

    percent: int
    shadow: bool


NOTHING = StepShare(0, False)


def share_of(step: Step | None) -> StepShare:
    """Return what the new side processes at a step; nothing without one."""
    return StepShare(step.share, step.shadow) if step else NOTHING


async def begin_step(connection: Connection, id: int, step: int) -> None:
    """Set the step of a run, whose facts and approval begin anew."""
    await connection.execute(
        """UPDATE rollout_runs SET step = %s, step_began = clock_timestamp(), approved = false, verdict = '',
                  checks = '[]', step_seq = newest.seq, calm_seq = newest.seq, changes = changes + 1
           FROM (SELECT coalesce(max(seq), 0) AS seq FROM inbox) newest WHERE id = %s""",
        (step, id),
    )


async def note(connection: Connection, id: int, *, actor: str, reason: str) -> None:
    await connection.execute(
        "UPDATE rollout_runs SET changed_by = %s, reason = %s WHERE id = %s", (actor, reason, id)
    )


async def end_run(
    connection: Connection, id: int, state: Ended, *, actor: str, reason: str
) -> None:
    """End a run. Does not change the share."""
    await connection.execute(
        """UPDATE rollout_runs SET state = %s, ended_at = clock_timestamp(), changed_by = %s, reason = %s,
                  changes = changes + 1
           WHERE id = %s""",
        (state, actor, reason, id),
    )


async def write_share(
    connection: Connection,
    subject: str,
    share: StepShare,
    *,
    build: str | None,
    actor: str,
    reason: str,
) -> None:
    """Write a share, and the candidate build unless it is None. The next claim of every process follows it."""
    await connection.execute(
        """INSERT INTO rollouts (subject, share, shadow, build, changed_by, reason) VALUES (%s, %s, %s, %s, %s, %s)
           ON CONFLICT (subject) DO UPDATE
           SET share = excluded.share, shadow = excluded.shadow, build = coalesce(excluded.build, rollouts.build),
               changed_by = excluded.changed_by, reason = excluded.reason, changed_at = clock_timestamp()""",
        (subject, *share, build, actor, reason),
    )


async def lower_share(
    connection: Connection,
    subject: str,
    share: StepShare,
    *,
    build: str | None,
    actor: str,
    reason: str,
) -> None:
    """Write a lower share. A build loses its unfinished events at once, and with nothing left it is no candidate."""
    if build and share == NOTHING:
        await connection.execute("DELETE FROM rollouts WHERE subject = %s", (subject,))
    else:
        await write_share(connection, subject, share, build=build, actor=actor, reason=reason)
    if build:
        await take_back(connection, build)


async def audit(
    connection: Connection,
    actor: str,
    subject: str,
    event: str,
    share: StepShare,
    reason: str,
    **more: Any,
) -> None:
    """Write who did what to a rollout, and why. `share` is what holds afterwards."""
    detail = {
        "event": event,
        "share": share.percent,
        "shadow": share.shadow,
        "reason": reason,
        **{name: value for name, value in more.items() if value is not None},
    }
    await connection.execute(
        "INSERT INTO audit (actor, action, subject, detail) VALUES (%s, 'rollout', %s, %s)",
        (actor, subject, Jsonb(detail)),
    )
