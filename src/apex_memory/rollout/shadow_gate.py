"""What the gates of a rollout know of copies: counts since the step began, without anything that takes long."""

from __future__ import annotations

from apex_memory.rollout.gates import Copies
from apex_memory.rollout.runs import Run
from apex_memory.rollout.shadow_facts import NOT_ACCEPTED
from apex_memory.stores.postgres import Connection, fetch_row


async def copies_of(connection: Connection, run: Run) -> Copies:
    """Return the copies of a run that were compared or given up since its step began.

    A copy queued before counts too: what it is compared with was the same build and path. Nothing compared means that
    nothing is known, and the gate holds.
    """
    copies = await fetch_row(
        connection,
        Copies,
        f"""SELECT count(*) FILTER (WHERE state = 'compared') AS compared,
                   count(*) FILTER (WHERE state = 'compared' AND NOT equal AND {NOT_ACCEPTED}) AS different,
                   count(*) FILTER (WHERE state = 'failed') AS failed
            FROM shadows s
            WHERE s.subject = %s AND s.build = %s AND s.state <> 'waiting' AND s.ended_at >= %s""",
        (run.subject, run.build or "", run.step_began),
    )
    assert copies is not None  # an aggregate always gives a row
    return copies
