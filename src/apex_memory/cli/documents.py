"""PostgreSQL for commands that work on it directly, without the gateway: backup, restore, upgrade."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from apex_memory.config import EMBEDDED, Settings
from apex_memory.engines.base import free_port
from apex_memory.engines.postgres import PostgreSQL
from apex_memory.engines.state import Stack, last_ports, read_stack, secret
from apex_memory.engines.supervisor import Supervisor
from apex_memory.errors import Conflict, Misconfigured, Unavailable


@asynccontextmanager
async def documents(
    settings: Settings, *, stopped: bool = False, create: bool = False
) -> AsyncIterator[str]:
    """Yield the URL of PostgreSQL. An embedded one that does not run is started for the block.

    With `stopped` a stack that runs from the data folder is a `Conflict`. Without `create` a data folder that does not
    exist is a `Misconfigured`.
    """
    if settings.documents != EMBEDDED:
        yield settings.session_documents
        return
    folder = settings.data_dir.resolve()
    stack = read_stack(folder)
    if stack is not None and stopped:
        raise Conflict(
            f"{folder}: Apex runs here (process {stack.pid})",
            remedy="end it first with `apex stop`",
        )
    if stack is not None:
        yield _running(settings, stack)
        return
    if not create and not (folder / PostgreSQL.name).exists():
        raise Misconfigured(
            f"data_dir: {folder} holds no data of Apex",
            remedy="set APEX_DATA_DIR, or APEX_DOCUMENTS for a PostgreSQL server",
        )
    async with Supervisor(folder, _silent) as supervisor:
        port = free_port(last_ports(folder).get(PostgreSQL.name))
        engine = PostgreSQL(folder, port, secret(folder, PostgreSQL.role))
        await supervisor.start(engine)
        yield engine.url


def _running(settings: Settings, stack: Stack) -> str:
    """Return the URL of the PostgreSQL of a running stack, with its password."""
    folder = settings.data_dir.resolve()
    child = stack.children.get(PostgreSQL.name)
    if child is None or not child.ready:
        raise Unavailable(
            "documents",
            "PostgreSQL of this data folder does not run yet",
            remedy="wait until `apex status` shows it",
        )
    return PostgreSQL(folder, child.port, secret(folder, PostgreSQL.role)).url


def _silent(name: str, what: str, detail: str) -> None:
    """The command reports what it does itself."""
