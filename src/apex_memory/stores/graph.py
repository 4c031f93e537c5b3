"""Opens the graph adapter for a URL."""

from __future__ import annotations

from urllib.parse import urlsplit

from apex_memory.errors import Misconfigured, require_extra
from apex_memory.stores import postgres_graph
from apex_memory.stores.base import GraphStore
from apex_memory.stores.falkordb import SCHEMES, FalkorGraph
from apex_memory.tls import NO_FILES, ClientTls

NEO4J_SCHEMES = ("neo4j", "neo4j+s", "neo4j+ssc", "bolt", "bolt+s", "bolt+ssc")


def open_graph(url: str, *, timeout: float, tls: ClientTls = NO_FILES) -> GraphStore:
    """Return the adapter for the URL's scheme, not connected yet. `timeout` is in seconds per statement. The scheme says
    whether TLS is used, and `tls` whom it trusts; a URL of PostgreSQL says both by itself.

    Raises `Misconfigured` for an unknown scheme or a driver that is not installed.
    """
    scheme = urlsplit(url).scheme
    if scheme in SCHEMES:
        return FalkorGraph(url, timeout=timeout, tls=tls)
    if scheme in postgres_graph.SCHEMES:
        return postgres_graph.PostgresGraph(url, timeout=timeout)
    if scheme in NEO4J_SCHEMES:
        require_extra("neo4j", extra="neo4j", feature="graph")
        # Imported here, because the driver is an extra that most installations do not have.
        from apex_memory.stores.neo4j_graph import Neo4jGraph

        return Neo4jGraph(url, timeout=timeout, tls=tls)
    raise Misconfigured(
        f"graph: no adapter for {scheme or 'an empty'}://",
        remedy="use postgresql://user:password@host:port/database, falkordb://:password@host:port/graph, neo4j://user:password@host:port/database, or embedded:",
    )
