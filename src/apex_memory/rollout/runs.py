"""Rollouts by plan: their rows in `rollout_runs`, and every change of them.

A change writes the share (table `rollouts`), the run and the audit trail in one transaction, under a lock of the
run's row. The claim reads the share, so a change acts with the next claim in every process.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from datetime import datetime
from typing import Any, cast

from psycopg.types.json import Jsonb

from apex_memory.errors import Conflict, Misconfigured, NotFound, Rejected
from apex_memory.rollout import builds
from apex_memory.rollout.changes import (
    GATE,
    NOTHING,
    Ended,
    State,
    StepShare,
    audit,
    begin_step,
    end_run,
    lower_share,
    note,
    share_of,
    write_share,
)
from apex_memory.rollout.gates import Check, Decision
from apex_memory.rollout.subjects import BUILD, source_subject
from apex_memory.rollout_settings import SHADOW, Plan, RolloutSettings, Step, first_problem
from apex_memory.stores.postgres import Connection, Postgres, fetch_row

HISTORY = 50
"""Most changes that `Runs.history` returns."""


@dataclass(frozen=True, slots=True)
class Run:
    """A rollout: a row of `rollout_runs`; see `stores/migrations/0009_gates.sql`."""

    id: int
    subject: str
    build: str | None
    plan: Plan
    step: int
    state: State
    approved: bool
    reason: str
    changed_by: str
    started_by: str
    started_at: datetime
    step_began: datetime
    step_seq: int
    calm_seq: int
    baseline: float | None
    verdict: str
    checks: list[dict[str, Any]]
    checked_at: datetime | None
    changes: int
    applied: int
    ended_at: datetime | None

    def __post_init__(self) -> None:
        if not isinstance(self.plan, Plan):  # as it is stored
            object.__setattr__(self, "plan", Plan.model_validate(self.plan))

    @property
    def current(self) -> Step | None:
        """The step that the rollout is at; None after the way back from the first one."""
        return self.plan.steps[self.step] if self.step >= 0 else None

    @property
    def share(self) -> StepShare:
        """The share of the step."""
        return share_of(self.current)

    @property
    def step_name(self) -> str:
        return self.current.name if self.current else "off"


@dataclass(frozen=True, slots=True)
class Change:
    """A share as it is after a change, for what follows it outside PostgreSQL."""

    subject: str
    build: str | None
    share: int
    shadow: bool
    ended: Ended | None
    """How the rollout ended; None while it goes on."""


class Runs:
    """Start, steer and read rollouts. Every method raises `Unavailable` without PostgreSQL.

    Raises `Misconfigured` for settings of a source that does not exist.
    """

    def __init__(self, db: Postgres, settings: RolloutSettings, sources: Collection[str]) -> None:
        unknown = set(settings.sources) - set(sources)
        if unknown:
            raise Misconfigured(
                f"rollout.sources.{min(unknown)}: unknown source",
                remedy=f"known sources: {', '.join(sorted(sources))}",
            )
        self._db = db
        self._settings = settings
        self._sources = sources

    def subject(self, name: str) -> str:
        """Return the subject that a name means: `build`, or a source's name. Raises `NotFound` for another."""
        if name == BUILD:
            return BUILD
        source = name.removeprefix("source:")
        if source not in self._sources:
            raise NotFound(
                f"{source[:100]}: no such source", remedy="`build`, or a source: GET /v1/sources"
            )
        return source_subject(source)

    def plan(self, subject: str, changes: dict[str, Any] | None = None) -> Plan:
        """Return the plan of a subject by the settings, with changes. Raises `Rejected` for what cannot work."""
        try:
            return self._settings.plan_settings(subject).overridden(changes or {}).plan()
        except ValueError as error:
            raise Rejected(
                f"plan.{first_problem(error)}", remedy="see docs/howto/rollout.md"
            ) from None

    async def start(
        self,
        subject: str,
        *,
        actor: str,
        reason: str = "",
        build: str | None = None,
        changes: dict[str, Any] | None = None,
    ) -> Run:
        """Begin a rollout at the first step of its plan, whatever the share was before.

        `changes` replaces settings of the plan for this rollout. Raises `Conflict` while another rollout goes on:
        traffic and code are not rolled out at the same time, or nobody could tell which of them is to blame. Raises it
        too for a build that is current, has no worker or has not passed its check, `NotFound` for one that never ran
        here; a build that begins in shadow may do so later, see `obstacle`.
        """
        plan = self.plan(subject, changes)
        if (subject == BUILD) != bool(build):
            raise Rejected(
                "build: expected for the rollout of a build, and only for it",
                remedy="name the candidate: `apex rollout start build --build ID`",
            )
        self._require_own_decision(subject)
        async with self._db.transaction() as connection:
            await _lock(connection, subject)
            await connection.execute("LOCK TABLE rollout_runs IN SHARE ROW EXCLUSIVE MODE")
            await _require_free(connection, subject)
            if build and plan.steps[0].share:
                await builds.require_candidate(connection, build)
            cursor = await connection.execute(
                """INSERT INTO rollout_runs (subject, build, plan, step, state, reason, changed_by, started_by,
                                             step_seq, calm_seq)
                   SELECT %s, %s, %s, 0, 'running', %s, %s, %s, seq, seq
                   FROM (SELECT coalesce(max(seq), 0) AS seq FROM inbox) newest
                   RETURNING id""",
                (subject, build, Jsonb(plan.model_dump()), reason, actor, actor),
            )
            row = await cursor.fetchone()
            assert row is not None
            first = plan.steps[0]
            await write_share(
                connection, subject, share_of(first), build=build, actor=actor, reason=reason
            )
            await audit(
                connection,
                actor,
                subject,
                "start",
                share_of(first),
                reason,
                run=row["id"],
                build=build,
            )
            return await _by_id(connection, row["id"])

    def _require_own_decision(self, subject: str) -> None:
        if subject != BUILD and self._settings.flags_provider:
            raise Conflict(
                f"{subject}: {self._settings.flags_provider} decides the shares of the sources",
                remedy="change the flag there, or remove the setting rollout.flags_provider",
            )

    async def approve(self, subject: str, *, actor: str, reason: str = "") -> Run:
        """Let a rollout go on that is held or was rolled back, and allow to leave the step.

        The gate must hold as well. After a rollback the facts of the step begin anew.
        """
        async with self._db.transaction() as connection:
            run = await _open(connection, subject)
            if run.state == "running" and run.plan.promotion == "automatic":
                raise Conflict(
                    f"{subject}: nothing to approve, the rollout goes on when its gate holds",
                    remedy="`apex rollout status` shows what it waits for",
                )
            if run.state == "rolled back":
                await begin_step(connection, run.id, run.step)
            await connection.execute(
                """UPDATE rollout_runs SET state = 'running', approved = true, reason = %s, changed_by = %s
                   WHERE id = %s""",
                (reason, actor, run.id),
            )
            await audit(connection, actor, subject, "approve", run.share, reason, run=run.id)
            return await _by_id(connection, run.id)

    async def hold(self, subject: str, *, actor: str, reason: str = "") -> Run:
        """Stay at the step until a person approves. The gate is watched all the same, and may roll back."""
        async with self._db.transaction() as connection:
            run = await _open(connection, subject)
            if run.state == "running":
                await connection.execute(
                    """UPDATE rollout_runs SET state = 'held', approved = false, reason = %s, changed_by = %s
                       WHERE id = %s""",
                    (reason, actor, run.id),
                )
                await audit(connection, actor, subject, "hold", run.share, reason, run=run.id)
            return await _by_id(connection, run.id)

    async def back(
        self, subject: str, *, actor: str, reason: str = "", to: str | None = None
    ) -> Run:
        """Go back to the step before, or to the step with the name `to`; `off` gives the new side nothing at all."""
        async with self._db.transaction() as connection:
            run = await _open(connection, subject)
            step = run.step - 1 if to is None else _step_named(run, to)
            await _go_back(connection, run, step, actor=actor, reason=reason)
            changed = await _by_id(connection, run.id)
        await builds.take_back_rest(self._db, run.build)
        return changed

    async def stop(self, subject: str, *, actor: str, reason: str = "", keep: bool = False) -> Run:
        """End a rollout. The new side processes nothing from now on or, with `keep`, what it processes now."""
        async with self._db.transaction() as connection:
            run = await _open(connection, subject)
            await end_run(connection, run.id, "stopped", actor=actor, reason=reason)
            kept = run.share if keep else NOTHING
            if not keep:
                await lower_share(
                    connection, subject, NOTHING, build=run.build, actor=actor, reason=reason
                )
            await audit(connection, actor, subject, "stop", kept, reason, run=run.id)
            changed = await _by_id(connection, run.id)
        if not keep:
            await builds.take_back_rest(self._db, run.build)
        return changed

    async def obstacle(self, run: Run) -> str:
        """Return why a build cannot process documents yet; empty if it can, and for the rollout of a source."""
        if run.build is None:
            return ""
        try:
            async with self._db.connection() as connection:
                await builds.require_candidate(connection, run.build)
        except (Conflict, NotFound) as error:
            return f"{error}: {error.remedy}"
        return ""

    async def carry_out(self, run: Run, decision: Decision) -> bool:
        """Do what a gate decided. Return False when the run has changed since the decision, which then is void."""
        if decision.kind == "hold":
            return True
        reason = decision.reason
        async with self._db.transaction() as connection:
            await _lock(connection, run.subject)
            now = await _by_id(connection, run.id, lock=True)
            if (now.step, now.state, now.changes, now.ended_at) != (
                run.step,
                run.state,
                run.changes,
                None,
            ):
                return False
            if decision.kind == "back":
                await _go_back(connection, run, run.step - 1, actor=GATE, reason=reason)
            elif decision.kind == "promote":
                await begin_step(connection, run.id, run.step + 1)
                share = share_of(run.plan.steps[run.step + 1])
                await note(connection, run.id, actor=GATE, reason=reason)
                await write_share(
                    connection, run.subject, share, build=run.build, actor=GATE, reason=reason
                )
                await audit(connection, GATE, run.subject, "promote", share, reason, run=run.id)
            else:
                await end_run(connection, run.id, "done", actor=GATE, reason=reason)
                await audit(connection, GATE, run.subject, "finish", run.share, reason, run=run.id)
        if decision.kind == "back":
            await builds.take_back_rest(self._db, run.build)
        return True

    async def record(
        self,
        run: Run,
        decision: Decision,
        gate: Collection[Check],
        *,
        baseline: float | None,
        disturbed: bool,
    ) -> None:
        """Store what the gate of a run says, for people. `disturbed` begins the calm time anew."""
        newest = "(SELECT coalesce(max(seq), 0) FROM inbox)" if disturbed else "calm_seq"
        rows = [
            {"name": check.name, "result": str(check.result), "detail": check.detail}
            for check in gate
        ]
        await self._db.execute(
            f"""UPDATE rollout_runs SET verdict = %s, checks = %s, checked_at = clock_timestamp(), baseline = %s,
                       calm_seq = {newest}
                WHERE id = %s AND step = %s AND ended_at IS NULL""",
            (decision.reason, Jsonb(rows), baseline, run.id, run.step),
        )

    async def going_on(self) -> list[Run]:
        """Return the rollouts that have not ended, oldest first."""
        return await self._find("ended_at IS NULL ORDER BY id")

    async def unapplied(self, subjects: Collection[str]) -> list[tuple[Run, Change]]:
        """Return the runs of these subjects whose last change has not reached what follows it, with the change."""
        if not subjects:
            return []
        runs = await self._find(
            "changes > applied AND subject = ANY(%s) ORDER BY id", list(subjects)
        )
        return [(run, await self._change_of(run)) for run in runs]

    async def _change_of(self, run: Run) -> Change:
        share = await self._db.fetch_row(
            StepShare,
            "SELECT share AS percent, shadow FROM rollouts WHERE subject = %s",
            (run.subject,),
        )
        percent, shadow = share or NOTHING
        ended = cast(Ended, run.state) if run.ended_at else None
        return Change(run.subject, run.build, percent, shadow, ended)

    async def mark_applied(self, run: Run) -> None:
        await self._db.execute(
            "UPDATE rollout_runs SET applied = greatest(applied, %s) WHERE id = %s",
            (run.changes, run.id),
        )

    async def latest(self, subject: str) -> Run | None:
        """Return the newest rollout of a subject, whether or not it has ended."""
        runs = await self._find("subject = %s ORDER BY id DESC LIMIT 1", subject)
        return runs[0] if runs else None

    async def all_latest(self) -> dict[str, Run]:
        """Return the newest rollout of each subject."""
        runs = await self._find(
            "id IN (SELECT max(id) FROM rollout_runs GROUP BY subject) ORDER BY subject"
        )
        return {run.subject: run for run in runs}

    async def history(self, subject: str) -> list[dict[str, Any]]:
        """Return the last changes of a subject's share and rollouts, newest first: when, who, what and why."""
        return [
            {"at": row["at"], "actor": row["actor"], **row["detail"]}
            for row in await self._db.fetch(
                """SELECT at, actor, detail FROM audit WHERE subject = %s AND action = 'rollout'
                   ORDER BY id DESC LIMIT %s""",
                (subject, HISTORY),
            )
        ]

    async def _find(self, where: str, *parameters: Any) -> list[Run]:
        return await self._db.fetch_rows(
            Run, f"SELECT * FROM rollout_runs WHERE {where}", parameters
        )


async def _lock(connection: Connection, subject: str) -> None:
    """Wait until nobody else changes the candidate, before any row is locked. A source's rollout needs nothing."""
    if subject == BUILD:
        await builds.lock_roles(connection)


async def _by_id(connection: Connection, id: int, *, lock: bool = False) -> Run:
    suffix = "FOR UPDATE" if lock else ""
    run = await fetch_row(
        connection, Run, f"SELECT * FROM rollout_runs WHERE id = %s {suffix}", (id,)
    )
    assert run is not None
    return run


async def _open(connection: Connection, subject: str) -> Run:
    """Return the rollout of a subject that goes on, locked. Raises `Conflict` if none does."""
    await _lock(connection, subject)
    run = await fetch_row(
        connection,
        Run,
        "SELECT * FROM rollout_runs WHERE subject = %s AND ended_at IS NULL FOR UPDATE",
        (subject,),
    )
    if run is None:
        raise Conflict(
            f"{subject}: no rollout is in progress", remedy="`apex rollout start` begins one"
        )
    return run


async def _require_free(connection: Connection, subject: str) -> None:
    """Raise `Conflict` when a rollout of the subject goes on, or one of the other kind."""
    cursor = await connection.execute(
        """SELECT subject FROM rollout_runs
           WHERE ended_at IS NULL AND (subject = %(subject)s OR subject = 'build' OR %(subject)s = 'build')
           ORDER BY subject = %(subject)s DESC, subject LIMIT 1""",
        {"subject": subject},
    )
    row = await cursor.fetchone()
    if row is None:
        return
    if row["subject"] == subject:
        raise Conflict(
            f"{subject}: a rollout is in progress already",
            remedy="`apex rollout status` shows it; stop it first to begin anew",
        )
    raise Conflict(
        f"{subject}: a rollout of {row['subject']} is in progress; traffic and code are not rolled out at the same time",
        remedy="wait until it ends, or stop it with `apex rollout stop`",
    )


def _step_named(run: Run, name: str) -> int:
    """Return the number of an earlier step by its name or share; -1 for `off`. Raises `Rejected` for another."""
    names = {"off": -1}
    for n, step in enumerate(run.plan.steps[: run.step]):
        names[SHADOW if step.share == 0 else str(step.share)] = n
    wanted = name.removesuffix("%").strip()
    if wanted not in names:
        raise Rejected(
            f"{name[:50]}: not an earlier step of this rollout",
            remedy=f"earlier are {', '.join(names)}",
        )
    return names[wanted]


async def _go_back(connection: Connection, run: Run, step: int, *, actor: str, reason: str) -> None:
    """Go back to a step, to stay there until a person approves. From the first step the way leads to the end."""
    await begin_step(connection, run.id, step)
    if step < 0:
        await end_run(connection, run.id, "rolled back", actor=actor, reason=reason)
    else:
        await connection.execute(
            "UPDATE rollout_runs SET state = 'rolled back' WHERE id = %s", (run.id,)
        )
        await note(connection, run.id, actor=actor, reason=reason)
    target = share_of(run.plan.steps[step]) if step >= 0 else NOTHING
    await lower_share(connection, run.subject, target, build=run.build, actor=actor, reason=reason)
    await audit(
        connection, actor, run.subject, "back", target, reason, run=run.id, left=run.step_name
    )
