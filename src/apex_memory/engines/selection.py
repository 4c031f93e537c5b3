"""Which engines the settings ask for, and what the other processes must know to reach them."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from apex_memory.config import EMBEDDED, Settings
from apex_memory.engines.base import Engine, free_port
from apex_memory.engines.edge import Edge
from apex_memory.engines.falkordb import FalkorDB
from apex_memory.engines.postgres import PostgreSQL
from apex_memory.engines.state import last_ports, secret
from apex_memory.engines.temporal import Temporal
from apex_memory.engines.valkey import Valkey


def embedded_engines(settings: Settings, dimension: int) -> list[Engine]:
    """Engines for the roles set to `embedded:`, PostgreSQL first; `dimension` is the embedder's.

    Ports and passwords are those of the last run in the data folder, as far as the ports are free.
    Call it as the owner of the folder: it may write `secrets.json`.
    """
    folder = settings.data_dir.resolve()
    known = last_ports(folder)

    def port(name: str) -> int:
        return free_port(known.get(name))

    def temporal() -> Temporal:
        own = port("temporal")
        # A fixed distance, as Temporal has it, so that links to the UI stay right too.
        return Temporal(folder, own, "", free_port(own + 1000 if own < 64000 else None))

    makers: dict[str, Callable[[], Engine]] = {
        "documents": lambda: PostgreSQL(folder, port("postgres"), secret(folder, "documents")),
        "cache": lambda: Valkey(folder, port("valkey"), secret(folder, "cache")),
        "graph": lambda: FalkorDB(folder, port("falkordb"), secret(folder, "graph")),
        "vectors": lambda: Edge(folder, port("vectors"), secret(folder, "vectors"), dimension),
        "temporal": temporal,
    }
    return [make() for role, make in makers.items() if getattr(settings, role) == EMBEDDED]


def environment_for(engines: Sequence[Engine], settings: Settings) -> dict[str, str]:
    """`APEX_*` variables, with passwords, for processes that use these engines from this data folder."""
    reach = {f"APEX_{engine.role.upper()}": engine.url for engine in engines}
    for engine in engines:
        if isinstance(engine, Temporal):
            reach["APEX_TEMPORAL_UI"] = engine.ui_url
    return {"APEX_DATA_DIR": str(settings.data_dir.resolve()), **reach}
