"""`apex mcp`: the memory for agents that start a program and speak the Model Context Protocol over stdin and stdout."""

from __future__ import annotations

import asyncio
import logging
import sys

from apex_memory.client import AsyncApex
from apex_memory.errors import require_extra


def mcp() -> None:
    """Serve the memory to an agent over stdin and stdout (MCP). Needs a running gateway.

    The gateway is that of APEX_URL, or the stack that runs from APEX_DATA_DIR; the key is APEX_API_KEY. A key with the
    scope `read` shows the tools that read; `remember` needs `ingest`.

    Example: claude mcp add apex-memory -- apex mcp
    """
    require_extra("mcp", extra="mcp", feature="apex mcp")
    # Stdout belongs to the protocol.
    logging.basicConfig(stream=sys.stderr, level=logging.WARNING)
    asyncio.run(_serve())


async def _serve() -> None:
    # The SDK takes seconds to import, which other commands do not need.
    from mcp.server.stdio import stdio_server

    from apex_memory.mcp.server import make_server

    async with AsyncApex() as memory, stdio_server() as (messages, answers):
        server = make_server(lambda context: memory)
        await server.run(messages, answers, server.create_initialization_options())
