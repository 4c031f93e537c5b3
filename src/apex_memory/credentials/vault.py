"""Secrets and tokens at rest: sealed with AES-256-GCM under a key that is not in the database.

Several keys may be configured while one replaces another: the first seals, and each opens what it sealed. A
secret's name is bound into its seal (as associated data), so that no secret can take another's place.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, LiteralString

import stamina

from apex_memory.errors import RetryLater, Unavailable
from apex_memory.sealing import Keyring
from apex_memory.stores.lease import leased
from apex_memory.stores.postgres import Connection, Postgres, fetch_rows
from apex_memory.telemetry import logger

STORE_SECONDS = 120.0  # how long a new value is held in memory while PostgreSQL does not take it
CLOSE_SECONDS = 20.0  # for changes under way at the end of the process

MakeValue = Callable[[Any], Awaitable[Any]]


@dataclass(frozen=True, slots=True)
class SecretRow:
    """What may be shown of a secret. `readable` means that the key which sealed it is configured here."""

    name: str
    key_id: str
    changed_by: str
    changed_at: datetime
    readable: bool = True


@dataclass(slots=True)
class ResealResult:
    """Secrets that were sealed under another key and now are under the first, and those whose key is missing."""

    resealed: int = 0
    unreadable: list[str] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class _Sealed:
    name: str
    key_id: str
    sealed: bytes


class Vault:
    """The table `secrets`. Values are JSON; none is ever logged or shown."""

    def __init__(self, db: Postgres, keys: Keyring) -> None:
        self._db = db
        self._keys = keys
        self._changes: set[asyncio.Task[Any]] = set()
        self._closing = False

    async def close(self) -> None:
        """Wait up to `CLOSE_SECONDS` for the changes under way, then cancel them. No change begins any more.

        Call it before PostgreSQL and the HTTP clients are closed: a vendor may have spent the former refresh
        token, and without the new one a person has to connect the source again.
        """
        self._closing = True
        if not self._changes:
            return
        _, late = await asyncio.wait(self._changes, timeout=CLOSE_SECONDS)
        for task in late:
            logger(component="vault").error("change of a secret lost", change=task.get_name())
            task.cancel()
        await asyncio.gather(*late, return_exceptions=True)

    async def get(self, name: str) -> Any:
        """Return the value of a secret, or None if there is none. Raises `Misconfigured` without its key."""
        async with self._db.connection() as connection:
            rows = await _read(connection, "name = %s", name)
        return self._open(rows[0]) if rows else None

    async def all(self, prefix: str) -> dict[str, Any]:
        """Return the values by name of all secrets whose name starts with `prefix`. Raises `Misconfigured` without a key."""
        async with self._db.connection() as connection:
            rows = await _read(connection, "starts_with(name, %s)", prefix)
        return {row.name: self._open(row) for row in rows}

    async def put(self, name: str, value: Any, *, actor: str) -> None:
        """Seal and store a value. Every process uses it within a second."""
        async with self._db.transaction() as connection:
            await self._write(connection, name, value, actor)
            await _audit(connection, actor, "set", name)

    async def remove(self, name: str, *, actor: str) -> bool:
        """Delete a secret; return False if there was none."""
        async with self._db.transaction() as connection:
            removed = await connection.execute("DELETE FROM secrets WHERE name = %s", (name,))
            if removed.rowcount:
                await _audit(connection, actor, "remove", name)
        return bool(removed.rowcount)

    async def change(self, name: str, make: MakeValue, *, actor: str) -> Any:
        """Store what `make` returns for the current value (None if there is none), and return it.

        One process at a time runs `make`, which may take as long as a vendor needs: no transaction is open
        meanwhile. It may return the value it was given; then nothing is written. A change goes on to its end
        when the caller is cancelled, and holds the new value until PostgreSQL has stored it: a refresh token
        that was spent cannot be had again. Raises `Unavailable` where the vault is closed before `make` runs.
        """
        task = asyncio.create_task(self._change(name, make, actor), name=name)
        self._changes.add(task)
        task.add_done_callback(self._forget_change)
        return await asyncio.shield(task)

    def _forget_change(self, task: asyncio.Task[Any]) -> None:
        self._changes.discard(task)
        if not task.cancelled():
            task.exception()  # a caller that was cancelled does not retrieve it

    async def _change(self, name: str, make: MakeValue, actor: str) -> Any:
        async with leased(self._db, f"secret {name}"):
            before = await self.get(name)
            if self._closing:
                raise Unavailable("documents", "this process ends", remedy="try again")
            after = await make(before)
            if after == before:
                return after
            async for attempt in stamina.retry_context(
                on=(Unavailable, RetryLater),
                attempts=None,
                timeout=STORE_SECONDS,
                wait_initial=0.1,
                wait_max=5,
            ):
                with attempt:
                    return await self._replace(name, before, after, actor)
        raise AssertionError("unreachable: the retry context returns or raises")

    async def _replace(self, name: str, before: Any, after: Any, actor: str) -> Any:
        """Store `after` where the value still is `before`; else return the newer value that somebody stored."""
        async with self._db.transaction() as connection:
            rows = await _read(connection, "name = %s FOR UPDATE", name)
            current = self._open(rows[0]) if rows else None
            if current is None and before is not None:
                return after  # an operator removed it meanwhile: use the new value once, and keep it removed
            if current not in (before, after):
                return current
            await self._write(connection, name, after, actor)
        return after

    async def listed(self) -> list[SecretRow]:
        """Return all secrets by name, without values."""
        return await self._db.fetch_rows(
            SecretRow,
            """SELECT name, key_id, changed_by, changed_at, key_id = ANY(%s) AS readable
               FROM secrets ORDER BY name""",
            (list(self._keys.ids),),
        )

    async def revision(self) -> tuple[datetime | None, int]:
        """Return a value that differs after any change or removal, for processes that keep secrets in memory."""
        row = await self._db.fetch_one("SELECT max(changed_at) AS at, count(*) AS n FROM secrets")
        return (row["at"], row["n"]) if row else (None, 0)

    async def reseal(self, *, actor: str) -> ResealResult:
        """Seal every secret under the first key, so that older keys can be removed. Safe to repeat.

        Do it when every process knows the first key. A secret whose key is not configured stays as it is and
        is listed in the result that this returns. Raises `Misconfigured` without any key.
        """
        result = ResealResult()
        async with self._db.connection() as connection:
            outdated = await _read(connection, "key_id <> %s", self._keys.first)
        for name in sorted(row.name for row in outdated):
            async with self._db.transaction() as connection:
                # Locked, so that a value that is set meanwhile is not replaced by the older one.
                rows = await _read(connection, "name = %s FOR UPDATE", name)
                if not rows or rows[0].key_id == self._keys.first:
                    continue
                if rows[0].key_id not in self._keys.ids:
                    result.unreadable.append(name)
                    continue
                await self._write(connection, name, self._open(rows[0]), actor)
                await _audit(connection, actor, "reseal", name)
                result.resealed += 1
        return result

    async def _write(self, connection: Connection, name: str, value: Any, actor: str) -> None:
        sealed = self._keys.seal(json.dumps(value).encode(), bound=name.encode())
        await connection.execute(
            """INSERT INTO secrets (name, key_id, sealed, changed_by) VALUES (%s, %s, %s, %s)
               ON CONFLICT (name) DO UPDATE SET key_id = excluded.key_id, sealed = excluded.sealed,
                 changed_by = excluded.changed_by, changed_at = clock_timestamp()""",
            (name, self._keys.first, sealed, actor),
        )

    def _open(self, row: _Sealed) -> Any:
        subject = f"secret {row.name}"
        value = self._keys.open(row.key_id, row.sealed, bound=row.name.encode(), subject=subject)
        return json.loads(value)


async def _read(connection: Connection, condition: LiteralString, value: str) -> list[_Sealed]:
    """Return the sealed secrets that match a condition on the table `secrets`."""
    return await fetch_rows(
        connection, _Sealed, f"SELECT name, key_id, sealed FROM secrets WHERE {condition}", (value,)
    )


async def _audit(connection: Connection, actor: str, action: str, name: str) -> None:
    await connection.execute(
        "INSERT INTO audit (actor, action, subject) VALUES (%s, %s, %s)",
        (actor, f"secret {action}", name),
    )
