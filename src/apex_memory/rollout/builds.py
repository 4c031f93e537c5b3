"""Which build of Apex does what: the current one, the one before it, the candidate. PostgreSQL decides.

The table `builds` holds a row for each build whose workers have run here. The candidate, and the share of the documents
that it processes, is the row `build` of `rollouts`. Claims read both tables in their own statement, so a change acts with
the next claim in every process, also while Temporal is away. The worker brings Temporal's routing into line
(`flows/builds.py`).
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass, replace
from datetime import datetime
from typing import Literal, LiteralString

from psycopg.types.json import Jsonb

from apex_memory.errors import Conflict, NotFound
from apex_memory.inbox import leases
from apex_memory.inbox.leases import SEEN_LATELY
from apex_memory.rollout.subjects import BUILD
from apex_memory.stores.postgres import Connection, Postgres, fetch_row, fetch_rows

Role = Literal["current", "previous", "waiting", "retired"]

ABSENT_SECONDS = float(leases.ABSENT_SECONDS)
"""A build that was not seen for so long has no worker."""

# Names the advisory lock under which roles change, so that two changes follow one another.
ROLES_LOCK = 0x41504542


@dataclass(frozen=True, slots=True)
class Routing:
    """Which build processes what. Empty names where there is none."""

    current: str = ""
    previous: str = ""
    candidate: str = ""
    """The build that a rollout is about: it processes a share of the documents, or copies of what others process."""
    share: int = 0
    """Per cent of the documents that the candidate processes."""

    def role_of(self, build: str) -> Literal["current", "candidate", "none"]:
        """Return the role of a build in claims. Without a current build, every build is current."""
        if build == self.candidate:
            return "candidate"
        return "current" if self.current in ("", build) else "none"


@dataclass(frozen=True, slots=True)
class Build:
    """A row of `builds`."""

    build: str
    role: Role
    registered_at: datetime
    seen_at: datetime
    """When one of its workers last recorded that it runs."""
    absent: bool
    """Not seen for `ABSENT_SECONDS`."""
    promoted_at: datetime | None
    checked_at: datetime | None
    check_passed: bool | None
    check_detail: str
    unfinished: int
    """Open events that it has claimed."""


@dataclass(frozen=True, slots=True)
class RoutingChange:
    """What a change came to."""

    routing: Routing
    changed: bool
    taken_back: int = 0
    """Unfinished events that were taken from a build and are ready for the current one."""


async def routing(db: Postgres) -> Routing:
    """Return which build processes what."""
    async with db.connection() as connection:
        return await _routing(connection)


async def _routing(connection: Connection) -> Routing:
    routing = await fetch_row(
        connection,
        Routing,
        """SELECT coalesce((SELECT build FROM builds WHERE role = 'current'), '') AS current,
                  coalesce((SELECT build FROM builds WHERE role = 'previous'), '') AS previous,
                  coalesce(r.build, '') AS candidate, coalesce(r.share, 0) AS share
           FROM (SELECT) AS always LEFT JOIN rollouts r
             ON r.subject = 'build' AND (r.share > 0 OR r.shadow) AND NOT EXISTS (SELECT FROM builds b WHERE b.role = 'current' AND b.build = r.build)""",
    )
    assert routing is not None
    return routing if routing.candidate else replace(routing, share=0)


async def listed(db: Postgres) -> list[Build]:
    """Return every build, the current one first, then those seen last."""
    async with db.connection() as connection:
        return await fetch_rows(
            connection,
            Build,
            f"""SELECT build, role, registered_at, seen_at, promoted_at, checked_at, check_passed, check_detail,
                      NOT ({SEEN_LATELY}) AS absent,
                      (SELECT count(*) FROM inbox WHERE open AND batch IS NOT NULL AND inbox.build = builds.build)
                        AS unfinished
               FROM builds ORDER BY role <> 'current', seen_at DESC, build""",
        )


async def living(db: Postgres) -> list[str]:
    """Return the builds that have a worker."""
    rows = await db.fetch(f"SELECT build FROM builds WHERE {SEEN_LATELY}")
    return [row["build"] for row in rows]


@dataclass(frozen=True, slots=True)
class Absence:
    """The current build has no worker: what no candidate processes lands, and waits."""

    build: str
    seen_seconds: float | None
    """Since one of its workers was last seen. None: none was."""
    living: list[str]
    """Builds that have workers, the previous one first."""

    @property
    def detail(self) -> str:
        """What is the matter, for people."""
        seen = "none was ever seen"
        if self.seen_seconds is not None:
            seen = f"none was seen for {self.seen_seconds:.0f} s"
        workers = ", ".join(self.living) or "no build"
        return f"no worker of the current build {self.build} runs ({seen}); workers belong to: {workers}"

    @property
    def remedy(self) -> str:
        """The command that ends it."""
        start = f"start a worker of {self.build}"
        if not self.living:
            return f"{start}: `apex up`, or `python -m apex_memory.flows` on a worker's machine"
        return f"`apex builds promote {self.living[0]}`, or {start}"


async def absence(db: Postgres) -> Absence | None:
    """Return why the current build processes nothing: no worker of it was seen for `ABSENT_SECONDS`. None if one was."""
    return await db.fetch_row(
        Absence,
        f"""SELECT c.build, CASE WHEN isfinite(c.seen_at) THEN extract(epoch FROM clock_timestamp() - c.seen_at)::float END
                AS seen_seconds,
              ARRAY(SELECT b.build FROM builds b
                    WHERE b.role <> 'retired' AND {SEEN_LATELY}
                    ORDER BY b.role <> 'previous', b.seen_at DESC, b.build) AS living
       FROM builds c WHERE c.role = 'current' AND c.build NOT IN (SELECT build FROM builds WHERE {SEEN_LATELY})""",
    )


async def require_candidate(connection: Connection, build: str) -> None:
    """Raise `Conflict` unless a build can be rolled out: it is not current, has a worker, and passed its check.

    Raises `NotFound` if it never ran here.
    """
    if (await _routing(connection)).current == build:
        raise Conflict(
            f"{build} is the current build: it processes every document already",
            remedy="`apex builds list` shows the builds",
        )
    await _require_worker(connection, build)
    await _require_check(connection, build)


async def retired(db: Postgres) -> list[str]:
    """Return the builds that were retired."""
    rows = await db.fetch("SELECT build FROM builds WHERE role = 'retired'")
    return [row["build"] for row in rows]


async def get(db: Postgres, build: str) -> Build:
    """Return one build. Raises `NotFound` for one that never ran here."""
    async with db.connection() as connection:
        return await _row(connection, build)


async def require_worker(db: Postgres, build: str) -> None:
    """Raise `Conflict` if the build has no worker, `NotFound` if it never ran here."""
    async with db.connection() as connection:
        await _require_worker(connection, build)


async def register(db: Postgres, build: str, *, decides: bool) -> Role:
    """Record that a worker of this build runs. Return the role of the build.

    A build that is not known yet waits. `decides` makes it current if there is no current build at all: the first build
    of an installation needs nobody. It is false where somebody else owns the routing.
    """
    async with _changing(db) as connection:
        await connection.execute(
            """INSERT INTO builds (build) VALUES (%s)
               ON CONFLICT (build) DO UPDATE SET seen_at = clock_timestamp()""",
            (build,),
        )
        if decides and not (await _routing(connection)).current:
            await _make_current(connection, build)
            await _audit(connection, "worker", "build promoted", build, reason="the first build")
        cursor = await connection.execute("SELECT role FROM builds WHERE build = %s", (build,))
        row = await cursor.fetchone()
        assert row is not None
        role: Role = row["role"]
        return role


async def ramp(
    db: Postgres,
    build: str,
    share: int,
    *,
    actor: str,
    reason: str = "",
    unchecked: bool = False,
) -> RoutingChange:
    """Let a build process `share` per cent of the documents, 1 to 100, as the candidate.

    Raises `NotFound` for a build that never ran here, and `Conflict` when it is current, has no worker, has not passed
    the replay check (unless `unchecked`), or when another build is the candidate.
    """
    async with _changing(db) as connection:
        before = await _routing(connection)
        await _require_no_plan(connection)
        if before.current == build:
            raise Conflict(
                f"{build} is the current build: it processes every document already",
                remedy="`apex builds list` shows the builds",
            )
        if before.candidate not in ("", build) and before.share:
            raise Conflict(
                f"{before.candidate} is the candidate and processes {before.share} % of the documents",
                remedy="`apex builds rollback` or `apex builds promote` first",
            )
        await _require_worker(connection, build)
        if not unchecked:
            await _require_check(connection, build)
        await connection.execute(
            "UPDATE builds SET role = 'waiting' WHERE build = %s AND role = 'retired'", (build,)
        )
        await connection.execute(
            """INSERT INTO rollouts (subject, share, build, changed_by, reason) VALUES (%s, %s, %s, %s, %s)
               ON CONFLICT (subject) DO UPDATE
               SET share = excluded.share, build = excluded.build, changed_by = excluded.changed_by,
                   reason = excluded.reason, changed_at = clock_timestamp()""",
            (BUILD, share, build, actor, reason),
        )
        await _audit(connection, actor, "build ramped", build, reason=reason, share=share)
        after = await _routing(connection)
        return RoutingChange(after, changed=after != before)


async def promote(
    db: Postgres,
    build: str,
    *,
    actor: str,
    reason: str = "",
    unchecked: bool = False,
    alone: bool = False,
) -> RoutingChange:
    """Make a build current: it processes every document. The one that was current is kept for a rollback.

    `alone` says that the caller owns the installation and no other build runs: the build need not have a worker yet,
    and the others count as absent at once. It leaves a rollout alone when the build is current already. Raises what
    `ramp` raises; a build that is current already stays so.
    """
    async with _changing(db) as connection:
        before = await _routing(connection)
        if alone:  # the caller starts its worker next: until then it counts as seen
            await connection.execute(
                "INSERT INTO builds (build) VALUES (%s) ON CONFLICT (build) DO UPDATE SET seen_at = clock_timestamp()",
                (build,),
            )
        if alone and build == before.current:
            return RoutingChange(before, changed=False)
        if alone:
            await connection.execute(
                "UPDATE builds SET seen_at = '-infinity' WHERE build <> %s", (build,)
            )
        else:
            await _require_no_plan(connection)
            await _require_worker(connection, build)
            if not unchecked and build not in (before.current, before.previous):
                await _require_check(connection, build)
        await _end_rollout(connection)
        if build != before.current:
            await _make_current(connection, build)
            await _audit(
                connection, actor, "build promoted", build, reason=reason, before=before.current
            )
        after = await _routing(connection)
        return RoutingChange(after, changed=after != before)


async def rollback(db: Postgres, *, actor: str, reason: str = "") -> RoutingChange:
    """End the rollout of the candidate; without one, make the previous build current again.

    The unfinished events of the build that loses are taken from it: none of its documents is committed after this
    returns. Raises `Conflict` when there is neither candidate nor previous build,
    or when the previous one has no worker.
    """
    async with _changing(db) as connection:
        before = await _routing(connection)
        if before.candidate:
            loser = before.candidate
            await connection.execute(
                """UPDATE rollout_runs SET state = 'rolled back', ended_at = clock_timestamp(), changed_by = %s,
                          reason = %s, changes = changes + 1
                   WHERE subject = %s AND ended_at IS NULL""",
                (actor, reason, BUILD),
            )
            await _end_rollout(connection)
        elif before.previous:
            loser = before.current
            await _require_worker(connection, before.previous)
            await _make_current(connection, before.previous)
            # Not `previous`: a second rollback must not bring it back.
            await connection.execute(
                "UPDATE builds SET role = 'waiting' WHERE build = %s", (before.current,)
            )
        else:
            raise Conflict(
                "there is no candidate build and no previous one",
                remedy="`apex builds list` shows the builds; `apex builds promote BUILD` makes one current",
            )
        await _audit(
            connection, actor, "build rolled back", loser, reason=reason, share=before.share
        )
        taken_back = await take_back(connection, loser)
        routing = await _routing(connection)
    taken_back += await take_back_rest(db, loser)
    return RoutingChange(routing, changed=True, taken_back=taken_back)


async def retire(db: Postgres, build: str, *, actor: str, reason: str = "") -> RoutingChange:
    """End a build for good: it claims nothing, and what it had claimed is taken from it.

    Raises `Conflict` for the current build and for a candidate that processes documents, `NotFound` for an unknown one.
    """
    async with _changing(db) as connection:
        before = await _routing(connection)
        await _row(connection, build)
        if build == before.current or (build == before.candidate and before.share):
            raise Conflict(
                f"{build} processes documents",
                remedy="promote another build, or roll it back, before it is retired",
            )
        if build == before.candidate:
            await _end_rollout(connection)
        await connection.execute("UPDATE builds SET role = 'retired' WHERE build = %s", (build,))
        await _audit(connection, actor, "build retired", build, reason=reason)
        taken_back = await take_back(connection, build)
        routing = await _routing(connection)
    taken_back += await take_back_rest(db, build)
    return RoutingChange(routing, changed=True, taken_back=taken_back)


async def follow(db: Postgres, current: str, candidate: str, share: int) -> bool:
    """Take over the routing that its owner set in Temporal. Return whether anything changed.

    An unknown current build is recorded without a worker: its own workers register it.
    """
    async with _changing(db) as connection:
        before = await _routing(connection)
        after = Routing(current, before.previous, candidate, share if candidate else 0)
        if after == before:
            return False
        for build in {current, candidate} - {""}:
            await connection.execute(
                "INSERT INTO builds (build, seen_at) VALUES (%s, '-infinity') ON CONFLICT (build) DO NOTHING",
                (build,),
            )
        if current != before.current:
            await _make_current(connection, current)
        await _end_rollout(connection)
        if candidate:
            await connection.execute(
                "INSERT INTO rollouts (subject, share, build, changed_by) VALUES (%s, %s, %s, 'temporal')",
                (BUILD, share, candidate),
            )
        if before.candidate not in ("", candidate, current):
            await take_back(connection, before.candidate)
        await _audit(
            connection,
            "temporal",
            "build routing followed",
            current,
            candidate=candidate,
            share=share,
            before=asdict(before),
        )
    if before.candidate not in ("", candidate, current):
        await take_back_rest(db, before.candidate)
    return True


async def record_check(db: Postgres, build: str, *, passed: bool, detail: str) -> None:
    """Record the result of the replay check of a build. Raises `NotFound` for an unknown one."""
    async with _changing(db) as connection:
        await _row(connection, build)
        await connection.execute(
            """UPDATE builds SET checked_at = clock_timestamp(), check_passed = %s, check_detail = %s
               WHERE build = %s""",
            (passed, detail[:2_000], build),
        )


async def take_back(connection: Connection, build: str, *, wait: bool = False) -> int:
    """Take the unfinished events of a build from it, ready for others at once. Return how many.

    Their stages are aborted, so that the build cannot commit them any more. Events that a step holds at the moment are
    skipped or, with `wait`, waited for: those that a commit holds end with it. The order of the locks is that of a commit:
    events by id, then stages by document.
    """
    ids = await leases.take_back(connection, build, wait=wait)
    skip: LiteralString = "" if wait else "SKIP LOCKED"
    await connection.execute(
        f"""UPDATE stages SET state = 'aborted', ended_at = clock_timestamp(), error = 'its build was rolled back'
           FROM (SELECT stage_id FROM stages WHERE inbox_id = ANY(%s) AND state = 'staging'
                 ORDER BY doc_id FOR UPDATE {skip}) held
           WHERE stages.stage_id = held.stage_id""",
        (ids,),
    )
    return len(ids)


async def take_back_rest(db: Postgres, build: str | None) -> int:
    """Take from a build what its steps held while its share was lowered. Return the number of events.

    Call it when that is committed: it acts at once, also while a step of a stopped worker keeps its events locked.
    """
    if build is None:
        return 0
    async with db.transaction() as connection:
        return await take_back(connection, build, wait=True)


@asynccontextmanager
async def _changing(db: Postgres) -> AsyncIterator[Connection]:
    """Open a transaction in which nobody else changes roles or the candidate."""
    async with db.transaction() as connection:
        await lock_roles(connection)
        yield connection


async def lock_roles(connection: Connection) -> None:
    """Wait until nobody else changes roles or the candidate. The lock lasts until the end of the transaction.

    It comes before every lock of a row, here and in a rollout of a build (`rollout/runs.py`). The rows follow in this
    order: run, share, builds, events, stages. So a command and a gate that decide at the same instant follow one another.
    """
    await connection.execute("SELECT pg_advisory_xact_lock(%s)", (ROLES_LOCK,))


async def _require_no_plan(connection: Connection) -> None:
    cursor = await connection.execute(
        "SELECT FROM rollout_runs WHERE subject = %s AND ended_at IS NULL", (BUILD,)
    )
    if cursor.rowcount:
        raise Conflict(
            "a plan decides the share of the candidate",
            remedy="`apex rollout status build` shows it; `apex rollout stop build` ends it",
        )


async def _make_current(connection: Connection, build: str) -> None:
    """Move the roles: `build` is current, the one that was current is previous, the one before it waits."""
    await connection.execute("UPDATE builds SET role = 'waiting' WHERE role = 'previous'")
    await connection.execute("UPDATE builds SET role = 'previous' WHERE role = 'current'")
    await connection.execute(
        "UPDATE builds SET role = 'current', promoted_at = clock_timestamp() WHERE build = %s",
        (build,),
    )


async def _end_rollout(connection: Connection) -> None:
    await connection.execute("DELETE FROM rollouts WHERE subject = %s", (BUILD,))


async def _row(connection: Connection, build: str) -> Build:
    row = await fetch_row(
        connection,
        Build,
        f"""SELECT build, role, registered_at, seen_at, promoted_at, checked_at, check_passed, check_detail,
                  NOT ({SEEN_LATELY}) AS absent, 0 AS unfinished
           FROM builds WHERE build = %s""",
        (build,),
    )
    if row is None:
        raise NotFound(
            f"{build[:100]}: no worker of this build has run here",
            remedy="start one; `apex builds list` shows the builds",
        )
    return row


async def _require_worker(connection: Connection, build: str) -> None:
    if (await _row(connection, build)).absent:
        raise Conflict(
            f"{build} has no worker: none was seen for {ABSENT_SECONDS:g} s",
            remedy="start its workers first",
        )


async def _require_check(connection: Connection, build: str) -> None:
    row = await _row(connection, build)
    if row.check_passed:
        return
    if row.check_passed is None:
        raise Conflict(
            f"{build} has not been checked", remedy=f"run `apex builds check {build}` first"
        )
    raise Conflict(
        f"{build} did not pass its check: {row.check_detail[:300]}",
        remedy=f"correct it and deploy another build, or run `apex builds check {build}` again",
    )


async def _audit(
    connection: Connection, actor: str, action: str, build: str, **detail: object
) -> None:
    await connection.execute(
        "INSERT INTO audit (actor, action, subject, detail) VALUES (%s, %s, %s, %s)",
        (actor, action, build, Jsonb(detail)),
    )
