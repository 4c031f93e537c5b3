"""`apex migrate`: bring a database of your own up to this version, and give it its first admin key."""

from __future__ import annotations

import asyncio
import time

from apex_memory.cli.output import Json, say, show_json
from apex_memory.config import EMBEDDED, Settings, load_settings
from apex_memory.errors import Misconfigured, Unavailable
from apex_memory.stores import schema
from apex_memory.stores.postgres import Postgres

PATIENCE_SECONDS = 60.0  # for a server that starts at the same time
PAUSE_SECONDS = 1.0


def migrate(json: Json = False) -> None:
    """Apply the migrations that the PostgreSQL of the settings lacks. Where `api_key` is set and no admin key exists, it becomes the first one.

    Deployments run this before the gateway and the workers start; it may run any number of times.

    Example: APEX_DOCUMENTS=postgresql://apex@db/apex APEX_API_KEY_FILE=first.key apex migrate
    """
    settings = load_settings()
    if settings.documents == EMBEDDED:
        raise Misconfigured(
            "documents: there is no server to migrate",
            remedy="set APEX_DOCUMENTS to a PostgreSQL server; `apex up` migrates the embedded one",
        )
    applied = asyncio.run(_migrated(settings.session_documents))
    registered = False
    if settings.api_key.get_secret_value():
        registered = asyncio.run(_register(settings))
    if json:
        show_json({"applied": applied, "first_key": registered})
        return
    say(f"{len(applied)} migrations applied." if applied else "The schema is up to date.")
    if registered:
        say("The API key of the settings is the first admin key.")


async def _migrated(documents: str) -> list[str]:
    """Apply missing migrations, and return their names. Waits for a server that does not respond yet."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    while True:
        try:
            return await schema.migrate(documents)
        except Unavailable:
            if time.monotonic() > deadline:
                raise
        await asyncio.sleep(PAUSE_SECONDS)


async def _register(settings: Settings) -> bool:
    # Not at the top: the gateway's libraries would slow the start of every command.
    from apex_memory.credentials.api_keys import register_first_key

    db = Postgres(settings.session_documents, size=1)
    await db.open()
    try:
        return await register_first_key(db, settings.api_key.get_secret_value(), "first key")
    finally:
        await db.close()
