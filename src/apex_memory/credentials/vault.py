"""Secrets and tokens at rest: sealed with AES-256-GCM under a key that is not in the database.

Several keys may be there while one replaces the other: the first seals, each opens what it sealed. A
secret's name is bound into its seal, so that one cannot be put in another's place.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
import os
from collections.abc import Awaitable, Callable, Mapping, Sequence
from datetime import datetime
from typing import Any

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from apex_memory.errors import Misconfigured
from apex_memory.stores.postgres import Connection, Postgres

KEY_BYTES = 32
NONCE_BYTES = 12


def new_key() -> str:
    """A fresh key as text, for `secret_key` or a line of the key file."""
    return base64.b64encode(os.urandom(KEY_BYTES)).decode()


def read_keys(texts: Sequence[str]) -> list[bytes]:
    """Keys from their texts. Raises `Misconfigured` for one that is none."""
    keys = []
    for text in filter(None, (line.strip() for line in texts)):
        try:
            key = base64.b64decode(text, validate=True)
        except (binascii.Error, ValueError):
            key = b""
        if len(key) != KEY_BYTES:
            raise Misconfigured(
                "secret_key: expected 32 bytes in base64",
                remedy="make one with `apex secrets key`, or `openssl rand -base64 32`",
            )
        keys.append(key)
    return keys


class Vault:
    """The table `secrets`. Values are JSON; none is ever logged or shown."""

    def __init__(self, db: Postgres, keys: Sequence[bytes]) -> None:
        self._db = db
        self._keys = {_key_id(key): AESGCM(key) for key in keys}
        self._first = _key_id(keys[0]) if keys else ""

    async def get(self, name: str) -> Any:
        """The value under this name; None if there is none. Raises `Misconfigured` without its key."""
        row = await self._db.fetch_one(
            "SELECT key_id, sealed FROM secrets WHERE name = %s", (name,)
        )
        return self._open(name, row) if row else None

    async def all(self, prefix: str) -> dict[str, Any]:
        """Values by name, of all names that begin so."""
        rows = await self._db.fetch(
            "SELECT name, key_id, sealed FROM secrets WHERE starts_with(name, %s)", (prefix,)
        )
        return {row["name"]: self._open(row["name"], row) for row in rows}

    async def put(self, name: str, value: Any, *, actor: str) -> None:
        """Seal and keep a value; it is what holds from then on, in every process within a second."""
        async with self._db.transaction() as connection:
            await self._write(connection, name, value, actor)
            await _audit(connection, actor, "set", name)

    async def remove(self, name: str, *, actor: str) -> bool:
        async with self._db.transaction() as connection:
            gone = await connection.execute("DELETE FROM secrets WHERE name = %s", (name,))
            if gone.rowcount:
                await _audit(connection, actor, "remove", name)
        return bool(gone.rowcount)

    async def change(self, name: str, make: Callable[[Any], Awaitable[Any]], *, actor: str) -> Any:
        """Under a lock over all processes: what `make` makes of the value (None: none yet), kept before the lock ends.

        `make` may answer the very value it was given: then nothing is written.
        """
        async with self._db.transaction() as connection:
            await connection.execute(
                "SELECT pg_advisory_xact_lock(hashtextextended(%s, 0))", (f"secret {name}",)
            )
            row = await (
                await connection.execute(
                    "SELECT key_id, sealed FROM secrets WHERE name = %s", (name,)
                )
            ).fetchone()
            before = self._open(name, row) if row else None
            after = await make(before)
            if after != before:
                await self._write(connection, name, after, actor)
        return after

    async def listed(self) -> list[dict[str, Any]]:
        """Names and times, never values; `readable` tells whether the key is here."""
        rows = await self._db.fetch(
            "SELECT name, key_id, changed_by, changed_at FROM secrets ORDER BY name"
        )
        return [{**row, "readable": row["key_id"] in self._keys} for row in rows]

    async def changed_at(self) -> datetime | None:
        """When anything was last changed, for processes that keep values in memory."""
        row = await self._db.fetch_one("SELECT max(changed_at) AS at, count(*) FROM secrets")
        return row["at"] if row else None

    async def reseal(self) -> int:
        """Seal everything under the first key; answers how many were under another. Then the old key may go."""
        rows = await self._db.fetch(
            "SELECT name, key_id, sealed FROM secrets WHERE key_id <> %s", (self._first,)
        )
        for row in rows:
            value = self._open(row["name"], row)
            async with self._db.transaction() as connection:
                await self._write(connection, row["name"], value, "reseal")
        return len(rows)

    async def _write(self, connection: Connection, name: str, value: Any, actor: str) -> None:
        if not self._keys:
            raise Misconfigured(
                "secret_key: not set, so nothing can be sealed",
                remedy="set APEX_SECRET_KEY or secret_key_file; make a key with `apex secrets key`",
            )
        nonce = os.urandom(NONCE_BYTES)
        sealed = self._keys[self._first].encrypt(nonce, json.dumps(value).encode(), name.encode())
        await connection.execute(
            """INSERT INTO secrets (name, key_id, sealed, changed_by) VALUES (%s, %s, %s, %s)
               ON CONFLICT (name) DO UPDATE SET key_id = excluded.key_id, sealed = excluded.sealed,
                 changed_by = excluded.changed_by, changed_at = clock_timestamp()""",
            (name, self._first, nonce + sealed, actor),
        )

    def _open(self, name: str, row: Mapping[str, Any]) -> Any:
        key = self._keys.get(row["key_id"])
        if key is None:
            raise Misconfigured(
                f"secret {name} is sealed under a key that is not here ({row['key_id']})",
                remedy="add that key to secret_key_file, or set the secret again",
            )
        sealed = bytes(row["sealed"])
        try:
            return json.loads(
                key.decrypt(sealed[:NONCE_BYTES], sealed[NONCE_BYTES:], name.encode())
            )
        except InvalidTag:
            raise Misconfigured(
                f"secret {name} was tampered with", remedy="set the secret again"
            ) from None


async def _audit(connection: Connection, actor: str, action: str, name: str) -> None:
    await connection.execute(
        "INSERT INTO audit (actor, action, subject) VALUES (%s, %s, %s)",
        (actor, f"secret {action}", name),
    )


def _key_id(key: bytes) -> str:
    """Names a key without telling it."""
    return hashlib.sha256(b"apex secret key" + key).hexdigest()[:12]
