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
from apex_memory.telemetry.exposition import Address


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

    def metrics(name: str, setting: str) -> Address:
        address = Address.parse(setting)
        return Address(address.host, address.port or port(f"{name} metrics"))

    def temporal() -> Temporal:
        own = port("temporal")
        ui = None
        if settings.temporal_ui == EMBEDDED:
            # At a fixed distance, as Temporal does it, so that links to the UI stay valid too.
            ui = choose(own + 1000 if own < 64000 else None)
        address = metrics("temporal", settings.temporal_metrics)
        return Temporal(folder, own, "", ui, address.port)

    def vectors() -> Edge:
        own, password = port("vectors"), secret(folder, "vectors")
        address = metrics("vectors", settings.vectors_metrics)
        return Edge(
            folder,
            own,
            password,
            dimension,
            address,
            log_level=settings.log_level,
            log_format=settings.log_format,
        )

    factories: dict[str, Callable[[], Engine]] = {
        "documents": lambda: PostgreSQL(folder, port("postgres"), secret(folder, "documents")),
        "cache": lambda: Valkey(folder, port("valkey"), secret(folder, "cache")),
        "graph": lambda: FalkorDB(folder, port("falkordb"), secret(folder, "graph")),
        "vectors": vectors,
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
