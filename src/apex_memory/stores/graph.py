"""The graph behind a URL."""

from __future__ import annotations

from urllib.parse import urlsplit

from apex_memory.errors import Misconfigured
from apex_memory.stores import GraphStore
from apex_memory.stores.falkordb import SCHEMES, FalkorGraph


def open_graph(url: str, *, timeout: float) -> GraphStore:
    """The adapter for the URL's scheme. Nothing is connected yet; `timeout` is in seconds a call."""
    scheme = urlsplit(url).scheme
    if scheme in SCHEMES:
        return FalkorGraph(url, timeout=timeout)
    raise Misconfigured(
        f"graph: no adapter for {scheme or 'an empty'}://",
        remedy="use falkordb://:password@host:port/graph, or embedded:",
    )
