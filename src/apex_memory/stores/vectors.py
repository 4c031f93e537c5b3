"""Opens the vector store adapter for a URL."""

from __future__ import annotations

from urllib.parse import urlsplit

from apex_memory.errors import Misconfigured
from apex_memory.stores import edge
from apex_memory.stores.base import SERVERS_CHOICE, Replication, VectorStore
from apex_memory.tls import NO_FILES, ClientTls

SERVER_SCHEMES = ("http", "https")


def open_vectors(
    url: str,
    dimension: int,
    *,
    timeout: float,
    bm25_average_words: float,
    api_key: str = "",
    tls: ClientTls = NO_FILES,
    replication: Replication = SERVERS_CHOICE,
) -> VectorStore:
    """Return the adapter for the URL's scheme, not connected yet. `timeout` is in seconds per call; `tls` is for `https`,
    `replication` for a collection that a Qdrant server has to create.

    Raises `Misconfigured` for an unknown scheme.
    """
    scheme = urlsplit(url).scheme
    if scheme in edge.SCHEMES:
        return edge.EdgeVectors(
            url, dimension, timeout=timeout, bm25_average_words=bm25_average_words
        )
    if scheme in SERVER_SCHEMES:
        from apex_memory.stores import qdrant_server

        return qdrant_server.QdrantVectors(
            url,
            dimension,
            timeout=timeout,
            bm25_average_words=bm25_average_words,
            api_key=api_key,
            tls=tls,
            replication=replication,
        )
    raise Misconfigured(
        f"vectors: no adapter for {scheme or 'an empty'}://",
        remedy="use http://host:6333/collection for a Qdrant server, or embedded:",
    )
