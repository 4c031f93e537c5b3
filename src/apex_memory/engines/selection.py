"""The engines that the settings select, and the variables by which other processes reach them."""

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
    """Return the engines for the roles set to `embedded:`, PostgreSQL first. `dimension` is the embedder's.

    Ports and passwords are those of the last run in the data folder, where the ports are still free. Only
    the owner of the folder may call it: it may write `secrets.json`.
    """
    folder = settings.data_dir.resolve()
    known = last_ports(folder)
    chosen: list[int] = []

    def choose(preferred: int | None) -> int:
        chosen.append(free_port(preferred, taken=chosen))
        return chosen[-1]

    def port(name: str) -> int:
        return choose(known.get(name))

    def temporal() -> Temporal:
        own = port("temporal")
        if settings.temporal_ui != EMBEDDED:
            return Temporal(folder, own, "")
        # At a fixed distance, as Temporal does it, so that links to the UI stay valid too.
        return Temporal(folder, own, "", choose(own + 1000 if own < 64000 else None))

    factories: dict[str, Callable[[], Engine]] = {
        "documents": lambda: PostgreSQL(folder, port("postgres"), secret(folder, "documents")),
        "cache": lambda: Valkey(folder, port("valkey"), secret(folder, "cache")),
        "graph": lambda: FalkorDB(folder, port("falkordb"), secret(folder, "graph")),
        "vectors": lambda: Edge(folder, port("vectors"), secret(folder, "vectors"), dimension),
        "temporal": temporal,
    }
    return [create() for role, create in factories.items() if getattr(settings, role) == EMBEDDED]


def environment_for(engines: Sequence[Engine], settings: Settings) -> dict[str, str]:
    """Return the `APEX_*` variables, with passwords, for processes that use these engines."""
    variables = {f"APEX_{engine.role.upper()}": engine.url for engine in engines}
    for engine in engines:
        if isinstance(engine, Temporal) and engine.ui_url:
            variables["APEX_TEMPORAL_UI"] = engine.ui_url
    return {"APEX_DATA_DIR": str(settings.data_dir.resolve()), **variables}
