"""What follows the rollout of a build: at its end the candidate becomes the current build."""

from __future__ import annotations

from apex_memory.rollout import builds
from apex_memory.rollout.changes import GATE
from apex_memory.rollout.controller import Applied
from apex_memory.rollout.runs import Change
from apex_memory.stores.postgres import Postgres


def promoting(db: Postgres) -> Applied:
    """Return the function that the controller calls after a change of the candidate's share.

    It raises `Conflict` while the candidate has no worker; the controller calls it again.
    """

    async def applied(change: Change) -> None:
        if change.ended == "done" and change.build:
            reason = "the gates of its rollout held"
            await builds.promote(db, change.build, actor=GATE, reason=reason, unchecked=True)

    return applied
