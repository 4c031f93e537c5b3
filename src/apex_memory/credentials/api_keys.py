"""API keys: created, checked without SQL on the hot path, revoked.

A key is `apex_<id>_<secret>`. Only its SHA-256 digest is stored. A slow hash such as argon2 protects secrets that
people choose, because those can be guessed; this one is 256 random bits, which nobody guesses at any speed, and a
slow hash would cost every request what it costs an attacker.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import json
import re
import secrets
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import datetime
from time import monotonic

from apex_memory.errors import (
    Conflict,
    Forbidden,
    Misconfigured,
    NotFound,
    Rejected,
    Unauthorized,
    Unavailable,
)
from apex_memory.model import now
from apex_memory.stores.postgres import Postgres, fetch_row, fetch_rows

SCOPES = ("ingest", "read", "admin")
FRESH_SECONDS = 5.0  # how long a revoked key may still be accepted
LOAD_SECONDS = 0.2  # least time between two reads of the table, whatever is presented
STALE_SECONDS = 60.0  # how long known keys are accepted while PostgreSQL is unavailable
FIRST_KEY = re.compile(r"apex_[0-9a-f]{12}_[A-Za-z0-9_-]{43,}")
"""The form of the keys that `create_key` makes: an id, and 32 random bytes in base64url."""
USED_SECONDS = 60.0  # how often `used_at` is written
_HOW = "send `Authorization: Bearer apex_…` with a key from `apex keys create`"


@dataclass(frozen=True, slots=True)
class NewKey:
    """A new key. `key` is shown this once and stored nowhere."""

    id: str
    name: str
    scopes: tuple[str, ...]
    key: str


@dataclass(frozen=True, slots=True)
class ValidKey:
    """A valid key, as a request presented it."""

    id: str
    name: str
    scopes: Collection[str]
    digest: bytes

    @property
    def actor(self) -> str:
        """The actor of the audit rows that this key causes."""
        return f"key:{self.id}"

    def may(self, scope: str) -> bool:
        """Return whether the key has the scope; `admin` implies the others."""
        return scope in self.scopes or "admin" in self.scopes


@dataclass(frozen=True, slots=True)
class StoredKey:
    """A key without its digest."""

    id: str
    name: str
    scopes: list[str]
    created_at: datetime
    used_at: datetime | None
    revoked_at: datetime | None


@dataclass(frozen=True, slots=True)
class _KeyScopes:
    id: str
    scopes: list[str]


async def create_key(
    db: Postgres, name: str, scopes: Sequence[str], *, actor: str = "apex"
) -> NewKey:
    """Create a key and return it. Raises `Rejected` for scopes that do not exist, or for none."""
    wanted = tuple(scope for scope in SCOPES if scope in scopes)
    if not wanted or set(scopes) - set(SCOPES):
        raise Rejected("scopes: unknown or none", remedy=f"choose among {', '.join(SCOPES)}")
    id = secrets.token_hex(6)
    key = f"apex_{id}_{secrets.token_urlsafe(32)}"
    async with db.transaction() as connection:
        await connection.execute(
            "INSERT INTO api_keys (id, name, digest, scopes) VALUES (%s, %s, %s, %s)",
            (id, name, _digest(key), list(wanted)),
        )
        await connection.execute(
            "INSERT INTO audit (actor, action, subject, detail) VALUES (%s, 'key created', %s, %s)",
            (actor, id, json.dumps({"name": name, "scopes": wanted})),
        )
    return NewKey(id, name, wanted, key)


async def register_first_key(db: Postgres, key: str, name: str) -> bool:
    """Accept a key that was made elsewhere as the first admin key. Return False where a live admin key exists already.

    Installations without `apex up` bring their first key along, as a secret. Raises `Misconfigured` for a key that is
    not of the form `apex_ID_SECRET` or whose secret is short, and for one that was revoked.
    """
    id = _id(key)
    if not FIRST_KEY.fullmatch(key):
        raise Misconfigured(
            "api_key: not of the form `apex_ID_SECRET`",
            remedy="ID is 12 hexadecimal digits, SECRET 43 or more of A-Z a-z 0-9 _ -",
        )
    async with db.transaction() as connection:
        # One at a time: two jobs at once would both see no key.
        await connection.execute("LOCK TABLE api_keys IN SHARE ROW EXCLUSIVE MODE")
        cursor = await connection.execute(
            "SELECT id, revoked_at FROM api_keys WHERE id = %s OR ('admin' = ANY(scopes) AND revoked_at IS NULL)",
            (id,),
        )
        rows = await cursor.fetchall()
        if any(row["revoked_at"] is None for row in rows):
            return False
        if rows:
            raise Misconfigured(
                "api_key: this key was revoked", remedy="make another one for the secret"
            )
        await connection.execute(
            "INSERT INTO api_keys (id, name, digest, scopes) VALUES (%s, %s, %s, %s)",
            (id, name, _digest(key), ["admin"]),
        )
        await connection.execute(
            "INSERT INTO audit (actor, action, subject, detail) VALUES ('apex', 'key created', %s, %s)",
            (id, json.dumps({"name": name, "scopes": ["admin"]})),
        )
    return True


async def list_keys(db: Postgres) -> list[StoredKey]:
    """Return every key that was ever created, newest first."""
    return await db.fetch_rows(
        StoredKey,
        "SELECT id, name, scopes, created_at, used_at, revoked_at FROM api_keys ORDER BY created_at DESC, id",
    )


async def revoke_key(db: Postgres, id: str, *, actor: str) -> StoredKey:
    """Revoke a key and return it. Raises `NotFound` for an unknown one, `Conflict` for the last admin key."""
    async with db.transaction() as connection:
        # Locks all admin keys, or two revocations at once could take the last two.
        rows = await fetch_rows(
            connection,
            _KeyScopes,
            """SELECT id, scopes FROM api_keys WHERE revoked_at IS NULL AND (id = %s OR 'admin' = ANY(scopes))
               ORDER BY id FOR UPDATE""",
            (id,),
        )
        scopes_of = {row.id: row.scopes for row in rows}
        if id not in scopes_of:
            raise NotFound(
                "key not found, or revoked already", remedy="GET /v1/keys lists the keys"
            )
        if "admin" in scopes_of[id] and len(scopes_of) == 1:
            raise Conflict("this is the last admin key", remedy="create another admin key first")
        revoked = await fetch_row(
            connection,
            StoredKey,
            """UPDATE api_keys SET revoked_at = clock_timestamp() WHERE id = %s
               RETURNING id, name, scopes, created_at, used_at, revoked_at""",
            (id,),
        )
        await connection.execute(
            "INSERT INTO audit (actor, action, subject) VALUES (%s, 'key revoked', %s)", (actor, id)
        )
        assert revoked is not None
        return revoked


class KeyRing:
    """All live keys in memory, read again every few seconds and when an unknown key is presented."""

    def __init__(self, db: Postgres) -> None:
        self._db = db
        self._keys: dict[str, ValidKey] = {}
        self._loading = asyncio.Lock()
        self._loaded_at = self._tried_at = float("-inf")
        self._load_error: Unavailable | None = None
        self._used: dict[str, datetime] = {}

    async def check(self, presented: str | None, scope: str | None) -> ValidKey:
        """Return the key if it is valid and has the scope, if one is given. Raises `Unauthorized` or `Forbidden`.

        Raises `Unavailable` when PostgreSQL is unavailable and the key was not loaded in the last minute.
        """
        if not presented:
            raise Unauthorized("no API key", remedy=_HOW)
        id = _id(presented)
        # An unknown key may be new. All requests that wait share one read, so that guessed keys cost no SQL each.
        if monotonic() - self._tried_at > FRESH_SECONDS or (id and id not in self._keys):
            await self._load()
        key = self._keys.get(id)
        if self._load_error and (key is None or monotonic() - self._loaded_at > STALE_SECONDS):
            raise self._load_error
        if key is None or not hmac.compare_digest(key.digest, _digest(presented)):
            raise Unauthorized("this API key is not valid", remedy=_HOW)
        if scope is not None and not key.may(scope):
            raise Forbidden(
                f"this key lacks the scope `{scope}`",
                remedy=f"use a key with `{scope}`, or create one with `apex keys create`",
            )
        self._used[key.id] = now()
        return key

    def expire(self) -> None:
        """Read the table at the next check, because this process created or revoked a key."""
        self._tried_at = float("-inf")

    async def _load(self) -> None:
        requested = monotonic()
        async with self._loading:
            if self._tried_at > requested:
                return  # a read that began after this call serves it, too
            await asyncio.sleep(max(0.0, self._tried_at + LOAD_SECONDS - requested))
            began = monotonic()
            try:
                keys = await self._db.fetch_rows(
                    ValidKey,
                    "SELECT id, name, scopes, digest FROM api_keys WHERE revoked_at IS NULL",
                )
            except Unavailable as error:
                # Nothing is revoked without PostgreSQL, and the status page must stay readable. All requests
                # that waited for this read use its error, instead of each trying again.
                self._load_error = error
                self._tried_at = monotonic()
                return
            self._load_error = None
            self._tried_at = self._loaded_at = began
            self._keys = {key.id: key for key in keys}

    async def write_used(self) -> None:
        """Record the last use of the keys that were used since the last call."""
        used, self._used = self._used, {}
        if used:
            await self._db.execute(
                """UPDATE api_keys SET used_at = u.at FROM unnest(%s::text[], %s::timestamptz[]) AS u (id, at)
                   WHERE api_keys.id = u.id""",
                (list(used), list(used.values())),
            )


def _id(presented: str) -> str:
    parts = presented.split("_", 2)
    return parts[1] if len(parts) == 3 and parts[0] == "apex" else ""


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).digest()
